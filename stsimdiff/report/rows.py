"""The stored answers of a run as a frame: one row a sample and arm, failed samples among them.

``evaluate.store`` reads and checks them. Nothing is averaged or scored here.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from stsimdiff.evaluate import store
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.arms import arms, older_arms
from stsimdiff.report.labels import benchmark_names, model_names
from stsimdiff.report.text import one_line, printable

NUMBERS = (
    "video_tokens", "text_tokens", "retention_tokens", "retention_compute", "llm_flops", "llm_flops_all",
    "kv_kept",
)  # fmt: skip
TEXTS = ("id", "video", "category", "answer", "parsed", "target", "stock_parsed", "stock_error")
TIMES = ("prefill", "compressor", "answer", "token")

_ABOUT = ("arm", "method", "label", "budget", "retention", "model", "benchmark", "folder")
"""What every row says of its arm."""


@dataclass(frozen=True)
class StoredRun:
    """A run as it lies on disk.

    Attributes:
        run: name of the run's folder.
        arms: sorted by folder name.
        samples: what ``read_samples`` returns.
        notes: what was dropped while reading, one sentence each.
        models: names of the arms' models by the arms' ids, with what tells two of one name apart.
        benchmarks: names of their benchmarks, likewise.
    """

    run: str
    arms: list[StoredArm]
    samples: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    models: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, str] = field(default_factory=dict)


def read_samples(run_dir: Path | str, *, older: bool = False) -> pd.DataFrame:
    """All stored samples of a run, one row a sample and arm; ``older`` as :func:`read` takes it.

    Columns: the keys of a stored line, with ``times`` as ``prefill_s``, ``compressor_s``, ``answer_s`` and
    what else was timed (seconds), and ``error`` as ``failed`` (bool), ``error_type``, ``error_message``; and
    of its arm ``arm``, ``method``, ``label``, ``budget`` (kind), ``retention``, ``model``, ``benchmark``,
    ``folder``. ``correct`` is a nullable boolean: missing where the sample failed or no answer is public, False where
    nothing could be parsed.

    Raises:
        DataError: no such folder, no arm in it, or a damaged file.
    """
    return read(run_dir, older=older).samples


def read(run_dir: Path | str, *, older: bool = False) -> StoredRun:
    """Arms, samples and what was dropped on the way; raises as ``read_samples`` does.

    Args:
        run_dir: ``results/<run>``.
        older: whether arms count of whose code the run was asked for another version since.
    """
    stored = arms(run_dir)
    notes: list[str] = []
    if not older and (left_out := older_arms(stored)):
        stored = [arm for arm in stored if arm not in left_out]
        name = Path(run_dir).resolve().name
        notes.append(
            f"Left out: {len(left_out)} older {'version' if len(left_out) == 1 else 'versions'} of arms whose code has "
            f"changed since. To show them: python -m stsimdiff report {run_dir} --older; to remove them: "
            f"python -m stsimdiff forget run={name} older."
        )
    columns: dict[str, list[Any]] = {name: [] for name in (*_ABOUT, *_flat([]))}
    models, benchmarks = model_names(stored), benchmark_names(stored)
    with _no_garbage_collection():
        for arm in stored:
            about = (
                arm.id, arm.method, arm.label, arm.kind, arm.retention, models[arm.id], benchmarks[arm.id],
                arm.folder.name,
            )  # fmt: skip
            rows = store.checked_answers(arm.folder, notes, arm.record)
            of_arm = {name: [value] * len(rows) for name, value in zip(_ABOUT, about, strict=True)}
            _extend(columns, _flat(rows) | of_arm, len(rows))
        run = one_line(Path(run_dir).resolve().name)
        return StoredRun(run, stored, _frame(columns), notes, models, benchmarks)


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


def _frame(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    samples = pd.DataFrame(columns)
    for name in ("correct", "stock_correct"):
        samples[name] = samples[name].astype("boolean")
    samples["failed"] = samples["failed"].astype(bool)
    for name in [name for name in samples if name in NUMBERS or name.endswith("_s")]:
        samples[name] = pd.to_numeric(samples[name])
    return samples


def _extend(columns: dict[str, list[Any]], more: Mapping[str, list[Any]], n: int) -> None:
    """Put ``n`` rows below those of ``columns``; where one of the two lacks a column there is no number."""
    before = len(columns["arm"])
    for name in [*columns, *(name for name in more if name not in columns)]:
        column = columns.setdefault(name, [math.nan] * before)
        column += more.get(name, [math.nan] * n)


def _flat(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of stored lines, with their times and errors spread over several."""
    names = dict.fromkeys(chain(_BLANK, *rows))
    columns = {name: [row.get(name, _BLANK.get(name, math.nan)) for row in rows] for name in names}
    errors, times = columns.pop("error"), [seconds or {} for seconds in columns.pop("times")]
    for name in TEXTS:
        columns[name] = [None if text is None else printable(text) for text in columns[name]]
    # What nobody could parse is never right, whatever the scorer made of it.
    columns["correct"] = [
        None if error is not None else right and parsed is not None
        for error, right, parsed in zip(errors, columns["correct"], columns["parsed"], strict=True)
    ]
    for name in dict.fromkeys(chain(TIMES, *times)):
        columns[f"{name}_s"] = [seconds.get(name) for seconds in times]
    columns["failed"] = [error is not None for error in errors]
    for name in ("type", "message"):
        texts = [(error or {}).get(name) for error in errors]
        columns[f"error_{name}"] = [None if text is None else printable(text) for text in texts]
    return columns


# fmt: off
_BLANK: dict[str, None] = dict.fromkeys((
    *TEXTS, "correct", *NUMBERS, "stock_correct", "tokens_per_layer", "reasons", "overlay", "moment", "of", "columns",
    "times", "error",
))
# fmt: on
