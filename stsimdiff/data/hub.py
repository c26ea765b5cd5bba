"""What the hub has of a benchmark: how much room it takes, and how it comes here, whole or in part."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from stsimdiff.data.archives import gib, grouped
from stsimdiff.data.benchmarks import Benchmark, default_root
from stsimdiff.data.rows import read_rows
from stsimdiff.data.videos import SUFFIXES
from stsimdiff.errors import DataError, first_line
from stsimdiff.files import complete, existing, write_whole

FETCHED = ".fetched.json"
PATIENCE = 30
"""Seconds that the hub has for each answer, unless HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT say otherwise."""
TRIES = 3
PAUSE = 2.0
"""Seconds before the second try; twice as many before the third."""
BLOCK = 2**24
"""Bytes of an archive that one request reads."""

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass
class Need:
    """What a benchmark takes before it is fetched; nothing of it where it was.

    Attributes:
        benchmark: which one.
        root: the folder that it goes to.
        revision: of the hub's repository; ``None`` where everything was fetched before.
        summary: a line for the user.
        open: bytes that the disk needs beyond what is there, at most.
        free: bytes that it has.
        files: those to fetch whole, with their sizes.
        part: whether these are not all of the repository's.
        members: by the name of a zip, what is read out of it where it lies.
    """

    benchmark: Benchmark
    root: Path
    revision: str | None
    summary: str
    open: int = 0
    free: int = 0
    files: dict[str, int] = field(default_factory=dict)
    part: bool = False
    members: dict[str, list[zipfile.ZipInfo]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it."""
        return self.open <= self.free

    def too_large(self) -> str:
        """What to do where it does not fit."""
        return (
            f"{self.benchmark.hub} needs {gib(self.open)} to fetch and unpack, and {self.root} has "
            f"{gib(self.free)} free; set XDG_CACHE_HOME to a larger disk, let keep_archives=false remove each archive "
            f"once it is unpacked, or {_elsewhere(self.benchmark)}"
        )


def look(benchmark: Benchmark, keep: bool, say: Say) -> Need:
    """What fetching a benchmark into the user's cache takes; of its videos nothing is fetched yet.

    Args:
        benchmark: which one.
        keep: whether archives stay once they are unpacked.
        say: takes a line for the user.

    Raises:
        DataError: when the hub cannot be reached, or asks for permission.
    """
    root = default_root(benchmark.name)
    if (root / FETCHED).is_file():
        return Need(benchmark, root, None, f"{benchmark.name} was fetched into {root} before")
    with _errors_as_messages(benchmark):
        from huggingface_hub import HfApi

        patience = _patience()
        info = _with_retries(
            lambda: HfApi().dataset_info(
                benchmark.hub, files_metadata=True, timeout=patience, **_branch(benchmark)
            ),
            say,
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        part = _part(benchmark, root, info.sha, sizes, say) if benchmark.part else None
    here = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) if root.is_dir() else 0
    free = shutil.disk_usage(existing(root)).free
    if part:
        files, members = part
        most = sum(info.file_size for infos in members.values() for info in infos)
        most += sum(files.values())
        packed = sum(sizes[name] for name in members)
        summary = f"{gib(most)}, read out of archives of {gib(packed)}, which are not fetched whole"
    else:
        files, members = sizes, {}
        groups = [sum(sizes[name] for name in names) for names in grouped(sizes).values()]
        packed, total = sum(groups), sum(sizes.values())
        # Videos hardly shrink in an archive.
        most = total + (packed if keep else max(groups, default=0))
        summary = f"{gib(total)} to fetch, {gib(packed)} of it in {len(groups)} archives, about as much again unpacked"
        summary += "" if keep else "; each archive is removed once it is unpacked"
    left = max(0, most - here)
    message = f"{benchmark.name}: {summary}; {gib(left)} more than now on the disk at most, {gib(free)} free at {root}"
    return Need(benchmark, root, info.sha, message, left, free, files, part is not None, members)


def _branch(benchmark: Benchmark) -> dict[str, Any]:
    return {"revision": benchmark.branch} if benchmark.branch else {}


def fetch(need: Need, say: Say) -> None:
    """Fetch a benchmark, unless that was done; a fetch that was stopped goes on.

    Raises:
        DataError: when the hub cannot be reached or refuses, or the disk does.
    """
    if need.revision is None:
        return
    benchmark, root = need.benchmark, need.root
    with _errors_as_messages(benchmark):
        say(f"fetching {benchmark.hub} into {root}")
        root.mkdir(parents=True, exist_ok=True)
        _patience()
        _download(benchmark, root, need.revision, need.files, need.part, say)
        for name, infos in need.members.items():
            _with_retries(partial(_read, need, name, infos), say)
        record = {"hub": benchmark.hub, "revision": need.revision, "part": need.part}
        write_whole(root / FETCHED, json.dumps(record) + "\n")


def _download(
    benchmark: Benchmark, root: Path, revision: str, files: dict[str, int], part: bool, say: Say
) -> None:
    import huggingface_hub

    only: dict[str, Any] = {"allow_patterns": list(files)} if part else {}
    expected = [(root / name, size) for name, size in files.items()]

    def attempt() -> None:
        huggingface_hub.snapshot_download(
            benchmark.hub, repo_type="dataset", revision=revision, local_dir=root, **only
        )
        # Without network the client may be content with a folder that is there.
        whole = [path.is_file() and path.stat().st_size == size for path, size in expected]
        if not all(whole):
            raise ConnectionError(f"{whole.count(False)} of {len(whole)} files have not come whole")

    _with_retries(attempt, say)


