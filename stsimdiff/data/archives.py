"""Zip and tar files, also in parts, unpacked so that no file leaves the folder and none is ever half there.

An archive is read to its end, checksums and all, before a file of it gets its name.
"""

from __future__ import annotations

import bz2
import contextlib
import filecmp
import gzip
import io
import json
import lzma
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stsimdiff.errors import DataError
from stsimdiff.files import make_folder, write_whole
from stsimdiff.lock import Lock
from stsimdiff.stand_ins import stand_in

UNPACKED = "unpacked"
DONE = ".done.json"
UNFINISHED = ".unfinished"
"""Folder for the files of an archive that is being read."""
NESTED = 3
"""How deep archives may lie in archives."""
_SUFFIX = r"(?:zip|tar|tar\.(?:gz|bz2|xz)|tgz|tbz2?|txz)"
_WHOLE = re.compile(rf".+\.{_SUFFIX}$", re.IGNORECASE)
_PART = re.compile(
    rf"(.+\.{_SUFFIX})(?:\.part)?[._-]?([a-z]{{2}}|a[ab][a-z]|aaa[a-z]|\d{{1,5}})(?:-of-(\d{{1,5}}))?$",
    re.IGNORECASE,
)
_FOREIGN = re.compile(
    r".+\.(?:(?P<seven>7z(?:\.\d+)?|rar|r\d\d)|(?P<zst>(?:tar\.)?zst|tzst|tar\.lz4|tar\.lzma)|(?P<split>z\d\d))$",
    re.IGNORECASE,
)
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""How compressed files begin. tarfile reads them too, but does not look at the checksum at their end."""
BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, ValueError,
    struct.error,
)  # fmt: skip
"""What reading a damaged archive raises, names that no file can have included."""


def archives(root: Path) -> dict[str, list[Path]]:
    """The archives below a folder: their name, and the file or the parts in order."""
    names = grouped(path.relative_to(root).as_posix() for path in _visible(root))
    return {name: [root / part for part in parts] for name, parts in names.items()}


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """The archives among files of these names: an archive's name, and the file or the parts in order."""
    whole: dict[str, list[str]] = {}
    parts: dict[str, list[tuple[int, str, str]]] = {}
    for name in names:
        if _WHOLE.fullmatch(PurePosixPath(name).name):
            whole[name] = [name]
        elif part := _PART.fullmatch(name):
            parts.setdefault(part[1], []).append((len(part[2]), part[2].lower(), name))
    # Of parts that somebody has joined the whole is read.
    joined = {
        name: [part for *_, part in sorted(numbered)] for name, numbered in parts.items() if name not in whole
    }
    return dict(sorted({**whole, **joined}.items()))


def foreign(root: Path) -> list[str]:
    """The archives below a folder that are not unpacked here, a sentence each: what they are, and what unpacks them."""
    sentences = []
    for path in _visible(root):
        match = _FOREIGN.fullmatch(path.name)
        if match and match["seven"]:
            sentences.append(f"{path} is unpacked by hand: 7z x {path.name}")
        elif match and match["zst"]:
            sentences.append(f"{path} is unpacked by hand: tar -xf {path.name}, or zstd -d {path.name}")
        elif match:
            whole = path.with_suffix(".zip").name
            sentences.append(
                f"{path} is a part of {whole}, a zip of several: zip -s 0 {whole} --out whole.zip joins them"
            )
    return sentences


def _visible(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inner.parts)
        if path.is_file() and inner.parts[0] != UNPACKED and not hidden:
            yield path


def unpack(root: Path, say: Callable[[str], None], keep: bool = True) -> None:
    """Unpack every archive below ``root`` into ``root/unpacked``, each once; archives in archives too.

    Args:
        root: the folder.
        say: takes a line for the user.
        keep: whether the archives stay. One that is removed stays known as unpacked.

    Raises:
        DataError: for an archive that is broken or incomplete, cannot be read here, or whose names or links lead out of
            the folder; for files of one name with different contents; when another process unpacks there.
    """
    target = root / UNPACKED
    make_folder(target)
    lock = Lock(target / ".lock", advice="wait for it")
    lock.take()
    try:
        done = _read_notes(target / DONE, say)
        for depth in range(NESTED + 1):
            pending = (
                archives(root) if depth == 0 else {f"{UNPACKED}/{n}": p for n, p in archives(target).items()}
            )
            if not keep:
                for name in [name for name, parts in pending.items() if done.get(name) == _state(parts)]:
                    _remove(pending.pop(name))
            pending = {name: parts for name, parts in pending.items() if done.get(name) != _state(parts)}
            if pending and depth == NESTED:
                raise DataError(f"{next(iter(pending))} lies in archives of archives; unpack it by hand")
            for name, parts in pending.items():
                say(f"unpacking {name}")
                _unpack_archive(root, target, name, parts, known=name in done)
                done[name] = _state(parts)
                _write_notes(target / DONE, done)
                if not keep:
                    _remove(parts)
    finally:
        shutil.rmtree(target / UNFINISHED, ignore_errors=True)
        lock.release()


