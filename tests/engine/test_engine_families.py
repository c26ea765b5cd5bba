"""Dropping equals masking on the decoders of every family but Qwen2.5-VL, whose tests are in ``test_engine.py``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from helpers.scripted import DROPS, Scripted, some
from helpers.tiny_models import (
    GRID,
    LAYERS,
    QWEN,
    TEXT,
    WIDTH,
    Case,
    masked_reference,
    of_qwen,
    text_ids,
)
from stsimdiff.models.base import EncodedVideo
from stsimdiff.models.kit.miniatures import TOWER
from stsimdiff.models.kit.running import generate
from stsimdiff.models.llava_video import LlavaVideo
from stsimdiff.models.nvila import NVILA
from stsimdiff.models.qwen2_vl import Qwen2VL


def spliced(family: LlavaVideo | NVILA) -> Case:
    """The prompt of a family whose prompts are embeddings; its positions count tokens."""
    prompt = family.prompt_from_ids(EncodedVideo(torch.randn(GRID.tokens, WIDTH), GRID, {}), *text_ids())
    embeds = prompt.inputs["inputs_embeds"].detach()
    return Case(family, prompt, embeds, torch.arange(embeds.shape[1])[None])


def llava_video(attention: str) -> Case:
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **TOWER, "image_size": 4, "patch_size": 2},
        text_config={"model_type": "qwen2", **TEXT},
    )
    config._attn_implementation = attention
    model = LlavaOnevisionForConditionalGeneration(config)
    return spliced(LlavaVideo(model, None, "tiny", "bilinear", 2, False))


def nvila(attention: str) -> Case:
    model = Qwen2ForCausalLM(Qwen2Config(**TEXT, attn_implementation=attention))
    encoder = {"pool_size": (1, 1, 1), "end_tokens": "\n"}
    return spliced(NVILA(model, None, "tiny", nn.Identity(), nn.Identity(), encoder))


def qwen2_vl(attention: str) -> Case:
    vision = dict(depth=1, embed_dim=16, hidden_size=WIDTH, num_heads=2, mlp_ratio=1)
    config = Qwen2VLConfig(**QWEN, vision_config=vision)
    config._attn_implementation = attention
    return of_qwen(Qwen2VL(Qwen2VLForConditionalGeneration(config), None, "tiny"), GRID)


FAMILIES = {"llava_video": llava_video, "nvila": nvila, "qwen2_vl": qwen2_vl}


def case_of(name: str, seed: int, attention: str = "sdpa") -> Case:
    torch.manual_seed(seed)
    return FAMILIES[name](attention)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_equals_masking(name: str, drop: str, attention: str) -> None:
    case = case_of(name, 0, attention)
    drops = {place: some(n, share) for n, (place, share) in enumerate(DROPS[drop].items())}
    logits, tokens, trace = generate(case, Scripted(drops))
    assert (logits - masked_reference(case, drops, tokens)).abs().max() < 1e-5
    if drop != "between last":  # nothing reads the video tokens after the last layer's attention
        change = (logits - masked_reference(case, {}, tokens)).abs().max()
        assert change > 1e-3, "the drop changes nothing: the test is blind"
    assert trace.final == GRID.tokens - len(set().union(*drops.values()))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_keep_all_is_bit_identical(name: str, attention: str) -> None:
    case = case_of(name, 3, attention)
    stock, _, _ = generate(case, None)
    places = {("input", 0): set(), ("before", 2): set(), ("between", 1): set()}
    logits, _, trace = generate(case, Scripted(places, attention=frozenset({0, 1, 2})))
    assert torch.equal(stock, logits)
    assert trace.entering == trace.mlp == [GRID.tokens] * LAYERS


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_attention_of_several_last_tokens_is_causal_and_averaged(name: str) -> None:
    """As FrameFusion's authors ask four tokens of Qwen2-VL."""
    drops = {("between", 1): set()}
    case = case_of(name, 5, "eager")
    seen = []
    hook = case.family.decoder.layers[1].self_attn.register_forward_hook(
        lambda m, a, out: seen.append(out[1])
    )
    generate(case, None)
    hook.remove()
    run = Scripted(drops, attention=frozenset({1}), queries=4)
    generate(case, run)
    expected = seen[0][0, :, -4:].mean(1)[:, case.prompt.layout.video]
    assert torch.allclose(run.seen["between", 1], expected, atol=1e-6)
