"""Qwen3-VL and InternVL3 through the product's own path against the stock processor and model, and what they refuse."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from stsimdiff import models
from stsimdiff.budget import Budget
from stsimdiff.compressors.controls import NoVideo
from stsimdiff.engine import Compression
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.kit import running
from stsimdiff.tokens import Grid
from stsimdiff.video import Frames

TEXT = "What color is the ring?\nA. red\nB. blue\nAnswer."
OPTIONS = LoadOptions(device="cpu", dtype="float32")
NAMES = ("qwen3_vl", "internvl")


@pytest.fixture(scope="module")
def families(miniature) -> dict:
    return {name: models.resolve(name).load(str(miniature(name)), OPTIONS) for name in NAMES}


def sparse(count: int) -> Frames:
    """Every fifth frame of a film of 30 frames a second, so that times are no whole numbers."""
    frames = running.synthetic_frames(count)
    return Frames(frames.pixels, tuple(range(0, 5 * count, 5)), 5 * count, 30.0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "count"), [("qwen3_vl", 6), ("qwen3_vl", 7), ("internvl", 1), ("internvl", 7)]
)
def test_prompt_and_answer_equal_the_stock_path(miniature, families, name, count) -> None:
    family, frames = families[name], sparse(count)
    prompt = family.prompt(family.encode(frames), TEXT)
    processor = AutoProcessor.from_pretrained(miniature(name))
    model = AutoModelForImageTextToText.from_pretrained(miniature(name), dtype=torch.float32)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": TEXT}]}
    chat = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    metadata = VideoMetadata(
        total_num_frames=frames.total, fps=frames.fps, frames_indices=list(frames.indices)
    )
    more = {"cap_pixels_per_frame": True} if name == "qwen3_vl" else {}
    stock = processor(
        text=[chat],
        videos=[torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
        **more,
    )
    assert torch.equal(prompt.inputs["input_ids"], stock["input_ids"])
    for key in ("mm_token_type_ids", "video_grid_thw"):
        if key in stock:
            assert torch.equal(prompt.inputs[key], stock[key].to(prompt.inputs[key])), key
    options = dict(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    expected, found = model.generate(**stock, **options), family.model.generate(**prompt.inputs, **options)
    assert torch.equal(expected.sequences, found.sequences)
    assert all(torch.equal(a, b) for a, b in zip(expected.logits, found.logits, strict=True))
    ids = expected.sequences[0, stock["input_ids"].shape[1] :]
    assert family.answer(prompt, 6) == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_single_frame_of_qwen3_vl_stands_for_a_pair(families) -> None:
    """As the last frame of an odd number does; the stock processor refuses a single one."""
    one = sparse(1)
    encoded = families["qwen3_vl"].encode(one)
    pair = Frames(one.pixels.repeat(2, axis=0), (0, 0), 5, 30.0)
    assert encoded.grid.frames == 1 and torch.equal(
        encoded.features, families["qwen3_vl"].encode(pair).features
    )
    assert "<0.0 seconds>" in encoded.inputs["placeholder"]


@pytest.mark.parametrize("name", NAMES)
def test_words_between_the_frames_stay(families, name) -> None:
    """Times and frame numbers are text: they are no video tokens, and a video tokens' block ends before them."""
    family = families[name]
    video = family.encode(sparse(6))
    prompt = family.prompt(video, TEXT)
    ids = prompt.inputs["input_ids"][0]
    text = torch.ones_like(ids, dtype=torch.bool)
    text[prompt.layout.video] = False
    words = family.tokenizer.decode(ids[text])
    per_frame = prompt.layout.video.view(video.grid.frames, video.grid.per_frame)
    assert (per_frame[:, -1] - per_frame[:, 0] + 1 == video.grid.per_frame).all()
    assert (per_frame[1:, 0] - per_frame[:-1, -1] > 3).all()
    expected = (
        ("<0.1 seconds>", "<0.4 seconds>", "<0.8 seconds>")
        if name == "qwen3_vl"
        else ("Frame1: ", "Frame6: ")
    )
    assert all(word in words for word in expected), words
    with Compression(family.decoder, NoVideo().start(prompt.layout, Budget()), prompt.layout) as trace:
        family.answer(prompt, 3)
    assert trace.entering == [0] * len(family.decoder)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_signals_of_internvl_are_the_class_tokens_attention(miniature, attention) -> None:
    options = LoadOptions(device="cpu", dtype="float32", attn_implementation="eager")
    eager = models.resolve("internvl").load(str(miniature("internvl")), options)
    pixels, weights = torch.randn(3, 3, 32, 32), []
    last = eager.model.model.vision_tower.encoder.layer[-1].attention
    hook = last.register_forward_hook(lambda module, args, output: weights.append(output[1]) and None)
    plain = eager.encode_pixels(pixels)
    hook.remove()
    received = weights[0][:, :, 0, 1:].mean(1)  # (T, 64) over eight by eight patches
    expected = received.view(3, 4, 2, 4, 2).mean((2, 4)).flatten()
    options = LoadOptions(device="cpu", dtype="float32", attn_implementation=attention)
    family = models.resolve("internvl").load(str(miniature("internvl")), options)
    encoded = family.encode_pixels(pixels, signals=True)
    assert torch.allclose(encoded.signals.received, expected, atol=1e-6)
    assert encoded.signals.keys.shape == (48, 2, 8) and plain.grid == encoded.grid == Grid(3, 4, 4)
    assert torch.allclose(encoded.features, plain.features, atol=1e-5)


