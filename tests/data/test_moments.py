"""Where and when a clip shows what a question asks for, held to what is drawn; what methods keep of it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.synthetic_run import QUESTIONS, answer, write_arm
from helpers.written import csv_rows, json_lines
from stsimdiff.commands import report
from stsimdiff.data import clips
from stsimdiff.data.clips import dataset, truth
from stsimdiff.data.clips.moments import evidence, moment
from stsimdiff.data.clips.questions import CATEGORIES, ClipQuestion
from stsimdiff.data.clips.rendering import render
from stsimdiff.data.clips.vocabulary import COLORS
from stsimdiff.data.clips.world import FRAMES, SIZE, World
from stsimdiff.data.moments import WHOLE, Moment, cells
from stsimdiff.errors import DataError
from stsimdiff.evaluate.moments import covered, entry
from stsimdiff.evaluate.questions import Question
from stsimdiff.report.publish import publish
from stsimdiff.report.statistics import apart
from stsimdiff.tokens import Grid, Picture, Reason
from stsimdiff.trace import Trace

ASKED = {
    category: [(world, question) for _, world, asked in dataset.clips(16) for question in asked
             if question.category == category]
    for category in CATEGORIES
}  # fmt: skip


def differing(world: World, without: World) -> dict[int, tuple[int, int, int, int]]:
    """The smallest box, in pixels, around what differs between two worlds, by frame."""
    found = {}
    for frame, same in enumerate((render(world) == render(without)).all(-1)):
        if not same.all():
            rows, columns = np.flatnonzero(~same.all(1)), np.flatnonzero(~same.all(0))
            found[frame] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return found


def asked_for(world: World, question: ClipQuestion) -> list:
    """The things that a question asks for, by the words in it."""
    kinds = {"attr": "static", "motion": "ball", "mark": "mark", "flash": "flash", "count": "flash"}
    things = [thing for thing in world.things if thing.kind == kinds[question.category]]
    if question.category in ("motion", "mark"):
        return things
    return [thing for thing in things if thing.shape in question.stem.rstrip("?").split()]


@pytest.mark.parametrize("category", ["attr", "flash", "count", "motion", "mark"])
def test_it_is_where_pixels_change_when_the_thing_is_left_out(category: str) -> None:
    for world, question in ASKED[category][:6]:
        gone = asked_for(world, question)
        assert gone
        drawn = differing(world, replace(world, things=tuple(t for t in world.things if t not in gone)))
        found = evidence(world, question)
        assert list(found) == list(drawn)
        for frame, box in found.items():
            left, top, right, bottom = (round(side * SIZE) for side in box)
            x0, y0, x1, y1 = drawn[frame]
            assert left <= x0 and top <= y0 and x1 <= right and y1 <= bottom
            assert right - left == bottom - top and right - left in {thing.size for thing in gone}


def test_the_first_and_the_last_flash() -> None:
    for world, question in ASKED["order"]:
        flashes = [thing for thing in world.things if thing.kind == "flash"]
        first = min(flashes, key=lambda thing: thing.first)
        last = max(flashes, key=lambda thing: thing.first)
        wanted = first if "first" in question.stem else last
        assert list(evidence(world, question)) == [wanted.first, wanted.first + 1]


def test_a_color_is_shown_only_where_it_is_whole() -> None:
    seen = set()
    for world, question in ASKED["change"]:
        (thing,) = (thing for thing in world.things if thing.kind == "changing")
        seen.add("become" in question.stem)
        found = evidence(world, question)
        assert found
        alone = replace(world, bugs=(), sparks=(), things=(thing,))
        drawn, without = (render(one, list(found)) for one in (alone, replace(alone, things=())))
        for pixels, empty in zip(drawn, without, strict=True):
            painted = pixels[(pixels != empty).any(-1)]
            assert np.abs(np.median(painted, axis=0) - COLORS[question.answer]).max() < 10
    assert seen == {True, False}


def test_a_place_is_the_whole_frame_of_its_shot() -> None:
    for world, question in ASKED["scene"]:
        shot = set(range(*world.inserts[0]))
        if "at first" in question.stem:
            shot = set(range(FRAMES)) - shot
        assert evidence(world, question) == dict.fromkeys(sorted(shot), WHOLE)


def test_every_question_of_the_generator_has_one_and_no_other_row() -> None:
    rows = clips.questions()
    assert all(moment(row) for row in rows)
    row = next(row for row in rows if row["id"] == "clip003-flash")
    assert moment(row) == evidence(*next(
        (world, question) for video, world, asked in dataset.clips(4) for question in asked
        if (video, question.category) == ("clip003", "flash")
    ))  # fmt: skip
    assert moment({**row, "path": "/somewhere/clip003.mp4"}) == moment(row)
    for other in ({"question": "What?"}, {"id": "mine"}, {"video": "my.mp4"}, {"options": ["a", "b"]}):
        assert moment({**row, **other}) is None
    assert moment({}) is None


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        (WHOLE, range(8), range(8)),
        ((14 / 112, 28 / 112, 42 / 112, 56 / 112), range(2, 4), range(1, 3)),
        ((13 / 112, 28 / 112, 41 / 112, 57 / 112), range(2, 4), range(1, 3)),  # one pixel in the next cell
        ((10 / 112, 28 / 112, 38 / 112, 62 / 112), range(2, 5), range(0, 3)),  # four and six
        (
            (8 / 112, 1 / 112, 20 / 112, 13 / 112),
            range(0, 1),
            range(0, 2),
        ),  # smaller than a cell: half in each
    ],
)
def test_cells_of_a_box(box, rows: range, columns: range) -> None:
    assert cells(box, 8, 8) == (rows, columns)


def test_a_flash_covers_two_by_two_cells() -> None:
    for world, question in ASKED["count"]:
        for box in evidence(world, question).values():
            assert [len(side) for side in cells(box, 8, 8)] == [2, 2]


# What is counted of an answer


def traced(codes: list[list[list[int]]], stride: int) -> Trace:
    """A trace whose tokens ended with these reasons, rows padded to the stride by tokens of no cell, all kept."""
    rows = [[*row, *[int(Reason.ALL)] * (stride - len(row))] for frame in codes for row in frame]
    reason = torch.tensor(rows, dtype=torch.uint8).flatten()
    return Trace(4, len(reason), 10, reason=reason)


def test_tokens_of_a_moment_are_counted_in_time_and_in_place() -> None:
    """Two rows in time of two frames each, 2 x 3 cells and a token that ends each row: counted by hand."""
    drop, keep, event = int(Reason.DROPPED), int(Reason.REPRESENTATIVE), int(Reason.EVENT)
    codes = [[[keep, drop, event], [drop, drop, drop]], [[event, event, keep], [keep, drop, event]]]
    # Frames at 0, 1, 2, 3 s. The moment is frame 2, in the right column; an event besides is the first frame, whole.
    asked = (Moment(1.5, 2.0, (2 / 3, 0.0, 1.0, 1.0)),)
    question = Question(
        "q", "v", "f", "?", 1, {}, moments=asked, events=(*asked, Moment(0.0, 0.0), Moment(0.0, 0.5))
    )
    trace, picture = traced(codes, 4), Picture(frames=2, height=2, width=3, stride=4)
    assert entry(question, trace, Grid(2, 2, 4), picture, (0.0, 1.0, 2.0, 3.0)) == {
        "moment": {
            "question": {
                "tokens": 2,
                "rows": 1,
                "kept": {"tokens": 7, "in_time": 5, "in_place": 2, "rows": 1},
                "event": {"tokens": 4, "in_time": 3, "in_place": 1, "rows": 1},
            },
            "video": {
                "tokens": 8,
                "rows": 2,
                "kept": {"tokens": 7, "in_time": 7, "in_place": 4, "rows": 2},
                "event": {"tokens": 4, "in_time": 4, "in_place": 2, "rows": 2},
            },
        }
    }
    # Between two frames that were shown there is nothing to keep; without a moment nothing is stored.
    unseen = replace(question, moments=(Moment(1.2, 1.8),))
    assert (
        entry(unseen, trace, Grid(2, 2, 4), picture, (0.0, 1.0, 2.0, 3.0))["moment"]["question"]["tokens"]
        == 0
    )
    assert entry(replace(question, moments=()), trace, Grid(2, 2, 4), picture, (0.0, 1.0, 2.0, 3.0)) == {}


def test_moments_of_the_clips_lie_where_their_things_are_drawn() -> None:
    """Held to pixels: a cell that is half covered belongs to it, one that is hardly touched does not."""
    picture, times = Picture(2, 8, 8, 8), tuple(frame / 2 for frame in range(FRAMES))
    for video, world, asked in dataset.clips(24):
        for question in asked:
            told = truth(dataset.row(video, question))
            assert told
            lasting = question.category in ("attr", "mark") or "place is shown at first" in question.stem
            assert bool(told[0]) is not lasting
            mask = covered(told[0], 8, picture, times)
            if question.category in ("flash", "count", "motion"):
                share = np.zeros((16, 8, 8))
                for thing in asked_for(world, question):
                    for frame in range(thing.first, thing.last):
                        pixels = np.zeros((SIZE, SIZE))
                        if not world.in_insert(frame):
                            x, y = world.position(thing, frame)
                            pixels[y : y + thing.size, x : x + thing.size] = 1
                        share[frame] += pixels.reshape(8, 14, 8, 14).mean(axis=(1, 3))
                most = share.reshape(8, 2, 8, 8).max(axis=1)
                assert mask[most >= 0.5].all() and not mask[most < 1 / 16].any()
            if told[0] and question.category != "change":
                assert covered(told[1], 8, picture, times)[mask].all()


# The table


def counts(tokens: int, rows: int, kept: tuple[int, ...], event: tuple[int, ...]) -> dict:
    names = ("tokens", "in_time", "in_place", "rows")
    return {
        "tokens": tokens,
        "rows": rows,
        "kept": dict(zip(names, kept, strict=True)),
        "event": dict(zip(names, event, strict=True)),
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two methods, one of them with event tokens, and all tokens; every fourth question has no moment."""
    dice = random.Random(5)
    for method, chance in (("none", 0.9), ("random", 0.6), ("st_simdiff", 0.7)):
        lines = []
        for number, question in enumerate(QUESTIONS):
            share = 1.0 if method == "none" else 0.3
            line = answer(question, chance, share, share, dice)
            if number % 4:
                place, all_ = (8, 120) if method == "none" else (dice.randint(0, 8), 40)
                events = (dice.randint(1, 9), 1, 1, 1) if method == "st_simdiff" else (0, 0, 0, 0)
                asked = counts(0 if number % 16 == 1 else 8, 2, (all_, 20, place, 2), events)
                line["moment"] = {"question": asked, "video": counts(30, 5, (all_, 33, 25, 4), events)}
            lines.append(line)
        write_arm(tmp_path / "run", method, 1.0 if method == "none" else 0.3, lines)
    return tmp_path / "run"


