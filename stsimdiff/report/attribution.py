"""Which part of ST-SimDiff turned an answer: from arms that switch its parts off one at a time.

A question is *lost* where all tokens answer it right and ST-SimDiff wrong, *gained* where it is the other way round.
The method's parts are

* ``similarity``: communities of similar tokens are thinned (stage one); off, every token goes on to stage two, which
  then drops more, down to the same budget (of kind ``tokens``, that arm so computes more: the layers up to stage two
  see every token);
* ``difference``: tokens that differ from the frame before are spared as events; off, they are treated as others are;
* ``pruning``: what is over the budget is pruned by attention (stage two); off, all that stage one leaves stays, so that
  arm keeps more than its budget.

An arm without a part has the same other parameters and the same budget, solved again where it can be. It *undoes* a
loss when it answers right, a gain when it answers wrong. The cause of a change is then

* a part, where its arm alone undoes it: without this part it had not happened;
* several parts together (``similarity and pruning``), where each of their arms undoes it: it took all of them;
* ``no single part``, where no arm undoes it: more than one part is enough for it, or dropping tokens as such is.

Answers also turn for no good reason. So the summary says beside each part how many of the questions that did *not*
change turn without it; where that number is like the number of changes that it undoes, the part explains nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from stsimdiff.report.arm import StoredArm
from stsimdiff.report.pairs import Pair, against

if TYPE_CHECKING:
    from stsimdiff.report.comparison import ArmGroup
    from stsimdiff.report.section import Section

METHOD = "st_simdiff"
PARTS = ("similarity", "difference", "pruning")
LOST, GAINED = "lost", "gained"
NO_SINGLE = "no single part"


@dataclass(frozen=True)
class ParsedAnswer:
    """An arm's answer to a question: what was read from it (None: nothing could be), and whether it is right."""

    parsed: str | None
    right: bool


@dataclass(frozen=True)
class Change:
    """A question that turned against all tokens.

    Attributes:
        change: ``lost`` or ``gained``.
        without: the answers of the arms without a part, by the part.
        cause: see the module's docstring.
    """

    id: str
    video: str
    category: str
    target: str | None
    change: str
    all_tokens: ParsedAnswer
    compressed: ParsedAnswer
    without: Mapping[str, ParsedAnswer]
    cause: str


@dataclass(frozen=True)
class Attribution:
    """What turned, and why, for one ST-SimDiff arm.

    Attributes:
        label: of the arm.
        n: questions that all arms of the comparison answered.
        changes: of them, in the order of their ids.
        differences: by part, the accuracy of the whole method minus that of the arm without the part.
        newly_wrong: by part, the questions that are right with all tokens and with the method, and wrong without it.
        newly_right: by part, the questions that are wrong with both, and right without it.
    """

    model: str
    benchmark: str
    budget: str
    retention: float
    label: str
    n: int
    changes: Sequence[Change]
    newly_wrong: Mapping[str, int]
    newly_right: Mapping[str, int]
    differences: Mapping[str, Pair] = field(default_factory=dict)

    def causes(self, change: str) -> Counter[str]:
        """How often each cause turned a question so."""
        return Counter(item.cause for item in self.changes if item.change == change)

    def undone(self, part: str, change: str) -> int:
        """Changes that the arm without the part undoes, alone or as others do too."""
        return sum(
            undoes(item.change, item.without[part].right) for item in self.changes if item.change == change
        )

    def alone(self, cause: str, change: str) -> int:
        """Changes that have just this cause."""
        return self.causes(change)[cause]

    def several(self, change: str) -> int:
        """Changes that took several parts together."""
        return sum(count for cause, count in self.causes(change).items() if " and " in cause)

    def sentence(self) -> str:
        """The counts in one sentence."""
        clauses = []
        for change, word in ((LOST, "wrong"), (GAINED, "right")):
            causes = self.causes(change)
            why = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
            clauses.append(f"{causes.total()} turned {word}{f' ({why})' if why else ''}")
        place = f"{self.label} at {100 * self.retention:.4g} % ({self.budget})"
        return f"{place}, of {self.n} questions against all tokens: {'; '.join(clauses)}."


def undoes(change: str, right: bool) -> bool:
    """Whether an answer takes a change back."""
    return right == (change == LOST)


