"""What the table says beside accuracy and cost: the mean over the families, missing videos, the prompt."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from statistics import mean

import pytest
from rich.console import Console
from synthetic_run import FAMILIES, QUESTIONS, answers, failed, make, write_arm

from stsimdiff.report.comparison import MACRO

BENCHMARK = {"name": "mlvu", "families": FAMILIES, "chance": 25.0, "note": "MLVU dev", "macro": True}


def line_of(run: Path, name: str) -> dict[str, str]:
    with open(run / "table.csv", newline="") as stream:
        return next(line for line in csv.DictReader(stream) if line["method"] == name)


def printed(run: Path) -> str:
    console = Console(file=StringIO(), width=200)
    make(run, console)
    return console.file.getvalue()


def test_both_averages_stand_in_every_output(tmp_path: Path) -> None:
    every = answers(0.6, 0.3)
    few = [row for row in every if row["family"] == FAMILIES[0]][:5]
    stored = [row | {"correct": True} for row in few] + [r for r in every if r["family"] != FAMILIES[0]]
    write_arm(tmp_path, "random", 0.3, stored, benchmark=BENCHMARK)
    shown = printed(tmp_path)
    by_family = [
        mean(100.0 * row["correct"] for row in stored if row["family"] == family) for family in FAMILIES
    ]
    overall = mean(100.0 * row["correct"] for row in stored)
    line = line_of(tmp_path, "random")
    assert float(line["macro"]) == pytest.approx(mean(by_family))
    assert float(line["overall"]) == pytest.approx(overall)
    assert f"{mean(by_family):.1f}" != f"{overall:.1f}"
    for text in (shown, (tmp_path / "table.md").read_text()):
        assert "macro %" in text and f"{mean(by_family):.1f}" in text and f"{overall:.1f}" in text
    assert r"macro \%" in (tmp_path / "table.tex").read_text()
    assert "mean over the families, each counting the same" in " ".join(shown.split())


def test_no_mean_over_families_where_one_has_no_answer(tmp_path: Path) -> None:
    stored = [row for row in answers(0.6, 0.3) if row["family"] != FAMILIES[0]]
    write_arm(tmp_path, "random", 0.3, stored, benchmark=BENCHMARK)
    assert make(tmp_path, None).sections[0].macro
    assert line_of(tmp_path, "random")["macro"] == ""


def test_other_benchmarks_have_no_such_column(tmp_path: Path) -> None:
    write_arm(tmp_path, "random", 0.3, answers(0.6, 0.3))
    assert "macro" not in printed(tmp_path) and "macro" not in line_of(tmp_path, "random")


def test_every_row_says_how_many_questions_lack_a_video(tmp_path: Path) -> None:
    gone = {"error": {"type": "VideoError", "message": "video a.mp4 does not exist", "traceback": ""}}
    for name, missing in (("none", 4), ("random", 4)):
        stored = answers(0.6, 0.3)
        stored[:missing] = [failed(question) | gone for question in QUESTIONS[:missing]]
        stored[missing] = failed(QUESTIONS[missing])
        write_arm(tmp_path, name, 0.3, stored)
    shown = printed(tmp_path)
    assert [(row.n_missing, row.n_failed) for row in make(tmp_path, None).sections[0].rows] == [(4, 5)] * 2
    assert line_of(tmp_path, "random")["n_missing"] == line_of(tmp_path, "none")["n_missing"] == "4"
    head = next(line for line in (tmp_path / "table.md").read_text().splitlines() if "n failed" in line)
    assert "| n failed | n video missing |" in head and "missing" in shown


def test_the_prompt_is_said_and_another_prompts_rows_stand_apart(tmp_path: Path) -> None:
    first = BENCHMARK | {"prompt": "llava_vid"}
    write_arm(tmp_path, "none", 1.0, answers(0.6, 1.0), benchmark=first)
    make(tmp_path, None)
    assert "Prompt: the one that the task calls 'llava_vid'" in (tmp_path / "table.md").read_text()
    write_arm(tmp_path, "random", 0.3, answers(0.6, 0.3), benchmark=first | {"prompt": "default"})
    sections = make(tmp_path, None).sections
    assert [section.benchmark for section in sections] == ["mlvu (prompt llava_vid)", "mlvu (prompt default)"]
    assert "on mlvu (prompt default), budget" in (tmp_path / "table.md").read_text()


def test_a_block_ends_with_the_proposed_method_and_begins_with_what_needs_none(tmp_path: Path) -> None:
    expected = ["none", "no_video", "random", "uniform_frames", "fastv", "visionzip", "st_simdiff"]
    for name in (expected[i] for i in (6, 4, 2, 1, 5, 3, 0)):
        write_arm(tmp_path, name, 1.0 if name in expected[:2] else 0.3, answers(0.6, 0.3))
    (section,) = make(tmp_path, None).sections
    assert [row.method for row in section.rows] == expected
    # What needs no budget takes no place in a block.
    assert not any(row.best or row.second for row in section.rows[:2])


def test_where_the_mean_over_families_is_explained(tmp_path: Path) -> None:
    write_arm(tmp_path / "with", "random", 0.3, answers(0.6, 0.3), benchmark=BENCHMARK)
    write_arm(tmp_path / "without", "random", 0.3, answers(0.6, 0.3), benchmark=BENCHMARK | {"macro": False})
    with_mean, without = (make(tmp_path / name, None).sections[0].about for name in ("with", "without"))
    assert with_mean == [without[0], MACRO, *without[1:]]


def test_an_arm_without_figures_or_a_reference_misses_no_budget(tmp_path: Path) -> None:
    unknown = [row | {"retention_tokens": None} for row in answers(0.6, 0.5)]
    for name, retention, stored in (("random", 0.3, unknown), ("none", 1.0, answers(0.9, 0.8))):
        write_arm(tmp_path, name, retention, stored)
    write_arm(tmp_path, "fastv", 0.3, answers(0.6, 0.5))
    (section,) = make(tmp_path, None).sections
    assert {row.method: row.missed for row in section.rows} == {"none": False, "random": False, "fastv": True}


def test_what_decoding_costs_stands_beside_the_prefill_where_a_method_acts_then(tmp_path: Path) -> None:
    plain = [row | {"times": row["times"] | {"token": 0.020}} for row in answers(0.6, 0.3)]
    write_arm(tmp_path, "random", 0.3, plain)
    assert "KV kept" not in printed(tmp_path) and "kv_kept" not in line_of(tmp_path, "random")
    hiding = [row | {"kv_kept": 0.25, "times": row["times"] | {"token": 0.0125}} for row in answers(0.6, 0.3)]
    write_arm(tmp_path, "st_simdiff", 0.3, hiding)
    printed(tmp_path)
    shown = (tmp_path / "table.md").read_text()
    assert "KV kept %" in shown and "25.0" in shown and "ms a token" in shown and "12.5" in shown
    line, other = line_of(tmp_path, "st_simdiff"), line_of(tmp_path, "random")
    assert (float(line["kv_kept"]), float(line["token_ms"])) == pytest.approx((0.25, 12.5))
    assert other["kv_kept"] == "" and float(other["token_ms"]) == pytest.approx(20)
