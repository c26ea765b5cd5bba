"""What the table says beside accuracy and cost: the mean over the categories, missing videos, the prompt."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from statistics import mean

import pytest
from rich.console import Console

from helpers.synthetic_run import CATEGORIES, QUESTIONS, answers, failed, make, write_arm
from helpers.written import csv_rows
from stsimdiff.report import columns, wandb_log
from stsimdiff.report.columns import Column
from stsimdiff.report.comparison import MACRO
from stsimdiff.report.publish import publish
from stsimdiff.report.section import NAN
from stsimdiff.report.text import Cell, Cells, latex, markdown, number, terminal

BENCHMARK = {"name": "mlvu", "families": CATEGORIES, "chance": 25.0, "note": "MLVU dev", "macro": True}


def line_of(run: Path, name: str) -> dict[str, str]:
    return next(line for line in csv_rows(run / "table.csv") if line["method"] == name)


def printed(run: Path) -> str:
    console = Console(file=StringIO(), width=200)
    make(run, console)
    return console.file.getvalue()


def test_both_averages_stand_in_every_output(tmp_path: Path) -> None:
    every = answers(0.6, 0.3)
    few = [row for row in every if row["category"] == CATEGORIES[0]][:5]
    stored = [row | {"correct": True} for row in few] + [r for r in every if r["category"] != CATEGORIES[0]]
    write_arm(tmp_path, "random", 0.3, stored, benchmark=BENCHMARK)
    shown = printed(tmp_path)
    by_category = [
        mean(100.0 * row["correct"] for row in stored if row["category"] == category)
        for category in CATEGORIES
    ]
    overall = mean(100.0 * row["correct"] for row in stored)
    line = line_of(tmp_path, "random")
    assert float(line["macro"]) == pytest.approx(mean(by_category))
    assert float(line["overall"]) == pytest.approx(overall)
    assert f"{mean(by_category):.1f}" != f"{overall:.1f}"
    for text in (shown, (tmp_path / "table.md").read_text()):
        assert "macro %" in text and f"{mean(by_category):.1f}" in text and f"{overall:.1f}" in text
    publish(tmp_path, None, columns=["macro", "overall"])
    assert rf"random & {mean(by_category):.1f} & {overall:.1f} \\" in (tmp_path / "table.tex").read_text()
    assert "mean over the categories, each counting the same" in " ".join(shown.split())


def test_no_mean_over_categories_where_one_has_no_answer(tmp_path: Path) -> None:
    stored = [row for row in answers(0.6, 0.3) if row["category"] != CATEGORIES[0]]
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


def test_where_the_mean_over_categories_is_explained(tmp_path: Path) -> None:
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


@pytest.fixture
def kv_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column more, declared as ``COLUMNS`` declares its own: from a field of the stored line that no other reads."""
    more = Column("kv_mb", "KV cache MB", taken=lambda rows: rows["kv_bytes"].mean() / 1e6, form=".3f")
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, more))


def test_a_column_is_declared_once_and_stands_in_every_output(tmp_path: Path, kv_cache: None) -> None:
    stored = {name: answers(chance, 0.3) for name, chance in (("random", 0.4), ("fastv", 0.6))}
    for name, rows in stored.items():
        size = {"random": 1_000_000, "fastv": 3_000_000}[name]
        write_arm(tmp_path, name, 0.3, [row | {"kv_bytes": size + i} for i, row in enumerate(rows)])
    shown = printed(tmp_path)
    published = publish(tmp_path, None, columns=["kv_mb"])
    assert published.unmade == []
    more = (len(QUESTIONS) - 1) / 2e6
    assert float(line_of(tmp_path, "fastv")["kv_mb"]) == pytest.approx(3 + more)
    for text in (shown, (tmp_path / "table.md").read_text(), (tmp_path / "table.tex").read_text()):
        assert re.search(r"KV\b", text) and "1.000" in text and "3.000" in text
    page = (tmp_path / "report.html").read_text()
    assert '<button type="button">KV cache MB</button>' in page
    assert f'<td data-number="{3 + more}">3.000</td>' in page
    pages = {page.config.get("method"): page.numbers for page in wandb_log._pages(tmp_path)}
    assert pages["random"]["other/kv_mb"] == pytest.approx(1 + more)


