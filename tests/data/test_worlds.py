"""The generated worlds beside the one that the embedded model was trained on: what is in them, and their identity."""

from __future__ import annotations

import collections
import csv
import hashlib
import json
from pathlib import Path
from statistics import mean
from typing import get_args, get_type_hints

import numpy as np
import pytest

from helpers.configured import configured
from helpers.true_answers import true_answer
from helpers.written import json_lines
from stsimdiff.config.benchmark import BenchmarkSettings
from stsimdiff.data import clips
from stsimdiff.data.clips import dataset
from stsimdiff.data.clips.rendering import render
from stsimdiff.data.clips.world import FRAMES
from stsimdiff.data.clips.worlds import WORLDS
from stsimdiff.data.parsing import LETTERS
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate import run as running
from stsimdiff.report.overlays import unpacked
from stsimdiff.report.publish import files
from stsimdiff.report.rows import read
from stsimdiff.report.table import build


def settings_of(tmp_path: Path, *words: str):
    lines = ["logger=none", f"results={tmp_path}", "run=own", *words]
    return configured("compressor=st_simdiff", "budget.retention=0.3", *lines)


def test_the_world_that_the_model_was_trained_on_stays_to_the_bit() -> None:
    digest = hashlib.sha256(json.dumps(dataset.questions()).encode())
    for _, world, _ in dataset.clips()[::32]:
        digest.update(render(world).tobytes())
    assert digest.hexdigest()[:16] == "6b5290c4e217e9f5"  # before there were others


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("static_camera", "16defb8b049b3849"),
        ("fast_cuts", "7cd6b76d329bd39f"),
        ("slow_change", "e55cbc57cc3e0683"),
    ],
)
def test_a_world_has_two_hundred_true_answers_that_its_text_does_not_tell(name: str, digest: str) -> None:
    rows, listed = clips.questions(world=name), dataset.clips(world=name)
    assert len(rows) == len({row["id"] for row in rows}) == 200 and len(listed) == 40
    assert collections.Counter(row["family"] for row in rows) == dict.fromkeys(WORLDS[name].categories, 40)
    laid_out = {f"{video}.mp4": world for video, world, _ in listed}
    asked = collections.defaultdict(list)
    for row in rows:
        assert row["options"][LETTERS.index(row["answer"])] == true_answer(laid_out[row["video"]], row)
        block = int(row["video"][-7:-4]) // 4
        asked[(block, row["question"], *row["options"])].append(row["answer"])
    assert all(sorted(answers) == ["A", "B", "C", "D"] for answers in asked.values())
    frames = hashlib.sha256(json.dumps(rows).encode())
    for _, world, _ in listed[::10]:
        frames.update(render(world).tobytes())
    assert frames.hexdigest()[:16] == digest, "the world's version has to be raised"


def test_what_makes_each_world() -> None:
    for _, world, _ in dataset.clips(world="static_camera"):
        assert {world.pan(frame) for frame in range(FRAMES)} == {(0, 0)} and not world.inserts
        assert sum(thing.kind == "flash" for thing in world.things) == 2
    for _, world, _ in dataset.clips(world="fast_cuts"):
        shots = [world.in_insert(frame) for frame in range(FRAMES)]
        assert sum(a != b for a, b in zip(shots, shots[1:], strict=False)) == 4
        assert len(world.bugs) >= 3 and len(world.sparks) >= 10
    for _, world, _ in dataset.clips(world="slow_change"):
        (thing,) = (thing for thing in world.things if thing.kind == "changing")
        assert thing.fade[1] - thing.fade[0] >= 11 and not any(t.kind == "flash" for t in world.things)
        (ball,) = (thing for thing in world.things if thing.kind == "ball")
        assert np.abs(ball.velocity).max() <= 4


def test_a_world_is_part_of_an_arms_identity_and_of_the_benchmarks_name(tmp_path: Path) -> None:
    arms = {
        name: settings_of(tmp_path, *([f"benchmark.world={name}"] if name else [])) for name in ("", *WORLDS)
    }
    assert len({arm.id for _, arm in arms.values()}) == 4
    assert [settings.benchmark.name for settings, _ in arms.values()] == [
        "clips", "clips_static_camera", "clips_fast_cuts", "clips_slow_change",
    ]  # fmt: skip
    assert arms[""][0].benchmark.revision == clips.GENERATOR_VERSION
    assert "world" not in arms[""][0].benchmark.stored()
    hint = get_type_hints(BenchmarkSettings)["world"]
    assert set(get_args(get_args(hint)[0])) == set(WORLDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["benchmark.world=street"], "benchmark.world=street is unknown; allowed: static_camera, fast_cuts"),
        (["benchmark=long_clips", "benchmark.world=fast_cuts"], "it goes with benchmark=clips"),
        (
            ["benchmark.world=fast_cuts", "benchmark.categories=[mark]"],
            "categories=mark is unknown; allowed: flash, order",
        ),
    ],
)
def test_other_worlds_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_of(tmp_path, *words)


def test_a_run_in_another_world_counts_what_is_left_of_its_moments(tmp_path: Path) -> None:
    """The stored counts, from the stored reasons of all tokens and the things of the world."""
    settings, arm = settings_of(tmp_path, "benchmark.world=static_camera", "limit=10", "overlays=10")
    running.run_arms(settings, [arm])
    (file,) = settings.folder.glob("*/answers.jsonl")
    lines = json_lines(file)
    worlds = {video: world for video, world, _ in dataset.clips(2, "static_camera")}
    shares = []
    for line in lines:
        video, _, category = line["id"].rpartition("-")
        assert ("moment" in line) == (category != "mark")
        if category not in ("flash", "order"):
            continue
        overlay = unpacked(line["overlay"])
        left = np.frombuffer(overlay["reason"], np.uint8).reshape(8, 8, 8)
        names = {int(code): name for code, name in overlay["codes"].items()}
        (frame, *_), boxes = zip(*((int(n), box) for n, box in overlay["evidence"].items()), strict=True)
        flash = next(t for t in worlds[video].things if t.kind == "flash" and t.first == frame)
        x, y = worlds[video].position(flash, frame)
        assert boxes[0] == pytest.approx([x / 112, y / 112, (x + flash.size) / 112, (y + flash.size) / 112])
        down = [sum(14 * i <= p < 14 * (i + 1) for p in range(y, y + flash.size)) >= 3.5 for i in range(8)]
        across = [sum(14 * i <= p < 14 * (i + 1) for p in range(x, x + flash.size)) >= 3.5 for i in range(8)]
        codes = left[frame // 2][np.ix_(down, across)].ravel()
        asked = line["moment"]["question"]
        assert asked["tokens"] == len(codes) and asked["rows"] == 1
        assert asked["kept"]["in_place"] == sum(names[int(code)] != "dropped" for code in codes)
        assert asked["event"]["in_place"] == sum(names[int(code)] == "event" for code in codes)
        assert asked["kept"]["tokens"] == round(line["retention_tokens"] * line["video_tokens"])
        assert asked["event"]["tokens"] == line["reasons"].get("event", 0)
    for line in lines:
        if asked := line.get("moment"):
            shares.append(asked["question"]["kept"]["in_place"] / asked["question"]["tokens"])
    written = files(build(read(settings.folder)))["moments.csv"]
    first = next(csv.DictReader(str(written).splitlines()))
    assert first["benchmark"] == "clips_static_camera" and first["n"] == "8"
    assert float(first["moment_kept"]) == pytest.approx(100 * mean(shares))