def stored(run: Path, method: str) -> list[dict]:
    """The stored lines of a method whose moment some frame shows, read without the package."""
    (file,) = run.glob(f"{method}_*/answers.jsonl")
    lines = json_lines(file)
    return [line for line in lines if line.get("moment") and line["moment"]["question"]["tokens"]]


def test_moments_csv_holds_what_the_lines_say(run: Path) -> None:
    publish(run, None)
    lines = {(row["method"], row["category"]): row for row in csv_rows(run / "moments.csv")}
    for method in ("none", "random", "st_simdiff"):
        for category in ("all", "attr"):
            told = [one for one in stored(run, method) if category in ("all", one["category"])]
            row = lines[method, category]
            kind = "event" if method == "st_simdiff" else "kept"
            assert row["tokens"] == kind and int(row["n"]) == len(told)
            shares = [one["moment"]["question"]["kept"]["in_place"] / 8 for one in told]
            assert float(row["moment_kept"]) == pytest.approx(100 * mean(shares))
            right = [[one["correct"] for one, s in zip(told, shares, strict=True) if (s >= 0.5) == side]
                     for side in (True, False)]  # fmt: skip
            assert int(row["n_kept"]) == len(right[0])
            assert float(row["accuracy_kept"]) == pytest.approx(100 * mean(right[0]))
            if method != "none":
                assert float(row["accuracy_lost"]) == pytest.approx(100 * mean(right[1]))
                gap = 100 * (mean(right[0]) - mean(right[1]))
                assert float(row["kept_minus_lost"]) == pytest.approx(gap)
                assert float(row["kept_minus_lost_low"]) < gap < float(row["kept_minus_lost_high"])
            for truth_, head in (("question", ""), ("video", "event_")):
                found = [(one["moment"][truth_], one["moment"][truth_][kind]) for one in told]
                for name, expected in {
                    "recall_time": [f["rows"] / t["rows"] for t, f in found],
                    "recall_place": [f["in_place"] / t["tokens"] for t, f in found],
                    "precision_time": [f["in_time"] / f["tokens"] for _, f in found],
                    "precision_place": [f["in_place"] / f["tokens"] for _, f in found],
                }.items():
                    assert float(row[head + name]) == pytest.approx(100 * mean(expected)), (
                        method,
                        head + name,
                    )
    both = [one for method in ("random", "st_simdiff") for one in stored(run, method)]
    together = lines["all methods", "all"]
    assert int(together["n"]) == len(both) and together["recall_time"] == ""
    expected = mean(one["moment"]["question"]["kept"]["in_place"] / 8 for one in both)
    assert float(together["moment_kept"]) == pytest.approx(100 * expected)
    assert {path.name for path in (run / "figures").glob("moments*")} == {
        f"moments.{kind}" for kind in ("pdf", "png", "svg")
    }


