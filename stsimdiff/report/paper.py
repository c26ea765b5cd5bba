"""What the paper printed (``results/paper``): context beside our tables, never mixed into their rows."""

from __future__ import annotations

import re

import pandas as pd

from stsimdiff import resources
from stsimdiff.errors import DataError

TABLE1 = "table1_llava_video"
GATE_POINTS = 1.0
"""How far our all-token accuracy may be from the paper's before a comparison is warned of."""

_COLUMNS = {
    "videomme": "videomme_overall",
    "longvideobench": "longvideobench_overall",
    "egoschema": "egoschema",
}


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


def baseline_gate(model: str, benchmark: str, overall: float) -> str | None:
    """How far our all-token accuracy is from the paper's, in a sentence; None where it printed none.

    Args:
        model: the model's name, for example ``llava_video``.
        benchmark: the benchmark's name, for example ``videomme``.
        overall: our all-token accuracy in percent; NaN when there is no such arm.
    """
    model, column = _plain(model), printed_column(benchmark)
    also = ""
    if column and "llavavideo" in model:
        published = float(paper_table(TABLE1).query("retention == 1.0")[column].iloc[0])
    elif column and "qwen25vl" in model and column != "egoschema":
        ours, theirs = paper_table("qwen25vl_upper_bound")[column]
        published, also = float(ours), f" (the model's own report says {theirs:.1f})"
    else:
        return None
    said = f"the paper's all-token accuracy here is {published:.1f}{also}"
    if overall != overall:
        return f"Baseline gate: {said}, this run has no all-token arm: no comparison yet."
    apart = abs(overall - published)
    if apart > GATE_POINTS:
        return (
            f"Baseline gate MISSED: {said}, ours is {overall:.1f}, {apart:.1f} points apart: "
            "a comparison with the paper's numbers does not hold."
        )
    return f"Baseline gate met: {said}, ours is {overall:.1f}."
