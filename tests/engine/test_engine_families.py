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

from helpers.decoder_cases import LAYERS, TEXT, WIDTH, Case, generate, masked_reference, text_ids
from helpers.scripted import DROPS, Scripted, some
from helpers.tiny_models import VIDEO_TOKEN, VISION_END, VISION_START
from stsimdiff.models.base import EncodedVideo
from stsimdiff.models.llava_video import LlavaVideo
from stsimdiff.models.nvila import NVILA
from stsimdiff.models.qwen2_vl import Qwen2VL
from stsimdiff.tokens import Grid

GRID = Grid(4, 3, 4)
VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_attention_heads=2,
    num_hidden_layers=1,
    image_size=4,
    patch_size=2,
)


def spliced(family: LlavaVideo | NVILA) -> Case:
    """The prompt of a family whose prompts are embeddings; its positions count tokens."""
    prompt = family.prompt_from_ids(EncodedVideo(torch.randn(GRID.tokens, WIDTH), GRID, {}), *text_ids())
    embeds = prompt.inputs["inputs_embeds"].detach()
    return Case(family, prompt, embeds, torch.arange(embeds.shape[1])[None])


def llava_video(attention: str) -> Case:
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
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
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": dict(rope_type="default", rope_theta=1000.0, mrope_section=[2, 2, 2]),
        },
        vision_config=dict(depth=1, embed_dim=16, hidden_size=WIDTH, num_heads=2, mlp_ratio=1),
        video_token_id=VIDEO_TOKEN,
        image_token_id=91,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    config._attn_implementation = attention
    family = Qwen2VL(Qwen2VLForConditionalGeneration(config), None, "tiny")
    before, after = text_ids()
    middle = [VISION_START, *[VIDEO_TOKEN] * GRID.tokens, VISION_END]
    ids = torch.cat((before, torch.tensor(middle), after))[None]
    thw = torch.tensor([[GRID.frames, GRID.height * 2, GRID.width * 2]])
    video = EncodedVideo(torch.randn(GRID.tokens, WIDTH), GRID, {"video_grid_thw": thw})
    prompt = family.prompt_from_ids(video, ids)
    embeds = family.model.get_input_embeddings()(ids).detach().clone()
    embeds[0, prompt.layout.video] = video.features
    positions, _ = family.model.model.get_rope_index(
        ids, mm_token_type_ids=prompt.inputs["mm_token_type_ids"], video_grid_thw=thw
    )
    return Case(family, prompt, embeds, positions)


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
