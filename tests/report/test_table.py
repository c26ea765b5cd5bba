"""The table from synthetic runs: every number again by other code, and what a reader must be told."""

import json
import random
import re
from io import StringIO
from pathlib import Path
from statistics import mean, median

import pytest
from rich.console import Console

from helpers import recomputed
from helpers.latex import structure
from helpers.processes import python
from helpers.synthetic_run import CATEGORIES, QUESTIONS, answers, failed, make, unparsed, write_arm
from helpers.written import csv_rows
from stsimdiff.commands.report import main
from stsimdiff.report import render
from stsimdiff.report.paper import paper_table
from stsimdiff.report.publish import publish
from stsimdiff.report.render import clauses
from stsimdiff.report.rows import read
from stsimdiff.report.table import build

COLUMNS = [
    *(
        "method",
        "retention",
        "budget",
        "overall",
        "ci_low",
        "ci_high",
        "retention_tokens",
        "retention_compute",
    ),
    *(
        "llm_flops_ratio",
        "prefill_ms",
        "n",
        "n_failed",
        "n_missing",
        "n_unparsed",
        "relative",
        "relative_low",
        "relative_high",
        "acc_attr",
        "acc_order",
        "acc_event_count",
        "fidelity",
        "fault",
    ),
    *("hard", "hard_low", "hard_high", "n_hard"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two taus, failed and unparsed samples, a missed budget, an arm with nothing, one that goes on."""
    folder = tmp_path_factory.mktemp("results") / "sweep_1"
    dice = random.Random(9)
    write_arm(folder, "st_simdiff", 0.3, answers(0.8, 0.3))
    write_arm(folder, "st_simdiff", 0.3, answers(0.7, 0.3), label="st_simdiff tau_sim=0.7 a&b_c=50%")
    write_arm(folder, "random", 0.1, answers(0.4, 0.1 * 1.05))
    write_arm(folder, "st_simdiff", 0.1, None)
    write_arm(folder, "no_video", 1.0, answers(0.3, 0.0))
    write_arm(folder, "none", 1.0, answers(0.9, 1.0))
    broken = answers(0.6, 0.3, 0.475)
    for i in (3, 4, 50):
        broken[i] = failed(QUESTIONS[i])
    write_arm(folder, "fastv", 0.3, broken)
    vague = answers(0.5, 0.3)
    for i in (3, 10, 11):
        vague[i] = unparsed(QUESTIONS[i], dice)
    write_arm(folder, "random", 0.3, vague)
    shards = write_arm(folder, "uniform_frames", 0.1, None)
    partial = answers(0.5, 0.1)[:110]
    (shards / "answers.0-of-2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in partial[::2]))
    second = [failed(QUESTIONS[1]), *partial[1::2]]
    torn = json.dumps(answers(0.5, 0.1)[112])[:-30]
    (shards / "answers.1-of-2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in second) + torn)
    return folder


@pytest.fixture(scope="module")
def lines(run: Path, table) -> list[dict[str, str]]:
    return csv_rows(run / "table.csv")


def plain_rows(run: Path) -> dict[tuple[str, float], dict[str, dict]]:
    """Answers that count by (label, retention) and id."""
    arms = recomputed.stored(run).values()
    return {(arm["label"], arm["budget"]["retention"]): arm["rows"] for arm in arms}


def test_every_number_of_the_csv(run: Path, lines: list[dict[str, str]]) -> None:
    stored = plain_rows(run)
    common = set.intersection(
        *({id_ for id_, row in kept.items() if row["error"] is None} for kept in stored.values() if kept)
    )
    assert len(common) == 110 - 3
    assert list(lines[0]) == COLUMNS
    assert len(lines) == len(stored) == 9
    for line in lines:
        kept = stored[line["method"], float(line["retention"])]
        counted = [kept[id_] for id_ in sorted(common)] if kept else []
        assert line["budget"] == "tokens"
        assert int(line["n"]) == len(counted)
        assert int(line["n_failed"]) == sum(row["error"] is not None for row in kept.values())
        assert int(line["n_unparsed"]) == sum(row["parsed"] is None for row in counted)
        if not kept:
            assert {line[name] for name in COLUMNS[3:10] + COLUMNS[14:-6]} == {""}, line
            continue
        expected = {
            "overall": 100 * mean(row["correct"] for row in counted),
            "retention_tokens": mean(row["retention_tokens"] for row in counted),
            "retention_compute": mean(row["retention_compute"] for row in counted),
            "llm_flops_ratio": sum(r["llm_flops"] for r in counted)
            / sum(r["llm_flops_all"] for r in counted),
            "prefill_ms": median(1000 * row["times"]["prefill"] for row in counted),
        }
        for category in CATEGORIES:
            expected[f"acc_{category}"] = 100 * mean(
                row["correct"] for row in counted if row["category"] == category
            )
        for name, value in expected.items():
            assert float(line[name]) == pytest.approx(value), (line["method"], name)
        _, low, high = recomputed.accuracy(
            [row["correct"] for row in counted], [row["video"] for row in counted]
        )
        assert (float(line["ci_low"]), float(line["ci_high"])) == pytest.approx((100 * low, 100 * high))
        whole = stored["none", 1.0]
        relative = recomputed.ratio(
            [row["correct"] for row in counted],
            [whole[row["id"]]["correct"] for row in counted],
            [row["video"] for row in counted],
        )
        found = [float(line[name] or 0) / 100 for name in ("relative", "relative_low", "relative_high")]
        # All tokens in percent of themselves are 100, and no estimate.
        assert found[:1] == [1] if line["method"] == "none" else found == pytest.approx(relative, abs=1e-6)


def test_blocks_descend_and_references_stand_in_the_first(lines: list[dict[str, str]]) -> None:
    assert [(line["method"], float(line["retention"])) for line in lines] == [
        ("none", 1.0),
        ("no_video", 1.0),
        ("random", 0.3),
        ("fastv", 0.3),
        ("st_simdiff", 0.3),
        ("st_simdiff tau_sim=0.7 a&b_c=50%", 0.3),
        ("random", 0.1),
        ("uniform_frames", 0.1),
        ("st_simdiff", 0.1),
    ]


def test_only_a_missed_budget_is_marked(run: Path, table) -> None:
    marked = {(row.label, row.retention) for row in table.sections[0].rows if row.missed}
    assert marked == {("random", 0.1)}
    text = (run / "table.md").read_text()
    assert len(re.findall(r"\d!", text)) == 1
    assert "marked ! is off its budget of kind tokens by more than 2 %" in text


def test_best_of_a_block_is_bold_and_references_do_not_compete(run: Path, table) -> None:
    best = {(row.label, row.retention) for row in table.sections[0].rows if row.best}
    # At 10 % random has spent more than its budget: uniform_frames has no rival left.
    assert best == {("st_simdiff", 0.3)}
    assert [row.label for row in table.sections[0].rows if row.second] == ["st_simdiff tau_sim=0.7 a&b_c=50%"]
    assert "| **st_simdiff** | **" in (run / "table.md").read_text()
    tex = (run / "table.tex").read_text()
    # In LaTeX each column has a best and a second of its own.
    best, second = (f"{row.overall:.1f}" for row in table.sections[0].rows if row.best or row.second)
    (line,) = (line for line in tex.splitlines() if line.startswith(r"st\_simdiff &") and r"\textbf" in line)
    assert line.endswith(rf"& \textbf{{{best}}} \\")
    (line,) = (line for line in tex.splitlines() if line.startswith(r"st\_simdiff $\tau_\mathrm{sim}$=0.7"))
    assert line.endswith(rf"& \underline{{{second}}} \\")
    assert "<ins>st_simdiff tau_sim=0.7" in (run / "table.md").read_text()


def test_notes_say_what_was_left_out_and_why(run: Path, table) -> None:
    notes = "\n".join(table.sections[0].notes)
    asked = len(QUESTIONS)
    assert f"Compared on the 107 questions that every arm answered; {asked - 107} left out (3 failed" in notes
    assert "NO ANSWERS: st_simdiff at 10 % has stored nothing yet." in notes
    assert f"NOT FINISHED: uniform_frames at 10 % has stored 110 of {asked} questions." in notes
    assert "FAILED samples, which are no answers: fastv at 30 % ValueError x3." in notes
    assert "NOT MATCHED in compute at 30 % (tokens): rows differ by up to 5" in notes
    assert "(fastv against" in notes and "fastv 1.58 times" in notes
    assert (
        "NOT MATCHED in compute at 10 % (tokens): rows differ by up to 5 % (random against uniform" in notes
    )
    assert "Over its budget, so out of the contest for the best: random at 10 %." in notes
    assert "No metrics.json, so lmms-eval's own aggregation has not run yet: uniform_frames at 10 %." in notes
    assert any("answers.1-of-2.jsonl:57: the last line is torn" in note for note in table.notes)


def shown(run: Path, width: int) -> str:
    stream = StringIO()
    make(run, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_shows_every_number_in_full(run: Path, lines: list[dict[str, str]], width: int) -> None:
    text = shown(run, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for line in lines:
        for name in ("overall", "relative", *COLUMNS[17:-6]):
            assert not line[name] or f"{float(line[name]):.1f}" in words, (line["method"], name)
    assert text.count("toy clips only") == 1
    assert "The PAPER'S Table 1" not in text


def test_the_last_screen_has_verdict_table_and_warnings_in_few_lines(tmp_path: Path) -> None:
    """32 arms, each with something to be warned of, on a terminal of 100 columns."""
    chances = {"random": 0.3, "fastv": 0.5, "visionzip": 0.6, "framefusion": 0.8, "st_simdiff": 0.85}
    own = {f"method_number_{i}": 0.3 + 0.05 * i for i in range(5)}
    for retention in (0.5, 0.3, 0.1):
        for i, (method, chance) in enumerate((chances | own).items()):
            rows = answers(chance, retention, retention * (1 + 0.1 * (i % 3)))[: len(QUESTIONS) - i]
            fidelity = {"word": "variant", "reason": "a long reason. " * 20}
            write_arm(tmp_path, method, retention, rows, fidelity=fidelity)
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    write_arm(tmp_path, "no_video", 1.0, [failed(QUESTIONS[0]), *answers(0.3, 0.0)[1:]])
    stream = StringIO()
    published = publish(tmp_path, Console(file=stream, width=100))
    text = stream.getvalue().splitlines()
    assert published.unmade == [] and len(text) <= 60
    assert max(len(line) for line in text if not line.startswith(("Table:", "Page:"))) <= 100
    (section,) = published.table.sections
    start = next(i for i, line in enumerate(text) if line.startswith("method "))
    rows = text[start + 2 : start + 2 + len(section.rows)]
    for line, row in zip(rows, section.rows, strict=True):
        words = line.split()
        assert words[:3] == [row.label, f"{100 * row.retention:.4g}", f"{row.overall:.1f}"]
        assert f"{row.relative:.1f}" in words and f"{100 * row.retention_compute:.1f}" in words
        assert ("best" in words or "best," in words) == row.best
        assert ("variant" in line) == (not row.reference) and ("1 failed" in line) == (
            row.method == "no_video"
        )
    said = " ".join(" ".join(text[:start]).split())
    for verdict in section.verdicts:
        assert verdict in said
    below = text[start + 2 + len(section.rows) :]
    assert sum("NOT MATCHED" in line for line in below) == sum("NOT FINISHED" in line for line in below) == 1
    assert any("(+2 like it) NOT MATCHED in compute at 50 %" in line for line in below)
    assert "event_count" not in " ".join(text) and "minus" not in " ".join(text)
    about = [line for line in text if line.startswith("- ") and text.index(line) > start]
    assert all(re.match(r"- .*[\w.%)]$", line.rstrip()) for line in about) and "…" not in " ".join(text)
    assert f"Table: {tmp_path}/table.md" in text[-2] and text[-1] == f"Page: {tmp_path}/report.html"
    whole = StringIO()
    publish(tmp_path, Console(file=whole, width=100), full=True)
    assert "event_count" in whole.getvalue() and "Differences in pairs" in whole.getvalue()


@pytest.mark.parametrize(
    ("width", "wanted"),
    [
        (
            100,
            "NOT MATCHED in compute at 50 % (tokens): rows differ by up to 67 % (a against b): too long by far",
        ),
        (76, "NOT MATCHED in compute at 50 % (tokens): rows differ by up to 67 %"),
        (64, "NOT MATCHED in compute at 50 % (tokens)"),
        (60, "NOT MATCHED in compute at 50 % (tokens)"),
        (30, "NOT MATCHED in compute at 50 %"),
        (20, ""),
    ],
)
def test_a_note_of_one_line_is_cut_where_something_whole_ends(width: int, wanted: str) -> None:
    line = "NOT MATCHED in compute at 50 % (tokens): rows differ by up to 67 % (a against b): too long by far"
    assert clauses(line, width) == (wanted or line)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("Kept whole, 0 left out. Numbers change with it.", "Kept whole, 0 left out."),
        ("One of 25.5 points; another that is far too long", "One of 25.5 points"),
        ("One with commas, and one more, which is too long", "One with commas, and one more"),
        ("שלום (a, b; c: d is inside a parenthesis) and on", "שלום"),
    ],
)
def test_a_clause_ends_at_a_sentence_a_semicolon_or_at_last_a_comma(line: str, wanted: str) -> None:
    assert clauses(line, 29) == wanted


def test_a_line_of_words_breaks_no_number_from_its_unit(tmp_path: Path) -> None:
    for method, chance in (("none", 0.9), ("random", 0.3), ("fastv", 0.8), ("st_simdiff", 0.85)):
        write_arm(tmp_path, method, 1.0 if method == "none" else 0.3, answers(chance, 0.3))
    for width in range(60, 131, 10):
        lines = shown(tmp_path, width).splitlines()
        assert not [
            line for line in lines if re.match(r"\s+(%|[<=] )", line) or re.search(r"\b[pn]? [<=]\s*$", line)
        ]


def test_each_pair_is_one_line_of_a_terminal(tmp_path: Path) -> None:
    for method, chance in (
        ("none", 0.9),
        ("uniform_frames", 0.3),
        ("pyramiddrop", 0.8),
        ("st_simdiff", 0.85),
    ):
        write_arm(tmp_path, method, 1.0 if method == "none" else 0.3, answers(chance, 0.3))
    for width in (100, 140):
        text = shown(tmp_path, width)
        pairs = text[text.index("Differences in pairs") :].split("\n- ")[0].splitlines()
        assert ("McNemar" in " ".join(pairs)) == (width == 140)
        table = [line for line in pairs if " to " in line]
        (section,) = build(read(tmp_path)).sections
        assert len(table) == len(render.shown_pairs(section)) == 3
        assert all(re.search(r"(worse|better|no significant difference) +[\d–]+ *$", line) for line in table)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_heading_of_a_block_goes_over_two_lines(run: Path, width: int) -> None:
    lines = shown(run, width).splitlines()
    titles = [line.strip() for line in lines if line.startswith("retention")]
    assert set(titles) == {"retention 100 %", "retention 30 %", "retention 10 %"}


def test_categories_stand_beside_the_result_where_there_is_room(run: Path) -> None:
    together = [line for line in shown(run, 160).splitlines() if "event_count" in line]
    apart = [line for line in shown(run, 100).splitlines() if "event_count" in line]
    assert ["unparsed" in line for line in together] == [True]
    assert ["unparsed" in line for line in apart] == [False]


def test_provenance_benchmark_and_paper_stand_below_the_table(run: Path, table) -> None:
    for name in ("table.md", "table.tex"):
        text = (run / name).read_text()
        assert "toy clips only. Chance is 25.0" in text
        assert "lmms-eval's task functions. torch 2.9" in text
        assert "git abc1234" in text
        assert "decord" not in text
        assert "the authors' printed numbers, not ours" not in text


def test_the_papers_table_stands_below_a_run_of_its_model_and_benchmark(tmp_path: Path) -> None:
    model = {"name": "llava_video", "path": "/models/llava", "frames": 64}
    benchmark = {"name": "videomme", "task": "videomme", "families": CATEGORIES, "chance": 25.0, "note": ""}
    write_arm(tmp_path, "none", 1.0, answers(0.6, 1.0), model=model, benchmark=benchmark)
    assert "The PAPER'S Table 1" in shown(tmp_path, 100)
    own, paper = (tmp_path / "table.md").read_text().split("## The paper's numbers")
    published = paper_table("table1_llava_video")
    line = next(line for line in paper.splitlines() if "LLaVA-Video (all tokens)" in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["", "", "", "63.3", "", "", "58.2", "57.3"]
    for number in published.drop(columns=["method", "retention"]).stack().dropna():
        assert f"| {number:.1f} " in paper
    assert "FasterVLM" not in own


def test_latex_is_balanced_and_escaped(run: Path, table) -> None:
    text = (run / "table.tex").read_text()
    body = structure(text)
    assert r"st\_simdiff $\tau_\mathrm{sim}$=0.7 a\&b\_c=50\% &" in text
    assert r"\item Compared" not in body and r"\item FAILED samples, which are no answers: fastv" in body
    assert r"\item[a] Off its budget by more than 2 \% (relative" in body and "!" not in body
    (row,) = (row for row in table.sections[0].rows if row.missed)
    assert rf"& {row.overall:.1f}\tnote{{a}} \\" in body


def test_two_kinds_make_two_sections_that_share_the_references(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    write_arm(tmp_path, "fastv", 0.5, answers(0.6, 0.5, 0.6))
    write_arm(tmp_path, "fastv", 0.5, answers(0.6, 0.4, 0.53), kind="compute")
    table = make(tmp_path, None)
    assert [[(row.label, row.budget) for row in section.rows] for section in table.sections] == [
        [("none", "tokens"), ("fastv", "tokens")],
        [("none", "compute"), ("fastv", "compute")],
    ]
    assert [row.missed for section in table.sections for row in section.rows] == [False, False, False, True]
    assert re.search(r"\| 40\.0 \| 53\.\d! \|", (tmp_path / "table.md").read_text())


def test_models_are_never_mixed(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    write_arm(
        tmp_path,
        "none",
        1.0,
        answers(0.5, 1.0),
        model={"name": "embedded", "path": "/models/embedded", "frames": 16},
    )
    table = make(tmp_path, None)
    assert [section.model for section in table.sections] == ["embedded (8 frames)", "embedded (16 frames)"]
    assert list(table.frame())[:3] == ["model", "benchmark", "method"]


def test_run_without_any_answer_is_a_table_of_dashes(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, None)
    write_arm(tmp_path, "random", 0.3, [failed(question) for question in QUESTIONS])
    table = make(tmp_path, None)
    assert [row.n for row in table.sections[0].rows] == [0, 0]
    assert table.n_failed == len(QUESTIONS)
    notes = "\n".join(table.sections[0].notes)
    assert "none has stored nothing yet" in notes
    assert "every sample of random at 30 % failed" in notes


def test_versions_that_differ_between_rows_are_said(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    write_arm(
        tmp_path, "random", 0.3, answers(0.5, 0.3), resumed=[{"versions": {"torch": "3.0"}, "device": "cpu"}]
    )
    assert "torch 2.9 | 3.0" in make(tmp_path, None).sections[0].about[-1]
    assert "ROWS DIFFER in torch" in (tmp_path / "table.md").read_text()


def test_command_fails_when_samples_failed(run: Path) -> None:
    assert main([str(run)]) == 1


def test_reports_import_no_model_library() -> None:
    code = (
        "import sys, stsimdiff.commands.report\n"
        "print([name for name in ('torch', 'transformers', 'lmms_eval', 'wandb') if name in sys.modules])"
    )
    assert python("-c", code, check=True).stdout.strip() == "[]"