def test_the_page_sorts_by_values_and_not_by_what_is_printed(tmp_path: Path) -> None:
    """Two arms whose kept tokens are printed alike keep their own numbers, and a dash is none."""
    for name, kept in (("random", 0.30001), ("fastv", 0.30004)):
        rows = [row | {"retention_tokens": kept, "times": None} for row in answers(0.5, 0.3)]
        write_arm(tmp_path, name, 0.3, rows)
    publish(tmp_path, None)
    cells = re.findall(r'<td data-number="([^"]*)">([^<]*)</td>', (tmp_path / "report.html").read_text())
    assert [(round(float(number), 3), text) for number, text in cells if number.startswith("30.00")] == [
        (30.001, "30.0"),
        (30.004, "30.0"),
    ]
    assert ("", "–") in cells
    low, _, high = next(text for _, text in cells if re.fullmatch(r"[\d.]+–[\d.]+", text)).partition("–")
    assert any(text == f"{low}–{high}" and f"{float(number):.1f}" == low for number, text in cells)


def test_one_table_as_markdown_latex_and_terminal() -> None:
    cells = Cells(
        ["arm", "a|b %"],
        [
            (
                "block _1",
                [[Cell("x_1", rank=1), number(1.25, ".1f", "!")], [Cell("y|", rank=2), number(NAN)]],
            )
        ],
    )
    assert markdown(cells).splitlines() == [
        "| arm | a\\|b % |",
        "| :--- | ---: |",
        "| *block \\_1* |  |",
        "| **x_1** | 1.2! |",
        "| <ins>y\\|</ins> | – |",
    ]
    assert latex(cells).splitlines()[2:-2] == [
        r"arm & a\textbar{}b \% \\",
        r"\midrule",
        r"\multicolumn{2}{l}{\emph{block \_1}} \\",
        r"\textbf{x\_1} & 1.2! \\",
        r"\underline{y\textbar{}} & -- \\",
    ]
    console = Console(file=StringIO(), width=40)
    terminal(cells, console)
    assert [line.split() for line in console.file.getvalue().splitlines() if "─" not in line] == [
        ["a|b"], ["arm", "%"], ["block", "_1"], ["x_1", "1.2!"], ["y|", "–"],
    ]  # fmt: skip


