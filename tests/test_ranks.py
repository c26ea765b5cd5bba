"""Several processes of a run: what the environment may say, and that none outlives what started it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.processes import gone
from stsimdiff import ranks
from stsimdiff.errors import ConfigError, Stopped
from stsimdiff.evaluate import processes
from stsimdiff.evaluate.processes import Processes
from stsimdiff.ranks import Ranks
from stsimdiff.video.process import VideoProcess

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OTHERS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def setenv(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "3"}, (0, 1)),
        ({"WORLD_SIZE": ""}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1)),
        ({"WORLD_SIZE": "2", "RANK": "1", **OTHERS}, (1, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "OMPI_COMM_WORLD_SIZE": "4", "PMI_SIZE": "4"}, (0, 1)),
    ],
)
def test_what_the_environment_says(monkeypatch, values, found) -> None:
    setenv(monkeypatch, values)
    assert ranks.ranks() == Ranks(*found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2"}, "one of 2 processes, but RANK, MASTER_ADDR, MASTER_PORT are not set: `unset WORLD_SIZE`"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR is not set: `unset WORLD_SIZE`"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc' in the environment is out of range; allowed: a whole number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' .*from 1"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE='-2' .*from 1"),
        ({"WORLD_SIZE": "2.0"}, r"WORLD_SIZE='2\.0'"),
        ({"WORLD_SIZE": "2", "RANK": "2", **OTHERS}, "RANK='2' .*from 0 to 1; "),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK='1' .*from 0 to 0; "),
        ({"WORLD_SIZE": "2", "RANK": "x", **OTHERS}, "RANK='x'"),
        ({"WORLD_SIZE": "2", "RANK": "0", **OTHERS, "MASTER_PORT": "http"}, "MASTER_PORT='http'"),
    ],
)  # fmt: skip
def test_what_an_earlier_shell_left_is_said_before_anything_is_read(
    monkeypatch, capsys, command_line, values, message
) -> None:
    setenv(monkeypatch, values)
    with pytest.raises(ConfigError, match=message):
        ranks.ranks()
    monkeypatch.setattr("stsimdiff.launchers.in_process._run", lambda *rest: pytest.fail("the run began"))
    assert command_line("logger=none") == 2
    said = capsys.readouterr().err
    assert "in the environment" in said and "Traceback" not in said
    assert "torch.distributed.run" in said


def test_a_device_number_is_a_number(monkeypatch) -> None:
    assert ranks.local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ranks.local_rank() == 3
    monkeypatch.setenv("LOCAL_RANK", "gpu0")
    with pytest.raises(ConfigError, match="LOCAL_RANK='gpu0'"):
        ranks.local_rank()


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.parametrize("rank", ["0", "1"])
def test_others_that_never_start_are_not_waited_for_long(monkeypatch, rank) -> None:
    assert processes.RENDEZVOUS <= timedelta(minutes=15) < processes.PATIENCE
    setenv(monkeypatch, {"WORLD_SIZE": "2", "RANK": rank, **OTHERS, "MASTER_PORT": free_port()})
    monkeypatch.setattr(processes, "RENDEZVOUS", timedelta(seconds=1))
    start = time.monotonic()
    with (
        pytest.raises(
            ConfigError, match=f"process {rank} of WORLD_SIZE=2 found no others .*unset WORLD_SIZE"
        ),
        Processes.joined(),
    ):
        pass
    assert time.monotonic() - start < 30


RANK = """
import sys, time
from datetime import timedelta
from stsimdiff.evaluate import processes
processes.RENDEZVOUS = timedelta(seconds=120)
with processes.Processes.joined() as joined:
    joined.wait()
    print(joined.rank, joined.world, joined.show, flush=True)
    sys.stdin.readline()
    joined.wait()
"""


def test_a_process_hears_at_once_that_another_died(monkeypatch, tmp_path: Path) -> None:
    environment = os.environ | OTHERS | {"WORLD_SIZE": "2", "MASTER_PORT": free_port()}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env=environment | {"RANK": str(rank)}, stdin=-1, stdout=-1, stderr=-1,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [child.stdout.readline().split() for child in children] == [
        ["0", "2", "True"],
        ["1", "2", "False"],
    ]
    children[1].kill()
    _, said = children[0].communicate("go\n", timeout=60)
    children[1].communicate()
    assert children[0].returncode == 1 and Stopped.__name__ in said
    assert "start the same command again to go on" in said


LATE = """
import time
from datetime import timedelta
from stsimdiff.evaluate import processes
processes.RENDEZVOUS = timedelta(seconds=20)
with processes.Processes.joined() as joined:
    joined.wait()
    time.sleep(25 * (joined.rank == 0))
    joined.wait()
"""


def test_the_first_rank_is_waited_for_longer_than_a_start_takes(tmp_path: Path) -> None:
    environment = os.environ | OTHERS | {"WORLD_SIZE": "2", "MASTER_PORT": free_port()}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", LATE], env=environment | {"RANK": str(rank)}, stderr=-1, text=True
        )
        for rank in range(2)
    ]
    said = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said


LAUNCHER = """
import os, subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_ranks_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    """While they start: with the agent of torch.distributed.run the store dies, through which they would meet."""
    environment = os.environ | OTHERS | {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": free_port()}
    words = [sys.executable, "-m", "stsimdiff", "logger=none", f"results={tmp_path}"]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *words],
        env=environment | {"TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": str(ROOT)}, stdout=-1, text=True, cwd=tmp_path,
    )  # fmt: skip
    rank = int(launcher.stdout.readline())
    while len(os.listdir(f"/proc/{rank}/task")) < 2:  # the thread that watches is its first one
        time.sleep(0.02)
    launcher.kill()
    launcher.communicate()
    assert gone(rank)


def test_what_no_agent_started_outlives_its_parent(tmp_path: Path) -> None:
    code = "from stsimdiff.ranks import end_with_launcher as e; e(); import threading; print(threading.active_count())"
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    for extra, threads in (({}, "1"), ({"TORCHELASTIC_RUN_ID": "none"}, "2")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | extra, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == threads


STUBBORN = """
import os, signal, sys, time
from stsimdiff import ranks
ranks.POLL_SECONDS, ranks.GRACE_SECONDS = 0.05, 0.2
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ranks.end_with(os.getppid())
time.sleep(600)
"""


def test_one_that_does_not_end_is_ended() -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, sys.executable, "-c", STUBBORN], stdout=-1, text=True
    )
    stubborn = int(launcher.stdout.readline())
    while len(os.listdir(f"/proc/{stubborn}/task")) < 2:
        time.sleep(0.02)
    launcher.kill()
    launcher.communicate()
    assert gone(stubborn)


DECODING = """
import os, sys, threading, time
from stsimdiff.video.process import VideoProcess
process = VideoProcess()
threading.Thread(target=process.read, args=(sys.argv[1], 4, "pyav", None), daemon=True).start()
while process._process is None:
    time.sleep(0.02)
print(process._process.pid, flush=True)
time.sleep(600)
"""


def test_a_reader_at_work_ends_with_its_program(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")  # whoever opens it waits for a writer
    launcher = subprocess.Popen(
        [sys.executable, "-c", DECODING, str(tmp_path / "v.mp4")], stdout=-1, text=True
    )
    reader = int(launcher.stdout.readline())
    while len(os.listdir(f"/proc/{reader}/task")) < 2:
        time.sleep(0.02)
    time.sleep(0.5)
    launcher.kill()
    launcher.communicate()
    assert gone(reader)
    VideoProcess().close()
