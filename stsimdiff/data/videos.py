"""Videos below a folder: which file a row means, whether it is sound, and an index of what was found.

Knows files and their contents, no benchmark.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sized
from fractions import Fraction
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from stsimdiff import video
from stsimdiff.data import cache_folder
from stsimdiff.data.archives import archives, foreign
from stsimdiff.data.benchmarks import visible_files
from stsimdiff.errors import DataError, VideoError
from stsimdiff.files import fingerprint, sha256, write_whole
from stsimdiff.source import version_of
from stsimdiff.terminal import say
from stsimdiff.video import DECODERS, decoder_of, process
from stsimdiff.video.parts import PICTURES, Part
from stsimdiff.video.process import SECONDS

SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".qt", ".mp4v", ".3gp", ".3g2", ".mj2", ".mk3d", ".f4v",
    ".flv", ".wmv", ".asf", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".vob", ".ts", ".m2ts", ".mts",
    ".m2t", ".tp", ".ogv", ".ogm", ".ogg", ".rm", ".rmvb", ".divx", ".dv", ".mxf", ".nut", ".ivf", ".y4m",
    ".amv", ".wtv", ".gif", ".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".h263", ".obu", ".av1",
    ".vc1", ".mjpg", ".mjpeg",
)  # fmt: skip
"""A name without a suffix, or with another of these, means a file with one of these; one named whole may have any."""
CHECK = 2
"""Number of the check that an entry of an index passed; an earlier one let files pass that were cut off."""
SHOWN = 10
"""How many unusable videos a message names."""


class VideoFolder:
    """The videos below a folder, found by name wherever they lie.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] = {}
        self._pictures: dict[str, list[Path]] = {}
        files = visible_files(root)
        for folder in sorted({path.parent for path in files if path.suffix.lower() in PICTURES}):
            self._pictures.setdefault(folder.name, []).append(folder)
        for path in files:
            for name in {path.name, path.stem} if path.suffix.lower() in SUFFIXES else {path.name}:
                self._by_name.setdefault(name, []).append(path)

    def path(self, name: str, exact: bool = False) -> Path:
        """The file of this name, with or without suffix and folders; where it would be if there is none.

        Args:
            name: as a row has it.
            exact: whether only a file in the folders that the name says is meant, or a folder of pictures there:
                elsewhere, such a folder beside a video holds what somebody took out of it.

        Raises:
            DataError: when several different files could be meant.
        """
        wanted = PurePosixPath(name)
        paths = self._by_name.get(wanted.name, [])
        if not paths and wanted.suffix.lower() in SUFFIXES:
            # The same video in another container.
            paths = self._by_name.get(wanted.stem, [])
        if exact:
            paths = [*paths, *self._pictures.get(wanted.name, [])]
        if len(paths) > 1 or exact:
            stem = str(wanted.with_suffix("")) if wanted.suffix.lower() in SUFFIXES else name
            ending = [p for p in paths if f"/{p.with_suffix('').as_posix()}".endswith(f"/{stem}")]
            paths = ending if exact else ending or paths
        if len({path.stat().st_size for path in paths}) > 1:
            listed = ", ".join(str(path) for path in paths)
            raise DataError(f"several files could be the video {name!r}: {listed}; remove all but one")
        if paths:
            return paths[0]
        return self.root / (name if wanted.suffix.lower() in SUFFIXES else f"{name}{SUFFIXES[0]}")


class Index:
    """What is known of the videos below a folder: size, duration, frames, checksum, or what is wrong.

    It is kept in the folder, or in the user's cache where the folder cannot be written. An entry holds while its
    file's size and time of change stay, for the decoder that it names.

    Args:
        root: the folder.
    """

    NAME = "stsimdiff_index.json"

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        named = fingerprint(str(self.root))
        inside, cached = self.root / self.NAME, cache_folder() / "index" / f"{named}.json"
        self.file = inside if os.access(self.root, os.W_OK) else cached
        self.entries: dict[str, dict[str, Any]] = {}
        # One that was cut or altered is made again.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            entries = json.loads(self.file.read_text(encoding="utf-8"))["videos"].items()
            self.entries = {name: entry for name, entry in entries if isinstance(entry, dict)}

    def check(
        self,
        paths: Iterable[Path],
        *,
        checksums: bool = False,
        seconds: float | None = SECONDS,
        decoder: str = "pyav",
        step: Callable[[], None] = lambda: None,
    ) -> dict[Path, str]:
        """The unusable ones among these files, with the reason. Files that the index knows to be sound are not
        opened again; an error may have been the disk's, so those are, unless they only took too long.

        Args:
            paths: the videos.
            checksums: whether each entry needs a checksum, for which the whole file is read.
            seconds: time that opening one file may take; ``None``: no limit.
            decoder: what will read them, and so opens them here.
            step: called after each file.
        """
        unusable, changed, named = {}, 0, decoder
        if decoder not in DECODERS.builtin:
            # What one of the user's own could read says nothing of what it can once it is changed.
            named += f" {version_of(decoder_of(decoder))}"
        for path in sorted(set(paths)):
            entry = self._entry(path, seconds, named)
            if entry is None or (checksums and "error" not in entry and "sha256" not in entry):
                entry = _inspect(path, checksums, seconds, decoder) | {"check": CHECK, "decoder": named}
                self.entries[self._key(path)] = entry
                changed += 1
                if changed % 50 == 0:
                    self.save()
            if "error" in entry:
                unusable[path] = entry["error"]
            step()
        if changed:
            self.save()
        return unusable

    def save(self) -> None:
        """Write the index in one move; a folder that forbids it keeps none, and files are opened again next time."""
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, json.dumps({"videos": self.entries}, indent=1, sort_keys=True) + "\n")

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def _entry(self, path: Path, seconds: float | None, decoder: str) -> dict[str, Any] | None:
        entry = self.entries.get(self._key(path))
        if entry and (entry.get("check"), entry.get("decoder")) != (CHECK, decoder):
            return None
        if entry and "error" in entry and not _too_slow_for(entry, seconds):
            return None
        with contextlib.suppress(OSError):
            state = path.stat()
            if entry and (entry.get("size"), entry.get("mtime_ns")) == (state.st_size, state.st_mtime_ns):
                return entry
        return None


