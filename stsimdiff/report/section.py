"""What a table is made of: a row for each arm, and sections of rows that may be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stsimdiff.evaluate.stored import REFERENCES
from stsimdiff.report.pairs import Pair

NAN = float("nan")


CONTROLS = ("random", "uniform", "spatial", "temporal")
"""How the names of the controls begin; they stand above the methods they are there to check."""


WHOLE = "all"
"""The category of every question of a benchmark that knows no kinds of questions."""


INACTIVE, EMPTY = "inactive", "empty"
FAULTS = {
    INACTIVE: "no token was dropped or merged on any compared question, so these are the numbers of all tokens",
    EMPTY: "every answer is empty",
}
"""What makes a row no result of its method, and how it is said."""


@dataclass(frozen=True)
class TableRow:
    """One arm's numbers, taken on the questions that every arm of its model and benchmark answered.

    Accuracies are percentages, retentions fractions; NaN where there is nothing to average. ``n_failed`` counts all
    failed samples of the arm, ``n_missing`` those of them whose video is missing or cannot be read. ``macro`` is the
    mean over the categories, NaN where one of them has no answer and for benchmarks that do not report it. ``values``
    are the numbers that ``columns.COLUMNS`` takes from the answers, by name.
    """

    arm: str
    method: str
    label: str
    retention: float
    budget: str
    overall: float
    ci_low: float
    ci_high: float
    retention_tokens: float
    retention_compute: float
    n: int
    n_failed: int
    categories: Mapping[str, float]
    values: Mapping[str, float]
    missed: bool = False
    best: bool = False
    macro: float = NAN
    n_missing: int = 0
    hard: float = NAN
    """Accuracy on the ``n_hard`` hard questions of the block, with its interval; see ``hard``."""
    hard_low: float = NAN
    hard_high: float = NAN
    n_hard: int = 0
    second: bool = False
    """``best`` and ``second`` of their block, to the digit that is printed; only rows that compete."""
    paper: float = NAN
    """What the paper printed for this model, benchmark, method and retention."""
    bare: bool = False
    """Whether the method has its own defaults."""
    settings: str = ""
    """What rows of one method differ in beside its parameters: equal for rows that one map may hold."""
    proposed: bool = False
    """Whether the run is about the row's method, which stands last in a block, and which others are compared with."""
    swept: Mapping[str, Any] = field(default_factory=dict)
    """Values of the method's parameters in which its arms differ, by their names."""
    equal: float = NAN
    """The label's accuracy at the median compute of the block, see ``equal_compute``."""
    relative: float = NAN
    relative_low: float = NAN
    relative_high: float = NAN
    """Accuracy in percent of that with all tokens, on the same questions, and its interval."""
    fidelity: str = ""
    """The word that the method declares; empty where it declares none."""
    fault: str = ""
    """``inactive`` where no token was dropped or merged below a retention of 1, ``empty`` where every answer was."""

    @property
    def reference(self) -> bool:
        """Whether the method has no retention of its own."""
        return self.method in REFERENCES

    @property
    def name(self) -> str:
        """The label as a table prints it, with what is wrong with the row."""
        return f"{self.label} ({self.fault})" if self.fault else self.label

    @property
    def over_budget(self) -> bool:
        """Whether the row spends more than its budget, by more than the tolerance."""
        return self.missed and getattr(self, f"retention_{self.budget}") > self.retention

    @property
    def competes(self) -> bool:
        """Whether the row is in its block's contest: it has an accuracy, a retention of its own, and keeps to it.

        A row with a fault has none of what the contest is about: the method did not act, or nothing was answered.
        """
        scored = self.n > 0 and not math.isnan(self.overall)
        return not self.reference and scored and not self.over_budget and not self.fault


@dataclass(frozen=True)
class Section:
    """The rows that may be compared with each other, in the order in which they are printed."""

    model: str
    benchmark: str
    budget: str
    categories: tuple[str, ...]
    rows: list[TableRow]
    pairs: list[Pair]
    notes: list[str]
    about: list[str]
    """What the benchmark is and is not, the provenance."""
    macro: bool = False
    """Whether the benchmark's mean over the categories is shown beside the mean over the questions."""
    verdicts: list[str] = field(default_factory=list)
    """A sentence for each block: who leads, who is not significantly different from it, who is worse."""
    planned: str = ""
    """The method that the run names as the one it is about, so that its comparisons are planned; empty: none is."""
    gate_met: bool = False
    """Whether the all-token accuracy is the paper's, so that the paper's numbers may stand beside ours."""

    def blocks(self) -> dict[float, list[TableRow]]:
        """Rows by retention, the highest retention first."""
        groups: dict[float, list[TableRow]] = {}
        for row in self.rows:
            groups.setdefault(row.retention, []).append(row)
        return groups
