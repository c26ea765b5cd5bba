"""How large the Qwen-VL families make a video: by the reference's limits, in a plan and in a run alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.configured import composed
from stsimdiff.config.settings import settings_from_config
from stsimdiff.errors import ConfigError
from stsimdiff.models import options_of, resolve
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.qwen_shape import PROCESSORS
from stsimdiff.models.released import planned_shape
from stsimdiff.video import Frames

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FRAMES = (16, 32, 64, 128, 256)
# Height and width of a video; tokens at each number of frames; height and width of a resized frame. Printed by
# qwen_vl_utils 0.0.14 (vision_process.py: smart_resize within the limits that fetch_video makes).
REFERENCE = {
    14: [
        ((360, 640), (2392, 4784, 9568, 19136, 38272), (364, 644)),
        ((480, 854), (4080, 8160, 16320, 32640, 65280), (476, 840)),
        ((720, 1280), (5760, 11520, 23040, 46080, 92160), (560, 1008)),
        ((1080, 1920), (5760, 11520, 23040, 46080, 92160), (560, 1008)),
        ((240, 320), (1120, 2240, 4480, 8960, 17920), (280, 392)),
    ],
    16: [
        ((360, 640), (1760, 3520, 7040, 14080, 28160), (352, 640)),
        ((480, 854), (3240, 6480, 12960, 25920, 51840), (480, 864)),
        ((720, 1280), (5760, 11520, 23040, 46080, 92160), (640, 1152)),
        ((1080, 1920), (5760, 11520, 23040, 46080, 92160), (640, 1152)),
        ((240, 320), (1120, 2240, 4480, 8960, 17920), (320, 448)),
    ],
}
DEFAULTS = {"min_frame_tokens": 128, "max_frame_tokens": 768, "max_video_tokens": 115200}


def options(name: str, **values) -> LoadOptions:
    """What the configuration file of a family gives to it, with some values replaced."""
    model = composed(f"model={name}").model
    family = {option: model[option] for option in options_of(name)} | values
    return LoadOptions(device="cpu", dtype="float32", family=family)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plan_counts_the_tokens_of_the_reference(name) -> None:
    shape, _ = planned_shape(name, None, options(name))
    for (height, width), tokens, resized in REFERENCE[shape.side]:
        grids = [shape.grid(frames, height, width) for frames in FRAMES]
        assert tuple(grid.tokens for grid in grids) == tokens
        factor = shape.side * shape.merge
        assert (grids[0].height * factor, grids[0].width * factor) == resized


def test_another_budget_of_tokens() -> None:
    # ST-SimDiff's fork of lmms-eval: 256 to 2,048 tokens a frame, 20,480 in all.
    chosen = options("qwen2_5_vl", min_frame_tokens=256, max_frame_tokens=2048, max_video_tokens=20480)
    shape, _ = planned_shape("qwen2_5_vl", None, chosen)
    assert shape.grid(64, 720, 1280).tokens == 19008
    # What the hub's file alone would make of it.
    own, _ = planned_shape("qwen2_5_vl", None, options("qwen2_5_vl", **dict.fromkeys(DEFAULTS)))
    assert own.grid(64, 1080, 1920).tokens == 86112


@pytest.mark.parametrize("count", [1, 3, 4, 16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_has_the_tokens_of_the_plan(name, count, own_miniature) -> None:
    path = own_miniature(name)
    # As the released checkpoint: the limits of an image, read by the stock processor.
    for file in PROCESSORS:
        if (path / file).is_file():
            found = json.loads((path / file).read_text())
            for node in (found, found.get("video_processor", {}), found.get("image_processor", {})):
                if "size" in node:
                    node["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
            (path / file).write_text(json.dumps(found))
    limits = {"min_frame_tokens": 4, "max_frame_tokens": 24, "max_video_tokens": 128}
    family = resolve(name).load(str(path), options(name, **limits))
    planned, _ = planned_shape(name, str(path), options(name, **limits))
    for height, width in ((90, 160), (20, 30), (200, 64)):
        pixels = np.zeros((count, height, width, 3), np.uint8)
        video = family.encode(Frames(pixels, tuple(range(count)), count, 2.0))
        assert video.grid == family.shape.grid(count, height, width) == planned.grid(count, height, width)
        assert video.grid.per_frame <= 24 and video.grid.tokens <= 128
    assert video.grid.per_frame >= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "model.min_frame_tokens=0",
            "min_frame_tokens=0 is out of range; allowed: null or a whole number from 1",
        ),
        ("model.max_frame_tokens=many", "model.max_frame_tokens='many' is out of range"),
        ("model.max_video_tokens=1.5", "model.max_video_tokens=1.5 is out of range"),
    ],
)
def test_wrong_values(words, message, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    cfg = composed("model=qwen2_5_vl", f"model.path={tmp_path}", words)
    with pytest.raises(ConfigError, match=message):
        settings_from_config(cfg)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_video_tokens": None}, "max_video_tokens=null: give all three, or null for all"),
        ({"min_frame_tokens": 900}, "a frame's minimum is above its maximum"),
    ],
)
def test_values_that_do_not_go_together(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        planned_shape("qwen3_vl", None, options("qwen3_vl", **values))
    with pytest.raises(ConfigError, match=message):
        resolve("qwen3_vl").load("nowhere", options("qwen3_vl", **values))
