"""Which part turned an answer: every line and count again from the stored lines, by code of its own."""

import io
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from helpers import recomputed
from helpers.synthetic_run import QUESTIONS, answer, failed, make, write_arm
from helpers.written import csv_rows
from stsimdiff.terminal import Console

PARTS = ("similarity", "difference", "pruning")
STORED = range(10, 50)
"""Places of the questions whose overlay is stored."""
RIGHT = {"none": 0.85, "full": 0.7, "similarity": 0.7, "difference": 0.72, "pruning": 0.8}


def setting(**off: bool) -> dict:
    whole = {"_target_": "stsimdiff.compressors.st_simdiff.STSimDiff", "tau_sim": 0.8}
    return whole | dict.fromkeys(PARTS, True) | off


def write_run(folder: Path, parts: tuple[str, ...] = PARTS, everything: bool = True) -> Path:
    dice = random.Random(5)

    def rows(name: str, kept: float) -> list[dict]:
        return [answer(question, RIGHT[name], kept, kept, dice) for question in QUESTIONS]

    if everything:
        write_arm(folder, "none", 1.0, rows("none", 1.0))
    whole = rows("full", 0.3)
    whole[5] = failed(QUESTIONS[5])
    for i in STORED:
        whole[i]["overlay"] = {"question": "?"}
    write_arm(folder, "st_simdiff", 0.3, whole, compressor=setting())
    # Other parameters, or another budget: no counterparts of that arm.
    other = setting(pruning=False) | {"tau_sim": 0.7}
    write_arm(
        folder,
        "st_simdiff",
        0.3,
        rows("full", 0.3),
        label="st_simdiff tau_sim=0.7 pruning=False",
        compressor=other,
    )
    write_arm(folder, "st_simdiff", 0.1, rows("full", 0.1), compressor=setting())
    for part in parts:
        label = f"st_simdiff {part}=False"
        kept = 0.5 if part == "pruning" else 0.3
        write_arm(
            folder, "st_simdiff", 0.3, rows(part, kept), label=label, compressor=setting(**{part: False})
        )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("results") / "attribution")
    make(folder, None)
    return folder


@pytest.fixture(scope="module")
def arms(run: Path) -> dict[str, dict[str, dict]]:
    """Stored answers of all tokens, the method, and the method without each part."""
    found = {}
    for arm in recomputed.stored(run).values():
        switches = [part for part in PARTS if not arm["compressor"].get(part, True)]
        if arm["method"] == "none":
            found["all_tokens"] = arm["rows"]
        elif arm["budget"]["retention"] == 0.3 and arm["compressor"]["tau_sim"] == 0.8:
            found[f"without_{switches[0]}" if switches else "compressed"] = arm["rows"]
    assert len(found) == 5
    return found


def test_every_line_of_the_csv_by_other_code(run: Path, arms) -> None:
    ids = recomputed.common(recomputed.stored(run))
    assert len(ids) == len(QUESTIONS) - 1
    expected = {}
    for i in ids:
        right = {name: rows[i]["correct"] for name, rows in arms.items()}
        if right["all_tokens"] == right["compressed"]:
            continue
        did = [part for part in PARTS if right[f"without_{part}"] == right["all_tokens"]]
        change = "lost" if right["all_tokens"] else "gained"
        expected[i] = (change, " and ".join(did) if did else "no single part", right)
    lines = csv_rows(run / "attribution.csv")
    assert [line["id"] for line in lines] == list(expected)
    assert {"lost", "gained"} == {line["change"] for line in lines}
    assert {"no single part", *PARTS} < {line["cause"] for line in lines}
    for line in lines:
        change, cause, right = expected[line["id"]]
        assert (line["change"], line["cause"], line["retention"]) == (change, cause, "0.3")
        for name, rows in arms.items():
            row = rows[line["id"]]
            assert (line[name], line[f"{name}_right"]) == (row["parsed"], str(right[name]))
            assert (line["video"], line["category"], line["target"]) == (
                row["video"],
                row["category"],
                row["target"],
            )
        linked = line["id"] in {QUESTIONS[i][1] for i in STORED}
        assert line["overlay"] == (f"report.html#overlay-{line['id']}" if linked else "")


