"""FLOPs of every family against torch's own counter: vision tower, projector, and the decoder with drops inside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import Scripted, some
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from stsimdiff.cost import head_flops, kv_bytes, prefill_flops, prefill_flops_all
from stsimdiff.cost.tower import projector_flops, vision_flops
from stsimdiff.engine import Compression
from stsimdiff.errors import ConfigError
from stsimdiff.models import RELEASED
from stsimdiff.models.base import EncodedVideo, Family, LoadOptions, Prompt
from stsimdiff.models.llava_onevision import LlavaOnevision
from stsimdiff.models.llava_video import LlavaVideo
from stsimdiff.models.nvila import NVILA, Projector
from stsimdiff.models.qwen2_5_vl import Qwen25VL
from stsimdiff.models.qwen2_vl import Qwen2VL
from stsimdiff.models.released import CONFIGURATIONS, planned_shape
from stsimdiff.tokens import Grid

WIDTH, LAYERS, VIDEO_TOKEN = 48, 4, 90
TEXT = dict(
    vocab_size=96,
    hidden_size=WIDTH,
    intermediate_size=80,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    bos_token_id=None,
    eos_token_id=95,
    pad_token_id=0,
)
SIGLIP = dict(
    hidden_size=32,
    intermediate_size=56,
    num_attention_heads=2,
    num_hidden_layers=3,
    image_size=36,
    patch_size=4,
    vision_use_head=False,
)
RELEASED_SIZES = sorted(CONFIGURATIONS)
ROPE = dict(rope_type="default", rope_theta=1000.0, mrope_section=[2, 2, 2])


@dataclass
class Sized:
    """A tiny model, and the call that runs its tower and projector."""

    family: Family
    encode: Callable[[], EncodedVideo]

    def prompt(self, video: EncodedVideo) -> Prompt:
        family, before, after = self.family, torch.arange(1, 6), torch.arange(6, 13)
        if isinstance(family, (LlavaVideo, NVILA)):
            return family.prompt_from_ids(video, before, after)
        tokens = video.grid.tokens + isinstance(family, LlavaOnevision)
        ids = torch.cat((before, torch.full((tokens,), VIDEO_TOKEN), after))[None]
        return family.prompt_from_ids(video, ids)


def siglip(class_: type[Family], *more: Any) -> Sized:
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **SIGLIP},
        text_config={"model_type": "qwen2", **TEXT},
        video_token_index=VIDEO_TOKEN,
        image_token_index=91,
        vision_feature_layer=-1,
    )
    family = class_(LlavaOnevisionForConditionalGeneration(config), None, "tiny", *more)
    pixels = torch.randn(4, 3, 36, 36)
    return Sized(family, lambda: family.encode_pixels(pixels[None] if not more else pixels))


def nvila() -> Sized:
    tower = SiglipVisionModel(SiglipVisionConfig(**SIGLIP))
    del tower.encoder.layers[2:]
    encoder = {"pool_size": (2, 1, 1), "end_tokens": "\n"}
    llm = Qwen2ForCausalLM(Qwen2Config(**TEXT))
    family = NVILA(llm, None, "tiny", tower, Projector(32, WIDTH), encoder)
    return Sized(family, lambda: family.encode_pixels(torch.randn(4, 3, 36, 36), torch.tensor([3])))


def qwen(class_: type[Family], model: type[nn.Module], config: type, **vision: Any) -> Sized:
    made = config(
        text_config={**TEXT, "rope_parameters": ROPE},
        vision_config=dict(depth=3, num_heads=2, patch_size=4, **vision),
        video_token_id=VIDEO_TOKEN,
        image_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    family = class_(model(made), None, "tiny")
    thw = torch.tensor([[2, 12, 10]])
    patches = torch.randn(2 * 12 * 10, 3 * 2 * 4 * 4)

    def encode() -> EncodedVideo:
        video = family.encode_patches(patches, thw)
        if class_ is Qwen25VL:
            video.inputs["second_per_grid_ts"] = torch.tensor([1.0])
        return video

    return Sized(family, encode)


FAMILIES: dict[str, Callable[[], Sized]] = {
    "llava_video": lambda: siglip(LlavaVideo, "bilinear", 2, False),
    "llava_video average": lambda: siglip(LlavaVideo, "average", 2, False),
    "llava_onevision": lambda: siglip(LlavaOnevision),
    "nvila": nvila,
    "qwen2_vl": lambda: qwen(
        Qwen2VL, Qwen2VLForConditionalGeneration, Qwen2VLConfig, embed_dim=32, hidden_size=WIDTH, mlp_ratio=2
    ),
    # Windows of 2 x 2 tokens on a grid of 6 x 5: some are cut.
    "qwen2_5_vl": lambda: qwen(
        Qwen25VL,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        hidden_size=32,
        intermediate_size=56,
        out_hidden_size=WIDTH,
        window_size=16,
        fullatt_block_indexes=[1],
    ),
}


def counted(action: Callable[[], Any]) -> tuple[int, Any]:
    # The counter knows no flash kernel on the CPU; the math kernel does the same full square of scores.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = action()
    return counter.get_total_flops(), result


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_tower_and_projector_agree_with_the_counter_of_torch(name: str) -> None:
    torch.manual_seed(0)
    case = FAMILIES[name]()
    measured, video = counted(case.encode)
    shape = case.family.shape
    load = shape.load(video.grid)
    ours = vision_flops(shape.tower, load) + projector_flops(shape.tower, load)
    # The counter does not know pooling.
    assert ours - load.pooling == pytest.approx(measured, rel=0.001)
    assert ours == pytest.approx(measured, rel=0.01)
    assert vision_flops(shape.tower, load) > projector_flops(shape.tower, load) > 0


@torch.no_grad()
@pytest.mark.parametrize("drops", [{}, {("before", 2): 0.5}, {("input", 0): 0.3, ("between", 1): 0.6}])
@pytest.mark.parametrize("name", FAMILIES)
def test_decoder_agrees_with_the_counter_of_torch(name: str, drops: dict) -> None:
    torch.manual_seed(0)
    case = FAMILIES[name]()
    prompt = case.prompt(case.encode())
    tokens = prompt.layout.grid.tokens
    scripted = Scripted({place: some(1, share, tokens) for place, share in drops.items()})
    with Compression(case.family.decoder, scripted, prompt.layout) as trace:
        measured, cache = counted(
            lambda: (
                case.family.model.generate(
                    **prompt.inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True
                ).past_key_values
            )
        )
    shape = case.family.shape.decoder
    ours = prefill_flops(shape, trace.text, trace.entering, trace.mlp, causal=False)
    assert ours == pytest.approx(measured, rel=0.01)
    causal = prefill_flops(shape, trace.text, trace.entering, trace.mlp)
    assert (causal < prefill_flops_all(shape, trace.text, trace.video)) == bool(drops)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert kv_bytes(shape, trace.text, trace.entering, 4) == held


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_those_of_the_model(name: str) -> None:
    family = FAMILIES[name]().family
    parts: list[nn.Module] = [family.model]
    if isinstance(family, NVILA):
        parts += [family.tower, family.projector]
    matrices = sum(p.numel() for part in parts for p in _matrices(part))
    assert family.shape.parameters == pytest.approx(matrices, rel=0.02)


def _matrices(part: nn.Module) -> list[Tensor]:
    """Weights with two axes and more, position tables left out; shared ones once."""
    return [p for name, p in part.named_parameters() if p.ndim > 1 and "position_embedding" not in name]


# Of the real sizes, on the meta device: no weight is ever made.


@pytest.mark.parametrize("name", RELEASED_SIZES)
def test_the_released_sizes_are_read_without_weights(name: str) -> None:
    shape, source = planned_shape(name, None, LoadOptions())
    assert RELEASED[name] in source and shape.dtype == "bfloat16"
    assert 7.4e9 < shape.parameters < 8.4e9
    grid = shape.grid(64, 480, 640)
    expected = {
        "llava_video": Grid(64, 13, 14),
        "llava_onevision": Grid(64, 14, 14),
        "nvila": Grid(8, 1, 257),
        "qwen2_vl": Grid(32, 17, 23),
        "qwen2_5_vl": Grid(32, 17, 23),
    }
    assert grid == expected[name]
    load = shape.load(grid)
    assert vision_flops(shape.tower, load) > 10 * projector_flops(shape.tower, load)


def test_the_paper_s_pooling_is_an_option_of_the_released_sizes() -> None:
    shape, _ = planned_shape("llava_video", None, LoadOptions(family={"pooling": "bilinear"}))
    assert shape.grid(64, 1, 1) == Grid(64, 14, 15)


@torch.no_grad()
def test_a_7b_decoder_on_the_meta_device() -> None:
    shape, _ = planned_shape("qwen2_5_vl", None, LoadOptions())
    with torch.device("meta"):
        config = Qwen2_5_VLConfig.from_dict(CONFIGURATIONS["qwen2_5_vl"]["config.json"])
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
        embeds = torch.empty(1, 6000, 3584, dtype=torch.bfloat16)
    parameters = sum(p.numel() for p in model.parameters())
    assert shape.parameters == pytest.approx(parameters, rel=0.01)
    language = model.model.language_model
    measured, _ = counted(lambda: [layer_flops(language, embeds)])
    ours = prefill_flops(shape.decoder, 6000 - 5824, [5824] * 28, [5824] * 28, causal=False)
    assert ours - head_flops(shape.decoder) == pytest.approx(measured, rel=0.01)


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
        for file, content in CONFIGURATIONS["nvila"].items():
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
