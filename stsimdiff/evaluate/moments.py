"""How much of the moment that a question is about a method kept, counted when it answers.

A token belongs to a moment if a frame that it stands for is shown within it, and the moment's box lies in its cell (as
``data.moments.cells`` says, by which the page outlines it). It counts as kept if its own row is left when the prefill
ends. A token that was merged into one elsewhere does not: the trace does not say where it went, so what merging methods
keep of a moment is at least what is counted. Tokens of no cell (ends of rows or of groups) never count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stsimdiff.config.benchmark import BenchmarkSettings
from stsimdiff.data.moments import AnnotatedMoment, Moment, Moments, cells, read_moments
from stsimdiff.errors import DataError, VideoError
from stsimdiff.evaluate.questions import Question
from stsimdiff.schema import suggestion
from stsimdiff.tokens import Grid, Picture, Reason
from stsimdiff.trace import Trace
from stsimdiff.video.headers import read_header
from stsimdiff.video.parts import Part

Mask = NDArray[np.bool_]


def with_moments(
    benchmark: BenchmarkSettings, questions: Sequence[Question], every: Callable[[], Sequence[Question]]
) -> list[Question]:
    """The questions with their moments and all events of their videos, where a file or the benchmark knows any.

    Args:
        benchmark: whose ``moments`` may name a file, which then counts alone.
        questions: those that are asked.
        every: gives all questions of the benchmark, which the file may speak of.

    Raises:
        DataError: for a row of the file that fits no video or question, or lies beyond the video's end.
    """
    if benchmark.moments:
        by_question, by_video = _annotated(read_moments(Path(benchmark.moments)), every())
        return [
            replace(q, moments=tuple(by_question.get(q.id, ())), events=tuple(by_video.get(q.video, ())))
            for q in questions
        ]
    known = getattr(benchmark.module(), "truth", None)
    moments = [known(question.document) if known else None for question in questions]
    return [
        replace(question, moments=truth[0], events=truth[1]) if truth else question
        for question, truth in zip(questions, moments, strict=True)
    ]


def _annotated(
    rows: Sequence[AnnotatedMoment], questions: Sequence[Question]
) -> tuple[dict[str, list[Moment]], dict[str, list[Moment]]]:
    """Moments by question, and all of a video by its path."""
    videos: dict[str, set[str]] = {}
    about: dict[str, dict[str, None]] = {}
    for question in questions:
        about.setdefault(question.video, {})[question.id] = None
        for name in (question.video_name, Path(question.video_name).name, Path(question.video_name).stem):
            videos.setdefault(name, set()).add(question.video)
    by_question: dict[str, list[Moment]] = {}
    by_video: dict[str, list[Moment]] = {}
    seconds: dict[Path, float] = {}
    for row in rows:
        paths = videos.get(row.video, set())
        if len(paths) != 1:
            why = (
                f"is the name of {len(paths)} videos" if paths else "is no video of the benchmark's questions"
            )
            raise DataError(
                f"{row.place}: video={row.video} {why}{'' if paths else suggestion(row.video, videos)}"
            )
        (path,) = paths
        if row.question is not None and row.question not in about[path]:
            near = suggestion(row.question, about[path])
            raise DataError(f"{row.place}: question={row.question} is no question about {row.video}{near}")
        file = Part.of(path).file
        if file not in seconds:
            # A video that cannot be read is said where the videos are looked at.
            with suppress(VideoError):
                seconds[file] = read_header(file).seconds
        if 0 < seconds.get(file, 0) < row.moment.end:
            raise DataError(
                f"{row.place}: end={row.moment.end:g} lies beyond the {seconds[file]:g} seconds of {row.video}"
            )
        by_video.setdefault(path, []).append(row.moment)
        for id_ in about[path] if row.question is None else (row.question,):
            by_question.setdefault(id_, []).append(row.moment)
    return by_question, by_video


def entry(
    question: Question, trace: Trace, grid: Grid, picture: Picture, times: Sequence[float]
) -> dict[str, Any]:
    """The part ``moment`` of a stored line, as keys to add to it; none for a question without one.

    Args:
        question: with its moments.
        trace: of the answer.
        grid: of the video.
        picture: where its tokens lie in the frames.
        times: when each frame that the model was given is shown, seconds.
    """
    if not question.moments:
        return {}
    assert trace.reason is not None, "the prefill has ended"
    reason = trace.reason.numpy().reshape(grid.frames, grid.per_frame)
    codes = reason[:, _cells(picture)].reshape(grid.frames, picture.height, picture.width)
    masks = {"kept": codes != int(Reason.DROPPED), "event": codes == int(Reason.EVENT)}
    return {
        "moment": {
            truth: _counted(covered(moments, grid.frames, picture, tuple(times)), masks)
            for truth, moments in (("question", question.moments), ("video", question.events))
        }
    }


@lru_cache(maxsize=256)
def covered(moments: Moments, rows: int, picture: Picture, times: tuple[float, ...]) -> Mask:
    """``(rows, height, width)``: which cells of which row in time belong to the moments; the same for every arm."""
    mask = np.zeros((rows, picture.height, picture.width), dtype=bool)
    for moment in moments:
        shown = [n // picture.frames for n, time in enumerate(times) if moment.start <= time <= moment.end]
        down, across = cells(moment.box, picture.height, picture.width)
        mask[sorted({*shown}), down.start : down.stop, across.start : across.stop] = True
    mask.flags.writeable = False
    return mask


def _cells(picture: Picture) -> NDArray[np.int_]:
    """Tokens of a row in time that are part of the picture, cell by cell."""
    rows, columns = np.arange(picture.height), np.arange(picture.width)
    return (rows[:, None] * picture.stride + columns).ravel()


def _counted(truth: Mask, masks: dict[str, Mask]) -> dict[str, Any]:
    """Tokens and rows in time of the truth; of each kind of token how many there are, how many of them lie in its time,
    how many in its time and place, and in how many of its rows in time there is one of them, wherever."""
    rows = truth.any(axis=(1, 2))
    counts: dict[str, Any] = {"tokens": int(truth.sum()), "rows": int(rows.sum())}
    for name, mask in masks.items():
        right = mask & truth
        counts[name] = {
            "tokens": int(mask.sum()),
            "in_time": int(mask[rows].sum()),
            "in_place": int(right.sum()),
            "rows": int(mask[rows].any(axis=(1, 2)).sum()),
        }
    return counts
