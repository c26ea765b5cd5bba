"""Qwen2.5-VL through the product's own path against the stock processor and model."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from transformers.video_utils import VideoMetadata

from stsimdiff import video
from stsimdiff.budget import Budget
from stsimdiff.compressors.controls import NoCompression, NoVideo
from stsimdiff.engine import Compression
from stsimdiff.errors import ConfigError
from stsimdiff.models import base, resolve
from stsimdiff.models.base import LoadOptions
from stsimdiff.resources import embedded_checkpoint

TEXT = "What color is the ring?\nA. red\nB. blue\nC. green\nD. cyan\nAnswer."


@pytest.fixture(scope="module")
def family():
    return resolve("qwen2_5_vl").load(str(embedded_checkpoint()), LoadOptions(device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def clip(data) -> str:
    return str(data / "videos" / "clip000.mp4")


@torch.no_grad()
def test_prompt_and_answer_equal_the_stock_path(family, clip) -> None:
    frames = video.read(clip, 16)
    encoded = family.encode(frames)
    prompt = family.prompt(encoded, TEXT)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": TEXT}]}
    chat = family.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    stock = family.processor(
        text=[chat],
        videos=[torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(total_num_frames=16, fps=2.0, frames_indices=list(range(16)))],
        do_sample_frames=False,
        return_tensors="pt",
    )
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "video_grid_thw"):
        assert torch.equal(prompt.inputs[key], stock[key].to(prompt.inputs[key].dtype)), key
    assert (
        prompt.inputs["second_per_grid_ts"].tolist()
        == [float(v) for v in stock["second_per_grid_ts"]]
        == [1.0]
    )
    assert encoded.grid.tokens == 512 == int((stock["input_ids"] == family.processor.video_token_id).sum())
    ids = family.model.generate(**stock, max_new_tokens=4, do_sample=False)
    expected = family.processor.tokenizer.decode(
        ids[0, stock["input_ids"].shape[1] :], skip_special_tokens=True
    )
    with Compression(family.decoder, NoCompression().start(prompt.layout, Budget()), prompt.layout) as trace:
        assert family.answer(prompt, 4) == expected.strip()
    assert trace.entering == [512] * len(family.decoder)


def test_no_video_leaves_the_text_alone(family, clip) -> None:
    answers = set()
    for seed in (0, 1):
        frames = video.read(clip, 16)
        pixels = frames.pixels if seed == 0 else frames.pixels[::-1].copy()
        encoded = family.encode(video.Frames(pixels, frames.indices, frames.total, frames.fps))
        prompt = family.prompt(encoded, TEXT)
        with Compression(family.decoder, NoVideo().start(prompt.layout, Budget()), prompt.layout) as trace:
            answers.add(family.answer(prompt, 4))
        assert trace.entering == [0] * len(family.decoder)
        assert trace.retention() == {"tokens": 0.0, "compute": 0.0}
    assert len(answers) == 1


def test_the_video_token_in_a_question_is_refused(family, clip) -> None:
    encoded = family.encode(video.read(clip, 16))
    with pytest.raises(ValueError, match="video token"):
        family.prompt(encoded, "what is <|video_pad|>?")


def test_wrong_checkpoints(tmp_path) -> None:
    cls = resolve("qwen2_5_vl")
    with pytest.raises(ConfigError, match="is no folder"):
        cls.load(str(tmp_path / "nowhere"), LoadOptions())
    with pytest.raises(ConfigError, match=r"lacks config\.json"):
        cls.load(str(tmp_path), LoadOptions())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="'llama' checkpoint"):
        cls.load(str(tmp_path), LoadOptions())
    with pytest.raises(ConfigError, match="cannot be used here"):
        cls.load(str(tmp_path), LoadOptions(device="cuda:99"))
    with pytest.raises(ConfigError, match="allowed: auto, float32"):
        cls.load(str(tmp_path), LoadOptions(dtype="int4"))
    with pytest.raises(ConfigError, match="allowed: .*qwen2_5_vl"):
        resolve("qwen9")


def test_text_after_a_long_video_follows_its_last_moment(family, clip) -> None:
    """transformers 5 would put the question's text before most frames; the released model never saw that."""
    slow = dataclasses.replace(
        video.read(clip, 16), fps=0.1
    )  # a grid lasts 20 s: temporal positions 0 to 140
    prompt = family.prompt(family.encode(slow), TEXT)
    positions, places = prompt.inputs["position_ids"][:, 0], prompt.layout.video
    start = int(places[0])
    assert positions[:, :start].tolist() == [list(range(start))] * 3
    assert positions[:, places].amax(1).tolist() == [start + 140, start + 7, start + 7]
    text = prompt.layout.length - int(places[-1]) - 1
    assert positions[:, -text:].tolist() == [list(range(start + 141, start + 141 + text))] * 3

    seen = []
    hook = family.decoder.module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"][..., -1].flatten().tolist()),
        with_kwargs=True,
    )
    try:
        family.model.generate(**prompt.inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    finally:
        hook.remove()
    last = start + 140 + text
    assert [sorted(set(ids))[-1] for ids in seen] == [last, last + 1, last + 2]


def test_the_stock_positions_can_be_chosen(family, clip) -> None:
    options = LoadOptions(device="cpu", dtype="float32", family={"positions": "stock"})
    stock = resolve("qwen2_5_vl").load(str(embedded_checkpoint()), options)
    prompt = stock.prompt(stock.encode(video.read(clip, 16)), TEXT)
    assert "position_ids" not in prompt.inputs
    # On clips as short as those it was trained on, both are the same.
    released = family.prompt(family.encode(video.read(clip, 16)), TEXT).inputs["position_ids"]
    expected, _ = stock.model.model.get_rope_index(
        prompt.inputs["input_ids"],
        prompt.inputs["mm_token_type_ids"],
        video_grid_thw=prompt.inputs["video_grid_thw"],
        second_per_grid_ts=prompt.inputs["second_per_grid_ts"],
    )
    assert torch.equal(released, expected)
    with pytest.raises(ConfigError, match="allowed: released, stock"):
        resolve("qwen2_5_vl").load(str(embedded_checkpoint()), LoadOptions(family={"positions": "old"}))


def test_layouts_and_messages_of_all_families_are_made_in_one_place():
    folder = Path(base.__file__).parent
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    for made in (r"\bLayout\(", r'"type": "video"'):
        assert [name for name, text in texts.items() if re.search(made, text)] == ["base.py"], made
