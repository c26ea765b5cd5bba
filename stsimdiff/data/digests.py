"""Digests of whole files, remembered: a file is read again only when something about it has changed.

What is remembered lies in the user's cache folder, an entry a file. An entry holds while the file's path, size, inode,
time of change and time of its status stay to the nanosecond; it is only a memory, never more than a second reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from stsimdiff.data import cache_folder
from stsimdiff.files import fingerprint, sha256

log = logging.getLogger(__name__)

LARGE = 4e9
"""Bytes to read from which a message says that it takes a while."""
SETTLED = 2_000_000_000
"""Nanoseconds for which a file must have lain still: some disks count time in steps of up to two seconds, and a file
that is written twice within one step looks unchanged."""

State = list[int]

_known: dict[str, tuple[State, str]] = {}
"""What this process has seen, by path."""
_said = False
_writes = True


@contextlib.contextmanager
def unwritten() -> Iterator[None]:
    """Within it, digests are read from the memory and not added to it: a plan writes nothing."""
    global _writes
    before, _writes = _writes, False
    try:
        yield
    finally:
        _writes = before


def folder_digest(folder: str | Path) -> str:
    """SHA-256 of the names and contents of all files in a folder and below it, hidden ones left out; 64 hex digits.

    Raises:
        OSError: when one cannot be read.
    """
    root = Path(folder)
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    seen = [(name, file_digest(root / name)) for name in names if not f"/{name}".count("/.")]
    return fingerprint(repr(seen), digits=64)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a whole file, 64 hex digits.

    Raises:
        OSError: when it cannot be read.
    """
    path = os.path.realpath(path)
    state = _state(path)
    known = _known.get(path)
    if known is not None and known[0] == state:
        return known[1]
    digest: str | None
    if not _writes:
        digest = _peek(path, state) or sha256(path)
        if _state(path) == state:
            _known[path] = (state, digest)
        return digest
    with _entry(path) as entry:
        digest = _remembered(entry, state)
        if digest is None:
            digest = sha256(path)
            # A file that changed while it was read, or a moment before, is read again next time.
            if _state(path) != state or time.time_ns() - max(state[2:]) < SETTLED:
                return digest
            _remember(entry, state, digest)
    _known[path] = (state, digest)
    return digest


def say_what_takes_long(paths: Iterable[str | Path], subject: str) -> None:
    """Log one line where the files that nothing is remembered of are so large that reading them takes a while."""
    new = 0
    for path in map(os.path.realpath, paths):
        with contextlib.suppress(OSError):
            state = _state(path)
            known = _known.get(path, (None, ""))[0] == state
            if not known and _peek(path, state) is None:
                new += state[0]
    if new >= LARGE:
        log.warning(
            "reading %s once for its fingerprint: %.0f GB; it is remembered unless the files change",
            subject,
            new / 1e9,
        )


def _state(path: str) -> State:
    """Size, inode, time of change and time of the status's change, in nanoseconds."""
    status = os.stat(path)
    if os.path.isdir(path):
        # What of a folder changes with its files: how many, how large, and when the last one was written.
        inner = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        times = [(stat.st_mtime_ns, stat.st_ctime_ns) for stat in (*inner, status)]
        return [
            sum(stat.st_size for stat in inner),
            len(inner),
            max(times)[0],
            max(time[1] for time in times),
        ]
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _place(path: str) -> Path:
    return cache_folder() / "digests" / fingerprint(path.encode("utf-8", "surrogateescape"), digits=32)


@contextlib.contextmanager
def _entry(path: str) -> Iterator[int | None]:
    """The open entry of a file, locked, so that of several processes one reads the file; ``None`` without a memory."""
    global _said
    place, descriptor = _place(path), None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if not _said:
            _said = True
            log.info(
                "fingerprints are not remembered in %s: %s; each command reads the files again",
                place.parent,
                error.strerror,
            )
        if descriptor is not None:
            os.close(descriptor)
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _peek(path: str, state: State) -> str | None:
    try:
        return _agreeing(_place(path).read_bytes(), state)
    except OSError:
        return None


def _remembered(entry: int | None, state: State) -> str | None:
    return None if entry is None else _agreeing(os.pread(entry, 4096, 0), state)


def _agreeing(content: bytes, state: State) -> str | None:
    """The digest in an entry; ``None`` where it is of another state, or was cut off while it was written."""
    try:
        content_state = json.loads(content)
        return str(content_state["sha256"]) if content_state["state"] == state else None
    except (ValueError, KeyError, TypeError):
        return None


def _remember(entry: int | None, state: State, digest: str) -> None:
    if entry is None:
        return
    # A full disk costs the memory, nothing else; what is cut off is no JSON.
    with contextlib.suppress(OSError):
        os.ftruncate(entry, 0)
        os.pwrite(entry, json.dumps({"state": state, "sha256": digest}).encode(), 0)
