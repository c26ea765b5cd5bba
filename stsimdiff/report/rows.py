"""The stored answers of a run, read back: one row a sample and arm, failed samples among them.

``evaluate.store`` says which line counts, for a run that goes on and for its report alike; here every value is checked.
What is damaged is an error that names file and line. Nothing is averaged or scored here.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from stsimdiff.budget import KINDS
from stsimdiff.errors import DataError
from stsimdiff.evaluate import store
from stsimdiff.report.arm import REFERENCES, Arm
from stsimdiff.report.labels import benchmark_names, model_names
from stsimdiff.report.text import one_line, printable

log = logging.getLogger(__name__)

NUMBERS = (
    "video_tokens", "text_tokens", "retention_tokens", "retention_compute", "llm_flops", "llm_flops_all",
    "kv_kept",
)  # fmt: skip
TEXTS = ("id", "video", "family", "answer", "parsed", "target", "stock_parsed", "stock_error")
TIMES = ("prefill", "compressor", "answer", "token")


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("should not be blank")
    return text


Name = Annotated[str, AfterValidator(_not_blank)]


class _Error(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    type: NotRequired[str | None]
    message: NotRequired[str | None]


class _Line(TypedDict):
    """What a stored line must hold, and of what kind what it may hold is."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    id: str
    video: str
    family: str | None
    correct: bool | None
    error: _Error | None
    answer: NotRequired[str | None]
    parsed: NotRequired[str | None]
    target: NotRequired[str | None]
    stock_parsed: NotRequired[str | None]
    stock_correct: NotRequired[bool | None]
    stock_error: NotRequired[str | None]
    video_tokens: NotRequired[Count | None]
    text_tokens: NotRequired[Count | None]
    tokens_per_layer: NotRequired[list[Count] | None]
    retention_tokens: NotRequired[Count | None]
    retention_compute: NotRequired[Count | None]
    llm_flops: NotRequired[Count | None]
    llm_flops_all: NotRequired[Count | None]
    kv_kept: NotRequired[Count | None]
    times: NotRequired[dict[str, Number | None] | None]
    reasons: NotRequired[dict[str, Any] | None]
    overlay: NotRequired[dict[str, Any] | None]


class _Budget(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    kind: Literal[KINDS]  # type: ignore[valid-type]
    retention: Annotated[Number, Field(gt=0, le=1)]


class _Budgeted(TypedDict):
    budget: _Budget


class _Named(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    name: Name


class _Benchmark(_Named):
    families: NotRequired[list[str] | None]
    chance: NotRequired[Number | None]
    note: NotRequired[str | None]
    server: NotRequired[str | None]


class _Record(TypedDict):
    """What ``arm.json`` must hold, and of what kind what it may hold is."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    arm: Name
    method: Name
    label: str
    budget: dict[str, Any] | None
    model: _Named
    benchmark: _Benchmark
    compressor: NotRequired[dict[str, Any] | None]
    fidelity: NotRequired[dict[str, str] | None]
    provenance: NotRequired[dict[str, Any] | None]
    resumed: NotRequired[list[dict[str, Any]]]


_line, _record, _budgeted = TypeAdapter(_Line), TypeAdapter(_Record), TypeAdapter(_Budgeted)


@dataclass(frozen=True)
class Stored:
    """A run as it lies on disk.

    Attributes:
        run: name of the run's folder.
        arms: sorted by folder name.
        samples: what ``load`` returns.
        notes: what was dropped while reading, one sentence each.
        models: names of the arms' models by the arms' ids, with what tells two of one name apart.
        benchmarks: names of their benchmarks, likewise.
    """

    run: str
    arms: list[Arm]
    samples: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    models: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, str] = field(default_factory=dict)


def load(run_dir: Path | str) -> pd.DataFrame:
    """All stored samples of a run, one row a sample and arm.

    Columns: the keys of a stored line, with ``times`` as ``prefill_s``, ``compressor_s``, ``answer_s`` and
    what else was timed (seconds), and ``error`` as ``failed`` (bool), ``error_type``, ``error_message``; and
    of its arm ``arm``, ``method``, ``label``, ``budget`` (kind), ``retention``, ``model``, ``benchmark``,
    ``folder``. ``correct`` is a nullable boolean: missing where the sample failed or no answer is public, False where
    nothing could be parsed.

    Raises:
        DataError: no such folder, no arm in it, or a damaged file.
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
        if (folder / store.RECORD).is_file():
            found.append(Arm(folder, _arm_record(folder)))
        elif store.shards(folder):
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
    found = arms(run_dir)
    notes: list[str] = []
    lines: list[dict[str, Any]] = []
    models, benchmarks = model_names(found), benchmark_names(found)
    with _no_garbage_collection():
        for arm in found:
            about = {
                "arm": arm.id,
                "method": arm.method,
                "label": arm.label,
                "budget": arm.kind,
                "retention": arm.retention,
                "model": models[arm.id],
                "benchmark": benchmarks[arm.id],
                "folder": arm.folder.name,
            }
            lines += [about | _flat(row) for row in _answers(arm, notes)]
        run = one_line(Path(run_dir).resolve().name)
        return Stored(run, found, _frame(lines), notes, models, benchmarks)


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
    for name in ("correct", "stock_correct"):
        samples[name] = samples[name].astype("boolean")
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
    return {
        **{name: value for name, value in row.items() if name not in ("times", "error")},
        **{name: _printable(row.get(name)) for name in TEXTS},
        "correct": None if error is not None else correct,
        **{
            name: row.get(name)
            for name in (*NUMBERS, "stock_correct", "tokens_per_layer", "reasons", "overlay", "of")
        },
        **{f"{time}_s": times.get(time) for time in (*TIMES, *times)},
        "failed": error is not None,
        "error_type": _printable(error.get("type")) if error else None,
        "error_message": _printable(error.get("message")) if error else None,
    }


def _printable(value: str | None) -> str | None:
    return None if value is None else printable(value)


def _answers(arm: Arm, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The line that counts for each question of an arm, over all its shards, checked."""
    found: list[str] = []
    layers: int | None = None
    for place, row in store.counted_lines(arm.folder, found).values():
        row = _checked(row, _line, place)
        if row["error"] is None and row["correct"] is None and not arm.server:
            raise DataError(f"{place}: correct=None without an error; allowed: true or false")
        counts = row.get("tokens_per_layer")
        if counts is not None and len(counts) != (layers := len(counts) if layers is None else layers):
            raise DataError(
                f"{place}: tokens_per_layer has {len(counts)} layers, the lines before it {layers}"
            )
        yield row
    for note in found:
        log.warning(note)
    notes += found


def _checked(value: Any, form: TypeAdapter, place: str) -> dict[str, Any]:
    """The value with whole numbers as floats where numbers are counted with.

    Raises:
        DataError: for a value that is missing or of another kind, with its name.
    """
    try:
        return form.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            said = f"holds no {name}"
        else:
            given = printable(repr(first["input"]))
            said = f"{name}={given[:60]}: {first['msg'].replace('Input should', 'should').lower()}"
        raise DataError(f"{place}: {said}; the file was changed or damaged") from None


def _arm_record(folder: Path) -> dict[str, Any]:
    record, path = store.read_record(folder), str(folder / store.RECORD)
    _checked(record, _record, path)
    if record["method"] not in REFERENCES:
        _checked({"budget": record["budget"]}, _budgeted, path)
    return record
