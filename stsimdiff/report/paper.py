"""What the paper printed (``results/paper``): context beside our tables, never mixed into their rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from stsimdiff import resources
from stsimdiff.errors import DataError

if TYPE_CHECKING:
    from stsimdiff.report.comparison import Row

TABLE1 = "table1_llava_video"
GATE_POINTS = 1.0
"""How far our all-token accuracy may be from the paper's before a comparison is warned of."""

FRAMES = 64
"""Frames of each video in the paper's tables."""

_COLUMNS = {
    "videomme": "videomme_overall",
    "longvideobench": "longvideobench_overall",
    "egoschema": "egoschema",
}
_QUESTIONS = {"videomme_overall": 2700, "longvideobench_overall": 1337, "egoschema": 500}
"""Questions of the whole benchmark, in the split that is offered here."""
_WHOLE = 0.98
"""Share of them from which on the benchmark counts as answered."""
_ABLATION = "ablation_llava_video_r30"
_METHODS = {
    "none": "LLaVA-Video (all tokens)",
    "fastv": "FastV",
    "prumerge": "PruMerge",
    "fastervlm": "FasterVLM",
    "visionzip": "VisionZip",
    "framefusion": "FrameFusion",
    "st_simdiff": "ST-SimDiff",
}
_ABLATIONS = {
    "st_simdiff similarity=False difference=False": "importance pruning only (baseline)",
    "st_simdiff edges=spatial difference=False": "+ Sim (spatial edges)",
    "st_simdiff edges=temporal difference=False": "+ Sim (temporal edges)",
    "st_simdiff difference=False": "+ Sim (spatial + temporal edges)",
}
"""The paper's name of an arm by our label: a method with other parameters is not the one that it printed."""


@dataclass(frozen=True)
class Gate:
    """Whether our all-token accuracy is the paper's, which every comparison with its numbers rests on."""

    met: bool
    said: str


def paper_table(name: str) -> pd.DataFrame:
    """One of the published tables; a number that was not available is NaN, accuracies in percent.

    Args:
        name: the file's name, with or without ``.csv``.

    Raises:
        DataError: no such table in the installed package or the repository.
    """
    folder = resources.folder("results_paper")
    path = folder / f"{name.removesuffix('.csv')}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.csv")))
        raise DataError(f"no published table {name!r} in {folder}; there are: {known}")
    return pd.read_csv(path)


def printed_column(benchmark: str) -> str | None:
    """The paper's column of a benchmark's overall accuracy, None for a benchmark that is not in the paper."""
    return next((column for name, column in _COLUMNS.items() if _plain(benchmark).startswith(name)), None)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def paper_number(
    model: str, benchmark: str, label: str, retention: float, family: str | None = None
) -> float:
    """What the paper printed for an arm, in percent; NaN where it printed nothing for it.

    Args:
        model: the model's name, for example ``llava_video``.
        benchmark: the benchmark's name.
        label: of the arm; only a method with its own defaults is the paper's.
        retention: 0.3 for 30 %.
        family: one of the benchmark's question families instead of the overall accuracy.

    Raises:
        DataError: when the installation lacks the paper's tables.
    """
    column = printed_column(benchmark)
    if column is None:
        return float("nan")
    if family is not None:
        column = f"{column.removesuffix('_overall')}_{family}"
    if "llavavideo" in _plain(model):
        found = _cell(TABLE1, "method", _METHODS.get(label), column, retention)
        if found != found and abs(retention - 0.3) < 1e-6:
            brief = column.removesuffix("_overall")
            found = _cell(_ABLATION, "configuration", _ABLATIONS.get(label), brief)
        return found
    if "nvila" in _plain(model):
        return _cell("nvila_8b_r50", "method", _METHODS.get(label), column, retention)
    return float("nan")


def _cell(table: str, by: str, name: str | None, column: str, retention: float | None = None) -> float:
    frame = paper_table(table)
    if name is None or column not in frame:
        return float("nan")
    lines = frame[frame[by] == name]
    if retention is not None:
        lines = lines[(lines["retention"] - retention).abs() < 1e-6]
    return float(lines[column].iloc[0]) if len(lines) else float("nan")


def baseline_gate(model: str, benchmark: str, frames: str, row: Row | None) -> Gate | None:
    """How far our all-token accuracy is from the paper's, in a sentence; None where it printed none.

    Args:
        model: the model's name, for example ``llava_video``.
        benchmark: the benchmark's name, for example ``videomme``.
        frames: of each video, as ``rows.Arm.model`` says it.
        row: of all tokens; None when there is no such arm.
    """
    model, column = _plain(model), printed_column(benchmark)
    also = ""
    if column and "llavavideo" in model:
        published = float(paper_table(TABLE1).query("retention == 1.0")[column].iloc[0])
    elif column and "qwen25vl" in model and column != "egoschema":
        ours, theirs = paper_table("qwen25vl_upper_bound")[column]
        published, also = float(ours), f" (the model's own report says {theirs:.1f})"
    elif column and "nvila" in model:
        return Gate(False, "Baseline gate OPEN: the paper prints no all-token accuracy for NVILA.")
    else:
        return None
    said = f"the paper's all-token accuracy here is {published:.1f}{also}"
    if row is None or not row.n:
        return Gate(
            False, f"Baseline gate OPEN: {said}, this run has no all-token answers: no comparison yet."
        )
    ours = f"ours is {row.overall:.1f} ({row.ci_low:.1f} to {row.ci_high:.1f})"
    if row.n < _WHOLE * _QUESTIONS[column]:
        few = f"on only {row.n} of {_QUESTIONS[column]} questions"
        return Gate(False, f"Baseline gate OPEN: {said}, {ours} {few}: no comparison yet.")
    apart = abs(row.overall - published)
    if apart > GATE_POINTS + 1e-9:
        return Gate(
            False,
            f"Baseline gate MISSED: {said}, {ours}, {apart:.1f} points apart: a comparison with the paper's "
            "numbers does not hold.",
        )
    if frames != f"{FRAMES} frames":
        return Gate(
            False,
            f"Baseline gate OPEN: {said} with {FRAMES} frames, {ours} with {frames}: not the same setting.",
        )
    return Gate(True, f"Baseline gate met: {said}, {ours}.")