def test_every_count_of_the_summary(run: Path, arms) -> None:
    ids = recomputed.common(recomputed.stored(run))
    right = {name: {i: rows[i]["correct"] for i in ids} for name, rows in arms.items()}
    text = (run / "attribution.md").read_text()
    assert text.count("## ") == 1, "arms with other parameters or budgets are no counterparts"
    counted = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith(("| similarity", "| difference", "| pruning", "| several", "| no single"))
    }
    causes = Counter()
    for i in ids:
        before, after = right["all_tokens"][i], right["compressed"][i]
        did = tuple(part for part in PARTS if right[f"without_{part}"][i] == before)
        if before != after:
            causes[before, did] += 1
    for part in PARTS:
        off = right[f"without_{part}"]
        cells = []
        for lost in (True, False):
            cells.append(
                sum(count for (before, did), count in causes.items() if before == lost and part in did)
            )
            cells.append(causes[lost, (part,)])
        same = [i for i in ids if right["all_tokens"][i] == right["compressed"][i]]
        cells.append(sum(right["all_tokens"][i] and not off[i] for i in same))
        cells.append(sum(not right["all_tokens"][i] and off[i] for i in same))
        assert counted[part] == [str(cell) for cell in cells]
    for name, number in (
        ("several together", lambda did: len(did) > 1),
        ("no single part", lambda did: not did),
    ):
        sums = [
            sum(n for (before, did), n in causes.items() if before == lost and number(did))
            for lost in (True, False)
        ]
        assert counted[name] == ["", str(sums[0]), "", str(sums[1]), "", ""]
    lost = sum(n for (before, _), n in causes.items() if before)
    assert f"of {len(ids)} questions against all tokens: {lost} turned wrong (" in text
    assert re.search(r"\[v\d\d-\d\]\(report\.html#overlay-v\d\d-\d\)", text)


def test_what_is_lacking_is_said_and_an_old_attribution_goes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "partial", parts=("similarity",), everything=False)
    (folder / "attribution.md").write_text("of an earlier run")
    table = make(folder, None)
    assert not (folder / "attribution.md").exists()
    (note,) = [note for note in table.notes if "attribution" in note]
    assert (
        "No attribution for st_simdiff tau_sim=0.8 at 30 % (tokens): no answers of an arm with difference=false, "
        "pruning=false, " in note
    )
    assert "compressor=none; experiment=attribution has them all" in note
    assert note in (folder / "table.md").read_text().replace("\\", "")


def test_runs_from_before_a_part_could_be_switched_off_have_it_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old")
    for path in folder.glob("*/arm.json"):
        path.write_text(path.read_text().replace(', "pruning": true', ""))
    assert len(make(folder, None).attributions) == 1


def test_whole_minus_part_off_stands_in_every_output(run: Path, arms) -> None:
    console = Console(file=io.StringIO(), width=200)
    table = make(run, console)
    (one,) = [one for one in table.attributions if one.retention == 0.3]
    assert list(one.differences) == list(PARTS)
    text, printed = (run / "attribution.md").read_text(), console.file.getvalue()
    ids = recomputed.common(recomputed.stored(run))
    for part, pair in one.differences.items():
        whole, off = (
            [arms[name][id_]["correct"] for id_ in ids] for name in ("compressed", f"without_{part}")
        )
        points = 100 * (sum(whole) - sum(off)) / len(ids)
        whole_label, off_label = "st_simdiff tau_sim=0.8", f"st_simdiff tau_sim=0.8 {part}=False"
        assert (pair.method, pair.against) == (whole_label, off_label)
        assert pair.difference == pytest.approx(points) and pair.ci_low < points < pair.ci_high
        assert f"| {part} off | {points + 0.0:+.1f} |" in text
        assert f"{whole_label} minus {off_label}: {points + 0.0:+.1f} points" in printed
        assert f"| {whole_label} | {off_label} | {points + 0.0:+.1f} |" in (run / "table.md").read_text()


def test_a_part_off_under_other_settings_is_no_counterpart(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, [])
    model = {"name": "embedded", "path": "/models/embedded", "frames": 8}
    for pooling in ("max", "average"):
        about = {"model": model | {"pooling": pooling}}
        dice = random.Random(pooling)
        rows = {
            name: [answer(q, 0.7, 0.3, 0.3, dice) for q in QUESTIONS] for name in ("none", "whole", *PARTS)
        }
        write_arm(tmp_path, "none", 1.0, rows["none"], **about)
        write_arm(tmp_path, "st_simdiff", 0.3, rows["whole"], compressor=setting(), **about)
        for part in PARTS:
            off = setting(**{part: False})
            write_arm(
                tmp_path,
                "st_simdiff",
                0.3,
                rows[part],
                label=f"st_simdiff {part}=False",
                compressor=off,
                **about,
            )
    found = make(tmp_path, None).attributions
    assert [one.label for one in found] == [
        "st_simdiff model.pooling=max",
        "st_simdiff model.pooling=average",
    ]
    for one in found:
        pooling = one.label.rpartition("=")[2]
        assert {pair.against for pair in one.differences.values()} == {
            f"st_simdiff {part}=False model.pooling={pooling}" for part in PARTS
        }
