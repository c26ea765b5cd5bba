"""Zip and tar files, also in parts, unpacked so that no file leaves the folder and none is ever half there."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from stsimdiff.errors import DataError

UNPACKED = "unpacked"
_WHOLE = re.compile(r".+\.(zip|tar|tar\.gz|tgz)$", re.IGNORECASE)
_PART = re.compile(r"(.+\.(?:tar|tar\.gz|tgz|zip))(?:\.part)?[._-]?(?:[a-z]{2}|\d{2,3})$", re.IGNORECASE)


def archives(root: Path) -> dict[str, list[Path]]:
    """The archives below a folder: their name, and the file or the parts in order."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        if (
            not path.is_file()
            or inner.parts[0] == UNPACKED
            or any(part.startswith(".") for part in inner.parts)
        ):
            continue
        if _WHOLE.fullmatch(path.name):
            found[inner.as_posix()] = [path]
        elif part := _PART.fullmatch(inner.as_posix()):
            found.setdefault(part[1], []).append(path)
    return found


def unpack(root: Path, say: Callable[[str], None]) -> None:
    """Unpack every archive below ``root`` into ``root/unpacked``, each once.

    Raises:
        DataError: for an archive that is broken, or whose names or links lead out of the folder.
    """
    target = root / UNPACKED
    notes = target / ".done.json"
    done = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    for name, parts in archives(root).items():
        state = [[part.stat().st_size, part.stat().st_mtime_ns] for part in parts]
        if done.get(name) == state:
            continue
        say(f"unpacking {name}")
        try:
            for member, stream in _members(name, parts):
                _write(target, member, stream, name)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise DataError(
                f"archive {root / name} is broken: {error}; remove it and fetch it again"
            ) from error
        except OSError as error:
            raise DataError(f"cannot unpack {root / name} into {target}: {error}") from error
        done[name] = state
        notes.parent.mkdir(exist_ok=True)
        notes.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


def _members(name: str, parts: list[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    """The plain files of an archive. Links and devices are no data, and are left out."""
    if name.lower().endswith(".zip"):
        if len(parts) > 1:
            raise DataError(
                f"archive {name} comes in {len(parts)} parts; join them with `cat` and remove the parts"
            )
        with zipfile.ZipFile(parts[0]) as archive:
            for info in archive.infolist():
                linked = (info.external_attr >> 16) & 0o170000 == 0o120000
                if not info.is_dir() and not linked:
                    with archive.open(info) as stream:
                        yield info.filename, stream
        return
    with _Joined(parts) as joined, tarfile.open(fileobj=joined, mode="r|*") as archive:
        for info in archive:
            if info.isreg():
                stream = archive.extractfile(info)
                if stream:
                    yield info.name, stream


def _write(target: Path, member: str, stream: IO[bytes], archive: str) -> None:
    inner = PurePosixPath(member.replace("\\", "/"))
    if inner.is_absolute() or not inner.parts or ".." in inner.parts or ":" in inner.parts[0]:
        raise DataError(
            f"archive {archive} holds {member!r}, which leads out of the folder; remove the archive"
        )
    path = target / inner
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(target.resolve()):
        raise DataError(f"archive {archive}: {path.parent} is a link that leads out of the folder")
    # Under its own name only when whole: a stopped run must leave no file that looks complete.
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        shutil.copyfileobj(stream, file, 2**20)
    unfinished.replace(path)


class _Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, parts: list[Path]) -> None:
        self._rest = list(parts)
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while self._file or self._rest:
            self._file = self._file or self._rest.pop(0).open("rb")
            data = self._file.read(size)
            if data:
                return data
            self._file.close()
            self._file = None
        return b""

    def close(self) -> None:
        if self._file:
            self._file.close()
        super().close()
