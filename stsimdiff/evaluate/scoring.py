"""The score of an arm: its stored answers replayed through the task's own functions, kept as ``metrics.json``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stsimdiff.evaluate import parsing, questions
from stsimdiff.evaluate.arms import Arm, Settings
from stsimdiff.evaluate.questions import Question, replay
from stsimdiff.evaluate.store import read_answers, shards

METRICS = "metrics.json"


def score(settings: Settings, task: Any, arms: Sequence[Arm], asked: Sequence[Question]) -> int:
    """Score every arm whose answers, questions or task have changed; returns the samples without an answer.

    Args:
        settings: what the arms share.
        task: the lmms-eval task.
        arms: the arms of this pass.
        asked: all questions that they were asked.

    Raises:
        DataError: for a stored line that cannot be read.
        OSError: when ``metrics.json`` cannot be written.
    """
    by_id = {question.id: question for question in asked}
    names = hashlib.sha256("\0".join(by_id).encode(errors="surrogatepass")).hexdigest()
    failed = 0
    for arm in arms:
        folder = settings.folder / arm.folder
        of = _state(folder, names, settings)
        known = _known(folder / METRICS)
        if known.get("of") != of:
            known = _scored(folder, task, by_id, settings) | {"of": of}
            _write(folder / METRICS, known)
        failed += known["n_failed"]
    return failed


def _scored(folder: Path, task: Any, by_id: Mapping[str, Question], settings: Settings) -> dict[str, Any]:
    rows = [row for row in read_answers(folder) if row["id"] in by_id]
    answered = [(by_id[row["id"]], row["answer"]) for row in rows if row["error"] is None]
    correct = [row["correct"] for row in rows if row["error"] is None]
    return {
        "task": settings.benchmark["task"],
        "n": len(answered),
        "n_failed": len(by_id) - len(answered),
        "accuracy": 100 * sum(map(bool, correct)) / len(correct) if correct else None,
        "metrics": replay(task, answered) if answered else {},
    }


def _state(folder: Path, names: str, settings: Settings) -> str:
    """12 hex digits that change with whatever the score is made from: stored lines, questions, the task's code."""
    files = [
        (path.name, status.st_size, status.st_mtime_ns) for path in shards(folder) for status in [path.stat()]
    ]
    told = [names, files, settings.benchmark["task"], settings.benchmark.get("code"), _code()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


@cache
def _code() -> str:
    """Version of what scores beside the task's own files."""
    own = b"".join(Path(module.__file__).read_bytes() for module in (parsing, questions))
    return f"{hashlib.sha256(own).hexdigest()[:12]}, lmms_eval {version('lmms_eval')}"


def _known(path: Path) -> dict[str, Any]:
    """What ``metrics.json`` says; nothing where it is absent or was cut off, since it is made again then."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, metrics: Mapping[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
