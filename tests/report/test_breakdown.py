"""Accuracies by a column of the rows and on the hard questions, counted again from the stored lines by other code."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers import recomputed
from helpers.configured import on_miniature
from helpers.synthetic_run import CATEGORIES, QUESTIONS, answer, write_arm
from helpers.written import csv_rows, json_lines
from stsimdiff.commands import report
from stsimdiff.errors import DataError
from stsimdiff.evaluate import run as running
from stsimdiff.launchers.in_process import make_report
from stsimdiff.report.publish import publish

CHANCES = {"none": 0.8, "uniform_frames": 0.6, "spatial_pool": 0.55, "st_simdiff": 0.7}


def about(number: int) -> dict:
    """The columns of a question: a word, a list of one or two, and a number of many values."""
    return {
        "domain": ("sport", "film", "street")[number % 3],
        "kinds": ["order", "count"][: 1 + number % 2],
        "duration": 10.0 + number,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four arms of one block and all tokens."""
    dice = random.Random(3)
    for method, chance in CHANCES.items():
        retention = 1.0 if method == "none" else 0.3
        lines = [
            answer(question, chance, retention, retention, dice) | {"columns": about(number)}
            for number, question in enumerate(QUESTIONS)
        ]
        write_arm(tmp_path / "run", method, retention, lines)
    return tmp_path / "run"


def lines_of(run: Path) -> dict[str, dict[str, dict]]:
    """Stored lines by method and question, read without the package."""
    return {arm["method"]: arm["rows"] for arm in recomputed.stored(run).values()}


@pytest.mark.parametrize("column", ["domain", "kinds", "duration", "category"])
def test_every_number_is_that_of_its_questions(run: Path, column: str) -> None:
    publish(run, None, column=column)
    stored, rows = lines_of(run), csv_rows(run / "breakdown.csv")
    told = {id_: row.get(column, row["columns"].get(column)) for id_, row in stored["none"].items()}
    edges = np.quantile(list(told.values()), [0, 0.25, 0.5, 0.75, 1]) if column == "duration" else []
    ranges = dict(
        zip(dict.fromkeys(row["value"] for row in rows), zip(edges, edges[1:], strict=False), strict=False)
    )
    assert {row["method"] for row in rows} == set(CHANCES)
    for row in rows:
        if column == "duration":
            low, high = ranges[row["value"]]
            assert row["value"] == f"{low:.4g} to {high:.4g}"
            ids = [id_ for id_, value in told.items() if low < value <= high or (low == 10.0 == value)]
        else:
            ids = [
                id_
                for id_, value in told.items()
                if row["value"] in ([value] if isinstance(value, str) else value)
            ]
        right = [stored[row["method"]][id_]["correct"] for id_ in ids]
        everything = [stored["none"][id_]["correct"] for id_ in ids]
        assert int(row["n"]) == len(ids) > 10
        assert int(row["videos"]) == len({stored["none"][id_]["video"] for id_ in ids})
        accuracy = 100 * sum(right) / len(right)
        assert float(row["accuracy"]) == pytest.approx(accuracy)
        if row["method"] != "none":
            assert float(row["minus"]) == pytest.approx(accuracy - 100 * sum(everything) / len(ids))
            assert float(row["minus_low"]) < float(row["minus"]) < float(row["minus_high"])
    text = (run / "breakdown.md").read_text()
    assert f"Minus all tokens, in points by {column}" in text and f"{float(rows[0]['accuracy']):.1f}" in text
    assert (run / "figures" / "breakdown.svg").stat().st_size > 1000
    assert (run / "figures" / "breakdown.png").is_file()
    # A report that breaks nothing down leaves none of an earlier one behind.
    publish(run, None)
    assert not list(run.rglob("breakdown*"))