def _remove(parts: Iterable[Path]) -> None:
    for part in parts:
        try:
            part.unlink()
        except OSError as error:
            raise DataError(f"cannot remove the archive {part}: {error.strerror}") from error


def check_space(root: Path, say: Callable[[str], None], keep: bool) -> None:
    """Say how much room the archives below ``root`` take that :func:`unpack` would unpack; into archives in them nobody
    looks.

    Raises:
        DataError: where the disk has less.
    """
    done = _read_notes(root / UNPACKED / DONE, say)
    pending = [parts for name, parts in archives(root).items() if done.get(name) != _state(parts)]
    sizes = [(sum(part.stat().st_size for part in parts), _unpacked_size(parts)) for parts in pending]
    most = used = 0
    for packed, unpacked in sizes:
        most = max(most, used := used + unpacked)
        used -= 0 if keep else packed
    free = shutil.disk_usage(root).free
    if sizes:
        say(
            f"{len(sizes)} archives of {gib(sum(packed for packed, _ in sizes))} to unpack in {root}: "
            f"{gib(sum(unpacked for _, unpacked in sizes))}, {gib(most)} more than now on the disk at most; "
            f"{gib(free)} free"
        )
    if most > free:
        hint = "; keep_archives=false removes each archive once it is unpacked" if keep else ""
        raise DataError(
            f"unpacking in {root} needs {gib(most)} more, and {gib(free)} are free there: free some{hint}"
        )


def _unpacked_size(parts: list[Path]) -> int:
    """Bytes that come out of an archive: exact for a zip, at least for a compressed tar."""
    with contextlib.suppress(OSError, *BROKEN):  # what is broken is said when it is read
        if zipfile.is_zipfile(parts[0]):
            with zipfile.ZipFile(parts[0]) as archive:
                return sum(info.file_size for info in archive.infolist())
    return sum(part.stat().st_size for part in parts)


def gib(size: int) -> str:
    """Bytes as a message says them."""
    return f"{size / 2**30:.1f} GiB"


