"""LLaVA-OneVision: exact dropping, the stock features, its tower's signals, and a checkpoint folder of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from helpers.scripted import DROPS, Scripted, some
from helpers.tiny_models import IMAGE_TOKEN, TEXT, VIDEO_TOKEN, Case, masked_reference, text_ids
from stsimdiff.errors import ConfigError
from stsimdiff.models import resolve
from stsimdiff.models.base import EncodedVideo, LoadOptions
from stsimdiff.models.kit import miniatures
from stsimdiff.models.kit.running import generate
from stsimdiff.models.llava_onevision import LlavaOnevision
from stsimdiff.resources import embedded_checkpoint
from stsimdiff.tokens import Grid
from stsimdiff.video import Frames

GRID = Grid(4, 3, 3)
TOWER = {
    **miniatures.TOWER,
    "model_type": "siglip_vision_model",
    "image_size": 30,
    "patch_size": 5,
    "vision_use_head": False,
}


def model(attention: str = "sdpa", **text) -> LlavaOnevisionForConditionalGeneration:
    config = LlavaOnevisionConfig(
        vision_config=dict(TOWER),
        text_config={"model_type": "qwen2", **TEXT, **text},
        video_token_index=VIDEO_TOKEN,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    config._attn_implementation = attention
    config.vision_config._attn_implementation = attention
    return LlavaOnevisionForConditionalGeneration(config).eval()


def case_of(seed: int, attention: str) -> Case:
    torch.manual_seed(seed)
    family = LlavaOnevision(model(attention), None, "tiny")
    before, after = text_ids()
    ids = torch.cat((before, torch.full((GRID.tokens + 1,), VIDEO_TOKEN), after))[None]
    features = torch.randn(1, GRID.tokens + 1, TEXT["hidden_size"])
    prompt = family.prompt_from_ids(EncodedVideo(features[0, :-1], GRID, {"features": features}), ids)
    embeds = family.model.get_input_embeddings()(ids).detach().clone()
    embeds[0, ids[0] == VIDEO_TOKEN] = features[0]
    return Case(family, prompt, embeds, torch.arange(ids.shape[1])[None])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("drop", DROPS)
def test_dropping_equals_masking(drop: str, attention: str) -> None:
    case = case_of(0, attention)
    drops = {place: some(n, share, GRID.tokens) for n, (place, share) in enumerate(DROPS[drop].items())}
    logits, tokens, trace = generate(case, Scripted(drops))
    assert (logits - masked_reference(case, drops, tokens)).abs().max() < 1e-5
    assert trace.text == 13 and trace.final == GRID.tokens - len(set().union(*drops.values()))


@torch.no_grad()
def test_keep_all_is_bit_identical() -> None:
    case = case_of(1, "sdpa")
    stock, _, _ = generate(case, None)
    logits, _, _ = generate(case, Scripted({("input", 0): set(), ("between", 1): set()}))
    assert torch.equal(stock, logits)


@torch.no_grad()
def test_signals_are_the_eager_weights_pooled_as_the_features_are() -> None:
    torch.manual_seed(2)
    family = LlavaOnevision(model("eager"), None, "tiny")
    pixels = torch.randn(1, 4, 3, 30, 30)
    weights = []
    last = family.model.model.vision_tower.encoder.layers[-1].self_attn
    hook = last.register_forward_hook(lambda m, a, output: weights.append(output[1]) and None)
    encoded = family.encode_pixels(pixels, signals=True)
    hook.remove()
    stock = family.model.model.get_video_features(pixels, return_dict=True).pooler_output
    assert torch.equal(encoded.features, stock[0, :-1]) and encoded.grid == GRID
    received = weights[0].mean((1, 2))  # (T, 36): mean over heads and queries of the frame
    pooled = family.model.model.apply_pooling(received[:, :, None]).flatten()
    assert torch.allclose(encoded.signals.received, pooled, atol=1e-6)
    assert encoded.signals.keys.shape == (GRID.tokens, 2, 8)


@torch.no_grad()
def test_a_folder_loads_and_equals_the_stock_path(tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>", "<image>"]})
    size = {"height": 30, "width": 30}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template.replace(
            "<|vision_start|><|video_pad|><|vision_end|>", "<video>"
        ),
    )
    torch.manual_seed(3)
    tiny = model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    tiny.config.video_token_index = tiny.config.video_token_id = tokenizer.convert_tokens_to_ids("<video>")
    tiny.config.vision_feature_select_strategy = "full"
    tiny.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    family = resolve("llava_onevision").load(str(tmp_path), LoadOptions(device="cpu"))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (4, 40, 50, 3), dtype=torch.uint8, generator=generator)
    frames = Frames(pixels.numpy(), (0, 1, 2, 3), 4, 2.0)
    prompt = family.prompt(family.encode(frames, signals=True), "What color is the ring?", "q")
    assert prompt.layout.vision is not None
    message = {
        "role": "user",
        "content": [{"type": "video"}, {"type": "text", "text": "What color is the ring?"}],
    }
    chat = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    stock = processor(
        text=[chat], videos=[pixels.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
    )
    assert torch.equal(prompt.inputs["input_ids"], stock["input_ids"])
    ids = family.model.generate(**stock, max_new_tokens=5, do_sample=False)
    expected = tokenizer.decode(ids[0, stock["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert family.answer(prompt, 5) == expected


def test_another_family_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="holds a 'qwen2_5_vl' checkpoint; this family loads 'llava_onevision'"
    ):
        resolve("llava_onevision").load(str(embedded_checkpoint()), LoadOptions(device="cpu"))
