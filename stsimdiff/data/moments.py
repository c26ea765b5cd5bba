"""Moments of a video that matter for a question: when, and where in the frame."""

from __future__ import annotations

from dataclasses import dataclass

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