def attributions(group: ArmGroup, sections: Sequence[Section]) -> tuple[list[Attribution], list[str]]:
    """The attributions that a group's arms allow, and what is lacking for others.

    Args:
        group: arms that may be compared.
        sections: of the group, which hold the comparisons in pairs.
    """
    results: list[Attribution] = []
    notes: list[str] = []
    if group.server:
        return results, notes
    pairs = {section.budget: section.pairs for section in sections}
    for arm in group.arms:
        if arm.method != METHOD or not all(_on(arm, part) for part in PARTS) or not _has(group, arm):
            continue
        without = {part: _without(part, arm, group) for part in PARTS}
        if not any(without.values()):
            continue  # nobody asked for an attribution
        everything = group.everything(arm)
        if everything is not None and not _has(group, everything):
            everything = None
        absent = [f"{part}=false" for part, other in without.items() if other is None]
        absent += [] if everything is not None else ["compressor=none"]
        if absent or everything is None:
            notes.append(
                f"No attribution for {group.labels[arm.id]} at {100 * arm.retention:.4g} % ({arm.kind}): no answers of "
                f"an arm with {', '.join(absent)}; experiment=attribution has them all."
            )
        else:
            result = _attribution(group, everything, arm, without)
            minus = against(pairs.get(arm.kind, ()), arm.retention, group.labels[arm.id])
            names = {part: group.labels[other.id] for part, other in without.items() if other is not None}
            apart = {part: minus[name].turned() for part, name in names.items() if name in minus}
            results.append(replace(result, differences=apart))
    return sorted(results, key=lambda result: (result.budget, -result.retention)), notes


def _has(group: ArmGroup, arm: StoredArm) -> bool:
    return bool(group.common) and len(group.answered[arm.id]) > 0


def _on(arm: StoredArm, part: str) -> bool:
    """Whether a part is at work; runs from before it could be switched off do not name it."""
    return bool(arm.compressor.get(part, True))


def _without(part: str, arm: StoredArm, group: ArmGroup) -> StoredArm | None:
    """The arm that differs from this one in nothing but a part that is off; None where it has no answers."""
    wanted = _setting(arm) | {part: False}
    rest = [group.settings[arm.id], *map(arm.record.get, ("seed", "code"))]
    for other in group.arms:
        same = other.method == METHOD and (other.kind, other.retention) == (arm.kind, arm.retention)
        alike = [group.settings[other.id], *map(other.record.get, ("seed", "code"))] == rest
        if same and alike and _setting(other) == wanted:
            return other if _has(group, other) else None
    return None


def _setting(arm: StoredArm) -> dict[str, Any]:
    return dict.fromkeys(PARTS, True) | dict(arm.compressor)


def _attribution(
    group: ArmGroup, everything: StoredArm, arm: StoredArm, without: Mapping[str, StoredArm | None]
) -> Attribution:
    before, after = _answers(group, everything), _answers(group, arm)
    off = {part: _answers(group, other) for part, other in without.items() if other is not None}
    about = group.answered[arm.id]
    changes: list[Change] = []
    newly_wrong: Counter[str] = Counter()
    newly_right: Counter[str] = Counter()
    for id_ in group.common:
        answers = {part: outcome[id_] for part, outcome in off.items()}
        if before[id_].right == after[id_].right:
            for part, answer in answers.items():
                newly_wrong[part] += before[id_].right and not answer.right
                newly_right[part] += answer.right and not before[id_].right
            continue
        change = LOST if before[id_].right else GAINED
        parts = [part for part in PARTS if undoes(change, answers[part].right)]
        row = about.loc[id_]
        target = None if pd.isna(row["target"]) else str(row["target"])
        outcome = (before[id_], after[id_], answers, " and ".join(parts) or NO_SINGLE)
        changes.append(Change(str(id_), str(row["video"]), str(row["category"]), target, change, *outcome))
    place = (group.model, group.benchmark, arm.kind, arm.retention, group.labels[arm.id])
    return Attribution(*place, len(group.common), changes, newly_wrong, newly_right)


def _answers(group: ArmGroup, arm: StoredArm) -> dict[str, ParsedAnswer]:
    rows = group.compared[arm.id]
    return {
        id_: ParsedAnswer(None if pd.isna(parsed) else str(parsed), bool(right))
        for id_, parsed, right in zip(rows.index, rows["parsed"], rows["correct"], strict=True)
    }
