"""FLOPs from the trace against torch's own counter, with all tokens and with drops inside the decoder."""

from __future__ import annotations

import pytest
import torch
from test_engine import Scripted, some
from tiny_models import qwen2_5_vl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stsimdiff.cost import DecoderShape, prefill_flops, prefill_flops_all
from stsimdiff.engine import Compression
from stsimdiff.tokens import Grid

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
    shape = DecoderShape(layers=1, hidden=8, intermediate=16, heads=2, key_heads=1, head=4, vocabulary=10)
    # 3 tokens: q and o 2*3*8*8 each, k and v 2*3*8*4 each, 6 causal pairs, gate/up/down 2*3*8*16 each, head 2*8*10.
    by_hand = 2 * 384 + 2 * 192 + 4 * 6 * 8 + 3 * 768 + 160
    assert prefill_flops(shape, 1, [2], [2]) == by_hand