def test_the_column_stands_in_files_and_tables_but_not_on_the_screen(run: Path, capsys) -> None:
    assert report.main([str(run), "columns=moment_kept,overall"]) == 0
    assert "moment" not in capsys.readouterr().out
    expected = mean(one["moment"]["question"]["kept"]["in_place"] / 8 for one in stored(run, "random"))
    rows = {row["method"]: row for row in csv_rows(run / "table.csv")}
    assert float(rows["random"]["moment_kept"]) == pytest.approx(expected)
    assert "moment kept %" in (run / "table.md").read_text()
    assert f"random & {100 * expected:.1f} &" in (run / "table.tex").read_text()


def test_a_run_without_moments_has_none_of_it(run: Path) -> None:
    publish(run, None)
    for file in run.glob("*/answers.jsonl"):
        lines = json_lines(file)
        file.write_text(
            "".join(json.dumps({k: v for k, v in one.items() if k != "moment"}) + "\n" for one in lines)
        )
    publish(run, None)
    assert not (run / "moments.csv").exists() and not list((run / "figures").glob("moments*"))
    assert "moment" not in (run / "table.md").read_text() + (run / "table.csv").read_text()


def test_a_damaged_moment_is_named(run: Path) -> None:
    (file,) = run.glob("random_*/answers.jsonl")
    file.write_text(file.read_text().replace('"in_place": ', '"in_place": -', 1))
    with pytest.raises(DataError, match=r"answers\.jsonl:2: moment\.question\.kept\.in_place=-"):
        publish(run, None)


