"""What a run's pairs and sentences say, against the stored lines and other code."""

import math
import random
import re
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import recomputed
from helpers.synthetic_run import QUESTIONS, answer, answers, failed, make, write_arm
from helpers.written import csv_rows
from stsimdiff.report.equal_compute import median_compute
from stsimdiff.report.paper import baseline_gate, for_information, paper_number
from stsimdiff.report.render import shown_pairs

METHODS = (
    "random",
    "uniform_frames",
    "spatial_pool",
    "evs",
    "fastv",
    "prumerge",
    "fastervlm",
)
METHODS += ("visionzip", "framefusion", "st_simdiff")


def outcome(question: tuple[str, str, str], right: bool, kept: float) -> dict:
    return answer(question, float(right), kept, kept, random.Random(question[1]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks and both references; one failed sample, one arm without answers, one over its budget."""
    folder = tmp_path_factory.mktemp("results") / "verdicts"
    write_arm(folder, "none", 1.0, answers(0.93, 1.0))
    write_arm(folder, "no_video", 1.0, answers(0.25, 0.0))
    for retention, chances in ((0.3, (0.5, 0.9, 0.88, 0.9)), (0.1, (0.4, 0.45, 0.8, 0.75))):
        for method, chance in zip(("random", "fastv", "visionzip", "st_simdiff"), chances, strict=True):
            rows = answers(chance, retention, seed=3)
            if (method, retention) == ("fastv", 0.3):
                rows[7] = failed(QUESTIONS[7])
            write_arm(folder, method, retention, rows)
    write_arm(folder, "prumerge", 0.1, None)
    write_arm(folder, "framefusion", 0.1, answers(0.99, 0.12))
    return folder


@pytest.fixture(scope="module")
def lines(run: Path, table) -> list[dict[str, str]]:
    return csv_rows(run / "pairs.csv")


def test_every_number_of_the_pairs_by_other_code(run: Path, lines: list[dict[str, str]]) -> None:
    arms = recomputed.stored(run)
    ids = recomputed.common(arms)
    assert len(ids) == len(QUESTIONS) - 1
    right, videos = {}, []
    for arm in arms.values():
        if arm["rows"]:
            kept = [arm["rows"][i] for i in ids]
            videos = [row["video"] for row in kept]
            right[arm["label"], arm["budget"]["retention"]] = [row["correct"] for row in kept]
    everything = right.pop(("none", 1.0))
    expected = {(name, "none", kept): (first, everything) for (name, kept), first in right.items()}
    for (name, kept), (other, same) in combinations(right, 2):
        if kept == same < 1:
            expected[name, other, kept] = (right[name, kept], right[other, kept])
    assert len(expected) == 6 + 10 + 10
    assert len(lines) == len(expected)
    found = {}
    for line in lines:
        key = (line["method"], line["against"], float(line["retention"]))
        if key in expected:
            first, second = expected.pop(key)
        else:
            second, first = expected.pop((key[1], key[0], key[2]))
        found[key] = recomputed.difference(first, second, videos)
    assert not expected
    corrected = recomputed.holm([max(one["p_cluster"], one["p_mcnemar"]) for one in found.values()])
    for line, one, p in zip(lines, found.values(), corrected, strict=True):
        assert int(line["n"]) == len(ids)
        for name, value in (("difference", "value"), ("ci_low", "low"), ("ci_high", "high")):
            assert float(line[name]) == pytest.approx(100 * one[value], abs=1e-9)
        for name in ("p_cluster", "p_mcnemar"):
            assert float(line[name]) == pytest.approx(one[name])
        assert float(line["p_holm"]) == pytest.approx(p)
        word = "no significant difference" if p >= 0.05 else "better" if one["value"] > 0 else "worse"
        assert line["verdict"] == word
        needed = recomputed.needed(one["value"], one["discordant"], one["effect"], 0.05 / len(lines))
        assert float(line["n_needed"]) == pytest.approx(needed, abs=1)
    assert {line["verdict"] for line in lines} == {"better", "worse", "no significant difference"}


def test_a_verdict_contradicts_neither_its_interval_nor_a_test(lines: list[dict[str, str]]) -> None:
    for line in lines:
        if line["verdict"] != "no significant difference":
            assert (float(line["ci_low"]) > 0) == (line["verdict"] == "better")
            assert (float(line["ci_high"]) < 0) == (line["verdict"] == "worse")
            assert max(float(line[name]) for name in ("p_cluster", "p_mcnemar", "p_holm")) < 0.05
        elif float(line["ci_low"]) > 0 or float(line["ci_high"]) < 0:
            assert float(line["p_holm"]) >= 0.05


def by_pair(
    lines: list[dict[str, str]], first: str, second: str, retention: float
) -> tuple[str, float, float]:
    """Verdict, points and corrected p of ``first`` against ``second``."""
    for line in lines:
        if float(line["retention"]) == retention and {line["method"], line["against"]} == {first, second}:
            turn = line["method"] != first
            word = {"better": "worse", "worse": "better"}.get(line["verdict"]) if turn else line["verdict"]
            points = float(line["difference"]) * (-1 if turn else 1)
            return word or line["verdict"], points, float(line["p_holm"])
    raise AssertionError(f"{first} and {second} were never compared at {retention}")


@pytest.mark.parametrize("retention", [0.3, 0.1])
def test_the_sentence_of_a_block_is_what_the_pairs_say(run: Path, table, lines, retention: float) -> None:
    rows = [row for row in csv_rows(run / "table.csv") if float(row["retention"]) == retention]
    contest = [row for row in rows if row["overall"] and row["method"] != "framefusion"]
    best = max(contest, key=lambda row: float(row["overall"]))
    (said,) = [text for text in table.sections[0].verdicts if text.startswith(f"At {100 * retention:.4g} %")]
    assert f"{best['method']} ({float(best['overall']):.1f}) leads" in said
    for row in contest:
        if row is best:
            continue
        word, points, p = by_pair(lines, row["method"], best["method"], retention)
        shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        if word == "worse":
            assert re.search(
                rf"{row['method']} (is )?{-points:.1f} (points worse )?\({re.escape(shown)}\)", said
            )
        else:
            level = re.search(r"; no significant difference between it and ([^;]*)", said)
            assert level and row["method"] in level[1]
    assert ("over budget: framefusion" in said) == (retention == 0.1)
    word, points, _ = by_pair(lines, best["method"], "none", retention)
    level = f"{best['method']} shows no significant difference from all tokens"
    assert (level in said) == (word == "no significant difference")
    if word == "worse":
        assert f"{best['method']} is {-points:.1f} points worse than all tokens" in said
    assert said in (run / "table.md").read_text().replace("\\", "")


def test_shown_pairs_are_those_with_the_leader_the_proposed_method_and_all_tokens(
    run: Path, table, lines
) -> None:
    text = (run / "table.md").read_text().split("Differences in pairs")[1].split("## The paper")[0]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    body = [
        line for line in cells if len(line) == 9 and "---:" not in line[1] and line[2] != "points" and line[1]
    ]
    seen = {(line[0], line[1]) for line in body}
    assert ("no_video", "none") in seen and ("st_simdiff", "none") in seen
    for line in body:
        words = [
            by_pair(lines, line[0], line[1], kept)
            for kept in (1.0, 0.3, 0.1)
            if _compared(lines, *line[:2], kept)
        ]
        assert (line[7], line[2]) in [(word, f"{points + 0.0:+.1f}") for word, points, _ in words]


def _compared(lines: list[dict[str, str]], first: str, second: str, retention: float) -> bool:
    return any(
        float(line["retention"]) == retention and {line["method"], line["against"]} == {first, second}
        for line in lines
    )


def test_half_a_point_on_200_questions_is_no_significant_difference(tmp_path: Path) -> None:
    """Twelve rows; the two best differ by one question of 200, the least that can be seen."""
    questions = [(f"v{i // 5}", f"q{i}", "attr") for i in range(200)]
    order = random.Random(1).sample(range(200), 200)
    write_arm(tmp_path, "none", 1.0, [outcome(q, i not in order[:4], 1.0) for i, q in enumerate(questions)])
    write_arm(tmp_path, "no_video", 1.0, [outcome(q, i % 4 == 0, 0.0) for i, q in enumerate(questions)])
    for place, method in enumerate(METHODS):
        wrong = (
            set(order[: 12 + 9 * (len(METHODS) - 2 - place)]) if method != "st_simdiff" else set(order[5:16])
        )
        rows = [outcome(question, i not in wrong, 0.3) for i, question in enumerate(questions)]
        write_arm(tmp_path, method, 0.3, rows)
    table = make(tmp_path, None)
    rows = {row.label: row for row in table.sections[0].rows}
    assert len(rows) == 12
    assert rows["st_simdiff"].overall - rows["framefusion"].overall == pytest.approx(0.5)
    (pair,) = [p for p in table.sections[0].pairs if {p.method, p.against} == {"st_simdiff", "framefusion"}]
    assert pair.verdict == "no significant difference"
    assert pair.n_needed > 1000
    said = table.sections[0].verdicts[1]
    assert said.startswith("At 30 % st_simdiff (94.5) leads; ")
    assert "; no significant difference between it and framefusion; " in said


def test_ties_lead_together_and_one_method_is_the_only_one(tmp_path: Path) -> None:
    same = answers(0.8, 0.3)
    write_arm(tmp_path, "fastv", 0.3, same)
    write_arm(tmp_path, "visionzip", 0.3, same)
    write_arm(tmp_path, "random", 0.1, answers(0.5, 0.1))
    write_arm(tmp_path, "fastv", 0.05, answers(0.5, 0.08))
    said = make(tmp_path, None).sections[0].verdicts
    assert re.fullmatch(r"At 30 % fastv and visionzip \(\d+\.\d\) lead together\.", said[0])
    assert re.fullmatch(r"At 10 % random \(\d+\.\d\) is the only method at this budget\.", said[1])
    assert said[2] == "At 5 % no method that keeps to its budget has answers, so there is no verdict."


def test_tied_leaders_each_have_their_compute_and_the_cheapest_comes_first(tmp_path: Path) -> None:
    for method, chance, compute in (
        ("visionzip", 0.8, 0.45),
        ("fastv", 0.8, 0.36),
        ("prumerge", 0.8, 0.3),
        ("random", 0.75, 0.24),
        ("uniform_frames", 0.1, 0.3),
    ):
        rows = answers(chance, 0.3, seed=4)
        for row in rows:
            row["retention_compute"] = compute
        write_arm(tmp_path, method, 0.3, rows)
    (section,) = make(tmp_path, None).sections
    overall = {row.label: f"{row.overall:.1f}" for row in section.rows}
    (said,) = section.verdicts
    first, second, third = said.split("; ")
    assert first == (
        f"At 30 % prumerge, fastv and visionzip ({overall['fastv']}) lead together, at 1.00 times, 1.20 times and "
        "1.50 times the block's median compute"
    )
    assert second == "no significant difference between prumerge and random (0.80 times)"
    assert third.startswith("uniform_frames is ")
    text = (tmp_path / "table.md").read_text()
    assert "| fastv | prumerge |" in text and "| prumerge | visionzip |" not in text  # seen from the cheapest


def test_who_is_worse_is_worse_by_as_many_points_as_it_has_less(tmp_path: Path) -> None:
    for method, chance in (("fastv", 0.95), ("random", 0.5), ("uniform_frames", 0.2)):
        write_arm(tmp_path, method, 0.3, answers(chance, 0.3))
    (section,) = make(tmp_path, None).sections
    overall = {row.label: row.overall for row in section.rows}
    second, third = overall["fastv"] - overall["random"], overall["fastv"] - overall["uniform_frames"]
    assert section.verdicts == [
        f"At 30 % fastv ({overall['fastv']:.1f}) leads; random is {second:.1f} points worse (p < 0.001); "
        f"uniform_frames {third:.1f} (p < 0.001)."
    ]


def test_the_only_one_in_the_contest_is_said_with_who_is_out_of_it(tmp_path: Path) -> None:
    write_arm(tmp_path, "fastv", 0.1, answers(0.5, 0.1))
    write_arm(tmp_path, "visionzip", 0.1, answers(0.9, 0.12))
    write_arm(tmp_path, "random", 0.1, None)
    (said,) = make(tmp_path, None).sections[0].verdicts
    assert re.fullmatch(
        r"At 10 % fastv \(\d+\.\d\) is the only method in the contest(, at [\d.]+ times the block's median "
        r"compute)?; out of the contest, since over budget: visionzip; without answers: random\.",
        said,
    )


def test_a_row_over_its_budget_is_no_rival_for_the_best_place(tmp_path: Path) -> None:
    write_arm(tmp_path, "fastv", 0.1, answers(0.9, 0.1))
    write_arm(tmp_path, "visionzip", 0.1, answers(0.5, 0.1))
    write_arm(tmp_path, "random", 0.1, answers(0.99, 0.12))
    rows = {row.label: row for row in make(tmp_path, None).sections[0].rows}
    assert rows["random"].overall > rows["fastv"].overall > rows["visionzip"].overall
    assert {name: (row.best, row.second) for name, row in rows.items()} == {
        "random": (False, False),
        "fastv": (True, False),
        "visionzip": (False, True),
    }


def test_a_single_rival_beside_rows_over_budget_is_not_ranked(tmp_path: Path) -> None:
    write_arm(tmp_path, "fastv", 0.1, answers(0.9, 0.1))
    write_arm(tmp_path, "random", 0.1, answers(0.5, 0.12))
    assert not any(row.best or row.second for row in make(tmp_path, None).sections[0].rows)


def test_a_turned_pair_has_its_interval_turned(tmp_path: Path) -> None:
    write_arm(tmp_path, "fastv", 0.3, answers(0.9, 0.3))
    write_arm(tmp_path, "random", 0.3, answers(0.5, 0.3))
    (pair,) = make(tmp_path, None).sections[0].pairs
    turned = pair.turned()
    assert (turned.method, turned.against) == (pair.against, pair.method)
    assert pair.ci_low < pair.difference < pair.ci_high
    assert (turned.ci_low, turned.ci_high) == (-pair.ci_high, -pair.ci_low)
    assert turned.ci_low < turned.difference == -pair.difference < turned.ci_high
    assert {pair.verdict, turned.verdict} == {"better", "worse"}
    assert turned.turned() == pair


def test_the_reference_of_pairs_is_the_method_with_its_defaults(tmp_path: Path) -> None:
    write_arm(tmp_path, "fastv", 0.3, answers(0.95, 0.3))
    write_arm(tmp_path, "random", 0.3, answers(0.5, 0.3))
    write_arm(tmp_path, "st_simdiff", 0.3, answers(0.8, 0.3))
    taus = (0.6, 0.7, 0.9)
    for tau in taus:
        write_arm(tmp_path, "st_simdiff", 0.3, answers(0.7, 0.3, seed=tau), label=f"st_simdiff tau_sim={tau}")
    (section,) = make(tmp_path, None).sections
    shown = {(pair.method, pair.against) for pair in shown_pairs(section)}
    assert shown == {
        *(
            (name, "fastv")
            for name in ("random", "st_simdiff", *(f"st_simdiff tau_sim={tau}" for tau in taus))
        ),
        ("random", "st_simdiff"),
        *(("st_simdiff", f"st_simdiff tau_sim={tau}") for tau in taus),
    }


def test_one_arms_interval_is_the_same_whoever_stands_beside_it(tmp_path: Path) -> None:
    def interval(run: Path) -> tuple[float, float, float]:
        row = next(row for row in make(run, None).sections[0].rows if row.label == "fastv")
        return row.overall, row.ci_low, row.ci_high

    for chance in (0.7, 1.0):
        alone, beside = tmp_path / f"alone{chance}", tmp_path / f"beside{chance}"
        for run in (alone, beside):
            write_arm(run, "fastv", 0.3, answers(chance, 0.3))
        for number, other in enumerate((0.2, 0.5, 0.95)):
            write_arm(beside, "random", 0.3, answers(other, 0.3), label=f"random seed={number}")
        assert interval(alone) == interval(beside)
    # Only another set of questions changes it, and the table says so.
    write_arm(
        beside,
        "visionzip",
        0.3,
        [failed(QUESTIONS[i]) if i < 60 else row for i, row in enumerate(answers(0.5, 0.3))],
    )
    assert interval(beside) != interval(alone)
    text = (beside / "table.md").read_text()
    assert f"Compared on the {len(QUESTIONS) - 60} questions that every arm answered" in text
    assert "Numbers and intervals change when an arm joins that lacks some of them." in text


def test_one_video_tells_nothing_apart(tmp_path: Path) -> None:
    questions = [("v0", f"q{i}", "attr") for i in range(50)]
    write_arm(tmp_path, "fastv", 0.3, [outcome(question, True, 0.3) for question in questions])
    write_arm(tmp_path, "random", 0.3, [outcome(question, False, 0.3) for question in questions])
    table = make(tmp_path, None)
    assert [pair.verdict for pair in table.sections[0].pairs] == ["no significant difference"]
    assert "no significant difference between it and random." in table.sections[0].verdicts[0]


def test_rows_that_differ_by_three_percent_in_compute_are_warned_of(tmp_path: Path) -> None:
    write_arm(tmp_path, "random", 0.5, answers(0.5, 0.5, 0.4925))
    write_arm(tmp_path, "fastv", 0.5, answers(0.6, 0.5, 0.5))
    write_arm(tmp_path, "visionzip", 0.5, answers(0.6, 0.5, 0.5075, seed=2))
    write_arm(tmp_path, "random", 0.3, answers(0.5, 0.3))
    write_arm(tmp_path, "fastv", 0.3, answers(0.6, 0.3))
    notes = make(tmp_path, None).sections[0].notes
    assert [note.split(":")[0] for note in notes if "NOT MATCHED" in note] == [
        "NOT MATCHED in compute at 50 % (tokens)"
    ]
    assert any("visionzip against random" in note for note in notes)


def test_budgets_are_audited_as_other_code_does(run: Path, table) -> None:
    arms, shown, width = recomputed.stored(run), {}, 0
    ids = recomputed.common(arms)
    for line in (run / "table.md").read_text().splitlines():
        cells = [re.sub(r"[*]|</?ins>", "", cell).strip() for cell in line.strip("| ").split("|")]
        if "tokens kept %" in cells:
            width, place = len(cells), cells.index("tokens kept %")
        elif len(cells) == width and cells[1] and "---" not in cells[1]:
            shown.setdefault(cells[0], []).append(cells[place : place + 2])
    computes: dict[float, list[float]] = {}
    for arm in arms.values():
        if not arm["rows"]:
            continue
        kept = [arm["rows"][i] for i in ids]
        tokens = sum(row["retention_tokens"] for row in kept) / len(ids)
        compute = sum(row["retention_compute"] for row in kept) / len(ids)
        budget = arm["budget"]["retention"]
        missed = arm["method"] not in ("none", "no_video") and abs(tokens - budget) > 0.02 * budget
        assert [f"{100 * tokens:.1f}{'!' if missed else ''}", f"{100 * compute:.1f}"] in shown[arm["label"]]
        if arm["method"] != "no_video":
            computes.setdefault(budget, []).append(compute)
    notes = "\n".join(table.sections[0].notes)
    for budget, values in computes.items():
        apart = max(values) / min(values) - 1
        said = f"NOT MATCHED in compute at {100 * budget:.4g} % (tokens): rows differ by up to {100 * apart:.0f} %"
        assert (said in notes) == (apart > 0.02), budget
    assert sum("NOT MATCHED" in note for note in table.sections[0].notes) == 1


def all_tokens(overall: float, n: int = 2700) -> SimpleNamespace:
    return SimpleNamespace(overall=overall, ci_low=overall - 2, ci_high=overall + 2, n=n)


AUTHORS = {
    "name": "llava_video_authors",
    "all_tokens": 63.3,
    "remeasured": 64.3,
    "tolerance": 1.5,
    "changed": [],
}
PAPER = {"name": "st_simdiff_paper", "all_tokens": None, "unknown": "another protocol", "changed": []}


def test_the_gate_holds_in_the_authors_protocol_only() -> None:
    def gate(row, **changes):
        return baseline_gate({**AUTHORS, **changes}, "llava_video", "videomme", row)

    assert baseline_gate({"name": "default"}, "embedded", "clips", all_tokens(80.0)) is None
    met = gate(all_tokens(61.8))
    assert met.met and met.sentence.startswith("Baseline gate met") and "others measured 64.3" in met.sentence
    missed = gate(all_tokens(61.7))
    assert not missed.met and "1.6 points apart" in missed.sentence
    assert "no all-token answers" in gate(None).sentence
    few = gate(all_tokens(63.3, 40))
    assert not few.met and "only 40 of 2700 questions" in few.sentence
    other = gate(all_tokens(63.3), changed=["model.frames=32"])
    assert not other.met and "this run changed model.frames=32" in other.sentence
    for protocol in ({"name": "default"}, {}):
        open_ = baseline_gate(protocol, "llava_video", "videomme", all_tokens(63.3))
        assert not open_.met and "names none" in open_.sentence
    unknown = baseline_gate(PAPER, "llava_video", "videomme", all_tokens(63.3))
    assert (unknown.met, unknown.sentence) == (False, "Baseline gate OPEN: another protocol.")
    # 57.3 is the full set's, which only a server can score: neither set has a gate.
    for name in ("egoschema", "egoschema_full"):
        for protocol in ({**AUTHORS, "all_tokens": None}, PAPER, {"name": "default"}):
            assert baseline_gate(protocol, "llava_video", name, all_tokens(63.3)) is None


def test_the_papers_number_is_that_of_the_same_arm_in_the_same_protocol_only() -> None:
    model = "llava_video"
    assert paper_number(PAPER, model, "videomme", "st_simdiff", 0.3) == 63.2
    assert paper_number(PAPER, model, "videomme", "ST-SimDiff", 0.3) != 63.2  # a class of a user's own
    assert paper_number(PAPER, model, "longvideobench", "fastv", 0.5) == 55.7
    assert paper_number(PAPER, model, "videomme", "st_simdiff difference=False", 0.3) == 62.6
    assert paper_number(AUTHORS, model, "videomme", "none", 1.0) == 63.3
    for protocol, name, benchmark, label, retention in (
        (PAPER, model, "videomme", "none", 1.0),
        (AUTHORS, model, "videomme", "st_simdiff", 0.3),
        ({"name": "default"}, model, "videomme", "st_simdiff", 0.3),
        ({}, model, "videomme", "st_simdiff", 0.3),
        ({**PAPER, "changed": ["model.frames=32"]}, model, "videomme", "st_simdiff", 0.3),
        (PAPER, model, "videomme", "st_simdiff tau_sim=0.7", 0.3),
        (PAPER, model, "videomme", "st_simdiff", 0.1),
        (PAPER, model, "mlvu", "st_simdiff", 0.3),
        (PAPER, model, "egoschema", "st_simdiff", 0.3),
        (AUTHORS, model, "egoschema_full", "none", 1.0),
        (PAPER, model, "videomme", "random", 0.3),
        (PAPER, "qwen2_5_vl", "videomme", "st_simdiff", 0.3),
        ({"name": "nvila_authors"}, "nvila", "videomme", "framefusion", 0.5),
    ):
        found = paper_number(protocol, name, benchmark, label, retention)
        assert math.isnan(found), (protocol, name, benchmark, label)


def test_what_is_of_no_published_protocol_is_said_for_information() -> None:
    said = "For information, as their protocols are not published, accuracies of {}."
    paper = "(ST-SimDiff's paper)"
    card = "(model card of LLaVA-Video-7B-Qwen2-TPO)"
    two = (
        f"FrameFusion at 50 % {{}} {paper}; ST-SimDiff at 50 % {{}} {paper}; all tokens not published {paper}"
    )
    source = "all tokens {} (ST-SimDiff appendix); all tokens {} (Qwen2.5-VL technical report)"
    for model, benchmark, wanted in (
        ("nvila", "videomme", f"NVILA-8B: {two.format(59.4, 61.7)}; all tokens 64.2 {card}"),
        ("nvila", "longvideobench", f"NVILA-8B: {two.format(54.8, 56.5)}; all tokens 57.7 {card}"),
        ("nvila", "egoschema_full", f"NVILA-8B: {two.format('not published', 52.5)}"),
        ("nvila", "mlvu", f"NVILA-8B: all tokens 70.1 {card}"),
        (
            "qwen2_5_vl",
            "videomme",
            f"Qwen2.5-VL-7B: {source.format(62.9, 65.1)}; methods not published {paper}; "
            "FastVID 62.9 (log published by FastVID's authors)",
        ),
        (
            "qwen2_5_vl",
            "longvideobench",
            f"Qwen2.5-VL-7B: {source.format(59.2, '56.0')}; methods not published {paper}",
        ),
    ):
        assert for_information(model, benchmark) == said.format(wanted)
    for model, benchmark in (
        *(("nvila", "egoschema"), ("nvila", "clips"), ("qwen2_5_vl", "mlvu"), ("qwen2_vl", "videomme")),
        *(("llava_video", "videomme"), ("embedded", "clips")),
    ):
        assert for_information(model, benchmark) is None


def test_the_papers_numbers_stand_beside_ours(tmp_path: Path) -> None:
    n = 2700
    questions = [(f"v{i // 3}", f"q{i}", ("short", "medium", "long")[i % 3]) for i in range(n)]
    model = {"name": "llava_video", "path": "/w", "frames": 64}
    benchmark = {"name": "videomme", "task": "videomme", "families": ["short", "medium", "long"], "note": "x"}
    about = {"model": model, "benchmark": benchmark, "protocol": PAPER}
    shares = {("none", 1.0): 0.633, ("fastv", 0.3): 0.60, ("st_simdiff", 0.3): 0.62, ("random", 0.3): 0.5}
    for (method, kept), share in shares.items():
        rows = [outcome(question, i < round(share * n), kept) for i, question in enumerate(questions)]
        write_arm(tmp_path, method, kept, rows, kind="compute", **about)
    table = make(tmp_path, None)
    frame = table.frame().set_index("method")
    assert list(frame)[-2:] == ["paper", "minus_paper"]
    assert frame.loc["fastv", "paper"] == 59.3 and math.isnan(frame.loc["random", "paper"])
    assert frame.loc["fastv", "minus_paper"] == pytest.approx(frame.loc["fastv", "overall"] - 59.3)
    gap = frame.loc["st_simdiff", "overall"] - 63.2
    tex = (tmp_path / "table.tex").read_text()
    assert "overall & paper (!) & ours - paper (!)" in tex and "Baseline gate OPEN: another protocol." in tex
    own, printed = 100 * frame.loc["st_simdiff", "overall"] / frame.loc["none", "overall"], 100 * 63.2 / 63.3
    told = f"st_simdiff at 30 % {own:.1f} and {printed:.1f} ({own - printed:+.1f})"
    assert told in " ".join(" ".join(section.notes) for section in table.sections)
    assert any("Protocol: st_simdiff_paper." in line for line in table.sections[0].about)
    layout = tex.split(r"\end{threeparttable}")[0]
    overall = frame.loc["st_simdiff", "overall"]
    assert rf"\textbf{{{overall:.1f}}} & 63.2 & {gap:+.1f} \\" in layout
    assert rf"\underline{{{frame.loc['fastv', 'overall']:.1f}}} & 59.3 &" in layout


def test_benchmarks_of_one_model_stand_side_by_side_in_latex(tmp_path: Path) -> None:
    for name in ("videomme", "longvideobench"):
        about = {"name": name, "task": name, "note": "x"}
        write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0), benchmark=about)
        write_arm(tmp_path, "fastv", 0.5, answers(0.6, 0.5), benchmark=about)
    write_arm(
        tmp_path,
        "random",
        0.3,
        answers(0.5, 0.3),
        benchmark={"name": "videomme", "task": "videomme", "note": "x"},
    )
    make(tmp_path, None)
    layout = (tmp_path / "table.tex").read_text().split(r"\end{threeparttable}")[0]
    assert r" & \multicolumn{4}{c}{videomme} & \multicolumn{4}{c}{longvideobench} \\" in layout
    assert r"\cmidrule(lr){2-5}\cmidrule(lr){6-9}" in layout
    (line,) = [line for line in layout.splitlines() if line.startswith("random &")]
    assert line.endswith(r"& -- & -- & -- & -- \\")


def test_the_usual_compute_is_the_lower_median() -> None:
    def usual(*spent: float) -> float:
        return median_compute([SimpleNamespace(retention_compute=one) for one in spent])

    assert usual(0.5, 0.1, 0.4, 0.3, 0.2) == 0.3
    assert usual(0.4, 0.1, 0.3, 0.2) == 0.2
    assert usual(0.4, math.nan, 0.0, 0.3) == 0.3
    assert math.isnan(usual(math.nan, 0.0)) and math.isnan(usual())


def test_what_is_said_of_the_rows_without_a_budget(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, [outcome(question, True, 1.0) for question in QUESTIONS])
    write_arm(tmp_path, "no_video", 1.0, [outcome(question, False, 0.0) for question in QUESTIONS])
    (section,) = make(tmp_path, None).sections
    assert section.verdicts == [
        "Without a budget none has 100.0, no_video has 0.0; no_video is 100.0 points worse than none (p < 0.001)."
    ]


def test_a_stored_arm_of_a_former_name_is_reported_under_it(tmp_path: Path) -> None:
    write_arm(tmp_path / "old", "temporal_difference", 0.3, answers(0.9, 0.3))
    write_arm(tmp_path / "old", "evs", 0.3, answers(0.9, 0.3))
    make(tmp_path / "old", None)
    written = (tmp_path / "old" / "table.md").read_text()
    assert "| temporal_difference | " in written and "| evs | " in written


def test_at_equal_compute_a_method_has_what_its_own_curve_says(tmp_path: Path) -> None:
    """fastv spends twice its tokens: between its two budgets the accuracy at 40 % of the compute is interpolated."""
    for retention in (0.5, 0.3):
        write_arm(tmp_path, "random", retention, answers(0.3, retention))
        write_arm(tmp_path, "visionzip", retention, answers(0.6, retention))
        write_arm(
            tmp_path, "fastv", retention, answers(0.9 if retention > 0.4 else 0.5, retention, 1.5 * retention)
        )
    write_arm(tmp_path, "none", 1.0, answers(0.95, 1.0))
    table = make(tmp_path, None)
    arms = recomputed.stored(tmp_path)
    points: dict[str, list[tuple[float, float]]] = {}
    for arm in arms.values():
        rows = arm["rows"].values()
        compute = sum(row["retention_compute"] for row in rows) / len(rows)
        points.setdefault(arm["method"], []).append(
            (compute, 100 * sum(row["correct"] for row in rows) / len(rows))
        )
    lines = {(line["method"], float(line["retention"])): line for line in csv_rows(tmp_path / "table.csv")}
    assert lines["none", 1.0]["equal_compute"] == ""
    # The median compute of 30 % lies below all that fastv was measured at.
    assert lines["fastv", 0.3]["equal_compute"] == ""
    (low, before), (high, after) = sorted(points["fastv"])
    median = sorted(
        float(lines[name, 0.5]["retention_compute"]) for name in ("random", "visionzip", "fastv")
    )[1]
    assert low < median < high
    expected = before + (after - before) * (median - low) / (high - low)
    assert float(lines["fastv", 0.5]["equal_compute"]) == pytest.approx(expected)
    assert float(lines["random", 0.5]["equal_compute"]) == pytest.approx(
        float(lines["random", 0.5]["overall"]), abs=1
    )
    (said,) = [text for text in table.sections[0].verdicts if text.startswith("At 50 %")]
    other = float(lines["visionzip", 0.5]["equal_compute"])
    assert (
        "(fastv" not in said
        and f"fastv ({float(lines['fastv', 0.5]['overall']):.1f}) leads, at 1.50 times" in said
    )
    place = f"at equal compute ({100 * median:.1f} %, interpolated)"
    told = (
        f"it leads too, with {expected:.1f}"
        if expected > other
        else (f"it has {expected:.1f} and visionzip leads with {other:.1f}")
    )
    assert f"; {place} {told};" in said
    named = "it" if expected > other else "fastv"
    assert all(f"between {name} and" not in said for name in {"it", "fastv"} - {named})
    assert "at equal compute %" in (tmp_path / "table.md").read_text()


def test_a_sweep_is_readable(tmp_path: Path) -> None:
    """Values are columns and in every label, the default's too; rows have their order, and pairs the default."""
    target = "stsimdiff.compressors.fastv.FastV"
    for layer in (10, 2, 3, 2.5):
        settings = {"_target_": target, "layer": layer, "reduction": "last", "rank": 1}
        label = "fastv" if layer == 3 else f"fastv layer={layer}"
        write_arm(
            tmp_path, "fastv", 0.3, answers(0.5, 0.3, seed=int(layer)), label=label, compressor=settings
        )
    write_arm(tmp_path, "random", 0.3, answers(0.4, 0.3))
    section = make(tmp_path, None).sections[0]
    labels = ["fastv layer=2", "fastv layer=2.5", "fastv layer=3", "fastv layer=10"]
    assert [row.label for row in section.rows] == ["random", *labels]
    lines = csv_rows(tmp_path / "table.csv")
    assert [line["layer"] for line in lines] == ["", "2.0", "2.5", "3.0", "10.0"]
    assert "rank" not in lines[0] and "reduction" not in lines[0]
    first = max(section.rows, key=lambda row: row.overall).label
    against = {frozenset((pair.method, pair.against)) for pair in shown_pairs(section)}
    others = {row.label for row in section.rows}
    assert {frozenset((name, "fastv layer=3")) for name in others - {"fastv layer=3"}} <= against
    assert all({first, "fastv layer=3"} & pair for pair in against)
