"""The ablations by their names: each plans, and has the arms that it is named for."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from helpers.paths import MINIATURES
from helpers.written import csv_rows
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.config.arms import arm_record
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.launchers.base import configurations, run_configurations
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.paper import paper_number
from stsimdiff.resources import folder

NAMES = sorted(
    path.stem
    for path in (folder("configs") / "experiment").glob("*.yaml")
    if "_vs_" in path.stem or "ablation" in path.stem
)
SWEPT = {
    "ablation_tau": {"tau_sim": [0.6, 0.7, 0.8, 0.9], "tau_diff": [0.1, 0.2, 0.4, "p95"]},
    "ablation_community": {"community": ["connected", "louvain", "leiden"], "split_above": ["off", "sqrt"]},
    "ablation_layer": {"layer": [0, 1, 2], "reduction": ["mean", "max"]},
    "released_vs_paper": {"rule": ["released", "paper"]},
}


def composed(name: str, *words: str) -> list[tuple]:
    """The settings and the arm of each cell, in the order of the file."""
    found = passes_of(configurations([f"experiment={name}", "plan=true", *words]))
    return [(one.settings, arm) for one in found for arm in one.arms.values()]


@pytest.mark.parametrize("name", NAMES)
def test_every_ablation_plans(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"experiment={name}", "plan=true", "plan_tflops=1", "limit=4", f"results={tmp_path / 'results'}"]
    run_configurations(configurations(words))
    said = capsys.readouterr().out
    assert "st_simdiff" in said and "nothing was written" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", SWEPT)
def test_an_ablation_has_every_combination_and_nothing_else(name: str) -> None:
    arms = [arm for _, arm in composed(name)]
    swept, default = SWEPT[name], STSimDiff()
    methods = [arm for arm in arms if arm.method == "st_simdiff"]
    retentions = {arm.budget.retention for arm in methods}
    asked = [
        (arm.budget.retention, *(arm.compressor.get(key, getattr(default, key)) for key in swept))
        for arm in methods
    ]
    assert sorted(asked, key=str) == sorted(product(retentions, *swept.values()), key=str)
    assert {arm.method for arm in arms} == {"none", "st_simdiff"}
    assert all(getattr(default, key) in values for key, values in swept.items())


def test_the_parts_are_the_rows_that_the_paper_printed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 28}')
    words = ["model=llava_video", "protocol=st_simdiff_paper", "benchmark=videomme", "budget=compute"]
    found = composed("ablation_components", *words, f"data={MINIATURES}", f"model.path={tmp_path}")
    shown = [StoredArm(Path(), arm_record(arm, settings, {})) for settings, arm in found]
    ours = [
        paper_number(arm.protocol, arm.model[0], arm.benchmark, arm.configured, arm.retention)
        for arm in shown
        if arm.method == "st_simdiff"
    ]
    printed = [
        float(row["videomme"]) for row in csv_rows(folder("results_paper") / "ablation_llava_video_r30.csv")
    ]
    assert ours == printed == [60.3, 61.5, 61.7, 62.6, 63.2]
    assert [arm.kind for arm in shown if arm.method == "st_simdiff"] == ["compute"] * 5


def test_budgets_and_frames() -> None:
    budget = [arm for _, arm in composed("ablation_budget") if arm.method == "st_simdiff"]
    assert [arm.budget.retention for arm in budget] == [0.05, 0.1, 0.2, 0.3, 0.5, 0.7]
    frames = [(settings.model.frames, arm.method) for settings, arm in composed("ablation_frames")]
    assert sorted(frames) == sorted(product((4, 8, 16), ("none", "st_simdiff", "uniform_frames")))
