"""Why video tokens stayed: of all that entered the model, how many ended with which reason, arm by arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from stsimdiff.report import text
from stsimdiff.report.columns import block_title
from stsimdiff.report.text import Cell, Cells, csv, escaped, number

if TYPE_CHECKING:
    from stsimdiff.report.comparison import ArmGroup
    from stsimdiff.report.section import Section

NAME = "reasons"
PLACE = ("model", "benchmark", "budget", "retention", "method")
MEANING = (
    "Of all video tokens that entered the model, the share in % that ended with each reason, over the questions that "
    "all arms answered. A method may name reasons of its own; what the others mean is in docs/report.md."
)


def reasons(group: ArmGroup, section: Section) -> list[dict[str, Any]]:
    """For each row of the section the share in % of each reason, and where the row stands (:data:`PLACE`)."""
    lines = []
    for row in section.rows:
        counts: Counter[str] = Counter()
        for stored in group.compared[row.arm][NAME]:
            for name, count in stored.items() if isinstance(stored, dict) else ():
                counts[name] += count
        total = counts.total()
        if total:
            shares = {name: 100 * count / total for name, count in sorted(counts.items())}
            place = (section.model, section.benchmark, row.budget, row.retention, row.label)
            lines.append({**dict(zip(PLACE, place, strict=True)), **shares})
    return lines


def files(lines: Sequence[dict[str, Any]], run: str) -> dict[str, str | None]:
    """``reasons.md`` and ``reasons.csv`` by name; None where no stored answer knows its reasons."""
    if not lines:
        return {f"{NAME}.md": None, f"{NAME}.csv": None}
    blocks = [f"# {escaped(run)}: why video tokens stayed", escaped(MEANING)]
    sections: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        sections.setdefault(tuple(line[name] for name in PLACE[:3]), []).append(line)
    for (model, benchmark, budget), section_lines in sections.items():
        blocks += [
            f"## {escaped(f'{model} on {benchmark}, budget of kind {budget}')}",
            text.markdown(_cells(section_lines)),
        ]
    return {f"{NAME}.md": "\n\n".join(blocks) + "\n", f"{NAME}.csv": csv(pd.DataFrame(lines).fillna(0.0))}


def _cells(lines: Sequence[dict[str, Any]]) -> Cells:
    names = list(dict.fromkeys(name for line in lines for name in line if name not in PLACE))
    blocks: dict[float, list[list[Cell]]] = {}
    for line in lines:
        shares = [number(line.get(name, 0.0)) for name in names]
        blocks.setdefault(line["retention"], []).append([Cell(line["method"]), *shares])
    return Cells(["method", *names], [(block_title(retention), rows) for retention, rows in blocks.items()])
