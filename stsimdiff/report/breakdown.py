"""Accuracies by the values of a column of the benchmark's rows: on which kind of questions does a method lose?

The stored lines keep the short columns of their row (``domain``, ``task_type``, ``duration`` ...). A question counts
for each value where its column holds several. Numbers of more than a dozen values are taken in four ranges of
equally many questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stsimdiff.evaluate.stored import OWN, check_column
from stsimdiff.report import text
from stsimdiff.report.columns import block_title
from stsimdiff.report.statistics import UNKNOWN, Answers, clusters
from stsimdiff.report.text import Cell, Cells, csv, escaped, number, printable

if TYPE_CHECKING:
    from stsimdiff.report.comparison import ArmGroup
    from stsimdiff.report.section import Section

NAME = "breakdown"
MOST = 12
"""Values of a number that are listed one by one; more are put into ranges."""
MEANING = (
    "Accuracy in % on the questions of each value, and its difference from all tokens in points: where a method loses. "
    "Each value stands alone: intervals in breakdown.csv are not corrected for the number of values."
)


@dataclass(frozen=True)
class BreakdownRow:
    """An arm on the questions of one value; percentages and points, NaN where there is nothing to compare with.

    Attributes:
        minus: accuracy minus that of all tokens, with its interval.
    """

    model: str
    benchmark: str
    budget: str
    retention: float
    arm: str
    method: str
    label: str
    column: str
    value: str
    n: int
    videos: int
    accuracy: float
    ci_low: float
    ci_high: float
    minus: float
    minus_low: float
    minus_high: float


def breakdown(group: ArmGroup, section: Section, column: str) -> tuple[list[BreakdownRow], list[str]]:
    """The parts of a section, value by value, and what its stored lines lack.

    Raises:
        DataError: for a column that the rows do not have; it names those that they have.
    """
    if group.server or not group.common:
        return [], []
    about = next(rows for rows in group.answered.values() if len(rows)).loc[group.common]
    without_columns = int(about["columns"].isna().sum()) if column not in OWN else 0
    place = f"{section.model} on {section.benchmark}"
    if without_columns == len(about):
        return [], [
            f"No breakdown by {column} of {place}: its answers were stored before lines kept their columns."
        ]
    values = _values(about, column, place)
    notes = []
    if without_columns:
        notes.append(
            f"{without_columns} of {len(about)} questions of {place} were stored without columns: not broken down."
        )
    arms = {arm.id: arm for arm in group.arms}
    parts = []
    for row in section.rows:
        if not row.n or row.overall != row.overall:
            continue
        everything = group.everything(arms[row.arm])
        compare = everything is not None and everything.id != row.arm
        chosen = [row.arm, everything.id] if everything is not None and compare else [row.arm]
        right = np.stack(
            [group.answered[id_].loc[group.common, "correct"].to_numpy(dtype=bool) for id_ in chosen], axis=1
        )
        videos = clusters(about["video"])
        for value, places in values.items():
            answers = Answers(right[places], videos[places])
            accuracy = answers.accuracy(0)
            minus = answers.difference(0, 1) if compare else UNKNOWN
            parts.append(
                BreakdownRow(
                    model=section.model,
                    benchmark=section.benchmark,
                    budget=row.budget,
                    retention=row.retention,
                    arm=row.arm,
                    method=row.method,
                    label=row.label,
                    column=column,
                    value=value,
                    n=answers.n,
                    videos=len(answers.size),
                    accuracy=100 * accuracy.value,
                    ci_low=100 * accuracy.low,
                    ci_high=100 * accuracy.high,
                    minus=100 * minus.value,
                    minus_low=100 * minus.low,
                    minus_high=100 * minus.high,
                )
            )
    return parts, notes


def _values(about: pd.DataFrame, column: str, place: str) -> dict[str, list[int]]:
    """The places of the questions by value, sorted."""
    columns = [dict(entry) if isinstance(entry, dict) else {} for entry in about["columns"]]
    check_column(column, {name for entry in columns for name in entry}, place)
    values = about[column].tolist() if column in OWN else [entry.get(column) for entry in columns]
    numbers = sorted(
        value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    edges = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(set(numbers)) > MOST else []
    by_value: dict[tuple[bool, Any], list[int]] = {}
    for number_, value in enumerate(values):
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None and entry == entry:
                by_value.setdefault(_key(entry, edges), []).append(number_)
    ordered = sorted(by_value.items(), key=lambda item: (item[0][0], item[0][1]))
    ranges = [f"{low:.4g} to {high:.4g}" for low, high in zip(edges, edges[1:], strict=False)]
    return {
        (ranges[int(key)] if edges and not words else f"{key:.6g}" if not words else printable(key)): places
        for (words, key), places in ordered
    }


def _key(value: Any, edges: Sequence[float]) -> tuple[bool, Any]:
    """What sorts and groups a value: numbers first, in their ranges where they have any."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True, str(value)
    if not edges:
        return False, float(value)
    return False, float(sum(value > edge for edge in edges[1:-1]))


def files(parts: Sequence[BreakdownRow], run: str) -> dict[str, str | None]:
    """``breakdown.md`` and ``breakdown.csv`` by name; None where nothing was broken down."""
    if not parts:
        return {f"{NAME}.md": None, f"{NAME}.csv": None}
    blocks = [f"# {escaped(run)}: accuracy by {escaped(parts[0].column)}", escaped(MEANING)]
    for title, cells in tables(parts):
        blocks += [f"## {escaped(title)}", text.markdown(cells)]
    frame = pd.DataFrame(
        [{k: v for k, v in vars(part).items() if k not in ("arm", "method")} for part in parts]
    )
    return {
        f"{NAME}.md": "\n\n".join(blocks) + "\n",
        f"{NAME}.csv": csv(frame.rename(columns={"label": "method"})),
    }


def tables(parts: Sequence[BreakdownRow]) -> list[tuple[str, Cells]]:
    """For each section its accuracies and its differences from all tokens, with their titles."""
    sections: dict[tuple[str, str, str], list[BreakdownRow]] = {}
    for part in parts:
        sections.setdefault((part.model, part.benchmark, part.budget), []).append(part)
    titled = []
    for (model, benchmark, budget), rows in sections.items():
        place = f"{model} on {benchmark}, budget of kind {budget}"
        column = rows[0].column
        titled.append((f"Accuracy in % by {column}, {place}", _cells(rows, "accuracy", ".1f")))
        compared = [part for part in rows if part.minus == part.minus]
        if compared:
            title = f"Minus all tokens, in points by {column}, {place}"
            titled.append((title, _cells(compared, "minus", "+.1f")))
    return titled


def _cells(parts: Sequence[BreakdownRow], name: str, form: str) -> Cells:
    counts = {part.value: part.n for part in parts}
    blocks: dict[float, dict[str, dict[str, BreakdownRow]]] = {}
    for part in parts:
        blocks.setdefault(part.retention, {}).setdefault(part.label, {})[part.value] = part
    headings = ["method", *(f"{value} (n {n})" for value, n in counts.items())]
    return Cells(
        headings,
        [
            (
                block_title(retention),
                [
                    [Cell(label), *(number(getattr(by.get(value), name, None), form) for value in counts)]
                    for label, by in lines.items()
                ],
            )
            for retention, lines in blocks.items()
        ],
    )
