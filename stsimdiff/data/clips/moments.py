"""When and where a clip shows what a question asks for: the truth to which kept tokens can be held."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..moments import WHOLE, Box, Moment, Moments
from . import dataset
from .questions import ClipQuestion, attr_stem, change_stem, count_stem, flash_stem, order_stem, scene_stem
from .world import FPS, FRAMES, SIZE, Thing, World
from .worlds import WORLDS

LASTING = ("attr", "mark")
"""Categories that ask for what the whole clip shows, so that there is no moment that matters."""


def moment(row: Mapping[str, Any]) -> dict[int, Box] | None:
    """Where each frame shows what a question asks for, by the frame's number in the file.

    Args:
        row: of `questions.jsonl`.

    Returns:
        `None` for a row that is not exactly one of the generator's, of whose video nothing is known.
    """
    known = _known(row)
    return evidence(*known) if known else None


def truth(row: Mapping[str, Any]) -> tuple[Moments, Moments] | None:
    """The moment that a question is about, and all that happens in its clip.

    The first is empty for a question that most of the clip answers: `attr`, `mark`, and `scene` where it asks for the
    main place. `None` as in `moment`.
    """
    known = _known(row)
    if known is None:
        return None
    world, question = known
    lasting = question.category in LASTING or question.stem == scene_stem(False)
    return () if lasting else _in_seconds(evidence(world, question)), events(world)


def events(world: World) -> Moments:
    """Flashes, the ball, the color while it turns, and insert shots; bugs and sparks are noise."""
    moments = [Moment(first / FPS, (last - 1) / FPS) for first, last in world.inserts]
    for thing in world.things:
        shown = {
            "flash": range(thing.first, thing.last),
            "ball": range(thing.first, thing.last),
            "changing": range(thing.fade[0], thing.fade[1] + 1),
        }.get(thing.kind, ())
        seen = {frame: _box(world, thing, frame) for frame in shown if not world.in_insert(frame)}
        moments += _in_seconds(seen)
    return tuple(moments)


def _in_seconds(boxes: Mapping[int, Box]) -> Moments:
    return tuple(Moment(frame / FPS, frame / FPS, box) for frame, box in boxes.items())


def _known(row: Mapping[str, Any]) -> tuple[World, ClipQuestion] | None:
    known = _by_id().get(str(row.get("id")))
    if known is None or any(row.get(key) != value for key, value in known[2].items()):
        return None
    return known[:2]


def evidence(world: World, question: ClipQuestion) -> dict[int, Box]:
    """As `moment`, of a question about a world: the thing that it names, or all of the frame for a place.

    Of one that changes its color, the frames before it begins or after it has ended to. Only frames that show
    something are listed, and no two things that one question asks for are shown in the same frame.
    """
    if question.category == "scene":
        brief = question.stem == scene_stem(True)
        return {frame: WHOLE for frame in range(FRAMES) if world.in_insert(frame) is brief}
    things = _things(world, question)
    boxes = {}
    for frame in range(FRAMES):
        for thing in set(world.visible_things(frame)) & things:
            if question.category == "change":
                after = question.stem == change_stem(thing.shape, True)
                if thing.changed(frame) != float(after):
                    continue
            boxes[frame] = _box(world, thing, frame)
    return boxes


def _box(world: World, thing: Thing, frame: int) -> Box:
    x, y = world.position(thing, frame)
    return x / SIZE, y / SIZE, (x + thing.size) / SIZE, (y + thing.size) / SIZE


def _things(world: World, question: ClipQuestion) -> set[Thing]:
    flashes = [thing for thing in world.things if thing.kind == "flash"]  # in the order of time
    if question.category == "order":
        return {flashes[0 if question.stem == order_stem(True) else -1]}
    kind, stems = {
        "attr": ("static", [attr_stem]),
        "flash": ("flash", [flash_stem]),
        "count": ("flash", [count_stem]),
        "motion": ("ball", []),
        "change": ("changing", []),
        "mark": ("mark", []),
    }[question.category]
    things = [thing for thing in world.things if thing.kind == kind]
    return {thing for thing in things if all(stem(thing.shape) == question.stem for stem in stems)}


@lru_cache(maxsize=1)
def _by_id() -> dict[str, tuple[World, ClipQuestion, dict[str, Any]]]:
    """World, question and row of every question by its id."""
    return {
        row["id"]: (world, question, row)
        for name in (None, *WORLDS)
        for video, world, clip_questions in dataset.clips(world=name)
        for question in clip_questions
        for row in (dataset.row(video, question),)
    }
