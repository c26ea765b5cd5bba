"""What each method reaches at one compute: its accuracies, interpolated at what is usual among the rows of a block.

Methods that keep equally many tokens may compute on very different numbers of them, since some drop them late. Between
two budgets of a method its accuracy is taken to run straight over the compute; nothing is said beyond its own budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stsimdiff.budget import TOLERANCE
from stsimdiff.report.section import NAN, TableRow


def median_compute(rows: Sequence[TableRow]) -> float:
    """The compute that is usual in a block: the lower median, NaN where no row has any."""
    spent = sorted(row.retention_compute for row in rows if row.retention_compute > 0)
    return spent[(len(spent) - 1) // 2] if spent else math.nan


def at_equal_compute(rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows, each with its label's accuracy at the median compute of the row's block."""
    curves: dict[str, list[tuple[float, float]]] = {}
    blocks: dict[float, list[TableRow]] = {}
    for row in rows:
        if not row.reference:
            blocks.setdefault(row.retention, []).append(row)
            if not math.isnan(row.overall + row.retention_compute):
                curves.setdefault(row.label, []).append((row.retention_compute, row.overall))
    medians = {retention: median_compute(block) for retention, block in blocks.items()}
    return [
        row
        if row.reference
        else replace(row, equal=interpolated(curves.get(row.label, []), medians[row.retention]))
        for row in rows
    ]


def interpolated(curve: Sequence[tuple[float, float]], compute: float) -> float:
    """The accuracy of a curve of (compute, accuracy); NaN outside what was measured, by more than the tolerance."""
    if not curve or math.isnan(compute):
        return NAN
    spent, reached = zip(*sorted(curve), strict=True)
    inside = (1 - TOLERANCE) * spent[0] <= compute <= (1 + TOLERANCE) * spent[-1]
    return float(np.interp(compute, spent, reached)) if inside else NAN
