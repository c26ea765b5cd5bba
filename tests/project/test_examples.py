"""The methods of ``examples/methods``: what the docs show runs, passes the kit, and stands beside built-in methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from helpers.embedded_runs import expanded, stored
from helpers.paths import ROOT
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import ScoreCompressor
from stsimdiff.config.arms import arm_from_config, compressor_from
from stsimdiff.engine import lent
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate import run, session
from stsimdiff.kit import checks
from stsimdiff.kit.running import GRID, CompressorCase, layout_for
from stsimdiff.launchers.base import configurations

TIMED = {name for name in checks.CHECKS if "time" in name or "memory" in name}
FOLDER = ROOT / "examples" / "methods"
METHODS = {
    "feature_norm": "FeatureNorm",
    "question_relevance": "QuestionRelevance",
    "question_attention": "QuestionAttention",
    "tower_merge": "TowerMerge",
    "pyramid": "Pyramid",
    "scenes": "Scenes",
    "external_scorer": "ExternalScorer",
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def answered(folder: Path, data: Path, limits: Sequence[int], *lines: str, fails: bool) -> tuple:
    """Settings and arms after a command for each of the limits in turn, whose questions may fail."""
    for limit in limits:
        settings, arms = expanded(folder, data, limit, *lines)
        settings = replace(settings, max_failures=50)
        try:
            run.run_arms(settings, arms)
        except run.RunFailed:
            assert fails
    return settings, arms


def test_the_page_names_every_example() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == METHODS.keys()
    page = (ROOT / "docs" / "your-method.md").read_text(encoding="utf-8")
    named = re.findall(r"\(\.\./examples/methods/(\w+)\.py\)", page)
    assert sorted(set(named)) == sorted(METHODS)
    source = (FOLDER / "question_attention.py").read_text(encoding="utf-8")
    assert source.split('"""\n', 1)[1].strip() in page
    body = source[source.index("@dataclass") :]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 15


@pytest.mark.parametrize("module", METHODS)
def test_an_example_passes_the_kit(module: str) -> None:
    torch.set_num_threads(1)
    case = CompressorCase(compressor_from(f"{module}.{METHODS[module]}", {}))
    for name, check in checks.CHECKS.items():
        if name in TIMED:
            continue
        try:
            check(case)
        except checks.CheckSkipped as reason:
            assert (name, case.compressor.reads_question) == ("reads no question", True), reason


def test_the_examples_stand_beside_built_in_methods_in_one_command(tmp_path: Path, data: Path) -> None:
    own = ",".join(f"{module}.{name}" for module, name in METHODS.items())
    budgets = "budget.retention=0.3", "budget=compute budget.retention=0.5"
    settings, arms = expanded(
        tmp_path, data, 2,
        f"compressor=random,{own} {budgets[0]}",
        f"compressor=random,pyramid.Pyramid {budgets[1]}",
        f'compressor=chain compressor.methods="[scenes.Scenes,fastv]" {budgets[0]}',
    )  # fmt: skip
    assert run.run_arms(settings, arms) == 2 * len(arms) == 22
    for arm in arms:
        for row in stored(settings, arm):
            assert row["error"] is None
            assert row[f"retention_{arm.budget.kind}"] == pytest.approx(arm.budget.retention, abs=0.01), (
                arm.label
            )
    reasons = {arm.method: stored(settings, arm)[0]["reasons"] for arm in arms}
    assert reasons["TowerMerge"]["merged"] > 0
    (pyramid,) = [arm for arm in arms if arm.method == "Pyramid" and arm.budget.kind == "tokens"]
    # Three stages in a model of six layers.
    assert len(set(stored(settings, pyramid)[0]["tokens_per_layer"])) == 4


# A method's own clock ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counting(ScoreCompressor):
    """Drops others at each question of a video; raises at the third one of each."""

    remembers: ClassVar[bool] = True
    raises: bool = False

    def score(self, tokens, layout):
        seen = layout.memory.setdefault("seen", [])
        layout.memory["seen"] = [*seen, len(seen)]
        if self.raises and len(seen) == 2:
            raise ValueError("the third")
        return torch.arange(len(tokens)).roll(37 * len(seen)).float()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list:
    """The layouts that methods were started with, and what they remembered then."""
    found, start = [], lent.start

    def watched(compressor, layout, budget, **more):
        remembered = tuple((more.get("memory") or {}).get("seen", ()))
        begun = start(compressor, layout, budget, **more)
        found.append((begun.lent, remembered))
        return begun

    monkeypatch.setattr(session.lent, "start", watched)
    return found


