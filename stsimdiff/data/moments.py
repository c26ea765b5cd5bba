"""Moments of a video that matter for a question: when, and where in the frame; and files of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stsimdiff.data.question_files import read_file
from stsimdiff.errors import DataError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a frame, as shares of its sides."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
EDGE = 1 / 4
"""Share of a cell's side, or of a smaller box's own, from which on a box lies in the cell."""


@dataclass(frozen=True)
class Moment:
    """A stretch of a video, from its first frame to its last, in seconds; both are part of it."""

    start: float
    end: float
    box: Box = WHOLE


Moments = tuple[Moment, ...]


def cells(box: Box, height: int, width: int) -> tuple[range, range]:
    """Rows and columns of the cells in which a box lies, of a raster of ``height x width`` over the frame."""
    return _along(box[1], box[3], height), _along(box[0], box[2], width)


def _along(first: float, last: float, count: int) -> range:
    least = EDGE * min(last - first, 1 / count)
    inside = [
        cell for cell in range(count) if min(last, (cell + 1) / count) - max(first, cell / count) >= least
    ]
    return range(inside[0], inside[-1] + 1)


@dataclass(frozen=True)
class AnnotatedMoment:
    """A row of a file of moments.

    Attributes:
        place: file and number of the row, for messages.
        video: its name, with or without its suffix.
        question: id of the question; ``None`` for all questions about the video.
    """

    place: str
    video: str
    question: str | None
    moment: Moment


def read_moments(file: Path) -> list[AnnotatedMoment]:
    """The rows of a CSV, parquet, JSON or JSON lines file with ``video, start, end`` and maybe ``question``, and
    ``x0, y0, x1, y1``.

    Raises:
        DataError: for a file that cannot be read or holds no row, and for a row that is no moment, with its number.
    """
    if not file.is_file():
        raise DataError(f"benchmark.moments={file} is no file that is there")
    if file.suffix == ".csv":
        try:
            with open(file, encoding="utf-8-sig", newline="") as stream:
                rows: list[dict[str, Any]] = [*csv.DictReader(stream)]
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{file} is no readable csv file: {error}") from error
    elif file.suffix in (".parquet", ".json", ".jsonl"):
        rows = read_file(file)
    else:
        raise DataError(f"benchmark.moments={file}: allowed: a file .csv, .parquet, .json or .jsonl")
    if not rows:
        raise DataError(
            f"{file} holds no moment; a row has video, start, end, and may have question, x0, y0, x1, y1"
        )
    return [_annotated(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]


def _annotated(row: Mapping[str, Any], place: str) -> AnnotatedMoment:
    columns = {name: None if value in ("", None) else value for name, value in row.items()}
    if columns.get("video") is None:
        raise DataError(f"{place}: video={row.get('video')!r}; expected the name of a video")
    start, end = (_number(columns.get(name), name, place) for name in ("start", "end"))
    if not 0 <= start < end:
        raise DataError(
            f"{place}: start={start:g}, end={end:g}; expected seconds, 0 or more, the start before the end"
        )
    sides, box = ("x0", "y0", "x1", "y1"), WHOLE
    if any(columns.get(side) is not None for side in sides):
        left, top, right, bottom = box = tuple(_number(columns.get(side), side, place) for side in sides)  # type: ignore[assignment]
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise DataError(f"{place}: the box {box}; expected fractions of the frame, x0 < x1 and y0 < y1")
    question = columns.get("question")
    return AnnotatedMoment(
        place, str(columns["video"]), None if question is None else str(question), Moment(start, end, box)
    )


def _number(value: Any, name: str, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise DataError(f"{place}: {name}={value!r}; expected a number")
    return number
