"""Which process works on which video: claims in a run's folder, each held by at most one process at a time.

Of the file system it is relied on that a file is made by one process alone (``O_EXCL``, which NFS since version 3 and
Lustre keep), that a file's time is the server's, that who makes a file learns whether it was there, and that who
opens a file reads what its writer had written when it last closed a descriptor of it. Locks, complete listings, fresh
lengths of files and equal clocks are not needed. What a claim's holder writes lies elsewhere: were two to hold one
claim after all, they would do the same work twice and lose none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from stsimdiff import lock
from stsimdiff.errors import DataError
from stsimdiff.files import make_folder

log = logging.getLogger(__name__)

FOLDER = ".claims"
LEASE = 300.0
"""Seconds without a sign of life after which a claim may be taken over."""
BEAT = 30.0
"""Seconds between two signs of life."""
POLL_SECONDS = 1.0


class Claim:
    """What this process holds until :meth:`give_back`; a file of the n-th generation of a name.

    Args:
        path: of a name's claims, without the generation.
        generation: 0 for the first claim of the name, one more for each after it.
    """

    def __init__(self, path: Path, generation: int) -> None:
        self.path, self.generation = path, generation
        self.file = _file(path, generation)

    @property
    def lost(self) -> bool:
        """Whether another process has taken it over, because this one gave no sign of life for too long."""
        return _file(self.path, self.generation + 1).exists()

    def beat(self) -> None:
        """Give a sign of life."""
        try:
            os.utime(self.file)
        except FileNotFoundError:
            pass  # another process of the same run has removed the claims of a run that has come to its end
        except OSError as error:
            log.warning("no sign of life in %s this time: %s", self.file, error.strerror)

    def give_back(self) -> None:
        """Let others have it."""
        # Over what it says, in one piece: at no moment it says nothing.
        with contextlib.suppress(FileNotFoundError):
            _write(self.file, json.dumps({"free": True}).ljust(self.file.stat().st_size))


class Claims:
    """The claims of a run, of which this process may hold some; ``with Claims(folder) as claims``.

    Generation n + 1 of a name is made by whoever finds that n is free or its holder dead, and it can be made only once:
    so it has one holder, whatever others saw before. Generations stay until :meth:`clear`.

    Args:
        folder: of the run.
        launch: names the job that this process runs; a claim that names the same one is of an earlier attempt of it.
        lease: seconds without a sign of life after which a claim may be taken over.

    Raises:
        DataError: when the folder cannot be written.
    """

    def __init__(self, folder: Path, launch: str | None = None, lease: float = LEASE) -> None:
        self.folder, self.launch, self.lease = folder / FOLDER, launch, lease
        self._held: set[Claim] = set()
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._clock = self.folder / f".clock.{socket.gethostname()}.{os.getpid()}"
        self._beats = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def __enter__(self) -> Claims:
        make_folder(self.folder)
        self._now()
        self._beats.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._beats.join()
        for claim in list(self._held):
            self.give_back(claim)
        with contextlib.suppress(FileNotFoundError):
            self._clock.unlink()

    def take(self, name: str) -> Claim | None:
        """The claim of a name, or ``None`` while another process holds it.

        Raises:
            DataError: when the folder cannot be written.
        """
        last = self.last(name)
        return None if last >= 0 and self.alive(name, last) else self.make(name, last + 1)

    def last(self, name: str) -> int:
        """The last generation of a name; -1 where there is none."""
        generation = -1
        while _file(self.folder / name, generation + 1).exists():
            generation += 1
        return generation

    def alive(self, name: str, generation: int) -> bool:
        """Whether the holder of a name's last generation is taken to work on it."""
        file = _file(self.folder / name, generation)
        try:
            age = self._now() - file.stat().st_mtime
            owner = _owner(file)
        except FileNotFoundError:
            return False
        if age > self.lease or (owner or {}).get("free"):
            return False
        if owner is None:
            # Whoever made it is about to write who it is, or died on the way.
            return age < lock.UNREADABLE_FOR
        # Of another machine, also one of the same name, a sign of life just now says more than a scheduler or a name.
        if age < 2 * BEAT and not lock.is_here(owner):
            return True
        mine = owner["pid"] == os.getpid() and owner["host"] == socket.gethostname()
        if self.launch is not None and owner.get("launch") == self.launch and not mine:
            return False
        return lock.is_alive(owner)

    def workers(self) -> int:
        """Processes that work through the run's videos now, this one included."""
        now, times = self._now(), []
        for clock in self.folder.glob(".clock.*"):
            with contextlib.suppress(FileNotFoundError):
                times.append(clock.stat().st_mtime)
        return max(1, sum(now - seen < self.lease for seen in times))

    def make(self, name: str, generation: int) -> Claim | None:
        """Generation ``generation`` of a name; ``None`` where another process was quicker, or removed all claims.

        Raises:
            DataError: when the folder cannot be written.
        """
        claim = Claim(self.folder / name, generation)
        try:
            _write(claim.file, json.dumps(lock.identity(self.launch)), os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            return None
        except OSError as error:
            raise DataError(f"cannot write {claim.file}: {error.strerror}") from error
        with self._guard:
            self._held.add(claim)
        return claim

    def give_back(self, claim: Claim) -> None:
        """Let others have a claim of this process."""
        with self._guard:
            self._held.discard(claim)
        claim.give_back()

    @contextlib.contextmanager
    def alone(self, name: str, doing: str) -> Iterator[None]:
        """Wait until no other process holds a name, and hold it for the time of a block.

        Args:
            name: what is claimed.
            doing: what another process does that holds it, for the log.
        """
        logged = False
        while (claim := self.take(name)) is None:
            if not logged:
                log.info("another process %s; waiting for it", doing)
            logged = True
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            self.give_back(claim)

    def clear(self) -> None:
        """Remove all claims of the run, unless another process works on it."""
        names = {path.name.rpartition(".")[0] for path in self.folder.glob("[!.]*")}
        names_here = {claim.path.name for claim in self._held}
        if not any(self.alive(name, self.last(name)) for name in names - names_here):
            shutil.rmtree(self.folder, ignore_errors=True)  # another process may do the same

    def _now(self) -> float:
        """The time as the file system's server has it."""
        try:
            self._clock.touch()
        except FileNotFoundError:  # the claims of a run that has come to its end are removed
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clock.touch()
        return self._clock.stat().st_mtime

    def _beat(self) -> None:
        while not self._over.wait(min(BEAT, self.lease / 10)):
            with contextlib.suppress(OSError):
                self._now()
            with self._guard:
                for claim in self._held:
                    claim.beat()


def _file(path: Path, generation: int) -> Path:
    return path.with_name(f"{path.name}.{generation}")


def _owner(file: Path) -> dict[str, Any] | None:
    """What a claim says of its holder; ``None`` while it is being written."""
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    known = isinstance(owner, dict) and ("free" in owner or {"pid", "host", "started"} <= owner.keys())
    return owner if known else None


def _write(file: Path, content: str, flags: int = 0) -> None:
    descriptor = os.open(file, os.O_WRONLY | flags, 0o644)
    try:
        os.write(descriptor, content.encode())
    finally:
        os.close(descriptor)
