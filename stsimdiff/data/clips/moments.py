"""When and where a clip shows what a question asks for: the truth to which kept tokens can be held."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from . import dataset
from .questions import Question, attr_stem, change_stem, count_stem, flash_stem, order_stem, scene_stem
from .world import FRAMES, SIZE, Thing, World

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a frame, as shares of its sides."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
EDGE = 1 / 4
"""Share of a cell's side, or of a smaller box's own, from which on a box lies in the cell."""


def moment(row: Mapping[str, Any]) -> dict[int, Box] | None:
    """Where each frame shows what a question asks for, by the frame's number in the file.

    Args:
        row: of `questions.jsonl`.

    Returns:
        `None` for a row that is not exactly one of the generator's, of whose video nothing is known.
    """
    known = _asked().get(str(row.get("id")))
    if known is None or any(row.get(key) != value for key, value in known[2].items()):
        return None
    return evidence(*known[:2])


def evidence(world: World, question: Question) -> dict[int, Box]:
    """As `moment`, of a question about a world: the thing that it names, or all of the frame for a place.

    Of one that changes its color, the frames before it begins or after it has ended to. Only frames that show
    something are listed, and no two things that one question asks for are shown in the same frame.
    """
    if question.family == "scene":
        brief = question.stem == scene_stem(True)
        return {frame: WHOLE for frame in range(FRAMES) if world.in_insert(frame) is brief}
    things = _things(world, question)
    found = {}
    for frame in range(FRAMES):
        for thing in set(world.visible_things(frame)) & things:
            if question.family == "change":
                after = question.stem == change_stem(thing.shape, True)
                if thing.changed(frame) != float(after):
                    continue
            x, y = world.position(thing, frame)
            found[frame] = (x / SIZE, y / SIZE, (x + thing.size) / SIZE, (y + thing.size) / SIZE)
    return found


def cells(box: Box, height: int, width: int) -> tuple[range, range]:
    """Rows and columns of the cells in which a box lies, of a raster of `height` x `width` over the frame."""
    return _along(box[1], box[3], height), _along(box[0], box[2], width)


def _along(first: float, last: float, count: int) -> range:
    least = EDGE * min(last - first, 1 / count)
    inside = [
        cell for cell in range(count) if min(last, (cell + 1) / count) - max(first, cell / count) >= least
    ]
    return range(inside[0], inside[-1] + 1)


def _things(world: World, question: Question) -> set[Thing]:
    flashes = [thing for thing in world.things if thing.kind == "flash"]  # in the order of time
    if question.family == "order":
        return {flashes[0 if question.stem == order_stem(True) else -1]}
    kind, stems = {
        "attr": ("static", [attr_stem]),
        "flash": ("flash", [flash_stem]),
        "count": ("flash", [count_stem]),
        "motion": ("ball", []),
        "change": ("changing", []),
        "mark": ("mark", []),
    }[question.family]
    things = [thing for thing in world.things if thing.kind == kind]
    return {thing for thing in things if all(stem(thing.shape) == question.stem for stem in stems)}


@lru_cache(maxsize=1)
def _asked() -> dict[str, tuple[World, Question, dict[str, Any]]]:
    """World, question and row of every question by its id."""
    return {
        row["id"]: (world, question, row)
        for video, world, asked in dataset.clips()
        for question in asked
        for row in (dataset.row(video, question),)
    }
