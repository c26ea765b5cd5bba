"""One report of a run at a time: two commands on one run end by making the same files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stsimdiff.errors import DataError

REPORT = ".report.lock"
WANDB = ".wandb.lock"
PATIENCE = 3600.0
"""Seconds to wait for another command's report; the lock is the kernel's, so that a process that died holds none."""


@contextmanager
def alone(folder: Path, name: str = REPORT) -> Iterator[None]:
    """Wait until no other process is within this of the same folder; nothing to wait for where no lock can be made.

    Raises:
        DataError: when another process has been at it for longer than ``PATIENCE``.
    """
    lock = FileLock(folder / name)
    locked = True
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise DataError(
            f"{folder / name} has been held for {PATIENCE:.0f} s by another command that makes the report of this run; "
            "wait for it, or end it"
        ) from None
    except (OSError, NotImplementedError):
        locked = False  # a folder that cannot be written, where nothing will be, or a disk without locks
    try:
        yield
    finally:
        if locked:
            lock.release()
