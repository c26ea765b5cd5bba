"""Files that are there whole or not at all, files of whole lines, and digests of files and of anything else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stsimdiff.errors import DataError

BLOCK = 2**20


def fingerprint(*things: Any, digits: int = 12) -> str:
    """The first hex digits of the SHA-256 of things, a zero byte between two: what ids and names of files are made of.

    Args:
        things: bytes as they are, text as UTF-8, anything else as JSON with sorted keys.
        digits: how many, at most 64.
    """
    parts = []
    for thing in things:
        text = thing if isinstance(thing, str | bytes) else json.dumps(thing, sort_keys=True)
        parts.append(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:digits]


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is not there. Raises :class:`DataError` where that is refused."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {path}: {error.strerror}") from error


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A temporary path beside a file, of the same suffix, that takes the file's place where the block ends without an
    error; else it is removed, and the file is as it was."""
    # Threads, and processes of several machines, may write one folder.
    writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{writer}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_whole(path: Path, content: bytes | str) -> None:
    """Put a file in place of another, in one step: a reader, a full disk or a kill never sees a part of it.

    Args:
        path: the file.
        content: a text is written as UTF-8, half characters as escapes.

    Raises:
        OSError: where it cannot be written; the file is then as it was.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with complete(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def append_line(path: Path, line: str) -> None:
    """Add a line and its newline to a file, on the disk before this returns. Raises :class:`OSError`."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def lines(path: Path, start: int = 0) -> tuple[list[bytes], bytes]:
    """The lines of a file that have an end, without it, and what is left behind the last. Raises :class:`OSError`.

    Args:
        path: the file.
        start: the byte at which the first of them begins.
    """
    with path.open("rb") as stream:
        stream.seek(start)
        *whole, torn = stream.read().split(b"\n")
    return whole, torn


def cut_torn_line(path: Path) -> int:
    """Cut off what an interruption left behind the last newline, so that the next line stands alone.

    Returns:
        How many bytes that were.

    Raises:
        OSError: where it cannot be read or cut.
    """
    with path.open("r+b") as stream:
        size = kept = stream.seek(0, os.SEEK_END)
        while kept:
            start = max(0, kept - BLOCK)
            stream.seek(start)
            newline = stream.read(kept - start).rfind(b"\n")
            kept = start + newline + 1
            if newline >= 0:
                break
        if kept < size:
            stream.truncate(kept)
            os.fsync(stream.fileno())
    return size - kept


def existing(place: Path) -> Path:
    """A place, or the nearest folder above it that is there."""
    return next(path for path in (place.resolve(), *place.resolve().parents) if path.exists())


def sha256(path: Path | str) -> str:
    """SHA-256 of a whole file, 64 hex digits, read in blocks; of a folder, that of its files' names and digests. Raises
    :class:`OSError`."""
    if os.path.isdir(path):
        inner = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
        entries = [f"{name}\0{sha256(os.path.join(path, name))}\n" for name in inner]
        return fingerprint("".join(entries).encode(errors="surrogateescape"), digits=64)
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as stream:
        while size := stream.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()
