"""Figures drawn by several processes at a time. What they show stands in ``figures``."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from stsimdiff.ranks import cores, end_with

Draw = Callable[[], "dict[str, bytes]"]

_drawings: Sequence[Draw] = ()
"""In a process that draws: those of the report that it was forked from."""


def drawers() -> int:
    """How many processes may draw: the cores of this one, and 1 where no process can be forked safely."""
    return cores() if hasattr(os, "sched_getaffinity") else 1


@contextmanager
def begun(drawings: Sequence[Draw], processes: int) -> Iterator[list[Draw]]:
    """For each drawing what waits for its files, or raises what drawing it raised, while other processes draw.

    The processes are forks: the table, which drawings hold, is not sent to them.

    Args:
        drawings: from ``figures.figures``.
        processes: how many draw; with 1 this one does, when it is asked for a drawing.
    """
    processes = min(processes, len(drawings))
    if processes < 2:
        yield list(drawings)
        return
    forks = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, forks, _begin, (os.getpid(), drawings)) as pool:
        try:
            yield [pool.submit(_draw, place).result for place in range(len(drawings))]
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int, drawings: Sequence[Draw]) -> None:
    global _drawings
    _drawings = drawings
    # What the parent read stays shared with it, as nothing looks through it for garbage.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with(parent)


def _draw(place: int) -> dict[str, bytes]:
    return _drawings[place]()
