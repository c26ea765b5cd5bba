"""The stored answers of a run, read back: one row a sample and arm, failed samples among them.

What is damaged is an error that names file and line. Only a torn last line, which a killed process leaves,
is dropped, and that is said. Nothing is averaged or scored here.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from stsimdiff.budget import KINDS
from stsimdiff.errors import DataError

log = logging.getLogger(__name__)

REFERENCES = ("none", "no_video")
"""Methods without a retention of their own: all tokens, the question alone. They stand in the 100 % block."""

NUMBERS = (
    *("video_tokens", "text_tokens", "retention_tokens", "retention_compute"),
    *("llm_flops", "llm_flops_all"),
)
TIMES = ("prefill", "compressor", "answer")


@dataclass(frozen=True)
class Arm:
    """One arm's folder and what its ``arm.json`` says."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.record["arm"]

    @property
    def method(self) -> str:
        return self.record["method"]

    @property
    def label(self) -> str:
        return self.record["label"]

    @property
    def reference(self) -> bool:
        """Whether the arm has no retention of its own."""
        return self.method in REFERENCES

    @property
    def kind(self) -> str:
        return (self.record.get("budget") or {}).get("kind") or KINDS[0]

    @property
    def retention(self) -> float:
        """The budget as a share in (0, 1]; 1 for a reference, whatever its budget says."""
        return 1.0 if self.reference else float(self.record["budget"]["retention"])

    @property
    def benchmark(self) -> str:
        return self.record["benchmark"]["name"]

    @cached_property
    def model(self) -> tuple[str, str, str]:
        """Name, checkpoint and number of frames: two arms that differ here are never put into one table.

        The checkpoint is its fingerprint, or its path where none is stored: paths differ between machines.
        """
        model = self.record["model"]
        checkpoint = model.get("checkpoint") or model.get("path") or "default"
        return model["name"], str(checkpoint), f"{model.get('frames', 'default')} frames"


@dataclass(frozen=True)
class Stored:
    """A run as it lies on disk.

    Attributes:
        run: name of the run's folder.
        arms: sorted by folder name.
        samples: what ``load`` returns.
        notes: what was dropped while reading, one sentence each.
    """

    run: str
    arms: list[Arm]
    samples: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def load(run_dir: Path | str) -> pd.DataFrame:
    """All stored samples of a run, one row a sample and arm.

    Columns: the keys of a stored line, with ``times`` as ``prefill_s``, ``compressor_s``, ``answer_s`` and
    what else was timed (seconds), and ``error`` as ``failed`` (bool), ``error_type``, ``error_message``; and
    of its arm ``arm``, ``method``, ``label``, ``budget`` (kind), ``retention``, ``model``, ``benchmark``,
    ``folder``. ``correct`` is a nullable boolean: missing where the sample failed, False where nothing could
    be parsed.

    Raises:
        DataError: no such folder, no arm in it, a damaged file, or two answers to one question.
    """
    return read(run_dir).samples