@torch.no_grad()
def test_a_token_of_internvl_is_a_square_of_patches(families, monkeypatch) -> None:
    """The signals are averaged over the patches that the stock model joins into the token."""
    body = families["internvl"].model.model
    patches = torch.arange(64.0).expand(1, 1, 64).transpose(1, 2)
    joined = body.pixel_shuffle(patches.view(1, 8, 8, 1), 0.5)  # (1, 4, 4, 4): the four patches of each token
    assert torch.equal(families["internvl"]._pool(patches), joined.mean(-1, keepdim=True))


@torch.no_grad()
def test_signals_of_qwen3_vl_are_the_eager_weights(miniature, monkeypatch) -> None:
    options = LoadOptions(device="cpu", dtype="float32", attn_implementation="eager")
    family = models.resolve("qwen3_vl").load(str(miniature("qwen3_vl")), options)
    last, weights = family.model.model.visual.blocks[-1].attn, []
    module = __import__(type(last).__module__, fromlist=["eager_attention_forward"])
    eager = module.eager_attention_forward

    def recording(owner, *args, **kwargs):
        output, attention = eager(owner, *args, **kwargs)
        if owner is last:
            weights.append(attention[0])
        return output, attention

    monkeypatch.setattr(module, "eager_attention_forward", recording)
    encoded = family.encode(running.synthetic_frames(6), signals=True)
    assert len(weights) == encoded.grid.frames
    received = torch.cat([w.mean((0, 1)) for w in weights]).view(-1, 4).mean(1)
    assert torch.allclose(encoded.signals.received, received, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("internvl", {"model_type": "internvl_chat"}, "holds a 'internvl_chat' checkpoint; .* with -hf"),
        ("internvl", {"vision_feature_layer": [-1, -2]}, r"vision_feature_layer=\[-1, -2\] in its config.json"),
        ("internvl", {"vision_feature_layer": 2}, "counted from the end"),
        ("internvl", {"vision_feature_select_strategy": "full"}, "implements 'default' only"),
        ("internvl", {"downsample_ratio": 0.25}, "weights .* are not those .* of another shape"),
        ("qwen3_vl", {"model_type": "qwen3_vl_moe"}, "holds a 'qwen3_vl_moe' checkpoint"),
    ],
)  # fmt: skip
def test_what_is_refused(own_miniature, name, values, message) -> None:
    folder = own_miniature(name)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(ConfigError, match=message):
        models.resolve(name).load(str(folder), OPTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_accounted_for(own_miniature, name) -> None:
    from safetensors.torch import load_file, save_file

    folder = own_miniature(name)
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if "layers.1.mlp" in key)
    save_file(
        {**{k: v for k, v in weights.items() if k != gone}, "more": torch.zeros(1)},
        folder / "model.safetensors",
    )
    with pytest.raises(ConfigError, match=f"1 missing: .*{gone.rpartition('layers')[2]}; 1 unexpected: more"):
        models.resolve(name).load(str(folder), OPTIONS)
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no safetensors weights can be read"):
        models.resolve(name).load(str(folder), OPTIONS)


def test_a_processor_that_is_not_there(own_miniature) -> None:
    folder = own_miniature("internvl")
    (folder / "processor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks processor_config\.json"):
        models.resolve("internvl").load(str(folder), OPTIONS)
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="tokenizer or processor files"):
        models.resolve("internvl").load(str(folder), OPTIONS)
