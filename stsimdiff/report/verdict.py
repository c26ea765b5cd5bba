"""One sentence for each block of a table: who leads at this budget, who is not significantly different, who is worse.

The words follow the statistics of ``pairs`` alone: a difference is called one only where its corrected p is below
0.05, however far apart the printed accuracies are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stsimdiff.budget import TOLERANCE
from stsimdiff.report.equal_compute import median_compute
from stsimdiff.report.pairs import NO_DIFFERENCE, WORSE, Pair, against
from stsimdiff.report.section import FAULTS

if TYPE_CHECKING:
    from stsimdiff.report.section import Section, TableRow

FEW = 4
"""Methods that a sentence names one by one; more are counted, and the pairs say which they are."""


def verdicts(section: Section) -> list[str]:
    """A sentence for each block, in the order of printing."""
    sentences = []
    for retention, rows in section.blocks().items():
        parts = _references(section, [row for row in rows if row.reference])
        methods = [row for row in rows if not row.reference]
        if methods:
            parts.append(_contest(section, retention, methods))
            parts += _plan(section, retention)
        sentences.append(" ".join(parts))
    return sentences


def planned_pairs(section: Section) -> list[Pair]:
    """The planned comparisons of a section, each as the method that the run is about minus another arm."""
    pairs = []
    for pair in section.pairs:
        proposed = {
            row.label: row for row in section.rows if row.proposed and row.retention == pair.retention
        }
        first, second = proposed.get(pair.method), proposed.get(pair.against)
        # Of two variants the one with its own defaults is what the plan is about.
        turned = first is None or (second is not None and second.bare and not first.bare)
        if pair.planned:
            pairs.append(pair.turned() if turned else pair)
    return pairs


def _plan(section: Section, retention: float) -> list[str]:
    """What the planned comparisons of a block say."""
    pairs = [pair for pair in planned_pairs(section) if pair.retention == retention]
    if not pairs:
        return []
    parts = [
        f"{abs(pair.difference):.1f} points {pair.verdict} than {pair.against} ({_p(pair)})"
        for pair in pairs
        if pair.verdict != NO_DIFFERENCE
    ]
    if level := [pair.against for pair in pairs if pair.verdict == NO_DIFFERENCE]:
        parts.append(
            f"{NO_DIFFERENCE} from {_listed(level if len(level) <= FEW else [f'{len(level)} others'])}"
        )
    return [f"Planned comparisons of {pairs[0].method}: {'; '.join(parts)}."]


def _references(section: Section, rows: Sequence[TableRow]) -> list[str]:
    """What all tokens reach, and how far below it the question alone stays."""
    if not rows:
        return []
    if not any(row.n for row in rows):
        return [f"{_listed([row.label for row in rows])} {'has' if len(rows) == 1 else 'have'} no answers."]
    parts = [", ".join(f"{row.label} has {row.overall:.1f}" for row in rows if row.n)]
    for row in rows:
        parts += [
            f"{row.label} {_than(pair, pair.against)}"
            for pair in section.pairs
            if pair.retention == row.retention and pair.method == row.label
        ]
    return [f"Without a budget {'; '.join(parts)}."]


def _contest(section: Section, retention: float, rows: Sequence[TableRow]) -> str:
    place = f"At {100 * retention:.4g} %"
    best = leader(rows)
    if best is None:
        none = f"{place} no method that keeps to its budget has answers, so there is no verdict"
        return "; ".join([none, *_outside(rows, FAULTS)]) + "."
    others = against(section.pairs, retention, best.label)
    rivals = [row for row in rows if row.competes and row is not best]
    tied = _cheapest_first([best, *(row for row in rivals if row.overall == best.overall)])
    level = [row for row in rivals if row not in tied and _is(others, row, NO_DIFFERENCE)]
    names = f"{_counted([row.label for row in tied])} ({best.overall:.1f})"
    if not rivals:
        among = "method at this budget" if len(rows) == 1 else "method in the contest"
        parts = [f"{place} {names} is the only {among}"]
    else:
        parts = [f"{place} {names} {'lead together' if len(tied) > 1 else 'leads'}"]
    median = median_compute(rows)
    parts[0] += _spending(tied, median)
    parts += (elsewhere := _at_equal_compute(rows, best, median))
    if level:
        # Who cannot be told from the leader is a choice of what to spend.
        level = _cheapest_first(level)
        names_level = [
            f"{row.label} ({_times(row, median)})" if _ratio(row, median) else row.label for row in level
        ]
        names_level = names_level if len(names_level) <= FEW else [f"{len(names_level)} others"]
        # By its name where another was named after it.
        name = best.label if len(tied) > 1 or any(" it leads " not in part for part in elsewhere) else "it"
        parts.append(f"{NO_DIFFERENCE} between {name} and {_listed(names_level)}")
    worse = [
        others[row.label] for row in rivals if row.label in others and others[row.label].verdict == WORSE
    ]
    worse.sort(key=lambda pair: -pair.difference)
    if len(worse) > FEW:
        least, most = (
            f"{-pair.difference:.1f} ({pair.method}, {_p(pair)})" for pair in (worse[0], worse[-1])
        )
        parts.append(f"{len(worse)} are worse, by {least} to {most} points")
    else:
        for i, pair in enumerate(worse):
            how = f"is {-pair.difference:.1f} points worse" if i == 0 else f"{-pair.difference:.1f}"
            parts.append(f"{pair.method} {how} ({_p(pair)})")
    for row in section.rows:
        if row.method == "none" and row.n:
            beside = against(section.pairs, retention, row.label).get(best.label)
            parts += [f"{best.label} {_than(beside, f'all tokens ({row.overall:.1f})')}"] if beside else []
    parts += _outside(rows, ("over budget", *FAULTS))
    silent = [row.label for row in rows if not row.n]
    if silent:
        parts.append(f"without answers: {_listed(silent)}")
    return f"{'; '.join(parts)}."


def _outside(rows: Sequence[TableRow], reasons: Iterable[str]) -> list[str]:
    """Who is out of the contest for one of these reasons."""
    why = {row.label: row.fault or ("over budget" if row.over_budget else "") for row in rows}
    return [
        f"out of the contest, since {reason}: {_listed(names)}"
        for reason in reasons
        if (names := [label for label in why if why[label] == reason])
    ]


def leader(rows: Sequence[TableRow]) -> TableRow | None:
    """The cheapest of the rows with the highest overall accuracy, among those that compete; None where none does."""
    contest = [row for row in rows if row.competes]
    best = max((row.overall for row in contest), default=math.nan)
    return next(iter(_cheapest_first([row for row in contest if row.overall == best])), None)


def _cheapest_first(rows: Sequence[TableRow]) -> list[TableRow]:
    """In the order of their compute, and else as printed; those that have none stored last."""
    spent = [row.retention_compute for row in rows]
    order = sorted(range(len(rows)), key=lambda i: math.inf if math.isnan(spent[i]) else spent[i])
    return [rows[i] for i in order]


def _spending(tied: Sequence[TableRow], median: float) -> str:
    """What each leader spends, said where one does not owe its place to the budget that the others have."""
    if not any(_ratio(row, median) for row in tied):
        return ""
    spent = [_times(row, median) for row in tied]
    multiples = _listed(spent) if len(tied) <= FEW else f"{spent[0].removesuffix(' times')} to {spent[-1]}"
    return f", at {multiples} the block's median compute"


def _at_equal_compute(rows: Sequence[TableRow], best: TableRow, median: float) -> list[str]:
    """Who leads at the block's median compute, said where the leader does not spend that."""
    known = _cheapest_first([row for row in rows if row.competes and not math.isnan(row.equal)])
    if len(known) < 2 or _ratio(best, median) is None:
        return []
    first = max(known, key=lambda row: row.equal)
    place = f"at equal compute ({100 * median:.1f} %, interpolated)"
    if first is best:
        return [f"{place} it leads too, with {best.equal:.1f}"]
    if best in known:
        return [f"{place} it has {best.equal:.1f} and {first.label} leads with {first.equal:.1f}"]
    return [f"{place} {first.label} leads with {first.equal:.1f}, and {best.label} was not measured there"]


def _ratio(row: TableRow, median: float) -> float | None:
    """A row's compute over the block's median, None where they differ by no more than the tolerance."""
    ratio = row.retention_compute / median
    return ratio if abs(ratio - 1) > TOLERANCE else None


def _times(row: TableRow, median: float) -> str:
    ratio = row.retention_compute / median
    return "unknown times" if math.isnan(ratio) else f"{ratio:.2f} times"


def _is(pairs: dict[str, Pair], row: TableRow, verdict: str) -> bool:
    return row.label in pairs and pairs[row.label].verdict == verdict


def _than(pair: Pair, name: str) -> str:
    if pair.verdict == NO_DIFFERENCE:
        return f"shows {NO_DIFFERENCE} from {name}"
    return f"is {abs(pair.difference):.1f} points {pair.verdict} than {name} ({_p(pair)})"


def _p(pair: Pair) -> str:
    return "p < 0.001" if pair.p < 0.001 else f"p = {pair.p:.3f}"


def _counted(names: Sequence[str]) -> str:
    """Few names one by one; of many the first, and how many others."""
    return _listed(names if len(names) <= FEW else [names[0], f"{len(names) - 1} others"])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
