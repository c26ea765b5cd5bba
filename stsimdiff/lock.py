"""Locks of a run's folder: of an arm's answers, which say who holds them, and of what one process at a time writes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stsimdiff.errors import DataError

UNREADABLE_FOR = 5.0
"""Seconds after which a lock file without readable content counts as left behind by a dead process."""
LOOKING_FOR = 1.0
"""Seconds for which another process may hold the kernel's lock only to see whose the file is."""
SQUEUE_SECONDS = 60.0

RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SUSPENDED", "STOPPED", "RESIZING")
"""States in which a Slurm job may have a process that writes."""


REPORT = ".report.lock"
SHOWN = ".shown.lock"
WANDB = ".wandb.lock"
PATIENCE = 3600.0
"""Seconds that :func:`alone` waits; its lock is the kernel's, so that a process that died holds none."""


class LockHeld(DataError):
    """A live process holds the lock."""


class Lock:
    """``path`` holds pid, host and start time of the one process that may write beside it.

    The process holds the kernel's lock (``flock``) of the file for as long as it holds the lock, so on one machine the
    kernel says whether it lives, whatever the names of hosts and the numbers of processes in a container. Of a process
    on another machine, or one that sees the file through a mount of its own, which may have locks of its own, the file
    alone is known: it counts as alive unless Slurm says that its job is over. Where the file system has no such lock,
    the pid says who lives on this host, which two processes that take over a dead one's lock in the same instant do not
    notice of each other.

    Args:
        path: the lock file.
        launch: name of the launch whose job this process runs. A cluster runs a job once at a time, so a lock that
            names the same launch was left behind by the job's earlier attempt, on whatever host that ran.
        advice: what a user can do while a live process holds it.

    Raises:
        Held: from :meth:`take`, when a live process holds it.
        DataError: from :meth:`take`, when the file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        launch: str | None = None,
        advice: str = "wait for it, or choose another run=NAME",
    ) -> None:
        self.path = path
        self.launch = launch
        self.advice = advice
        self._descriptor = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0

    def take(self) -> None:
        """Create the file, or take it over from a dead process."""
        until = time.monotonic() + LOOKING_FOR
        while not self.held:
            descriptor, made = self._open()
            try:
                if self._attempt(descriptor, made, until):
                    self._descriptor, descriptor = descriptor, -1
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def release(self) -> None:
        """Remove the file if this process made it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                if self._is_in_place(descriptor):
                    self.path.unlink()
            # A file server may refuse what has been removed; it is closed all the same.
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _open(self) -> tuple[int, bool]:
        """The open file, and whether it was made here."""
        while True:
            try:
                with contextlib.suppress(FileExistsError):
                    return os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644), True
                return os.open(self.path, os.O_RDWR), False
            except OSError as error:
                # Between the two it may have been given back; a link to nothing stays.
                if (
                    isinstance(error, FileNotFoundError)
                    and self.path.parent.is_dir()
                    and not self.path.is_symlink()
                ):
                    continue
                raise DataError(f"cannot make {self.path}: {error.strerror}") from error

    def _attempt(self, descriptor: int, made: bool, until: float) -> bool:
        """Take the open file unless a live process holds it; ``False``: look again."""
        # The file stays in place and is rewritten under the kernel's lock: unlinking it could remove the lock that a
        # third process has taken meanwhile.
        locked = _flock(descriptor, fcntl.LOCK_EX)
        if not self._is_in_place(descriptor):
            return False
        owner = read(self.path)
        held_elsewhere = _kernel_says(locked, owner, descriptor)
        if owner is None:
            if held_elsewhere and time.monotonic() > until + UNREADABLE_FOR:
                raise LockHeld(f"{self.path.parent} is being written by an unknown process; {self.advice}")
            fresh = not made and time.time() - os.fstat(descriptor).st_mtime < UNREADABLE_FOR
            if held_elsewhere or fresh:
                # Whoever made it is about to write who it is.
                time.sleep(0.1)
                return False
        elif self._is_earlier_attempt(owner) or not is_alive(owner, held_elsewhere):
            if held_elsewhere:
                # A machine that died may have left its lock with the server of a shared file system.
                self.path.unlink(missing_ok=True)
                return False
        elif held_elsewhere and not _is_process(owner) and time.monotonic() < until:
            time.sleep(0.05)
            return False
        else:
            raise LockHeld(
                f"{self.path.parent} is being written by process {owner['pid']} on {owner['host']} (started "
                f"{owner['since']}); {self.advice}. If no such process exists, remove {self.path}"
            )
        self._write(descriptor, kernel=locked is not None)
        return True

    def _is_earlier_attempt(self, owner: dict[str, Any]) -> bool:
        elsewhere = owner["host"] != socket.gethostname() and owner.get("boot") != _boot()
        return elsewhere and self.launch is not None and owner.get("launch") == self.launch

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.fstat(descriptor).st_ino == os.stat(self.path).st_ino
        except FileNotFoundError:
            return False

    def _write(self, descriptor: int, kernel: bool) -> None:
        try:
            os.truncate(descriptor, 0)
            mount = os.fstat(descriptor).st_dev if kernel else None
            os.pwrite(descriptor, json.dumps(identity(self.launch, mount)).encode(), 0)
            os.fsync(descriptor)
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}") from error