def test_the_hard_questions(run: Path) -> None:
    publish(run, None)
    stored = lines_of(run)
    hard = [
        id_
        for id_, row in stored["none"].items()
        if row["correct"]
        and not stored["uniform_frames"][id_]["correct"]
        and not stored["spatial_pool"][id_]["correct"]
    ]
    right = [stored["st_simdiff"][id_]["correct"] for id_ in hard]
    rows = {row["method"]: row for row in csv_rows(run / "table.csv")}
    assert 5 < len(hard) < 40 and int(rows["st_simdiff"]["n_hard"]) == len(hard)
    assert float(rows["st_simdiff"]["hard"]) == pytest.approx(100 * sum(right) / len(hard))
    assert float(rows["st_simdiff"]["hard_low"]) < float(rows["st_simdiff"]["hard"])
    # By how they were chosen, all tokens would have 100 and down-sampling 0.
    assert [rows[method]["hard"] for method in ("none", "uniform_frames", "spatial_pool")] == [""] * 3
    text = (run / "table.md").read_text()
    note = f"Hard questions at 30 %: {len(hard)} of {len(QUESTIONS)}, which all tokens answer right and "
    assert note + "uniform_frames and spatial_pool" in text
    assert "hard %" in text


def test_without_down_sampling_there_are_no_hard_questions(run: Path) -> None:
    for file in run.glob("*_frames_*/arm.json"):
        shutil.rmtree(file.parent)
    for file in run.glob("spatial_*/arm.json"):
        shutil.rmtree(file.parent)
    publish(run, None)
    assert "hard" not in csv_rows(run / "table.csv")[0] and "hard %" not in (run / "table.md").read_text()


def test_an_unknown_column_is_an_error_that_names_those_there_are(run: Path, capsys) -> None:
    assert report.main([str(run), "--breakdown", "domian"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "breakdown=domian: embedded on clips has no such column; its rows have category, domain, duration"
        in said
    )
    assert not (run / "table.csv").exists()


def test_a_benchmark_without_the_column_is_named_beside_one_that_has_it(run: Path, capsys) -> None:
    other = [
        answer(question, 0.5, 0.3, 0.3, random.Random(5)) | {"columns": {"kind": "x"}}
        for question in QUESTIONS
    ]
    own = {"name": "other", "task": "other", "families": CATEGORIES, "chance": None, "note": "other"}
    write_arm(run, "st_simdiff", 0.3, other, benchmark=own)
    assert report.main([str(run), "--breakdown", "domain"]) == 0
    said = " ".join((run / "table.md").read_text().split())
    assert "embedded on other has no such column; its rows have category, kind, video" in said
    assert {row["benchmark"] for row in csv_rows(run / "breakdown.csv")} == {"clips"}


def test_an_earlier_run_says_that_its_lines_hold_no_columns(run: Path, capsys) -> None:
    for file in run.glob("*/answers.jsonl"):
        rows = json_lines(file)
        file.write_text(
            "".join(json.dumps({k: v for k, v in row.items() if k != "columns"}) + "\n" for row in rows)
        )
    assert report.main([str(run), "--breakdown", "domain"]) == 0
    assert "No breakdown by domain" in capsys.readouterr().out
    said = "No breakdown by domain of embedded on clips: its answers were stored before lines kept their columns."
    assert said in (run / "table.md").read_text()
    assert csv_rows(run / "table.csv") and not (run / "breakdown.csv").exists()
    assert report.main([str(run), "--breakdown", "category"]) == 0
    assert len(csv_rows(run / "breakdown.csv")) == 12


def test_a_run_breaks_its_rows_down(tmp_path: Path) -> None:
    settings, arm = on_miniature("videomme", tmp_path, "breakdown=domain")
    assert arm.id == on_miniature("videomme", tmp_path)[1].id
    running.run_arms(settings, [arm], report=make_report)
    stored = lines_of(settings.folder)["random"]
    assert stored["001-1"]["columns"] == {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "videoID": "mini0",
        "task_type": "Object Recognition",
    }
    rows = {row["value"]: row for row in csv_rows(settings.folder / "breakdown.csv")}
    assert set(rows) == {"Knowledge", "Life Record", "Sports Competition"}
    for value, row in rows.items():
        right = [line["correct"] for line in stored.values() if line["columns"]["domain"] == value]
        assert float(row["accuracy"]) == pytest.approx(100 * sum(right) / 3)


def test_a_run_is_told_of_an_unknown_column_before_a_model_loads(tmp_path: Path, no_model) -> None:
    settings, arm = on_miniature("videomme", tmp_path, "breakdown=topic")
    with pytest.raises(
        DataError, match=r"breakdown=topic: videomme has no such column; its rows have category, dom"
    ):
        running.run_arms(settings, [arm])
