"""Do the tokens that a method keeps, or calls events, lie where it matters, and does that decide the answer?

Made from what ``evaluate.moments`` counted for each answer whose question has a moment. Of a method with event tokens
(reason ``event``) these are compared with the truth, as they are left at the end; of any other what it keeps. A number
is the mean of the questions' shares, without those that have nothing to divide by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stsimdiff.report import text
from stsimdiff.report.columns import block_title, share_kept
from stsimdiff.report.section import NAN
from stsimdiff.report.statistics import UNKNOWN, Answers, Interval, apart, clusters
from stsimdiff.report.text import Cell, Cells, csv, escaped, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stsimdiff.report.comparison import ArmGroup
    from stsimdiff.report.section import Section

NAME = "moments"
ALL = "all"
"""Stands for every kind of question, and for every method of a budget."""
HALF = 0.5
"""A moment of which less than this share of the tokens is kept counts as lost."""
MEANING = (
    "Over the questions that have a moment. Moment kept: the share of its tokens that is left at the end. Kept, "
    "lost: accuracy where at least half of them are left, and where fewer are; their difference says whether that "
    "decides the answer. Recall and precision: of a method's event tokens, or of all that it keeps where it has none. "
    "In time: recall is the share of the moment's rows in time that hold such a token, precision the share of such "
    "tokens that lie within its time. In place: the same for the moment's tokens. Any event: the same for everything "
    "that happens in the video. Intervals, in moments.csv, count videos."
)


@dataclass(frozen=True)
class MomentRow:
    """An arm on the questions of one category that have a moment, or on all of them; fractions.

    Attributes:
        arm: its id; empty for all methods of a budget together.
        tokens: ``event`` or ``kept``: what recall and precision are of.
        accuracy: on these questions.
        moment_kept: share of the moment's tokens that is left.
        n_kept: questions of whose moment at least half is left.
        accuracy_kept: on those.
        accuracy_lost: on the others.
        kept_minus_lost: difference of both; unknown where one of them has no questions.
        measures: recall and precision by name.
    """

    model: str
    benchmark: str
    budget: str
    retention: float
    arm: str
    method: str
    label: str
    category: str
    tokens: str
    n: int
    videos: int
    accuracy: Interval
    moment_kept: Interval
    n_kept: int
    accuracy_kept: Interval
    accuracy_lost: Interval
    kept_minus_lost: Interval
    measures: Mapping[str, Interval] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """As ``moments.csv`` holds it: percentages and points, each with its bounds."""
        cells: dict[str, Any] = {}
        for name, value in vars(self).items():
            intervals = value if isinstance(value, Mapping) else {name: value}
            for key, item in intervals.items():
                if isinstance(item, Interval):
                    cells |= {
                        key: 100 * item.value,
                        f"{key}_low": 100 * item.low,
                        f"{key}_high": 100 * item.high,
                    }
                elif key not in ("arm", "method"):
                    cells["method" if key == "label" else key] = item
        return cells


MEASURES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[float, float]]] = {
    "recall_time": lambda truth, found: (found["rows"], truth["rows"]),
    "recall_place": lambda truth, found: (found["in_place"], truth["tokens"]),
    "precision_time": lambda truth, found: (found["in_time"], found["tokens"]),
    "precision_place": lambda truth, found: (found["in_place"], found["tokens"]),
}
"""Part and whole of each share, from the truth's counts and those of the tokens that were found."""
TRUTHS = {"question": "", "video": "event_"}
"""How the names of the measures begin, by what they are against: the question's moment, or all events of the video."""


def moments(group: ArmGroup, section: Section) -> list[MomentRow]:
    """For each arm, and for all methods of a budget together, what of the moments it found: of all questions, then of
    each category."""
    if group.server or not group.common:
        return []
    results: list[MomentRow] = []
    for retention, rows in section.blocks().items():
        by_arm = {}
        for row in rows:
            answered = group.compared[row.arm]
            shares = answered["moment"].map(share_kept) if len(answered) else pd.Series(dtype=float)
            if shares.notna().any():
                by_arm[row.arm] = answered.assign(share=shares.astype(float))[shares.notna()]
        place = {
            "model": section.model,
            "benchmark": section.benchmark,
            "budget": section.budget,
            "retention": retention,
        }
        for row in rows:
            if row.arm in by_arm:
                about = place | {"arm": row.arm, "method": row.method, "label": row.label}
                results += _categories(about, by_arm[row.arm])
        methods = [by_arm[row.arm] for row in rows if row.arm in by_arm and not row.reference]
        if len(methods) > 1:
            about = place | {"arm": "", "method": ALL, "label": "all methods"}
            results += _categories(about, pd.concat(methods))
    return results