def test_the_interval_of_kept_against_lost() -> None:
    """The sandwich of a regression on kept or lost with a right and a wrong answer more on each side, by hand."""
    dice = np.random.default_rng(2)
    videos = np.repeat(np.arange(12), 5)
    chosen, right = dice.random(60) < 0.6, (dice.random(60) < 0.7).astype(float)
    found = apart(right, chosen, videos)
    assert found.value == pytest.approx(right[chosen].mean() - right[~chosen].mean())
    sizes = [chosen.sum() + 2, (~chosen).sum() + 2]
    means = [(right[side].sum() + 1) / size for side, size in zip((chosen, ~chosen), sizes, strict=True)]
    meat = sum(((1 - m) ** 2 + m**2) / size**2 for m, size in zip(means, sizes, strict=True))
    for video in range(12):
        pull = 0.0
        for i in np.flatnonzero(videos == video):
            side = 0 if chosen[i] else 1
            pull += (1, -1)[side] * (right[i] - means[side]) / sizes[side]
        meat += pull**2 / (1 - 5 / 60)
    reach = stats.t.ppf(0.975, 11) * np.sqrt(meat)
    assert (found.low, found.high) == pytest.approx(
        (means[0] - means[1] - reach, means[0] - means[1] + reach)
    )
    alike = apart(np.ones(60), chosen, videos)
    assert alike.value == 0 and alike.low < 0 < alike.high
