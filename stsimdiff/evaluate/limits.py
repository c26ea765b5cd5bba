"""What ends an answer or a run early, cleanly: the time limit of a sample, and SIGTERM.

Both are exceptions raised at a place where the program can go on from: between decoder layers, between lines of Python.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stsimdiff.engine import Decoder
from stsimdiff.errors import Terminated


class SampleTimeout(Exception):
    """An answer took longer than ``sample_seconds``."""


class TimeLimit:
    """``with TimeLimit(decoder, seconds): model.generate(...)`` ends an answer that takes too long.

    The clock is looked at as each decoder layer begins, in the prefill and for each token, and once more at the end. A
    method that never gives back control, or a kernel that hangs, is not ended. Nothing is hooked without a limit.

    Args:
        decoder: the stock decoder.
        seconds: the limit, or ``None``.

    Raises:
        SampleTimeout: out of the forward pass, or at the end of the block.
    """

    def __init__(self, decoder: Decoder, seconds: float | None) -> None:
        self.decoder, self.seconds = decoder, seconds
        self._passes = 0
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> TimeLimit:
        self._started = time.monotonic()
        if self.seconds is not None:
            self._undo.append(self.decoder.module.register_forward_pre_hook(self._count).remove)
            self._undo += [
                layer.register_forward_pre_hook(self._check).remove for layer in self.decoder.layers
            ]
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        while self._undo:
            self._undo.pop()()
        if kind is None:
            self._check()

    def _count(self, *call: object) -> None:
        self._passes += 1

    def _check(self, *call: object) -> None:
        spent = time.monotonic() - self._started
        if self.seconds is None or spent <= self.seconds:
            return
        where = f"after {self._passes - 1} tokens" if self._passes > 1 else "in the prefill"
        raise SampleTimeout(f"no answer within sample_seconds={self.seconds:g}: ended {where}, {spent:.1f} s")


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises :class:`~stsimdiff.errors.Terminated`, so that stores close and locks go.

    A handler that somebody else has put (a cluster launcher's for preemption) stays, and so does the default outside
    the main thread, where Python allows no handler.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def handler(number: int, frame: Any) -> None:
        raise Terminated("SIGTERM")

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
