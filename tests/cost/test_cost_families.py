"""FLOPs of every family against torch's own counter: vision tower, projector, and the decoder with drops inside it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from helpers.scripted import Scripted, some
from stsimdiff.cost import kv_bytes, lm_head_flops, prefill_flops, prefill_flops_all
from stsimdiff.cost.tower import projector_flops, signal_flops, vision_flops
from stsimdiff.engine import Compression
from stsimdiff.errors import ConfigError
from stsimdiff.models import FAMILIES, info, resolve
from stsimdiff.models.base import Family, LoadOptions
from stsimdiff.models.nvila import NVILA
from stsimdiff.models.released import planned_shape
from stsimdiff.tokens import Grid
from stsimdiff.video import Frames

# Of each family a miniature; Qwen2.5-VL's has windows that are cut at the grid's edge, and layers with and without.
OPTIONS = {"llava_video average": {"pooling": "average"}}
CASES = [*sorted(FAMILIES), *OPTIONS]
RELEASED_SIZES = sorted(FAMILIES)


def options_for(name: str) -> LoadOptions:
    return LoadOptions(device="cpu", family=OPTIONS.get(name, {}))


@pytest.fixture(scope="module")
def load(miniature) -> Callable[[str], Family]:
    """Gives the model of a case, loaded once."""

    @functools.cache
    def loaded(name: str) -> Family:
        family = name.partition(" ")[0]
        return resolve(family).load(str(miniature(family)), options_for(name))

    return loaded


def frames_of(count: int = 6, height: int = 90, width: int = 70) -> Frames:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    return Frames(pixels.numpy(), tuple(range(0, 10 * count, 10)), 10 * count, 5.0)


def counted(action: Callable[[], Any]) -> tuple[int, Any]:
    # The counter knows no flash kernel on the CPU; the math kernel does the same full square of scores.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = action()
    return counter.get_total_flops(), result


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_tower_and_projector_agree_with_the_counter_of_torch(load, name: str) -> None:
    family = load(name)
    measured, video = counted(lambda: family.encode(frames_of()))
    shape = family.shape
    load_ = shape.tower_work(video.grid)
    ours = vision_flops(shape.tower, load_) + projector_flops(shape.tower, load_)
    # The counter does not know pooling.
    assert ours - load_.pooling == pytest.approx(measured, rel=0.001)
    assert ours == pytest.approx(measured, rel=0.01)
    assert vision_flops(shape.tower, load_) > projector_flops(shape.tower, load_) > 0


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_signals_agree_with_the_counter_of_torch(load, name: str) -> None:
    family = load(name)
    plain, video = counted(lambda: family.encode(frames_of()))
    reading, _ = counted(lambda: family.encode(frames_of(), signals=True))
    shape = family.shape
    assert signal_flops(shape.tower, shape.tower_work(video.grid)) == pytest.approx(
        reading - plain, rel=0.001
    )


@torch.no_grad()
@pytest.mark.parametrize("drops", [{}, {("before", 2): 0.5}, {("input", 0): 0.3, ("between", 1): 0.6}])
@pytest.mark.parametrize("name", CASES)
def test_decoder_agrees_with_the_counter_of_torch(load, name: str, drops: dict) -> None:
    family = load(name)
    prompt = family.prompt(family.encode(frames_of()), "What is it?", "q")
    tokens = prompt.layout.grid.tokens
    scripted = Scripted({place: some(1, share, tokens) for place, share in drops.items()})
    with Compression(family.decoder, scripted, prompt.layout) as trace:
        measured, cache = counted(
            lambda: family.generate(prompt, 1, return_dict_in_generate=True).past_key_values
        )
    shape = family.shape.decoder
    ours = prefill_flops(shape, trace.text, trace.entering, trace.mlp, causal=False)
    assert ours == pytest.approx(measured, rel=0.01)
    causal = prefill_flops(shape, trace.text, trace.entering, trace.mlp)
    assert (causal < prefill_flops_all(shape, trace.text, trace.video)) == bool(drops)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert kv_bytes(shape, trace.text, trace.entering, 4) == held


@pytest.mark.parametrize("name", CASES)
def test_sizes_from_the_files_alone_are_those_of_the_loaded_model(load, miniature, name: str) -> None:
    family, folder = load(name), str(miniature(name.partition(" ")[0]))
    shape, source = planned_shape(name.partition(" ")[0], folder, options_for(name))
    assert shape == family.shape and folder in source
    for sizes in ((6, 90, 70), (3, 40, 300), (2, 64, 64)):
        assert shape.grid(*sizes) == family.encode(frames_of(*sizes)).grid
    parts: list[nn.Module] = [family.model]
    if isinstance(family, NVILA):
        parts += [family.tower, family.projector]
    matrices = sum(
        p.numel()
        for part in parts
        for name_, p in part.named_parameters()
        if p.ndim > 1 and not any(word in name_ for word in ("position_embed", "pos_embed", "cls_token"))
    )
    assert shape.parameters == pytest.approx(matrices, rel=0.02)


# Of the real sizes, on the meta device: no weight is ever made.


@pytest.mark.parametrize("name", RELEASED_SIZES)
def test_the_released_sizes_are_read_without_weights(name: str) -> None:
    shape, source = planned_shape(name, None, LoadOptions())
    assert info(name).released in source and shape.dtype == "bfloat16"
    assert 7.4e9 < shape.parameters < 8.9e9
    grid = shape.grid(64, 480, 640)
    expected = {
        "llava_video": Grid(64, 14, 15),
        "llava_onevision": Grid(64, 14, 14),
        "nvila": Grid(8, 1, 257),
        "qwen2_vl": Grid(32, 17, 23),
        "qwen2_5_vl": Grid(32, 17, 23),
        "qwen3_vl": Grid(32, 15, 20),
        "internvl": Grid(64, 16, 16),
    }
    assert grid == expected[name]
    load = shape.tower_work(grid)
    assert vision_flops(shape.tower, load) > 10 * projector_flops(shape.tower, load)


def test_the_authors_pooling_is_an_option_of_the_released_sizes() -> None:
    shape, _ = planned_shape("llava_video", None, LoadOptions(family={"pooling": "average"}))
    assert shape.grid(64, 1, 1) == Grid(64, 13, 14)


@torch.no_grad()
def test_a_7b_decoder_on_the_meta_device() -> None:
    shape, _ = planned_shape("qwen2_5_vl", None, LoadOptions())
    with torch.device("meta"):
        config = Qwen2_5_VLConfig.from_dict(resolve("qwen2_5_vl").released_files["config.json"])
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
        embeds = torch.empty(1, 6000, 3584, dtype=torch.bfloat16)
    parameters = sum(p.numel() for p in model.parameters())
    assert shape.parameters == pytest.approx(parameters, rel=0.01)
    language = model.model.language_model
    measured, _ = counted(lambda: [layer_flops(language, embeds)])
    ours = prefill_flops(shape.decoder, 6000 - 5824, [5824] * 28, [5824] * 28, causal=False)
    assert ours - lm_head_flops(shape.decoder) == pytest.approx(measured, rel=0.01)


def layer_flops(language: nn.Module, embeds: Tensor) -> Tensor:
    """All layers once, with positions that need no data."""
    positions = (torch.empty(1, embeds.shape[1], 128, device="meta", dtype=embeds.dtype),) * 2
    hidden = embeds
    for layer in language.layers:
        found = layer(hidden, position_embeddings=positions, attention_mask=None)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden


class TestPlannedShape:
    def test_a_folder_with_nothing_but_its_configuration(self, tmp_path: Path) -> None:
        for file, content in resolve("nvila").released_files.items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(
                json.dumps(content | {"num_hidden_layers": 5} if "llm" in file else content)
            )
        shape, source = planned_shape("nvila", str(tmp_path), LoadOptions())
        assert shape.decoder.layers == 5 and str(tmp_path) in source

    def test_files_of_another_family(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        for name in RELEASED_SIZES:
            with pytest.raises(ConfigError, match="holds a 'llama' checkpoint"):
                planned_shape(name, str(tmp_path), LoadOptions())

    def test_a_family_that_does_not_say_its_sizes(self) -> None:
        with pytest.raises(ConfigError, match="without its weights"):
            Family.shape_from({}, LoadOptions())
        assert Family.shape.fget(None) is None
