"""Sweeps that meet what ends a night: kills, a disk that is full, broken videos, a method that raises, a second run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from helpers.forked_commands import Forks
from helpers.written import csv_rows

ARMS = ["-m", "compressor=none,random,visionzip,st_simdiff", "budget.retention=0.3"]
QUESTIONS = 28
TOTAL = 4 * QUESTIONS
KILLS = 10
UNTIMED = {"times": None, "prefill": None}
"""What differs between runs: times, and which prompts a process prefilled whole."""

METHOD = """
from dataclasses import dataclass
from stsimdiff.compressors.base import ScoreCompressor

@dataclass(frozen=True)
class FailsOnOne(ScoreCompressor):
    def score(self, tokens, layout):
        if layout.sample.startswith("clip003") and "How many" in layout.question:
            raise RuntimeError("this method cannot count")
        return tokens.features.norm(dim=1)
"""


@pytest.fixture(scope="module")
def forks(forks: Forks, tmp_path_factory) -> Forks:
    cwd = tmp_path_factory.mktemp("cwd")
    (cwd / "my_method.py").write_text(METHOD)
    return forks.at(cwd)


@pytest.fixture(scope="module")
def whole(forks: Forks, four_clips: Path, tmp_path_factory) -> Path:
    """An uninterrupted run of all arms."""
    results = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    assert forks.run(words(four_clips, results), results / "log") == 0, (results / "log").read_text()
    (results / "seconds").write_text(str(time.monotonic() - started))
    return results / "run"


def words(data: Path, results: Path, *more: str, arms: list[str] = ARMS) -> list[str]:
    return [
        *arms,
        f"benchmark.data={data}",
        f"results={results}",
        "run=run",
        "logger=none",
        "overlays=0",
        *more,
    ]


def lines(run: Path) -> dict[str, list[dict]]:
    """Complete lines of every arm as they are stored, times left out."""
    return {
        path.parent.name: [json.loads(line) | UNTIMED for line in path.read_bytes().split(b"\n")[:-1]]
        for path in sorted(run.glob("*/answers.jsonl"))
    }


def count(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in run.glob("*/answers.jsonl"))


def killed_once(
    forks: Forks, command: list[str], results: Path, moments: random.Random, spent: float
) -> None:
    """Start the command and kill it: some time after its start, or after it has stored something more."""
    before, pid = count(results / "run"), forks.start(command, results / "log")
    if moments.random() < 0.3:
        time.sleep(moments.uniform(0, spent / 2))
    else:
        wanted = before + moments.randint(1, 7)
        while count(results / "run") < min(wanted, TOTAL) and forks.runs(pid):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    assert forks.wait(pid) in (-signal.SIGKILL, 0)


def met_a_full_disk(forks: Forks, command: list[str], results: Path, whole: Path) -> None:
    """Files may not grow beyond what a few answers need: one message, and what was written is sound."""
    assert forks.run(command, results / "log", most_bytes=12000) == 2
    said = (results / "log").read_text()
    assert "cannot write" in said and "File too large" in said and "start the same run again" in said
    assert "Traceback" not in said
    kept = lines(results / "run")
    assert 0 < sum(map(len, kept.values())) < TOTAL
    for arm, rows in kept.items():
        assert rows == lines(whole)[arm][: len(rows)]


def met_sigterm(forks: Forks, command: list[str], results: Path) -> None:
    """It ends with a message, and gives its locks back."""
    before, pid = count(results / "run"), forks.start(command, results / "log")
    while count(results / "run") == before:
        time.sleep(0.002)
    os.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 143
    said = (results / "log").read_text().strip().splitlines()[-1]
    assert said == "ended by SIGTERM; start the same command again to go on"
    assert not list((results / "run").glob("*/.lock*")), "the locks were not given back"


def test_a_sweep_that_met_a_full_disk_sigterm_and_ten_kills_has_the_rows_of_an_uninterrupted_one(
    forks: Forks, four_clips: Path, whole: Path, tmp_path: Path
) -> None:
    moments, command, seen = random.Random(0), words(four_clips, tmp_path), []
    spent = float((whole.parent / "seconds").read_text())
    met_a_full_disk(forks, command, tmp_path, whole)
    met_sigterm(forks, command, tmp_path)
    while len(seen) < KILLS:
        killed_once(forks, command, tmp_path, moments, spent)
        if count(tmp_path / "run") == TOTAL:
            # All was answered before the kill came: begin anew, since only what was interrupted can show anything.
            assert lines(tmp_path / "run") == lines(whole)
            shutil.rmtree(tmp_path / "run")
        else:
            seen.append(count(tmp_path / "run"))
    assert forks.run(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert len(set(seen)) > 3, f"the kills came at {seen} answers: the test is blind"
    for arm, rows in lines(tmp_path / "run").items():
        ids = [row["id"] for row in rows]
        assert len(ids) == len(set(ids)) == QUESTIONS, f"{arm}: answered twice, or lost"
    assert lines(tmp_path / "run") == lines(whole)
    assert not list((tmp_path / "run").glob("*/.lock*"))
    tables = [(run / "table.csv").read_text().splitlines() for run in (whole, tmp_path / "run")]
    assert len(tables[0]) == len(tables[1]) == 5


def test_a_disk_that_is_full_when_all_is_answered(
    forks: Forks, four_clips: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for file in (tmp_path / "run").glob("**/*"):
        if file.suffix in (".md", ".csv", ".tex") or file.name == "metrics.json":
            file.unlink()
    # Hydra itself keeps the configuration of a sweep with -m, and would meet the full disk first.
    arms = [f"arms=['{' '.join(ARMS[1:])}']"]
    assert forks.run(words(four_clips, tmp_path, arms=arms), tmp_path / "log", most_bytes=1000) == 2
    said = (tmp_path / "log").read_text()
    assert "all answers are stored" in said and "Traceback" not in said
    assert forks.run(words(four_clips, tmp_path), tmp_path / "hydra", most_bytes=200) == 2
    said = (tmp_path / "hydra").read_text()
    assert "cannot write the run's folder: [Errno 27] File too large" in said and "Traceback" not in said
    assert forks.run(words(four_clips, tmp_path), tmp_path / "log") == 0
    assert lines(tmp_path / "run") == lines(whole)


def test_broken_videos_and_a_method_that_raises_cost_their_own_questions_alone(
    forks: Forks, four_clips: Path, whole: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "data"
    shutil.copytree(four_clips, broken)
    (broken / "videos" / "clip000.mp4").unlink()
    (broken / "videos" / "clip001.mp4").write_bytes(b"no video" * 500)
    (broken / "videos" / "clip002.mp4").write_bytes(b"")
    arms = ["arms=['compressor=none','compressor._target_=my_method.FailsOnOne budget.retention=0.3']"]
    command = words(broken, tmp_path, "max_failures=2", "benchmark.allow_missing=true", arms=arms)
    assert forks.run(command, tmp_path / "log") == 1
    said = (tmp_path / "log").read_text()
    assert "samples have no answer" in said
    found = lines(tmp_path / "run")
    assert len(found) == 2
    reasons = {"clip000.mp4": "does not exist", "clip001.mp4": "cannot be decoded", "clip002.mp4": "0 bytes"}
    for arm, rows in found.items():
        assert len({row["id"] for row in rows}) == len(rows) == QUESTIONS
        for row in rows:
            error = row["error"]
            if row["video"] in reasons:
                assert reasons[row["video"]] in error["message"] and row["correct"] is None
            elif row["id"] == "clip003-count" and not arm.startswith("none"):
                assert error["message"] == "this method cannot count" and "score" in error["traceback"]
            else:
                assert error is None
    table = {row["method"]: row for row in csv_rows(tmp_path / "run" / "table.csv")}
    assert {row["n_failed"] for row in table.values()} == {"21", "22"}
    assert {row["n"] for row in table.values()} == {"6"}, "compared on what all arms answered"


def test_every_run_leaves_a_log_of_its_progress(whole: Path) -> None:
    (last,) = (whole / "progress.log").read_text().splitlines()
    assert f"{TOTAL} of {TOTAL} answered, video 4 of 4, question {QUESTIONS} of {QUESTIONS}, 0 failed" in last