@pytest.mark.parametrize("raises", ["false", "true"])
def test_a_method_that_remembers_gets_a_video_s_questions_in_their_order_on_resume_too(
    tmp_path: Path, data: Path, raises: str, started: list
) -> None:
    line = f"compressor=test_examples.Counting compressor.raises={raises}", "compressor=random"
    settings, arms = answered(tmp_path / "whole", data, [10], *line, fails=raises == "true")
    whole = stored(settings, arms[0])
    videos: dict[str, list[str]] = {}
    asked = [(layout.sample, seen) for layout, seen in started if layout.memory is not None]
    for row, one in zip(whole, asked, strict=True):
        expected = tuple(range(len(videos.setdefault(row["video"], []))))
        assert one == (row["video"], expected)
        if row["error"] is None:
            videos[row["video"]].append(row["id"])
    # What raises forgets its question, so that the next one is its video's third again.
    assert [len(ids) for ids in videos.values()] == ([2, 2] if raises == "true" else [7, 3])
    # Stopped after four of them, and resumed: the same answers, and no answered question has a second line.
    again, arms = answered(tmp_path / "resumed", data, [4, 10], *line, fails=raises == "true")
    resumed = stored(again, arms[0])
    assert sorted(row["id"] for row in resumed) == sorted(row["id"] for row in whole)
    told = {row["id"]: (row["answer"], row["error"] is None) for row in whole}
    assert {row["id"]: (row["answer"], row["error"] is None) for row in resumed} == told
    fates = [
        {row["id"]: row["overlay"]["reason"] for row in rows if row.get("overlay")}
        for rows in (whole, resumed)
    ]
    both = fates[0].keys() & fates[1].keys()
    assert len(both) >= 3 and all(fates[0][id_] == fates[1][id_] for id_ in both)


def test_which_questions_are_asked_is_part_of_an_arm_that_remembers(tmp_path: Path, data: Path) -> None:
    words = [f"benchmark.data={data}", "logger=none", f"results={tmp_path}"]
    for method, same in (("test_examples.Counting", False), ("random", True)):
        cfgs = configurations([*words, f"compressor={method}"])
        cfgs += configurations([*words, f"compressor={method}", "benchmark.categories=[order]"])
        one, other = (arm_from_config(cfg).id for cfg in cfgs)
        assert (one == other) == same


def test_a_method_gets_frames_times_and_memory_only_where_it_asks(data: Path) -> None:
    @dataclass(frozen=True)
    class Plain(ScoreCompressor):
        def score(self, tokens, layout):
            assert layout.frames is None and layout.seconds == () and layout.memory is None
            return tokens.features.norm(dim=1)

    @dataclass(frozen=True)
    class Asks(Plain):
        needs_frames: ClassVar[bool] = True
        remembers: ClassVar[bool] = True

        def score(self, tokens, layout):
            assert layout.frames.dtype == torch.uint8 and layout.frames.shape[3] == 3
            assert len(layout.seconds) == len(layout.frames) and layout.memory == {}
            return tokens.features.norm(dim=1)

    for method in (Plain(), Asks()):
        CompressorCase(method).drive(torch.randn(GRID.tokens, 16), layout_for(GRID), Budget("tokens", 0.5))
    bare = replace(layout_for(GRID), frames=None)
    with pytest.raises(ConfigError, match="Asks reads the video's frames"):
        lent.start(Asks(), bare, Budget("tokens", 0.5))


def test_a_run_gives_the_frames_that_the_model_saw(tmp_path: Path, data: Path, started: list) -> None:
    settings, arms = expanded(tmp_path, data, 1, "compressor=external_scorer.ExternalScorer")
    run.run_arms(settings, arms)
    ((layout, _),) = started
    assert layout.frames.shape[0] == len(layout.seconds) == settings.model.frames
    assert layout.seconds[0] < layout.seconds[-1] and layout.sample == stored(settings, arms[0])[0]["video"]
