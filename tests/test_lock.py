"""Who holds a folder: the kernel knows on one machine, whatever containers call themselves and their processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stsimdiff import lock
from stsimdiff.errors import DataError
from stsimdiff.evaluate.store import ArmStore
from stsimdiff.lock import Lock

HOLDER = """
import socket, sys
from pathlib import Path
from stsimdiff.lock import Lock
host = sys.argv[2]
if host:
    socket.gethostname = lambda: host
Lock(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.readline()
"""


def hold(path: Path, host: str = "", wrapper: tuple[str, ...] = ()) -> subprocess.Popen:
    """A process that holds a lock until it is killed, on a host of any name."""
    child = subprocess.Popen(
        [*wrapper, sys.executable, "-c", HOLDER, str(path), host], stdin=-1, stdout=-1, text=True
    )
    assert child.stdout.readline() == "held\n"
    return child


def end(child: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    child.send_signal(number)
    child.communicate()


def test_a_live_lock_is_kept_from_another_pid_namespace(tmp_path: Path) -> None:
    """A container numbers its processes anew, and may have this host's name."""
    path = tmp_path / ".lock.0-of-1"
    wrapper = ("unshare", "--pid", "--fork", "--kill-child")
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a PID namespace")
    child = hold(path, wrapper=wrapper)
    assert lock.read(path)["pid"] == 1 and lock.read(path)["host"] == socket.gethostname()
    with pytest.raises(DataError, match="is being written by process 1"):
        Lock(path).take()
    with ArmStore(tmp_path, {"arm": "x", "provenance": {}}):
        assert (tmp_path / "answers.1.jsonl").exists(), "the file of a live process is left to it"
    end(child)
    held = Lock(path)
    held.take()
    assert lock.read(path)["pid"] == os.getpid()
    held.release()
    assert not path.exists()


def test_a_live_lock_whose_pid_means_nothing_here_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ".lock.0-of-1"
    child = hold(path)
    note = json.loads(path.read_text())
    dead = subprocess.Popen(["true"])
    dead.wait()
    path.write_text(json.dumps(note | {"pid": dead.pid}))
    with pytest.raises(DataError, match=f"process {dead.pid}"):
        Lock(path).take()
    assert lock.holder(path)["pid"] == dead.pid
    end(child)
    assert lock.holder(path) is None


def test_a_container_restarted_under_a_new_name_takes_its_locks_over(tmp_path: Path) -> None:
    path = tmp_path / ".lock.0-of-1"
    child = hold(path, host="old-container")
    with pytest.raises(DataError, match="on old-container"):
        Lock(path).take()
    end(child)
    assert lock.read(path)["host"] == "old-container" and lock.holder(path) is None
    with ArmStore(tmp_path, {"arm": "x", "provenance": {}}):
        assert lock.read(path)["host"] == socket.gethostname()


def test_another_mount_of_the_same_machine_says_nothing_of_who_lives(tmp_path: Path) -> None:
    """Containers that mount a shared folder each for itself (FUSE) do not see each other's locks."""
    path = tmp_path / ".lock.0-of-1"
    child = hold(path, host="other-container")
    note = json.loads(path.read_text())
    assert note["kernel"] and note["mount"] == path.stat().st_dev
    end(child)
    path.write_text(json.dumps(note | {"mount": note["mount"] + 1}))
    with pytest.raises(DataError, match="on other-container"):
        Lock(path).take()
    assert lock.holder(path)["host"] == "other-container"


def test_a_lock_file_that_another_machine_removed_is_given_up(tmp_path: Path, monkeypatch) -> None:
    held = Lock(tmp_path / ".lock.0-of-1")
    held.take()
    close = os.close

    def stale(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "close", stale)
    held.release()
    assert not held.held


def test_the_same_launch_under_another_name_of_this_machine_is_no_earlier_attempt(tmp_path: Path) -> None:
    path = tmp_path / ".lock.0-of-1"
    child = hold(path, host="old-container")
    note = json.loads(path.read_text())
    path.write_text(json.dumps(note | {"launch": "a"}))
    with pytest.raises(DataError, match="on old-container"):
        Lock(path, "a").take()
    end(child)


def test_of_a_machine_that_died_the_kernel_lock_may_stay_behind(tmp_path: Path) -> None:
    """A file server may hold it for minutes; that the job runs here again says that it is over there."""
    path = tmp_path / ".lock.0-of-1"
    child = hold(path)
    note = json.loads(path.read_text())
    path.write_text(json.dumps(note | {"host": "dead-node", "boot": "another", "launch": "a"}))
    with pytest.raises(DataError, match="on dead-node"):
        Lock(path, "b").take()
    held = Lock(path, "a")
    held.take()
    assert lock.read(path)["pid"] == os.getpid()
    held.release()
    end(child)


@pytest.mark.parametrize("alive", [True, False])
def test_without_the_kernels_lock_the_pid_decides(tmp_path: Path, monkeypatch, alive: bool) -> None:
    def unsupported(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    path = tmp_path / ".lock.0-of-1"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    note = {"pid": child.pid, "host": socket.gethostname(), "started": lock._started(child.pid), "since": "x"}
    path.write_text(json.dumps(note))
    if not alive:
        end(child)
        held = Lock(path)
        held.take()
        assert lock.read(path)["kernel"] is False and lock.holder(path)["pid"] == os.getpid()
        held.release()
        assert not path.exists()
        return
    with pytest.raises(DataError, match=f"process {child.pid}"):
        Lock(path).take()
    # One of another namespace cannot be asked for, and is taken to run.
    path.write_text(json.dumps(note | {"pid": 2**22 + 5, "namespace": "pid:[1]", "boot": lock._boot()}))
    with pytest.raises(DataError, match="is being written"):
        Lock(path).take()
    end(child)


def test_who_only_looks_at_a_lock_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock.0-of-1"
    end(hold(path))
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        start = time.monotonic()
        with pytest.raises(DataError, match="is being written"):
            Lock(path).take()
        assert time.monotonic() - start >= lock.LOOKING_FOR
    Lock(path).take()


def test_a_lock_file_in_the_way_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "nothing").symlink_to(tmp_path / "nowhere" / "x")
    (tmp_path / "folder").mkdir()
    for name in ("nothing", "folder"):
        with pytest.raises(DataError, match=f"cannot make .*{name}"):
            Lock(tmp_path / name).take()


def test_only_its_own_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / ".lock.0-of-1"
    first, second = Lock(path), Lock(path)
    first.take()
    path.unlink()
    second.take()
    first.release()
    assert lock.read(path)["pid"] == os.getpid()
    second.release()
    assert not path.exists()


def test_a_squeue_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(lock, "SQUEUE_SECONDS", 0.2)
    assert lock.is_alive({"pid": 1, "host": "elsewhere", "started": None, "since": "then", "slurm": "77"})