def _too_slow_for(entry: dict[str, Any], seconds: float | None) -> bool:
    """Whether the file took longer than it may take now: then it need not be waited for again."""
    return seconds is not None and seconds <= (entry.get("limit") or 0)


def _inspect(path: Path, checksum: bool, seconds: float | None, decoder: str) -> dict[str, Any]:
    try:
        probe = process.shared().probe(path, seconds, decoder)
    except VideoError as error:
        state = path.stat() if path.exists() else None
        known = {"size": state.st_size, "mtime_ns": state.st_mtime_ns} if state else {}
        return {**known, "error": str(error), "limit": error.limit}
    state = path.stat()
    entry = {
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "frames": probe.frames,
        "seconds": round(probe.seconds, 3),
    }
    return {**entry, "sha256": sha256(path)} if checksum else entry


def unusable_videos(benchmark: Any, paths: Iterable[str], limit: int | str = 0) -> dict[str, str]:
    """The videos of a benchmark's questions that are missing or broken, with the reason, before a model is loaded.

    They are listed, and the run goes on with the others where the limit allows it.

    Args:
        benchmark: the settings of the benchmark. With ``root``, the folder of a public benchmark, every video is
            opened unless the index there knows it; generated ones, and a user's own, are looked for only.
        paths: of the videos.
        limit: ``max_failures`` of the settings.

    Raises:
        DataError: when they are more than the limit, unless ``allow_missing``.
    """
    paths = sorted(set(paths))
    if benchmark.root:
        index = Index(Path(benchmark.root))
        files = {path: Part.of(path).file for path in paths}
        reasons = index.check(files.values(), seconds=benchmark.video_seconds, decoder=benchmark.decoder)
        unusable = {path: reasons[file] for path, file in files.items() if file in reasons}
    else:
        unusable = {}
        for path in paths:
            try:
                video.check_file(path)
            except VideoError as error:
                unusable[path] = str(error)
    if not unusable:
        return unusable
    message = f"{listing(unusable.values())}\n{len(unusable)} of {len(paths)} videos cannot be used"
    if not benchmark.allow_missing and too_many(unusable, paths, limit):
        raise DataError(f"{message}{_place(benchmark)}; {_packed(benchmark)}{over(limit, len(paths))}")
    _say_once(f"{message}; the questions about them count as failed, the others are answered")
    return unusable


def too_many(unusable: Sized, paths: Sized, limit: int | str) -> bool:
    """Whether more of these videos are unusable than a run goes on with."""
    return len(unusable) > failures_allowed(limit, len(paths))


def over(limit: int | str, videos: int) -> str:
    """What the limit is, and how the rest is answered all the same."""
    return (
        f"max_failures={limit} allows {failures_allowed(limit, videos)} of {videos}; raise it, or set "
        "benchmark.allow_missing=true, to answer the other questions and count these as failed"
    )


@cache
def _say_once(text: str) -> None:
    say(text, error=True)


def _place(benchmark: Any) -> str:
    return f" (searched all of {benchmark.root})" if benchmark.root else ""


def _packed(benchmark: Any) -> str:
    """What to do first where the folder holds archives: the videos may be in them."""
    root = benchmark.root
    if not root or not archives(Path(root)):
        return "".join(f"{sentence}; " for sentence in foreign(Path(root))[:SHOWN]) if root else ""
    name = benchmark.task.removeprefix("stsimdiff_")
    return f"the folder holds archives: unpack them with `make data BENCHMARK={name} DATA={root}`; "


def listing(reasons: Iterable[str]) -> str:
    """The first reasons, a line each, and how many more there are."""
    reasons = list(reasons)
    more = [f"... and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    return "\n".join(reasons[:SHOWN] + more)


def failures_allowed(limit: int | str, videos: int) -> int:
    """How many of so many videos may be unusable.

    Args:
        limit: what :func:`failure_limit` gave.
        videos: that the questions are about.
    """
    return limit if isinstance(limit, int) else int(Fraction(limit.removesuffix("%")) / 100 * videos)