@pytest.mark.parametrize("width", [24, 40, 60])
def test_a_table_too_wide_folds_between_words_and_then_goes_on_below(width: int) -> None:
    numbers = [f"{1000 + i}.5 [{i}.25, {i}.75]" for i in range(9)]
    cells = Cells(
        ["arm", *(f"heading {i}" for i in range(9))], [("", [[Cell("st_simdiff"), *map(Cell, numbers)]])]
    )
    console = Console(file=StringIO(), width=width)
    terminal(cells, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert all(word in console.file.getvalue().split() for number in numbers for word in number.split())
    assert sum("st_simdiff" in line for line in lines) > 1


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """A run with a row that dropped nothing, one that only merged, one without a word, and two that are well."""
    whole = [row | {"retention_tokens": 1.0, "retention_compute": 1.0} for row in answers(0.99, 1.0)]
    write_arm(tmp_path, "none", 1.0, whole)
    write_arm(tmp_path, "evs", 0.3, [row | {"correct": True, "reasons": {"all": 400}} for row in whole])
    write_arm(tmp_path, "dycoke", 0.3, [row | {"kv_kept": 0.3} for row in whole])
    write_arm(tmp_path, "sttm", 0.3, [row | {"reasons": {"all": 399, "merged": 1}} for row in whole])
    silent = {"answer": " ", "parsed": None, "correct": False}
    write_arm(tmp_path, "fastv", 0.3, [row | silent for row in answers(0.6, 0.3)])
    for name, chance in (("random", 0.4), ("st_simdiff", 0.7)):
        write_arm(tmp_path, name, 0.3, answers(chance, 0.3))
    return tmp_path


def test_a_row_that_did_nothing_is_marked_everywhere_and_leads_no_block(faults: Path) -> None:
    publish(
        faults, brief := Console(file=StringIO(), width=120, force_terminal=True, color_system="standard")
    )
    lines = {
        line.split()[0]: line for line in brief.file.getvalue().splitlines() if line.startswith("\x1b[31m")
    }
    assert sorted(lines) == ["\x1b[31mevs", "\x1b[31mfastv"] and "inactive" in lines["\x1b[31mevs"]
    table = make(
        faults, console := Console(file=StringIO(), width=250, force_terminal=True, color_system="standard")
    )
    rows = {row.method: row for row in table.sections[0].rows}
    wrong = {name: row.fault for name, row in rows.items() if row.fault}
    assert wrong == {"evs": "inactive", "fastv": "empty"}
    assert rows["evs"].overall == 100 and not rows["evs"].best and not rows["evs"].second
    assert rows["st_simdiff"].best and rows["random"].second
    shown, plain = console.file.getvalue(), re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
    assert (
        "\x1b[31mevs (inactive)" in shown
        and "\x1b[31mfastv (empty)" in shown
        and "\x1b[31mrandom" not in shown
    )
    at = "At 30 % st_simdiff ("
    verdict = next(said for said in table.sections[0].verdicts if said.startswith(at))
    assert "since inactive: evs" in verdict and "since empty: fastv" in verdict
    markdown_, tex = (faults / "table.md").read_text(), (faults / "table.tex").read_text()
    page = (faults / "report.html").read_text()
    for text in (plain, markdown_, page):
        words = " ".join(text.replace("\\", "").split())
        assert "evs (inactive)" in words and "fastv (empty)" in words
        assert "INACTIVE, so out of the contest for the best: evs at 30 %: no token was dropped" in words
        assert "EMPTY, so out of the contest for the best: fastv at 30 %: every answer is empty" in words
    assert r"evs & 100.0 & 100.0 & 100.0 & 100.0\tnote{b,a} \\" in tex and r"0.0\tnote{c} \\" in tex
    assert r"\item[b] No token was dropped or merged" in tex and r"\item[c] Every answer is empty." in tex
    assert page.count('class="fault"') == 2
    assert {name: line_of(faults, name)["fault"] for name in rows} == dict.fromkeys(rows, "") | wrong


def test_a_block_of_inactive_rows_has_no_leader(tmp_path: Path) -> None:
    whole = [row | {"retention_tokens": 1.0, "retention_compute": 1.0} for row in answers(0.9, 1.0)]
    write_arm(tmp_path, "evs", 0.3, whole)
    (section,) = make(tmp_path, None).sections
    assert section.verdicts == [
        "At 30 % no method that keeps to its budget has answers, so there is no verdict; "
        "out of the contest, since inactive: evs."
    ]
    unknown = [row | {"retention_tokens": None} for row in whole]
    write_arm(tmp_path, "random", 0.3, unknown)
    assert [row.fault for row in make(tmp_path, None).sections[0].rows] == ["", "inactive"]


def test_the_word_of_fidelity_stands_in_every_table(tmp_path: Path) -> None:
    for name in ("visionzip", "evs", "st_simdiff", "mine"):
        write_arm(tmp_path, name, 0.3, answers(0.6, 0.3))
    publish(tmp_path, None)
    found = {name: line_of(tmp_path, name)["fidelity"] for name in ("visionzip", "evs", "st_simdiff", "mine")}
    assert found == {"visionzip": "variant", "evs": "official, adapted", "st_simdiff": "official", "mine": ""}
    assert "| fidelity |" in (tmp_path / "table.md").read_text()
    assert "official, adapted" in printed(tmp_path)
    publish(tmp_path, None, columns=["fidelity"])
    assert r"evs & official, adapted \\" in (tmp_path / "table.tex").read_text()
    assert 'data-text="official, adapted"' in (tmp_path / "report.html").read_text()
    (evs,) = (page for page in wandb_log._pages(tmp_path) if page.config.get("method") == "evs")
    assert evs.texts["fidelity"] == "official, adapted"
