"""One sentence for each block of a table: who leads at this budget, who is not told apart, who is worse.

The words follow the statistics of ``pairs`` alone: a difference is called one only where its corrected p is below
0.05, however far apart the printed accuracies are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stsimdiff.budget import TOLERANCE
from stsimdiff.report.pairs import NOT_TOLD_APART, Pair, against

if TYPE_CHECKING:
    from stsimdiff.report.comparison import Row, Section


def verdicts(section: Section) -> list[str]:
    """A sentence for each block, in the order of printing."""
    everything = next((row for row in section.rows if row.method == "none" and row.n), None)
    found = []
    for retention, rows in section.blocks().items():
        parts = _references(section, [row for row in rows if row.reference])
        methods = [row for row in rows if not row.reference]
        if methods:
            parts.append(_contest(section, retention, methods, everything))
        found.append(" ".join(parts))
    return found


def _references(section: Section, rows: Sequence[Row]) -> list[str]:
    """What all tokens reach, and how far below it the question alone stays."""
    if not rows:
        return []
    if not any(row.n for row in rows):
        return ["Neither all tokens nor the question alone has answers."]
    parts = [", ".join(f"{row.label} has {row.overall:.1f}" for row in rows if row.n)]
    for row in rows:
        parts += [
            f"{row.label} is {_than(pair, pair.against)}"
            for pair in section.pairs
            if pair.retention == row.retention and pair.method == row.label
        ]
    return [f"Without a budget {'; '.join(parts)}."]


def _contest(section: Section, retention: float, rows: Sequence[Row], everything: Row | None) -> str:
    place = f"At {100 * retention:.4g} %"
    best = leader(rows)
    if best is None:
        return f"{place} no method that keeps to its budget has answers, so there is no verdict."
    others = against(section.pairs, retention, best.label)
    rivals = [row for row in rows if row.competes and row is not best]
    equal = [row.label for row in rivals if row.overall == best.overall]
    names = _listed([best.label, *equal])
    if not rivals:
        parts = [f"{place} {names} ({best.overall:.1f}) has no rival"]
    else:
        parts = [f"{place} {names} ({best.overall:.1f}) {'lead together' if equal else 'leads'}"]
    parts[0] += _spending(best, rows)
    told = "it" if not equal else best.label
    level = [row.label for row in rivals if _is(others, row, NOT_TOLD_APART) and row.label not in equal]
    if level:
        parts.append(f"{_listed(level)} {'is' if len(level) == 1 else 'are'} not told apart from {told}")
    worse = [others[row.label] for row in rivals if not _is(others, row, NOT_TOLD_APART)]
    worse.sort(key=lambda pair: -pair.difference)
    for i, pair in enumerate(worse):
        said = f"is {-pair.difference:.1f} points worse" if i == 0 else f"{-pair.difference:.1f}"
        parts.append(f"{pair.method} {said} ({_p(pair)})")
    if everything is not None:
        pair = against(section.pairs, retention, everything.label).get(best.label)
        parts += [f"{best.label} is {_than(pair, f'all tokens ({everything.overall:.1f})')}"] if pair else []
    out = [row.label for row in rows if row.over_budget]
    if out:
        parts.append(f"out of the contest, since over budget: {_listed(out)}")
    return f"{'; '.join(parts)}."


def leader(rows: Sequence[Row]) -> Row | None:
    """The first of the rows with the highest overall accuracy, among those that compete; None where none does."""
    return max((row for row in rows if row.competes), key=lambda row: row.overall, default=None)


def median_compute(rows: Sequence[Row]) -> float:
    """The compute that is usual in a block: the lower median, NaN where no row has any."""
    spent = sorted(row.retention_compute for row in rows if row.retention_compute > 0)
    return spent[(len(spent) - 1) // 2] if spent else math.nan


def _spending(best: Row, rows: Sequence[Row]) -> str:
    """Said of a leader that does not owe its place to the budget that the others have."""
    ratio = best.retention_compute / median_compute(rows)
    return f", at {ratio:.2f} times the block's median compute" if abs(ratio - 1) > TOLERANCE else ""


def _is(pairs: dict[str, Pair], row: Row, verdict: str) -> bool:
    return row.label in pairs and pairs[row.label].verdict == verdict


def _than(pair: Pair, name: str) -> str:
    if pair.verdict == NOT_TOLD_APART:
        return f"{NOT_TOLD_APART} from {name}"
    return f"{abs(pair.difference):.1f} points {pair.verdict} than {name} ({_p(pair)})"


def _p(pair: Pair) -> str:
    return "p < 0.001" if pair.p_holm < 0.001 else f"p = {pair.p_holm:.3f}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