def _part(
    benchmark: Benchmark, root: Path, revision: str, sizes: dict[str, int], say: Say
) -> tuple[dict[str, int], dict[str, list[zipfile.ZipInfo]]] | None:
    """The files and the members of archives that the questions need; ``None`` where that cannot be told."""
    annotation_files = {
        name: size
        for name, size in sizes.items()
        if {part.lower() for part in PurePosixPath(name).parts[:-1]} & {*benchmark.configs}
    }
    if not annotation_files:
        return None
    _download(benchmark, root, revision, annotation_files, True, say)
    wanted = {benchmark.video(row) for row in read_rows(benchmark, root)}
    loose = {name: size for name, size in sizes.items() if _video(name) in wanted}
    missing = wanted - {_video(name) for name in loose}
    members: dict[str, list[zipfile.ZipInfo]] = {}
    for name, parts in grouped(sizes).items():
        if missing and name.lower().endswith(".zip") and len(parts) == 1:
            listed = _with_retries(partial(_entries, benchmark, revision, name), say)
            members[name] = [info for info in listed if _video(info.filename) in missing]
            missing -= {_video(info.filename) for info in members[name]}
    if missing:
        say(
            f"{len(missing)} of {len(wanted)} videos are in no zip of {benchmark.hub} by name: all of it is fetched"
        )
        return None
    return annotation_files | loose, {name: listed for name, listed in members.items() if listed}


def _video(name: str) -> str | None:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in SUFFIXES else None


@contextmanager
def _zip(benchmark: Benchmark, revision: str, name: str) -> Iterator[zipfile.ZipFile]:
    """A zip on the hub, of which only what is asked for is read."""
    from huggingface_hub import HfFileSystem

    place = f"datasets/{benchmark.hub}@{revision}/{name}"
    with HfFileSystem().open(place, "rb", block_size=BLOCK) as file, zipfile.ZipFile(file) as archive:
        yield archive


def _entries(benchmark: Benchmark, revision: str, name: str) -> list[zipfile.ZipInfo]:
    try:
        with _zip(benchmark, revision, name) as archive:
            return [info for info in archive.infolist() if not info.is_dir()]
    except zipfile.BadZipFile:
        return []  # no zip of one file: it is fetched whole, and said when it is unpacked


def _read(need: Need, name: str, infos: list[zipfile.ZipInfo]) -> None:
    """Read members of a zip into the folder's ``videos``; each gets its name when its checksum is right."""
    folder = need.root / "videos"
    folder.mkdir(exist_ok=True)
    open_ = [info for info in infos if not _is_there(folder, info)]
    if not open_:
        return
    assert need.revision is not None, "what was fetched before is not read again"
    with _zip(need.benchmark, need.revision, name) as archive:
        # In the order in which they lie there, so that what was read ahead serves.
        for info in sorted(open_, key=lambda info: info.header_offset):
            target = folder / PurePosixPath(info.filename).name
            with complete(target) as temporary, archive.open(info) as source, temporary.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)


def _is_there(folder: Path, info: zipfile.ZipInfo) -> bool:
    path = folder / PurePosixPath(info.filename).name
    return path.is_file() and path.stat().st_size == info.file_size


def _patience() -> int:
    """Give the hub's client its time for an answer; what the environment says stays."""
    from huggingface_hub import constants

    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if not os.environ.get(name):
            setattr(constants, name, PATIENCE)
    return constants.HF_HUB_ETAG_TIMEOUT


def _with_retries(attempt: Callable[[], T], say: Say) -> T:
    """What an attempt gives, which may fail twice for a reason that can pass."""
    for number in range(1, TRIES):
        try:
            return attempt()
        except Exception as error:
            if not _passing(error):
                raise
            say(f"the hub failed ({first_line(error)}); try {number + 1} of {TRIES}")
            time.sleep(PAUSE * number)
    return attempt()


def _passing(error: Exception) -> bool:
    """Whether another try may help: not against a refusal, missing files, a full disk, or a switched-off network."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, (OfflineModeIsEnabled, DataError)):
        return False
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
    return not (isinstance(error, OSError) and error.errno in disk)


@contextmanager
def _errors_as_messages(benchmark: Benchmark) -> Iterator[None]:
    """Turn what the hub's client raises into a message."""
    from huggingface_hub.errors import GatedRepoError

    try:
        yield
    except GatedRepoError as error:
        raise DataError(
            f"{benchmark.hub} asks for permission: accept its conditions on its page and log in with "
            f"`hf auth login`; or {_elsewhere(benchmark)}"
        ) from error
    except DataError:
        raise
    except Exception as error:
        # The hub's client changes its network library, and so its errors, from version to version.
        raise DataError(
            f"cannot fetch {benchmark.hub}: {first_line(error)}; {_elsewhere(benchmark)}"
        ) from error


def _elsewhere(benchmark: Benchmark) -> str:
    return f"with its files elsewhere on this machine: make data BENCHMARK={benchmark.name} DATA=/path"
