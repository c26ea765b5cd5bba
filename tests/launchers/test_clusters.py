"""Launchers of jobs, for real where this machine can: each gives the rows of the single process, whatever dies."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins

from helpers.configured import composed
from helpers.paths import ROOT
from stsimdiff import launchers, lock
from stsimdiff.errors import ConfigError
from stsimdiff.launchers import base
from stsimdiff.launchers.jobs import JobLauncher
from stsimdiff.launchers.submitit import LocalLauncher, SlurmLauncher

SECRET = "SECRETMARKER" + 28 * "a"
# Scores like any method, but the first process that comes to a video stops there for good. What it is tried on before
# the jobs start is no video of the data.
STOPPING = """
import os, time
from dataclasses import dataclass
from pathlib import Path

from stsimdiff.compressors.base import ScoreCompressor


@dataclass(frozen=True)
class Stopping(ScoreCompressor):
    def score(self, tokens, layout):
        mark = Path("stopped") / layout.sample.partition(".")[0]
        if "." not in layout.sample:
            return tokens.features.norm(dim=1)
        try:
            with mark.open("x") as stream:
                stream.write(str(os.getpid()))
        except FileExistsError:
            return tokens.features.norm(dim=1)
        while True:
            time.sleep(0.05)
"""


@pytest.fixture
def command(command_line, data: Path, monkeypatch: pytest.MonkeyPatch):
    """The command line on two clips; what it starts finds the package, and Ray reports nothing."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return partial(command_line, f"benchmark.data={os.path.relpath(data)}", "logger=none", "results=out")


def rows(run: Path) -> dict[str, list[dict]]:
    """Every line of every arm, times aside, sorted by question."""
    return {
        arm.parent.name: sorted(
            (
                json.loads(line) | {"times": None, "prefill": None}
                for shard in arm.parent.glob("answers*.jsonl")
                for line in shard.read_text().splitlines()
            ),
            key=lambda row: row["id"],
        )
        for arm in run.glob("*/arm.json")
    }


def table(run: Path) -> list[str]:
    """The table without its column of times."""
    header, *lines = (run / "table.csv").read_text().splitlines()
    leave_out = header.split(",").index("prefill_ms")
    return [",".join(cell for i, cell in enumerate(line.split(",")) if i != leave_out) for line in lines]


def job_logs(folder: Path) -> str:
    """What the jobs of submitit wrote, for the message of a test that fails."""
    return "\n".join(f"{path}:\n{path.read_text()}" for path in sorted(folder.rglob("*_log.*")))


