"""Where and when a clip shows what a question asks for, held to what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stsimdiff.data import clips
from stsimdiff.data.clips import dataset
from stsimdiff.data.clips.moments import WHOLE, cells, evidence, moment
from stsimdiff.data.clips.questions import FAMILIES, Question
from stsimdiff.data.clips.rendering import render
from stsimdiff.data.clips.vocabulary import COLORS
from stsimdiff.data.clips.world import FRAMES, SIZE, World

ASKED = {
    family: [(world, question) for _, world, asked in dataset.clips(16) for question in asked
             if question.family == family]
    for family in FAMILIES
}  # fmt: skip


def differing(world: World, without: World) -> dict[int, tuple[int, int, int, int]]:
    """The smallest box, in pixels, around what differs between two worlds, by frame."""
    found = {}
    for frame, same in enumerate((render(world) == render(without)).all(-1)):
        if not same.all():
            rows, columns = np.flatnonzero(~same.all(1)), np.flatnonzero(~same.all(0))
            found[frame] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return found


def asked_for(world: World, question: Question) -> list:
    """The things that a question asks for, by the words in it."""
    kinds = {"attr": "static", "motion": "ball", "mark": "mark", "flash": "flash", "count": "flash"}
    things = [thing for thing in world.things if thing.kind == kinds[question.family]]
    if question.family in ("motion", "mark"):
        return things
    return [thing for thing in things if thing.shape in question.stem.rstrip("?").split()]


@pytest.mark.parametrize("family", ["attr", "flash", "count", "motion", "mark"])
def test_it_is_where_pixels_change_when_the_thing_is_left_out(family: str) -> None:
    for world, question in ASKED[family][:6]:
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
        shot = set(range(*world.insert))
        if "at first" in question.stem:
            shot = set(range(FRAMES)) - shot
        assert evidence(world, question) == dict.fromkeys(sorted(shot), WHOLE)


def test_every_question_of_the_generator_has_one_and_no_other_row() -> None:
    rows = clips.questions()
    assert all(moment(row) for row in rows)
    row = next(row for row in rows if row["id"] == "clip003-flash")
    assert moment(row) == evidence(*next(
        (world, question) for video, world, asked in dataset.clips(4) for question in asked
        if (video, question.family) == ("clip003", "flash")
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
