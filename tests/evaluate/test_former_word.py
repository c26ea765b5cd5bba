"""Kinds of questions were called families: what was stored so is read, reported the same, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.embedded_runs import LIMIT, prepared, stored
from helpers.paths import ROOT
from helpers.synthetic_run import CATEGORIES, answers, failed, write_arm
from stsimdiff.errors import DataError
from stsimdiff.evaluate.run import run_arms
from stsimdiff.evaluate.store import checked_answers, checked_record, counted_lines
from stsimdiff.evaluate.stored import check_column
from stsimdiff.report.publish import files
from stsimdiff.report.rows import read
from stsimdiff.report.table import build


def spell_as_before(file: Path, every: int = 1) -> None:
    """Each ``every``-th line as revisions before stored it."""
    lines = file.read_text().splitlines(keepends=True)
    assert all(line.count('"category": ') == 1 for line in lines)
    lines[::every] = [line.replace('"category": ', '"family": ') for line in lines[::every]]
    file.write_text("".join(lines))


@pytest.mark.parametrize("every", [1, 2])
def test_a_folder_of_before_gives_the_same_tables(tmp_path: Path, every: int) -> None:
    some = answers(0.6, 0.3)
    folders = [
        write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0)),
        write_arm(tmp_path, "random", 0.3, [*some[1:], failed(("v00", "v00-0", "attr"))]),
    ]
    before = files(build(read(tmp_path)))
    assert all(f"acc_{category}" in before["table.csv"] for category in CATEGORIES)
    for folder in folders:
        spell_as_before(folder / "answers.jsonl", every)
    assert files(build(read(tmp_path))) == before
    assert checked_record(folders[0])["benchmark"]["categories"] == CATEGORIES
    for _, row in counted_lines(folders[1]).values():
        assert row["category"] in CATEGORIES and "family" not in row


def test_a_run_of_before_goes_on_in_the_same_file(tmp_path: Path, data: Path) -> None:
    settings, (arm,) = prepared(tmp_path, data, "compressor=random budget.retention=0.3", overlays=0)
    assert run_arms(settings, [arm]) == LIMIT
    spell_as_before(settings.folder / arm.folder / "answers.jsonl")
    settings, (same,) = prepared(
        tmp_path, data, "compressor=random budget.retention=0.3", overlays=0, limit=LIMIT + 3
    )
    assert same.id == arm.id and run_arms(settings, [arm]) == 3
    lines = stored(settings, arm)
    assert ["family" in line for line in lines] == ["category" not in line for line in lines]
    assert ["family" in line for line in lines] == [True] * LIMIT + [False] * 3
    rows = checked_answers(settings.folder / arm.folder)
    assert [row["category"] for row in rows] == [line["id"].rpartition("-")[2] for line in lines]
    assert json.loads((settings.folder / arm.folder / "metrics.json").read_text())["n"] == LIMIT + 3


def test_a_breakdown_by_the_former_word_names_todays() -> None:
    with pytest.raises(DataError, match=r"its rows have category, video; family is now called category"):
        check_column("family", [], "clips")
    check_column("family", ["family"], "a benchmark with a column of that name")


def test_the_former_key_is_named_before_torch_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stsimdiff", "benchmark.families=[attr]"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    imports, said = [], []
    for line in done.stderr.splitlines():
        (imports if line.startswith("import time:") else said).append(line)
    assert done.returncode == 2 and said == ["benchmark.families is now called benchmark.categories"]
    assert {"omegaconf", "torch"} & {line.rpartition("|")[2].strip() for line in imports} == {"omegaconf"}
