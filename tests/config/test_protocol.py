"""Protocols: a name for frames, sampling, pooling, limits, prompts and dtype, and what a run changed of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.configured import composed, configured
from helpers.paths import MINIATURES
from stsimdiff.config.arms import arm_record
from stsimdiff.config.protocol import names
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.questions import all_questions, load_task
from stsimdiff.launchers.base import configurations
from stsimdiff.report.arm import StoredArm
from stsimdiff.resources import folder

CONFIGS = folder("configs")


@pytest.fixture
def settings(checkpoint):
    return partial(configured, "plan=true", f"model.path={checkpoint}")


@pytest.mark.parametrize("name", names())
def test_every_protocol_composes_with_its_family(settings, name) -> None:
    family = composed(f"protocol={name}").protocol.family or "llava_video"
    found, _ = settings(f"model={family}", f"protocol={name}", "benchmark=videomme")
    assert found.protocol.name == name and found.protocol.changed == []
    assert name == "default" or found.protocol.source
    assert (found.protocol.all_tokens is None) == (name != "llava_video_authors")


def test_the_authors_and_the_paper_s(settings) -> None:
    authors, arm = settings("model=llava_video", "protocol=llava_video_authors", "benchmark=videomme")
    paper, other = settings("model=llava_video", "protocol=st_simdiff_paper", "benchmark=videomme")
    values = ("frames", "sampling", "fps", "pooling", "dtype", "time_instruction")
    assert [authors.model.stored()[key] for key in values] == [64, "fps", 1.0, "average", "float16", False]
    assert [paper.model.stored()[key] for key in values] == [64, "fps", 1.0, "bilinear", "float16", False]
    assert (authors.benchmark.prompt, paper.benchmark.prompt) == ("llava_vid", "default")
    gate = {key: getattr(authors.protocol, key) for key in ("all_tokens", "remeasured", "tolerance")}
    assert gate == {"all_tokens": 63.3, "remeasured": 64.3, "tolerance": 1.5}
    assert arm.id != other.id
    longer, _ = settings("model=llava_video", "protocol=llava_video_authors", "benchmark=longvideobench")
    assert (longer.protocol.all_tokens, longer.benchmark.prompt) == (58.2, "default")
    ego, _ = settings("model=llava_video", "protocol=llava_video_authors", "benchmark=egoschema")
    assert ego.protocol.all_tokens is None, "57.3 is the full set's"


def test_what_a_run_changes_is_named(settings) -> None:
    words = ["model=llava_video", "protocol=llava_video_authors", "benchmark=videomme"]
    found, arm = settings(*words, "model.frames=32", "benchmark.prompt=default", "model.device=cpu")
    assert found.protocol.changed == ["model.frames=32", "benchmark.prompt=default"]
    shown = StoredArm(Path(), arm_record(arm, found, {}))
    assert shown.model[2:] == (
        "32 frames (fps, 1 a second)",
        "llava_video_authors with model.frames=32 benchmark.prompt=default",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model=qwen2_vl", "protocol=llava_video_authors"],
            "is one of model.family=llava_video, not of qwen2_vl; allowed: default, qwen2_vl_authors",
        ),
        (["protocol.name=mine"], "protocol=mine is unknown; allowed: default, "),
        (["+protocol.colour=red"], r"protocol\.colour='red' is not what protocol=default says"),
        (["protocol.tolerance=5"], r"protocol\.tolerance=5 is not what protocol=default says"),
        (["model.sampling=random"], "model.sampling=random is unknown; allowed: uniform, round, fps"),
        (["model.fps=0"], r"model\.fps=0 is out of range; allowed: a number above 0"),
    ],
)
def test_wrong_values(settings, words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*words)


def test_the_rate_does_not_matter_where_frames_are_evenly_spaced(settings) -> None:
    one, other = (settings("model=llava_video", f"model.fps={fps}") for fps in (1, 2))
    assert one[1].id == other[1].id and one[0].model.fps is None
    third = settings("model=llava_video", "model.fps=2", "model.sampling=fps")
    assert third[1].id != one[1].id and third[0].model.fps == 2.0


@pytest.mark.parametrize(
    ("experiment", "protocol"),
    [
        ("table1", "st_simdiff_paper"),
        ("table1_baseline", "llava_video_authors"),
        ("table_nvila", "nvila_authors"),
        ("table_qwen2_5_vl", "qwen2_5_vl_authors"),
        ("table_qwen2_vl", "qwen2_vl_authors"),
        ("embedded_table", "default"),
    ],
)
def test_experiments_name_their_protocol(experiment, protocol) -> None:
    found = configurations([f"experiment={experiment}", "plan=true"])
    assert {cfg.protocol.name for cfg in found} == {protocol}


def test_vila_s_prompt() -> None:
    task = load_task(
        SimpleNamespace(
            task="stsimdiff_videomme",
            tasks=None,
            data=str(MINIATURES / "videomme"),
            prompt="vila",
            max_new_tokens=None,
        )
    )
    question = all_questions(task, 1, None)[0]
    lines = question.text.splitlines()
    assert lines[0] == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option."
    )
    assert lines[1] == question.document["question"] and lines[-1] == "The best answer is:"
    assert lines[2:-1] == list(question.document["options"])
