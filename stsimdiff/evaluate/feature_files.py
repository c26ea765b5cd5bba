"""Vision features as safetensors in a folder of bounded size, which several processes and runs may share.

A file is complete or not there: it is written under another name, under a lock, and carries what it belongs to and
checksums of its tensors. What is broken or of something else is said and made again, never used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stsimdiff.errors import DataError, first_line
from stsimdiff.evaluate.packing import SIGNALS, PackedVideo
from stsimdiff.tokens import Signals, covers

log = logging.getLogger(__name__)

FILE = re.compile(r"[0-9a-f]{32}\.safetensors")
UNFINISHED = ".unfinished"
"""Folder within the folder, for files that are being written."""
SLACK = 4096
"""Bytes that a file may have beside its tensors and their descriptions."""


class FeatureFiles:
    """A folder with a file for each video's features; files of others in it are left alone.

    Args:
        folder: made if absent.
        limit: bytes that its files may have together. It is never exceeded, not even while a file is written.

    Raises:
        DataError: when the folder cannot be made or written.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self._writing = True
        # One process at a time makes room and writes; the kernel gives the lock of a dead one back.
        self._lock = FileLock(folder / ".lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._remove_unfinished()
        except OSError as error:
            raise DataError(
                f"cache.folder={folder} cannot be used: {error.strerror}; name a folder that can be written, or null"
            ) from error

    def holds(self, name: str) -> bool:
        """Whether there is a file of this name; what is in it only :meth:`read` says."""
        return self._path(name).is_file()

    def read(self, name: str, about: str, signals: Signals) -> PackedVideo | None:
        """Features; ``None`` where they, or the signals asked for, are not here.

        Args:
            name: 32 hex digits of ``about``.
            about: what the features belong to.
            signals: what of the tower's signals is needed too.
        """
        path = self._path(name)
        try:
            with safe_open(path, framework="pt") as file:
                packed = _read(file, about, signals)
            # Used last, so removed last.
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used (%s); the video is encoded again", path, _reason(error))
            return None
        return packed

    def write(self, name: str, about: str, packed: PackedVideo) -> None:
        """Keep features, in place of those used longest ago where there is no room.

        A disk that refuses is said once; the run goes on without keeping more.
        """
        if not self._writing:
            return
        described = {
            "about": about,
            "tree": json.dumps(packed.tree),
            "checksums": json.dumps({name: _checksum(tensor) for name, tensor in packed.tensors.items()}),
        }
        needed = packed.bytes + len(json.dumps(described)) + 256 * len(packed.tensors) + SLACK
        if needed > self.limit:
            self._stop(f"the features of one video need {needed / 1e9:.3g} GB, cache.disk_gb allows less")
            return
        try:
            with self._lock:
                self._remove_unfinished()
                self._path(name).unlink(missing_ok=True)
                self._make_room(needed)
                self._save(name, packed, described)
        except (OSError, SafetensorError) as error:
            self._stop(_reason(error))

    def _save(self, name: str, packed: PackedVideo, described: dict[str, str]) -> None:
        unfinished = self.folder / UNFINISHED / name
        try:
            unfinished.write_bytes(save(packed.tensors, described))
            unfinished.replace(self._path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                self._remove_unfinished()
            raise

    def _stop(self, reason: str) -> None:
        self._writing = False
        log.warning("cache.folder=%s stores no more features of this run: %s", self.folder, reason)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _make_room(self, needed: int) -> None:
        files = []
        for path in self.folder.iterdir():
            if FILE.fullmatch(path.name):
                state = path.stat()
                files.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total + needed <= self.limit:
                return
            # A process that reads it keeps its open file.
            path.unlink()
            total -= size

    def _remove_unfinished(self) -> None:
        # Files are written under the lock only: what is unfinished now was left by a process that died.
        place = self.folder / UNFINISHED
        place.mkdir(exist_ok=True)
        for path in place.iterdir():
            path.unlink()


def _read(file: Any, about: str, signals: Signals) -> PackedVideo | None:
    """What a file holds, checked; ``None`` if it lacks signals that are asked for.

    Raises:
        ValueError: for a file of other features, or one whose bytes have changed.
    """
    described = file.metadata() or {}
    if described.get("about") != about:
        raise ValueError("it belongs to something else")
    packed = PackedVideo(tree=json.loads(described["tree"]))
    if not signals:
        packed.tree["signals"] = None
    elif not covers(packed.signals, signals):
        return None
    checksums = json.loads(described["checksums"])
    for name, checksum in checksums.items():
        if signals or not name.startswith(SIGNALS):
            # The file is mapped into memory; a copy stays whole whatever happens to it.
            packed.tensors[name] = file.get_tensor(name).clone()
            if _checksum(packed.tensors[name]) != checksum:
                raise ValueError(f"the bytes of {name} have changed")
    return packed


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy())


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)
