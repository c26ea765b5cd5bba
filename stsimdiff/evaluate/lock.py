"""A lock file that says who holds it; the lock of a process that died is taken over."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from stsimdiff.errors import DataError

UNREADABLE_FOR = 5.0
"""Seconds after which a lock file without readable content counts as left behind by a dead process."""


RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SUSPENDED", "STOPPED", "RESIZING")
"""States in which a Slurm job may have a process that writes."""


class Lock:
    """``path`` holds pid, host and start time of the one process that may write beside it.

    Args:
        path: the lock file.
        launch: name of the launch whose job this process runs. A cluster runs a job once at a time, so a lock that
            names the same launch was left behind by the job's earlier attempt, on whatever host that ran.

    Raises:
        DataError: from :meth:`take`, when a live process holds it, or the file cannot be made.
    """

    def __init__(self, path: Path, launch: str | None = None) -> None:
        self.path = path
        self.launch = launch
        self.held = False

    def take(self) -> None:
        """Create the file, or take it over from a dead process of this host."""
        while not self.held:
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                self._take_over()
                continue
            except OSError as error:
                raise DataError(f"cannot make {self.path}: {error.strerror}") from error
            self._write(descriptor)

    def release(self) -> None:
        """Remove the file if this process made it."""
        if self.held:
            self.held = False
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _take_over(self) -> None:
        # The file stays in place and is rewritten under flock: unlinking it could remove the lock that a third
        # process has taken meanwhile.
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"cannot open {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not self._is_in_place(descriptor):
                return
            owner = read(self.path)
            if owner is None:
                if time.time() - os.fstat(descriptor).st_mtime < UNREADABLE_FOR:
                    time.sleep(0.1)
                    return
            elif not self._is_earlier_attempt(owner) and is_alive(owner):
                raise DataError(
                    f"{self.path.parent} is being written by process {owner['pid']} on {owner['host']} (started "
                    f"{owner['since']}); wait for it, or choose another run=NAME. If no such process exists, remove "
                    f"{self.path}"
                )
            self._write(descriptor)
            descriptor = -1
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _is_earlier_attempt(self, owner: dict[str, Any]) -> bool:
        elsewhere = owner["host"] != socket.gethostname()
        return elsewhere and self.launch is not None and owner.get("launch") == self.launch

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.fstat(descriptor).st_ino == os.stat(self.path).st_ino
        except FileNotFoundError:
            return False

    def _write(self, descriptor: int) -> None:
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_identity(self.launch)).encode(), 0)
            os.fsync(descriptor)
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        self.held = True


def read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock file; ``None`` when it is gone or not (yet) readable."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"pid", "host", "started", "since"} <= owner.keys() else None


def is_alive(owner: dict[str, Any]) -> bool:
    """Whether the process exists; one of another host counts as alive unless Slurm says that its job is over."""
    if owner["host"] != socket.gethostname():
        return not (owner.get("slurm") and _is_over(owner["slurm"]))
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The kernel hands a pid out again; the start time tells the processes apart.
    return owner["started"] in (None, _started(owner["pid"]))


def _is_over(job: str) -> bool:
    """Whether Slurm says that none of the job's processes runs; what cannot be asked is taken to run."""
    ask = ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    except OSError:
        return False
    if answer.returncode:
        return "Invalid job id" in answer.stderr  # Slurm forgets a job some minutes after its end
    return not any(state in RUNNING for state in answer.stdout.split())


def _identity(launch: str | None) -> dict[str, Any]:
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "started": _started(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "launch": launch,
        "slurm": os.environ.get("SLURM_JOB_ID"),
    }


def _started(pid: int) -> str | None:
    """The process's start, in ticks since boot with the boot's id; ``None`` where there is no ``/proc``.

    Also ``None`` for one that has ended and only waits for its parent to notice.
    """
    try:
        # The name in field 2 may hold spaces and brackets; the fields behind its last bracket do not.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return None
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip()}:{fields[19]}"
    except (OSError, IndexError):
        return None