def test_local_jobs_that_are_requeued_or_die(tmp_path: Path, command, capfd, caplog, monkeypatch) -> None:
    """One of two jobs is told that its time is over, the other is killed: the first goes on and takes over what the
    second leaves, which is named."""
    (tmp_path / "my_method.py").write_text(STOPPING)
    marks = tmp_path / "stopped"
    marks.mkdir()
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)

    def disturb() -> None:
        for name, number in (("clip000", signal.SIGUSR2), ("clip001", signal.SIGKILL)):
            while not ((marks / name).exists() and (marks / name).read_text()):
                time.sleep(0.05)
            os.kill(int((marks / name).read_text()), number)

    words = ["-m", "compressor._target_=my_method.Stopping", "budget.retention=0.3"]
    disturbing = threading.Thread(target=disturb, daemon=True)
    disturbing.start()
    slow = [*words, "hydra/launcher=submitit_local", "run=slow", "jobs=2"]
    assert command(*slow) == 0, job_logs(tmp_path)
    # Which job comes to which clip first is theirs to find out; the killed one is the one of clip001.
    assert len(re.findall(r"job \d \(embedded on clips, job \d of 2, 1 arm\): it died", caplog.text)) == 1
    assert "other jobs answered the rest" in caplog.text
    (arm,) = rows(tmp_path / "out" / "slow").values()
    assert len(arm) == 14 and {row["video"] for row in arm} == {"clip000.mp4", "clip001.mp4"}
    assert all(row["error"] is None for row in arm), "a signal of the scheduler was taken for a failed sample"
    logs = (tmp_path / "out" / "slow" / ".hydra" / ".submitit").rglob("*.err")
    assert any("Requeued job" in path.read_text() for path in logs)
    # The same command again starts no job.
    caplog.clear()
    assert command(*slow) == 0
    assert "job 0" not in caplog.text
    assert command(*words, "run=whole") == 0
    assert rows(tmp_path / "out" / "slow") == rows(tmp_path / "out" / "whole")
    assert table(tmp_path / "out" / "slow") == table(tmp_path / "out" / "whole")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.suffix == ".pkl" for path in written)
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_a_rank_that_dies_ends_the_run(tmp_path: Path, data: Path) -> None:
    """The other rank waits for it with all of its own answered, and must not wait for ever."""
    (tmp_path / "my_method.py").write_text(STOPPING)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "clip000").touch()
    words = ["compressor._target_=my_method.Stopping", "budget.retention=0.3", f"benchmark.data={data}"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "stsimdiff"]
    run = subprocess.Popen(
        [sys.executable, "-m", *torchrun, *words, "logger=none", "results=out", "run=ranks"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        stderr=subprocess.PIPE,
        text=True,
    )
    mark = tmp_path / "stopped" / "clip001"
    place = tmp_path / "out" / "ranks"
    while run.poll() is None and not (mark.exists() and mark.read_text() and answered(place) == 7):
        time.sleep(0.05)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    _, said = run.communicate()
    assert run.returncode != 0 and "Signal 9" in said
    # The other rank may have taken over the dead one's video before it was told to end.
    assert answered(place) in range(7, 15)
    assert not list(place.glob("table.*")), "a table of half a run"


def answered(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in run.glob("*/answers*.jsonl"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("joblib", ["hydra.launcher.n_jobs=1"]),
        ("ray", ["+hydra.launcher.ray.init.num_cpus=1"]),
    ],
)
def test_other_launchers_give_the_rows_of_one_process(tmp_path: Path, command, name: str, options) -> None:
    words = ["-m", "compressor=none,random", "budget.retention=0.3"]
    assert command(*words, f"hydra/launcher={name}", *options, "jobs=2", "run=jobs") == 0
    assert command(*words, "run=whole") == 0
    found = rows(tmp_path / "out" / "jobs")
    assert found == rows(tmp_path / "out" / "whole")
    assert [len(answers) for answers in found.values()] == [14, 14]
    assert not list((tmp_path / "out" / "jobs").glob(".claims/*")), "claims outlive the run"
    assert table(tmp_path / "out" / "jobs") == table(tmp_path / "out" / "whole")
    assert "LOCAL_RANK" not in os.environ  # a job may have run in this very process


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/launcher=joblib"], "hydra/launcher=joblib starts jobs only with -m"),
        (["-m", "jobs=2"], "jobs=2 needs a launcher that starts jobs: .*submitit_slurm"),
        (["-m", "hydra/launcher=submitit_slrm"], "submitit_slrm is unknown; allowed: .*mean submitit_slurm"),
        (["-m", "hydra/launcher=submitit_slurm"], "needs the commands sbatch and srun"),
        (["-m", "hydra/launcher=submitit_local", "jobs=0"], "jobs=0 is out of range"),
        (["-m", "hydra/launcher=submitit_local", "hydra.launcher.nodes=2"], r"nodes=2 .*allowed: 1"),
        (["-m", "hydra/launcher=submitit_local", "hydra.launcher.gpus_per_node=99"], "this machine shows"),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.n_job=2"], "n_job is unknown: .*mean n_jobs"),
        (["-m", "hydra/launcher=ray", "hydra.launcher.ray.init.address=127.0.0.1:1"], "address=127.0.0.1:1"),
        (["-m", "hydra/launcher=joblib", "compressor=rnadom"], "did you mean random"),
    ],
)
def test_wrong_launchers_are_one_message_and_start_nothing(tmp_path, command, capfd, words, message) -> None:
    assert command(*words) == 2
    said = capfd.readouterr().err
    assert re.search(message, said) and "Traceback" not in said
    assert not list(tmp_path.rglob("arm.json")) and not list(tmp_path.rglob("*.pkl"))