def arms(run_dir: Path | str) -> list[Arm]:
    """The arms of a run, sorted by folder name, also those that have not answered anything yet.

    Raises:
        DataError: no such folder, no arm in it, or a damaged ``arm.json``.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: no such folder; give the folder of a run, for example results/<run>")
    found = []
    for folder in sorted(path for path in run_dir.iterdir() if path.is_dir()):
        if (folder / "arm.json").is_file():
            found.append(Arm(folder, _arm_record(folder / "arm.json")))
        elif any(folder.glob("answers*.jsonl")):
            raise DataError(f"{folder}: holds answers but no arm.json, so nobody knows whose they are")
    if not found:
        raise DataError(f"{run_dir}: holds no arm (a folder with an arm.json); is it the folder of a run?")
    folders: dict[str, Path] = {}
    for arm in found:
        if arm.id in folders:
            raise DataError(f"arm {arm.id} is stored twice: {folders[arm.id]} and {arm.folder}; remove one")
        folders[arm.id] = arm.folder
    return found


def read(run_dir: Path | str) -> Stored:
    """Arms, samples and what was dropped on the way; raises as ``load`` does."""
    found, notes, lines = arms(run_dir), [], []
    with _no_garbage_collection():
        for arm in found:
            about = {
                "arm": arm.id,
                "method": arm.method,
                "label": arm.label,
                "budget": arm.kind,
                "retention": arm.retention,
                "model": arm.model[0],
                "benchmark": arm.benchmark,
                "folder": arm.folder.name,
            }
            lines += [about | _flat(row) for row in _answers(arm.folder, notes)]
        return Stored(Path(run_dir).resolve().name, found, _frame(lines), notes)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of small objects that all stay would be looked through again and again: a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["arm", "method", "label", "budget", "retention", "model", "benchmark", "folder", *_flat({})]
    found = dict.fromkeys(name for line in lines for name in line)
    samples = pd.DataFrame(lines, columns=list(dict.fromkeys([*columns, *found])))
    samples["correct"] = samples["correct"].astype("boolean")
    samples["failed"] = samples["failed"].astype(bool)
    for name in [name for name in samples if name in NUMBERS or name.endswith("_s")]:
        samples[name] = pd.to_numeric(samples[name])
    return samples


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored line with its times and its error spread over columns."""
    error, times = row.get("error"), row.get("times") or {}
    correct = row.get("correct")
    if error is None and row.get("parsed") is None and correct:
        correct = False  # what nobody could parse is never right, whatever the scorer made of it
    kept = ("id", "video", "family", "answer", "parsed", "target")
    return {
        **{name: row.get(name) for name in kept},
        "correct": None if error else correct,
        **{name: row.get(name) for name in NUMBERS},
        "tokens_per_layer": row.get("tokens_per_layer"),
        "reasons": row.get("reasons"),
        "overlay": row.get("overlay"),
        **{f"{time}_s": times.get(time) for time in (*TIMES, *times)},
        "failed": error is not None,
        "error_type": error.get("type") if error else None,
        "error_message": error.get("message") if error else None,
    }


def _answers(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The line that counts for each question of an arm, over all its shards."""
    counted: dict[str, tuple[dict[str, Any], str]] = {}
    for path in sorted(folder.glob("answers*.jsonl")):
        for number, row in _lines(path, notes):
            place = f"{path}:{number}"
            _check(row, place)
            earlier = counted.get(row["id"])
            if earlier and earlier[0]["error"] is None:
                if row["error"] is None:
                    raise DataError(
                        f"{place}: question {row['id']!r} is answered in {earlier[1]}; keep one line"
                    )
                continue  # an answer stands, also where another shard's failed attempt is read after it
            counted[row["id"]] = (row, place)
    return [row for row, _ in counted.values()]


def _lines(path: Path, notes: list[str]) -> Iterator[tuple[int, Any]]:
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as cause:
            if number < len(lines):
                raise DataError(f"{path}:{number}: not JSON ({cause}); the file is damaged") from None
            notes.append(f"{path}:{number}: the last line is torn and was dropped; run again to answer it")
            log.warning(notes[-1])
            return
        yield number, row


def _check(row: Any, place: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a {type(row).__name__} where a stored answer was expected")
    absent = [name for name in ("id", "video", "family", "correct", "error") if name not in row]
    if absent:
        raise DataError(f"{place}: a stored answer without {', '.join(absent)}")
    if row["error"] is not None and not isinstance(row["error"], dict):
        raise DataError(f"{place}: error={row['error']!r}; allowed: null or an object with type and message")
    if row["error"] is None and not isinstance(row["correct"], bool):
        raise DataError(f"{place}: correct={row['correct']!r} without an error; allowed: true or false")


def _arm_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise DataError(f"{path}: not JSON ({cause}); the file is damaged") from None
    names = ("arm", "method", "label", "budget", "model", "benchmark")
    absent = [name for name in names if not isinstance(record, dict) or name not in record]
    if absent:
        raise DataError(f"{path}: holds no {', '.join(absent)}")
    for name in ("model", "benchmark"):
        if not isinstance(record[name], dict) or "name" not in record[name]:
            raise DataError(f"{path}: {name}={record[name]!r}; allowed: an object with a name")
    budget = record["budget"] or {}
    retention = budget.get("retention")
    number = isinstance(retention, (int, float)) and not isinstance(retention, bool)
    allowed = number and 0 < retention <= 1 and budget.get("kind") in KINDS
    if record["method"] not in REFERENCES and not allowed:
        raise DataError(f"{path}: budget={budget!r}; allowed: kind {' or '.join(KINDS)}, retention in (0, 1]")
    return record
