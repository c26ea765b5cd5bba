"""FLOPs from the trace against torch's own counter, with all tokens and with drops inside the decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.scripted import Scripted, some
from helpers.tiny_models import qwen2_5_vl
from stsimdiff.compressors.evs import EVS
from stsimdiff.compressors.fastervlm import FasterVLM
from stsimdiff.cost import DecoderShape, TowerShape, TowerWork, kv_bytes, prefill_flops, prefill_flops_all
from stsimdiff.cost.decoder import closed_form
from stsimdiff.cost.model import ModelShape, sample_cost, sample_flops
from stsimdiff.engine import Compression
from stsimdiff.tokens import Grid
from stsimdiff.trace import Trace

DROPS = [
    {},
    {("input", 0): 0.7},
    {("before", 2): 0.5},
    {("between", 1): 0.8},
    {("input", 0): 0.3, ("between", 1): 0.5, ("before", 3): 0.9},
]


@torch.no_grad()
@pytest.mark.parametrize("drops", DROPS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_agrees_with_the_counter_of_torch(drops: dict, attention: str) -> None:
    case = qwen2_5_vl(0, attention=attention, grid=Grid(8, 6, 6))
    scripted = {place: some(1, share, 288) for place, share in drops.items()}
    # The counter knows no flash kernel on the CPU; the math kernel does the same full square of scores.
    with (
        sdpa_kernel(SDPBackend.MATH),
        Compression(case.decoder, Scripted(scripted), case.layout) as trace,
        FlopCounterMode(display=False) as counter,
    ):
        case.model.generate(**case.inputs, max_new_tokens=1, do_sample=False)
    shape = DecoderShape.from_config(case.model.config.get_text_config())
    ours = prefill_flops(shape, trace.text, trace.entering, trace.mlp, causal=False)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)
    full = prefill_flops_all(shape, trace.text, trace.video)
    causal = prefill_flops(shape, trace.text, trace.entering, trace.mlp)
    assert causal < ours
    assert (causal < full) == bool(drops)


def test_counts_must_be_one_for_each_layer() -> None:
    shape = DecoderShape(2, 8, 16, 2, 1, 4, 10)
    with pytest.raises(ValueError, match="3 and 2 counts for 2 layers"):
        prefill_flops(shape, 1, [1, 1, 1], [1, 1])


def test_closed_form_by_hand() -> None:
    shape = DecoderShape(layers=1, hidden=8, intermediate=16, heads=2, key_heads=1, head_dim=4, vocabulary=10)
    # 3 tokens: q and o 2*3*8*8 each, k and v 2*3*8*4 each, 6 causal pairs, gate/up/down 2*3*8*16 each, head 2*8*10.
    by_hand = 2 * 384 + 2 * 192 + 4 * 6 * 8 + 3 * 768 + 160
    assert prefill_flops(shape, 1, [2], [2]) == by_hand


SHAPE = DecoderShape(layers=2, hidden=8, intermediate=16, heads=2, key_heads=1, head_dim=4, vocabulary=10)


def test_the_form_that_papers_print_by_hand() -> None:
    # 3 tokens: 4*3*8*8 + 2*3*3*8 + 2*3*8*16 = 768 + 144 + 768; 2 tokens: 4*2*8*8 + 2*2*2*8 + 2*2*8*16.
    assert closed_form(SHAPE, 1, [2, 1]) == 1680 + (512 + 64 + 512)


@pytest.mark.parametrize(
    ("layer", "kept", "published"),
    [(2, 0.5, 54.6), (2, 0.25, 32.8), (2, 0.1, 19.9), (3, 0.5, 56.6), (3, 0.1, 22.8)],
)
def test_the_form_gives_what_fastv_printed(layer: int, kept: float, published: float) -> None:
    """Table 1 of FastV: billions a layer of LLaVA-1.5-7B, 99.3 with all tokens, from which their text follows."""
    llava = DecoderShape(32, 4096, 11008, 32, 32, 128, 32000)
    text, image = 36, 576
    assert closed_form(llava, text, [image] * 32) / 32e9 == pytest.approx(99.3, abs=0.05)
    entering = [image] * layer + [round(kept * image)] * (32 - layer)
    assert closed_form(llava, text, entering) / 32e9 == pytest.approx(published, rel=0.015)


def test_bytes_and_weights_by_hand() -> None:
    # Keys and values of one head of 4 numbers, 2 bytes each, for 3 and 2 tokens.
    assert kv_bytes(SHAPE, 1, [2, 1], 2) == 2 * 4 * 2 * (3 + 2)
    # q and o 8*8 each, k and v 8*4 each, three matrices of 8*16 in the MLP; embedding and head 10*8 each.
    layer = 2 * 64 + 2 * 32 + 3 * 128
    assert SHAPE.parameters == 2 * layer + 2 * 80
    assert replace(SHAPE, tied=True).parameters == 2 * layer + 80


@dataclass(frozen=True, kw_only=True)
class Small(ModelShape):
    """A model whose tower sees two patches for each token of the grid, which a projector then joins."""

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return Grid(frames, height, width)

    def tower_work(self, grid: Grid) -> TowerWork:
        patches = 2 * grid.per_frame
        return TowerWork({patches: grid.frames}, patches * grid.frames, grid.tokens, pooling=7)


TOWER = TowerShape(patch=3, width=4, intermediate=5, heads=2, layers=1, projector=(8, 8))


def test_a_sample_s_cost_by_part_by_hand() -> None:
    shape, grid = Small(decoder=SHAPE, tower=TOWER, dtype="float32"), Grid(2, 1, 1)
    trace = Trace(layers=2, video=2, text=1, entering=[2, 1], mlp=[1, 1])
    trace.asked = [("input", 0, 2)]
    cost = sample_cost(shape, SHAPE, trace, grid, EVS(), 2)
    # 4 patches embedded 2*4*3*4, four matrices of 4*4 and two of 4*5, 2 frames of 2*2 pairs.
    vision = 2 * 4 * 12 + 2 * 4 * (64 + 40) + 4 * 8 * 4
    # q, o, k, v and causal pairs of 3 and of 2 tokens; the MLP of 2 tokens in both layers.
    attention = 2 * 3 * 192 + 4 * 6 * 8 + 2 * 2 * 192 + 4 * 3 * 8
    assert cost == {
        "flops": {
            "vision": vision,
            "projector": 2 * 2 * 64 + 7,
            "compressor": 6 * 8,  # one cosine of 8 numbers
            "decoder": attention + 2 * 6 * 2 * 128,
            "head": 160,
        },
        "flops_closed_form": 1680 + 1088,
        "flops_closed_form_all": 2 * 1680,
        "kv_bytes": 80,
    }
    assert shape.parameters == SHAPE.parameters + 3 * 4 + 64 + 40 + 64


def test_parts_of_a_model_whose_sizes_are_not_known_are_not_counted() -> None:
    trace = Trace(layers=2, video=2, text=1, entering=[2, 2], mlp=[2, 2])
    flops = sample_flops(None, SHAPE, trace, Grid(2, 1, 1), FasterVLM())
    assert [name for name, value in flops.items() if value is None] == ["vision", "projector", "compressor"]
    assert flops["decoder"] == 2 * (2 * 3 * 192 + 4 * 6 * 8 + 6 * 3 * 128) and flops["head"] == 160


def test_a_plain_tower_has_no_windows_no_class_token_and_one_projector() -> None:
    tower = TowerShape(patch=1, width=2, intermediate=3, heads=1, layers=1, projector=(2, 2))
    assert (tower.gated, tower.windowed, tower.ends_windowed, tower.class_token) == (False, 0, False, False)
    assert tower.projectors == 1
