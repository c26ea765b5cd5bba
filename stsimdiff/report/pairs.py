"""Arms compared in pairs on the same questions: differences, tests, and what they amount to in a word.

The numbers come from ``statistics``; the sentences for a block are made in ``verdict``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from stsimdiff.report.arm import StoredArm
from stsimdiff.report.statistics import ALPHA, Answers, holm, questions_needed

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no significant difference"


@dataclass(frozen=True)
class Pair:
    """One arm against another on the same questions.

    Difference and interval are in points. ``p`` decides: Holm's correction of the larger of ``p_mcnemar`` and
    ``p_cluster``, over all pairs of the section (``p_holm``), or over the planned ones alone where the pair is planned
    (``p_planned``, else NaN). ``verdict`` says better or worse where it is below 0.05; then the interval leaves out
    zero too. The reverse need not be: an interval stands for its pair alone.

    Attributes:
        n: common questions.
        n_needed: questions that would tell the two apart in a table of so many pairs; see
            ``statistics.questions_needed``. Infinite where no difference was seen.
    """

    retention: float
    budget: str
    method: str
    against: str
    difference: float
    ci_low: float
    ci_high: float
    p_mcnemar: float
    p_holm: float
    n: int
    p_cluster: float
    verdict: str
    n_needed: float
    p_planned: float = math.nan

    @property
    def planned(self) -> bool:
        """Whether the comparison was planned: of the method that the run is about with another arm."""
        return not math.isnan(self.p_planned)

    @property
    def p(self) -> float:
        """What decides."""
        return self.p_planned if self.planned else self.p_holm

    def turned(self) -> Pair:
        """The same comparison seen from the other arm."""
        opposite = {BETTER: WORSE, WORSE: BETTER}.get(self.verdict, self.verdict)
        return replace(
            self,
            method=self.against,
            against=self.method,
            difference=0.0 - self.difference,  # no minus zero
            ci_low=-self.ci_high,
            ci_high=-self.ci_low,
            verdict=opposite,
        )


def compared(
    members: Sequence[StoredArm], full: Mapping[str, StoredArm | None]
) -> list[tuple[StoredArm, StoredArm]]:
    """Which arms are compared: all of a block with each other, and every arm with all tokens.

    All with all, since the best of a block is known only afterwards: a correction that covers every pair covers
    the comparisons with whichever arm turns out to lead.

    Args:
        members: arms with answers, in the order of printing.
        full: by an arm's id, all tokens that it is compared with.
    """
    blocks: dict[float, list[StoredArm]] = {}
    for arm in members:
        if not arm.reference:
            blocks.setdefault(arm.retention, []).append(arm)
    pairs = [pair for block in blocks.values() for pair in combinations(block, 2)]
    known = {(first.id, second.id) for first, second in pairs}
    for arm in members:
        everything = full[arm.id]
        if everything is arm:  # all tokens, once more with other settings
            everything = next(other for other in members if other.method == "none")
        if everything is not None and everything is not arm and (everything.id, arm.id) not in known:
            pairs.append((arm, everything))
            known.add((arm.id, everything.id))
    return sorted(pairs, key=lambda pair: -pair[0].retention)


def all_pairs(
    members: Sequence[StoredArm],
    labels: Mapping[str, str],
    answers: Answers,
    kind: str,
    full: Mapping[str, StoredArm | None],
    planned: bool = False,
) -> list[Pair]:
    """The comparisons of a section, with Holm's correction over all of them, and over the planned ones.

    Args:
        members: arms with answers, in the order of printing and of the columns of ``answers``.
        labels: what an arm is called, by its id.
        answers: of these arms.
        kind: of the section's budgets.
        full: by an arm's id, all tokens that it is compared with.
        planned: whether the comparisons of the proposed method with each other arm are planned. Of several variants in
            a block it is the first: the one with its own defaults, where there is one.
    """
    column = {arm.id: i for i, arm in enumerate(members)}
    chosen = compared(members, full)
    apart = [answers.difference(column[first.id], column[second.id]) for first, second in chosen]
    # The last one counts: the first of those with their own defaults, else the first of all.
    variants = sorted((arm for arm in members[::-1] if arm.proposed), key=lambda arm: arm.bare)
    anchors = {arm.retention: arm.id for arm in variants} if planned else {}
    planned_places = [i for i, pair in enumerate(chosen) if {arm.id for arm in pair} & {*anchors.values()}]
    planned_p = dict(zip(planned_places, holm([apart[i].p for i in planned_places]), strict=True))
    pairs = []
    for i, corrected in enumerate(holm([gap.p for gap in apart])):
        (first, second), gap = chosen[i], apart[i]
        # The first step of Holm's: what a pair has to pass at most.
        level = ALPHA / len(planned_p if i in planned_p else chosen)
        pairs.append(
            Pair(
                retention=first.retention,
                budget=kind,
                method=labels[first.id],
                against=labels[second.id],
                difference=100 * gap.value,
                ci_low=100 * gap.low,
                ci_high=100 * gap.high,
                p_mcnemar=gap.p_mcnemar,
                p_holm=corrected,
                n=answers.n,
                p_cluster=gap.p_cluster,
                verdict=_verdict(gap.value, planned_p.get(i, corrected)),
                n_needed=questions_needed(gap.value, gap.discordant, gap.design_effect, level),
                p_planned=planned_p.get(i, math.nan),
            )
        )
    return pairs


def _verdict(value: float, p: float) -> str:
    if p >= ALPHA or value == 0:
        return NO_DIFFERENCE
    return BETTER if value > 0 else WORSE


def against(pairs: Iterable[Pair], retention: float, name: str) -> dict[str, Pair]:
    """The comparisons of a block's arms with the arm ``name``, each seen from the other arm, by its name."""
    pairs_by_name: dict[str, Pair] = {}
    for pair in pairs:
        if pair.retention == retention and name in (pair.method, pair.against):
            seen = pair if pair.against == name else pair.turned()
            pairs_by_name[seen.method] = seen
    return pairs_by_name