def test_a_launcher_of_jobs_is_not_started_by_several_processes(command, capfd, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("-m", "hydra/launcher=joblib") == 2
    assert "not under torch.distributed.run" in capfd.readouterr().err


def test_one_model_on_all_devices_is_refused_to_several_processes(command, capfd) -> None:
    words = [
        "-m",
        "hydra/launcher=submitit_local",
        "hydra.launcher.tasks_per_node=2",
        "model.device_map=auto",
    ]
    assert command(*words) == 2
    assert "hydra.launcher.tasks_per_node=1" in capfd.readouterr().err


def configured(name: str, *words: str) -> JobLauncher:
    base.register()
    cfg = composed(f"hydra/launcher={name}", *words, return_hydra_config=True)
    options = {key: value for key, value in cfg.hydra.launcher.items() if key != "_target_"}
    return {"submitit_slurm": SlurmLauncher, "submitit_local": LocalLauncher}[name](**options)


def fake_command(place: Path, name: str, script: str) -> None:
    file = place / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_what_is_submitted_to_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("sbatch", "srun"):
        fake_command(tmp_path, name, "exit 1")
    words = [
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=4",
        "hydra.launcher.tasks_per_node=4",
    ]
    chosen = configured(
        "submitit_slurm", *words, "hydra.launcher.setup=[module load cuda]", f"results={tmp_path}"
    )
    chosen.check()
    assert chosen.tasks() == 4
    executor = chosen.executor()
    slurm = executor._executor
    slurm.parameters["map_count"] = 6
    text = slurm._make_submission_file_text("COMMAND", "uid")
    for line in (
        "--partition=gpu",
        "--gpus-per-node=4",
        "--ntasks-per-node=4",
        "--array=0-5%6",
        "--time=720",
        "--signal=USR2@120",
        "--requeue",
        "--mem=64GB",
        "--cpus-per-task=8",
        "--job-name=stsimdiff",
    ):
        assert f"#SBATCH {line}\n" in text, line
    assert "\nmodule load cuda\n" in text
    assert str(tmp_path / "embedded" / ".hydra" / ".submitit") in text
    assert slurm.max_num_timeout == 100
    assert hasattr(chosen, "checkpoint"), "submitit requeues only what has a checkpoint"


@pytest.mark.parametrize(
    ("devices", "visible", "words", "slots"),
    [
        (2, None, [], [[0], [1]]),
        (2, "4,6", [], [[4], [6]]),
        (4, None, ["hydra.launcher.tasks_per_node=2"], [[0, 1], [2, 3]]),
        (3, None, ["hydra.launcher.gpus_per_node=2"], [[0, 1]]),
        (1, None, ["hydra.launcher.tasks_per_node=2"], [[0]]),
    ],
)
def test_local_jobs_share_out_the_devices(monkeypatch, devices, visible, words, slots) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert configured("submitit_local", *words).slots() == slots


def test_devices_that_have_no_number_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    with pytest.raises(ConfigError, match="GPU-8932f937 does not give devices by number"):
        configured("submitit_local").slots()


@pytest.mark.parametrize("name", sorted(launchers.CLUSTERS))
def test_every_launcher_composes_and_is_found_by_hydra(name: str) -> None:
    base.register()
    cfg = composed(f"hydra/launcher={name}", return_hydra_config=True)
    assert isinstance(Plugins.instance()._instantiate(cfg.hydra.launcher), JobLauncher)


def other_host(launch: str | None = None, slurm: str | None = None) -> str:
    return json.dumps(
        {"pid": 1, "host": "elsewhere", "started": None, "since": "then", "launch": launch, "slurm": slurm}
    )


def test_the_earlier_attempt_of_a_job_on_another_host_gives_its_lock_up(tmp_path: Path) -> None:
    path = tmp_path / ".lock.0-of-1"
    for mine, theirs in (("b", "a"), (None, "a"), (None, None), ("b", None)):
        path.write_text(other_host(theirs))
        with pytest.raises(Exception, match="process 1 on elsewhere"):
            lock.Lock(path, mine).take()
    path.write_text(other_host("a"))
    held = lock.Lock(path, "a")
    held.take()
    assert held.held and lock.read(path)["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("squeue", "over"),
    [
        ("echo RUNNING", False),
        ("echo COMPLETING", False),
        ("echo CANCELLED", True),
        ("exit 0", True),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", False),
        (None, False),
    ],
)
def test_slurm_is_asked_about_jobs_of_other_hosts(tmp_path: Path, monkeypatch, squeue, over) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if squeue:
        fake_command(tmp_path, "squeue", squeue)
    assert lock.is_alive(json.loads(other_host(slurm="77"))) != over
    assert lock.is_alive(json.loads(other_host())), "a process of no job cannot be asked for"
