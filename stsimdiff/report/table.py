"""The table of a run, made from its stored rows alone, and the files it is written to.

A section for each model, benchmark (with its data, prompt and frames) and kind of budget; in it a block for each
retention; in that a row for each arm. The numbers are made in ``comparison``, how they look in ``render``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from stsimdiff.errors import DataError
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.attribution import Attribution, attributions
from stsimdiff.report.breakdown import BreakdownRow, breakdown
from stsimdiff.report.columns import in_files
from stsimdiff.report.comparison import ArmGroup
from stsimdiff.report.labels import questions_key
from stsimdiff.report.moments import MomentRow, moments
from stsimdiff.report.overlays import anchors
from stsimdiff.report.pairs import Pair
from stsimdiff.report.reasons import reasons
from stsimdiff.report.rows import StoredRun
from stsimdiff.report.section import Section


@dataclass(frozen=True)
class Table:
    """A run's table.

    Attributes:
        run: name of the run's folder.
        n_failed: samples that failed, over all arms.
        attributions: what turned the answers, where the run has the arms for it.
        anchors: places on the page of the questions with a stored overlay, by benchmark and question.
        parts: accuracies by the values of a column, where one was asked for.
        reasons: for each row why its tokens stayed, see ``reasons``.
        moments: for each row what of the questions' moments it kept, see ``moments``.
    """

    run: str
    sections: list[Section]
    n_failed: int
    notes: list[str] = field(default_factory=list)
    attributions: list[Attribution] = field(default_factory=list)
    anchors: Mapping[tuple[str, str], str] = field(default_factory=dict)
    parts: list[BreakdownRow] = field(default_factory=list)
    reasons: list[dict[str, Any]] = field(default_factory=list)
    moments: list[MomentRow] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """The rows as ``table.csv`` holds them; model and benchmark lead where a run has several."""
        several = len({(section.model, section.benchmark) for section in self.sections}) > 1
        columns = in_files(self.sections)
        lines = []
        for section in self.sections:
            for row in section.rows:
                place = {"model": section.model, "benchmark": section.benchmark} if several else {}
                lines.append(
                    place | {"method": row.label} | {column.name: column.value(row) for column in columns}
                )
        return pd.DataFrame(lines)

    def pairs(self) -> pd.DataFrame:
        """The comparisons in pairs as ``pairs.csv`` holds them."""
        lines = [
            {"model": section.model, "benchmark": section.benchmark} | vars(pair)
            for section in self.sections
            for pair in section.pairs
        ]
        return pd.DataFrame(lines, columns=["model", "benchmark", *Pair.__dataclass_fields__])


def build(stored: StoredRun, column: str | None = None) -> Table:
    """A run's table without writing or printing anything.

    Args:
        stored: what ``rows.read`` found.
        column: of the benchmark's rows, whose values the accuracies are broken down by.

    Raises:
        DataError: for a column that no benchmark's rows have.
    """
    groups: dict[tuple, list[StoredArm]] = {}
    for arm in stored.arms:
        groups.setdefault((arm.model, *questions_key(arm)), []).append(arm)
    sections, results, notes = [], [], list(stored.notes)
    parts: list[BreakdownRow] = []
    why: list[dict[str, Any]] = []
    times: list[MomentRow] = []
    unknown: list[DataError] = []
    for arms in groups.values():
        group = ArmGroup(arms, stored.samples, stored.models[arms[0].id], stored.benchmarks[arms[0].id])
        compared = group.sections()
        sections += compared
        attributed, absent = attributions(group, compared)
        results += attributed
        notes += absent
        why += [line for section in compared for line in reasons(group, section)]
        times += [row for section in compared for row in moments(group, section)]
        for section in compared if column else ():
            try:
                rows, remarks = breakdown(group, section, str(column))
            except DataError as error:
                unknown.append(error)
                continue
            parts += rows
            notes += [remark for remark in remarks if remark not in notes]
    if unknown and not parts:
        raise unknown[0]
    notes += dict.fromkeys(map(str, unknown))
    failed = int(stored.samples["failed"].sum())
    return Table(stored.run, sections, failed, notes, results, anchors(stored.samples), parts, why, times)