class _Moments:
    """Answers about questions that have a moment, as arrays of one value for each."""

    def __init__(self, answered: pd.DataFrame) -> None:
        self.right = answered["correct"].to_numpy(dtype=float)
        self.share = answered["share"].to_numpy(dtype=float)
        self.category = answered["category"].to_numpy(dtype=object)
        self.videos = clusters(answered["video"])
        self._moments = answered["moment"].tolist()
        self.has_events = np.array([moment["video"]["event"]["tokens"] > 0 for moment in self._moments])
        self._measures: dict[str, dict[str, np.ndarray]] = {}

    def measures(self, tokens: str) -> dict[str, np.ndarray]:
        """Recall and precision of these tokens, ``event`` or ``kept``, by name."""
        if tokens not in self._measures:
            self._measures[tokens] = {
                f"{prefix}{name}": np.array(
                    [_divided(*counts(moment[truth], moment[truth][tokens])) for moment in self._moments]
                )
                for truth, prefix in TRUTHS.items()
                for name, counts in MEASURES.items()
            }
        return self._measures[tokens]


def _categories(place: dict[str, Any], answered: pd.DataFrame) -> Iterator[MomentRow]:
    names = sorted(answered["category"].dropna().unique())
    found = _Moments(answered)
    yield _moment_row(place, ALL, found, np.ones(len(answered), dtype=bool))
    for name in names if len(names) > 1 else ():
        yield _moment_row(place, name, found, found.category == name)


def _moment_row(place: dict[str, Any], category: str, found: _Moments, asked: np.ndarray) -> MomentRow:
    right, share, videos = found.right[asked], found.share[asked], found.videos[asked]
    kept = share >= HALF
    tokens = "event" if found.has_events[asked].any() else "kept"
    # Tokens of several methods together are no method's.
    measures = {
        f"{prefix}{name}": _mean(found.measures(tokens)[f"{prefix}{name}"][asked], videos)
        if place["arm"]
        else UNKNOWN
        for prefix in TRUTHS.values()
        for name in MEASURES
    }
    return MomentRow(
        **place,
        category=category,
        tokens=tokens,
        n=len(share),
        videos=len({*videos}),
        accuracy=_mean(right, videos),
        moment_kept=_mean(share, videos),
        n_kept=int(kept.sum()),
        accuracy_kept=_mean(right[kept], videos[kept]),
        accuracy_lost=_mean(right[~kept], videos[~kept]),
        kept_minus_lost=apart(right, kept, videos) if 0 < kept.sum() < len(kept) else UNKNOWN,
        measures=measures,
    )


def _divided(part: float, whole: float) -> float:
    return part / whole if whole else NAN


def _mean(values: np.ndarray, videos: np.ndarray) -> Interval:
    known = ~np.isnan(values)
    return Answers(values[known, None], videos[known]).accuracy(0) if known.any() else UNKNOWN


def files(rows: Sequence[MomentRow], run: str) -> dict[str, str | None]:
    """``moments.md`` and ``moments.csv`` by name; None where no stored answer knows its moment."""
    if not rows:
        return {f"{NAME}.md": None, f"{NAME}.csv": None}
    blocks = [f"# {escaped(run)}: moments that matter", escaped(MEANING)]
    sections: dict[str, list[MomentRow]] = {}
    for row in rows:
        if row.category == ALL:
            place = f"{row.model} on {row.benchmark}, budget of kind {row.budget}"
            sections.setdefault(place, []).append(row)
    for title, section_rows in sections.items():
        n = max(row.n for row in section_rows if row.arm)
        blocks += [
            f"## {escaped(title)}",
            f"{n} questions with a moment.",
            text.markdown(_cells(section_rows)),
        ]
    return {
        f"{NAME}.md": "\n\n".join(blocks) + "\n",
        f"{NAME}.csv": csv(pd.DataFrame([row.line() for row in rows])),
    }


HEADINGS = (
    "method", "moment kept %", "accuracy %", "kept", "n", "lost", "n", "kept minus lost", "tokens",
    "recall in time", "in place", "precision in time", "in place",
    "any event: recall in time", "in place", "precision in time", "in place",
)  # fmt: skip


def _cells(rows: Sequence[MomentRow]) -> Cells:
    blocks: dict[float, list[list[Cell]]] = {}
    for row in rows:
        apart_ = row.kept_minus_lost
        minus = Cell(f"{100 * apart_.value:+.1f} ({100 * apart_.low:+.1f} to {100 * apart_.high:+.1f})")
        line = [
            Cell(row.label),
            _percent(row.moment_kept),
            _percent(row.accuracy),
            _percent(row.accuracy_kept),
            number(row.n_kept, ".0f"),
            _percent(row.accuracy_lost),
            number(row.n - row.n_kept, ".0f"),
            minus if apart_.value == apart_.value else Cell(text.EMPTY),
            Cell(row.tokens if row.arm else text.EMPTY),
            *map(_percent, row.measures.values()),
        ]
        blocks.setdefault(row.retention, []).append(line)
    return Cells(HEADINGS, [(block_title(retention), lines) for retention, lines in blocks.items()])


def _percent(interval: Interval) -> Cell:
    return number(100 * interval.value)