def _unpack_archive(root: Path, target: Path, name: str, parts: list[Path], known: bool) -> None:
    """Unpack one archive; ``known``: an earlier version of it was, whose files it may replace."""
    _check_parts(name, parts)
    waiting = target / UNFINISHED
    shutil.rmtree(waiting, ignore_errors=True)
    try:
        for member, stream in _members(name, parts):
            _write(target, waiting, member, stream, name)
        for path in sorted(path for path in waiting.rglob("*") if path.is_file()):
            _move(path, target / path.relative_to(waiting), name, known)
    except BROKEN as error:
        lost = ", or its last part is missing" if len(parts) > 1 else ""
        reason = "it ends too early" if isinstance(error, EOFError) else f"{error or type(error).__name__}"
        raise DataError(
            f"archive {root / name} is broken{lost}: {reason}; remove it and fetch it again"
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        # What zipfile says of passwords, and of methods that it does not know.
        raise DataError(
            f"archive {root / name} cannot be unpacked here: {error}; unpack it by hand (7z x)"
        ) from error
    except OSError as error:
        if error.errno is None:  # bz2's word for damaged data
            raise DataError(
                f"archive {root / name} is broken: {error}; remove it and fetch it again"
            ) from error
        raise DataError(f"cannot unpack {root / name} into {target}: {error}") from error


def _check_parts(name: str, parts: list[Path]) -> None:
    """Raise :class:`DataError` for a file that is none, and for parts that are not all there."""
    for path in parts:
        if pointer := stand_in(path):
            raise DataError(f"archive {path} is {pointer}")
        if not path.stat().st_size:
            raise DataError(f"archive {path} is empty (0 bytes); fetch it again")
    matches = [
        part for path in parts if (part := _PART.fullmatch(path.name)) and not _WHOLE.fullmatch(path.name)
    ]
    if not matches:
        return
    suffixes = [part[2].lower() for part in matches]
    numbers = [_number(suffix) for suffix in suffixes]
    # `split` begins at aa or 00, others at 1; it writes longer suffixes behind yz.
    first, last = 0 if numbers[0] == 0 or suffixes[0].isalpha() else 1, max(numbers)
    if total := max(int(part[3] or 0) for part in matches):
        first = int(last == total)
        last = total - 1 + first
    lost = sorted(set(range(first, last + 1)) - set(numbers))
    if lost and len({len(suffix) for suffix in suffixes if suffix.isalpha()}) < 2:
        example = parts[numbers.index(numbers[0])].name
        at = matches[0].start(2)
        named = [
            example[:at] + _suffix(number, suffixes[0]) + example[matches[0].end(2) :] for number in lost[:4]
        ]
        more = f" and {len(lost) - 4} more" if lost[4:] else ""
        raise DataError(
            f"archive {name} lacks its part {', '.join(named)}{more} in {parts[0].parent}; fetch it again"
        )
    if len(set(numbers)) < len(numbers):
        listed = ", ".join(path.name for path in parts)
        raise DataError(
            f"archive {name} has several files for one part ({listed}); remove all but one of each"
        )


def _number(suffix: str) -> int:
    if suffix.isdigit():
        return int(suffix)
    value = 0
    for letter in suffix:
        value = 26 * value + ord(letter) - ord("a")
    return value


def _suffix(number: int, like: str) -> str:
    if like.isdigit():
        return str(number).zfill(len(like))
    letters = ""
    for _ in like:
        number, digit = divmod(number, 26)
        letters = chr(ord("a") + digit) + letters
    return letters


class _Header(tarfile.TarInfo):
    """A member's header. tarfile takes a damaged one, and a file without its end mark, for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise EOFError from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


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
    with parts[0].open("rb") as file:
        head = file.read(6)
    opened = next((how for magic, how in _COMPRESSED.items() if head.startswith(magic)), lambda file: file)
    with (
        _Joined(parts) as joined,
        opened(joined) as plain,
        tarfile.open(fileobj=plain, mode="r|", tarinfo=_Header) as archive,
    ):
        for member in archive:
            if member.isreg():
                content = archive.extractfile(member)
                if content:
                    yield member.name, content
        # The checksum of a compressed file stands behind the archive's end, and nothing else does.
        while block := archive.fileobj.read(2**20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("it goes on behind its end mark")


def _write(target: Path, waiting: Path, member: str, stream: IO[bytes], archive: str) -> None:
    inner = PurePosixPath(member.replace("\\", "/"))
    if inner.is_absolute() or not inner.parts or ".." in inner.parts or ":" in inner.parts[0]:
        raise DataError(
            f"archive {archive} holds {member!r}, which leads out of the folder; remove the archive"
        )
    if not (target / inner).parent.resolve().is_relative_to(target.resolve()):
        raise DataError(
            f"archive {archive}: {(target / inner).parent} is a link that leads out of the folder"
        )
    path = waiting / inner
    path.parent.mkdir(parents=True, exist_ok=True)
    # Also where the file system does not tell upper from lower case.
    again = path.exists()
    written = path.with_name(f"{path.name[:200]}.again") if again else path
    with written.open("wb") as file:
        shutil.copyfileobj(stream, file, 2**20)
    if again:
        if not filecmp.cmp(path, written, shallow=False):
            raise DataError(
                f"archive {archive} holds {member!r} twice, with different contents; unpack it by hand"
            )
        written.unlink()


def _move(path: Path, final: Path, archive: str, known: bool) -> None:
    """Give a file its name: only when the whole archive is sound, and never over another archive's."""
    if final.exists() and not known and not filecmp.cmp(path, final, shallow=False):
        raise DataError(
            f"archive {archive} holds {final.name}, and {final} is there with other contents: from another archive, or "
            "changed since; remove one of them"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    path.replace(final)


def _state(parts: list[Path]) -> list[list[int]]:
    return [[part.stat().st_size, part.stat().st_mtime_ns] for part in parts]


def _read_notes(file: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Which archives were unpacked, as they were then."""
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(notes, dict):
            return notes
        damage = f"a {type(notes).__name__} where an object was expected"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        damage = str(error)
    say(f"{file} is damaged ({damage}), so all archives are unpacked again")
    return {}


def _write_notes(file: Path, done: dict[str, Any]) -> None:
    try:
        write_whole(file, json.dumps(done, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror}") from error


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