def read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock file; ``None`` when it is gone or not (yet) readable."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"pid", "host", "started", "since"} <= owner.keys() else None


def holder(path: Path) -> dict[str, Any] | None:
    """The live process that holds a lock file; ``None`` when it is gone, or its process is dead."""
    owner = read(path)
    if owner is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        held = _kernel_says(_flock(descriptor, fcntl.LOCK_SH), owner, descriptor)
    finally:
        os.close(descriptor)
    return owner if is_alive(owner, held) else None


def is_here(owner: dict[str, Any]) -> bool:
    """Whether what a file says was written on this machine, as it runs since it was started last."""
    return owner["host"] == socket.gethostname() and owner.get("boot") in (None, _boot())


def is_alive(owner: dict[str, Any], locked: bool | None = None) -> bool:
    """Whether the process that a lock file names exists.

    Args:
        owner: what the file says.
        locked: whether some process holds the kernel's lock of the file; ``None``: the kernel cannot tell.
    """
    boot = _boot()
    if locked is not None and owner.get("kernel") and boot is not None and owner.get("boot") == boot:
        return locked
    if owner["host"] != socket.gethostname():
        return not (owner.get("slurm") and _is_over(owner["slurm"]))
    # Another namespace has other numbers: what cannot be asked is taken to run.
    other = owner.get("namespace") not in (None, _namespace()) and owner.get("boot") == boot
    return bool(locked) or other or _is_process(owner)


def _is_process(owner: dict[str, Any]) -> bool:
    """Whether the process's number means, on this host and for this process, the very one that wrote the file."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except PermissionError:
        pass
    # The kernel hands a pid out again; the start time tells the processes apart.
    return owner["started"] in (None, _started(owner["pid"]))


def _flock(descriptor: int, kind: int) -> bool | None:
    """Take the kernel's lock: whether it was free; ``None`` where the file system has none, or cannot say."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _kernel_says(locked: bool | None, owner: dict[str, Any] | None, descriptor: int) -> bool | None:
    """Whether some process holds a lock file's lock, by what :func:`_flock` gave; ``None``: the kernel cannot tell."""
    mount = os.fstat(descriptor).st_dev
    if locked and owner and owner.get("mount", mount) != mount:
        return None
    return None if locked is None else not locked


def _is_over(job: str) -> bool:
    """Whether Slurm says that none of the job's processes runs; what cannot be asked is taken to run."""
    ask = ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=SQUEUE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if answer.returncode:
        return "Invalid job id" in answer.stderr  # Slurm forgets a job some minutes after its end
    return not any(state in RUNNING for state in answer.stdout.split())


def identity(launch: str | None, mount: int | None = None) -> dict[str, Any]:
    """What a file says of this process, for :func:`is_alive`.

    Args:
        launch: name of the launch whose job this process runs.
        mount: number of the device that the file lies on as this process sees it, where it holds the kernel's lock.
    """
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "started": _started(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "launch": launch,
        "slurm": os.environ.get("SLURM_JOB_ID"),
        "boot": _boot(),
        "namespace": _namespace(),
        "kernel": mount is not None,
        "mount": mount,
    }


def _boot() -> str | None:
    """The running kernel's id, the same in all containers of a machine; ``None`` where there is no ``/proc``."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    """The namespace of this process's number; ``None`` where there is no ``/proc``."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """The process's start, in ticks since boot with the boot's id; ``None`` where there is no ``/proc``.

    Also ``None`` for one that has ended and only waits for its parent to notice.
    """
    try:
        # The name in field 2 may hold spaces and brackets; the fields behind its last bracket do not.
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    boot = _boot()
    if fields[0] in ("Z", "X") or boot is None:
        return None
    return f"{boot}:{fields[19]}"


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other process is within this of the same folder; nothing to wait for where no lock can be made.

    Args:
        folder: of a run.
        name: of the lock's file, such as :data:`REPORT`.

    Raises:
        DataError: when another process has been at it for longer than :data:`PATIENCE`.
    """
    lock = FileLock(folder / name)
    held = True
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise DataError(
            f"{folder / name} has been held for {PATIENCE:.0f} s by another command on this run; wait for it, or end "
            "it; if there is none, remove the file"
        ) from None
    except (OSError, NotImplementedError):
        held = False  # a folder that cannot be written, where nothing will be, or a file system without locks
    try:
        yield
    finally:
        if held:
            lock.release()
