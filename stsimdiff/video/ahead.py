"""Items whose videos are read before they are needed, by several processes, within a number and a memory.

Each process is driven by a thread of its own, and so a video that hangs, crashes its reader or cannot be read costs
itself alone, as with one process. What is read for an item is up to the caller.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Generic, TypeVar

from stsimdiff.ranks import cores
from stsimdiff.video.process import VideoProcess

T = TypeVar("T")
R = TypeVar("R")
MOST = 8
"""Processes that read, where the settings do not say how many."""
PATIENCE = 5.0
"""Seconds to wait for a process that was killed: one that waits for a dead file system cannot be."""

Reserve = Callable[[int], None]
"""Waits until there is room for so many bytes."""


def readers(here: int = 1) -> int:
    """Processes that read ahead by default: a core each beside the one that answers, of this process's share.

    Args:
        here: processes that share the cores.
    """
    return min(MOST, max(0, cores() // here - 1))


class ReadAhead(Generic[T, R]):
    """``with ReadAhead(read, ...) as ahead: for item, take in ahead.over(items): ...``; ``take()`` gives what was read.

    Args:
        read: what is done for an item in a thread: it gets a process, the item, and :data:`Reserve`, which it calls
            before it reads. What it raises is raised by ``take``.
        workers: processes, at least 1.
        videos: items that are read, or have been, behind the present one.
        memory: bytes of what is read ahead. One item that needs more is read when nothing else is held.
        started: processes that are used first, and end with this; others start with their first item.
    """

    def __init__(
        self,
        read: Callable[[VideoProcess, T, Reserve], R],
        workers: int,
        videos: int,
        memory: float,
        started: Sequence[VideoProcess] = (),
    ) -> None:
        self._read, self._videos, self._room = read, videos, _Room(memory)
        self._tasks: SimpleQueue[tuple[int, T, Future[R]] | None] = SimpleQueue()
        more = min(workers, videos + 1) - len(started)
        self._processes = [*started, *(VideoProcess() for _ in range(more))]
        self._threads = [
            threading.Thread(target=self._work, args=(process,), name="reads ahead", daemon=True)
            for process in self._processes
        ]

    def __enter__(self) -> ReadAhead[T, R]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._room.close()
        for process in self._processes:
            self._tasks.put(None)
            process.abandon()
        for thread, process in zip(self._threads, self._processes, strict=True):
            thread.join(PATIENCE)
            if not thread.is_alive():
                process.close()

    def over(
        self, items: Iterable[T], most: Callable[[], int] | None = None
    ) -> Iterator[tuple[T, Callable[[], R]]]:
        """The items in turn; one is asked for as soon as there is a place for it, and no sooner.

        Args:
            items: of which the next ones are read.
            most: how many behind the present one may be asked for just now, where that changes.
        """
        numbered, pending = enumerate(items), deque[tuple[int, T, Future[R]]]()
        while True:
            behind = self._videos if most is None else min(self._videos, most())
            for number, item in islice(numbered, max(0, behind + 1 - len(pending))):
                self._room.expect(number)
                pending.append((number, item, Future()))
                self._tasks.put(pending[-1])
            if not pending:
                return
            present = pending[0][0]
            yield self._pending_item(*pending.popleft())
            self._room.free(present)

    def _pending_item(self, number: int, item: T, future: Future[R]) -> tuple[T, Callable[[], R]]:
        """What :meth:`over` gives; it holds nothing of it itself."""
        return item, partial(self._take, number, future)

    def _take(self, number: int, future: Future[R]) -> R:
        try:
            return future.result()
        finally:
            self._room.free(number)

    def _work(self, process: VideoProcess) -> None:
        while (task := self._tasks.get()) is not None and not self._room.closed:
            number, item, future = task
            try:
                result = self._read(process, item, partial(self._room.reserve, number))
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            finally:
                self._room.pass_by(number)
            del task, item, future


class _Room:
    """Bytes that are held, by number. Who comes first is served first, so that the one waited for is never last."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._held: dict[int, int] = {}
        self._freed = -1
        self._waiting: set[int] = set()
        self._changed = threading.Condition()
        self.closed = False

    def expect(self, number: int) -> None:
        """A number will come; those behind it wait for it."""
        with self._changed:
            self._waiting.add(number)

    def reserve(self, number: int, size: int) -> None:
        """Wait for room. Raises ``RuntimeError`` where none will come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._fits(number, size))
            if self.closed:
                raise RuntimeError("nothing more is read ahead")
            if number > self._freed:
                self._held[number] = size
        self.pass_by(number)

    def pass_by(self, number: int) -> None:
        """A number waits no more."""
        with self._changed:
            self._waiting.discard(number)
            self._changed.notify_all()

    def free(self, number: int) -> None:
        """Give back what a number and those before it hold, or would."""
        with self._changed:
            self._freed = number
            self._held = {reserved: size for reserved, size in self._held.items() if reserved > number}
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _fits(self, number: int, size: int) -> bool:
        first = number == min(self._waiting)
        return first and (not self._held or sum(self._held.values()) + size <= self._limit)
