"""A table as LaTeX, for a paper: booktabs, the best of a block bold and the second underlined.

First comes the layout that papers use, methods by benchmarks with the paper's own numbers beside; then, for each
section, what it cost, the comparisons in pairs, and the warnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stsimdiff.report import render
from stsimdiff.report.render import EMPTY, Cells, number
from stsimdiff.report.section import Row, Section

if TYPE_CHECKING:
    from stsimdiff.report.table import Table


def latex(table: Table) -> str:
    """All tables of a run; needs the package booktabs only."""
    parts = [f"% {_tex(table.run)}: made from the stored rows; needs \\usepackage{{booktabs}}"]
    for sections in _together(table.sections):
        parts.append(_layout(sections))
    for section in table.sections:
        notes = [*section.verdicts, *section.notes, *section.about, *table.notes]
        parts.append(_float(f"{render.title(section)}: what it cost.", _costs(section), notes))
        cells = render.pair_cells(section)
        if cells.blocks:
            parts.append(_float(f"{render.PAIRS_TITLE}.", cells, [render.pairs_note(section)]))
    parts.append(_float(f"{render.paper_title(table)}.", render.paper_cells(), []))
    return "\n\n".join(parts) + "\n"


def _together(sections: Sequence[Section]) -> list[list[Section]]:
    """Sections that differ in their benchmark alone: papers print them side by side."""
    found: dict[tuple[str, str], list[Section]] = {}
    for section in sections:
        found.setdefault((section.model, section.budget), []).append(section)
    return list(found.values())


def _costs(section: Section) -> Cells:
    """The main table without its families, which stand in the layout."""
    cells = render.main_cells(section)
    return cells.take([0, *range(1 + len(section.families), len(cells.heads))])


@dataclass(frozen=True)
class Column:
    """A column of the layout: a number of a benchmark's row, ranked within its block or not."""

    head: str
    value: Callable[[Row], float]
    shown: Callable[[float], str] = number
    ranked: bool = True


def _family(name: str, row: Row) -> float:
    return row.families[name]


def _columns(section: Section) -> list[Column]:
    families = section.families if len(section.families) > 1 else ()
    columns = [Column(name, partial(_family, name)) for name in families]
    columns.append(Column("overall", lambda row: row.overall))
    heads = [head for head, _ in render.paper_columns(section)]
    if heads:
        columns.append(Column(heads[0], lambda row: row.paper, ranked=False))
        columns.append(Column(heads[1], lambda row: row.overall - row.paper, render.signed, ranked=False))
    return columns


def _layout(sections: Sequence[Section]) -> str:
    """Methods down, benchmarks across, a block for each retention: the paper's Table 1 with our numbers."""
    groups = [(section, _columns(section)) for section in sections]
    width = 1 + sum(len(columns) for _, columns in groups)
    first = sections[0]
    caption = f"{first.model}, budget of kind {first.budget}. Accuracy in %; best bold, second underlined."
    lines = [*_head(caption, width), _groups_line(groups), _rules(groups)]
    heads = [column.head for _, columns in groups for column in columns]
    lines.append(_line(map(_tex, ["method", *heads])))
    retentions = dict.fromkeys(r for section in sections for r in section.blocks())
    for retention in sorted(retentions, reverse=True):
        lines += _block_title(f"retention {100 * retention:.4g} %", width)
        blocks = [(section.blocks().get(retention, []), columns) for section, columns in groups]
        marked = [_marked(rows, columns) for rows, columns in blocks]
        for label in dict.fromkeys(row.label for rows, _ in blocks for row in rows):
            cells = [_tex(label)]
            for lines_of, (_, columns) in zip(marked, blocks, strict=True):
                cells += lines_of.get(label, [_tex(EMPTY)] * len(columns))
            lines.append(_line(cells))
    warnings = dict.fromkeys(
        note for section in sections for note in section.notes if "gate" in note or "Fidelity" in note
    )
    notes = [f"{section.benchmark}: {said}" for section in sections for said in section.verdicts]
    return "\n".join([*lines, *_tail([*warnings, *notes])])


def _marked(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, list[str]]:
    """The cells of a block's rows, by label; in a ranked column the best is bold and the second underlined."""
    cells: dict[str, list[str]] = {row.label: [] for row in rows}
    for column in columns:
        shown = {row.label: column.shown(column.value(row)) for row in rows}
        rivals = [row for row in rows if row.competes and not math.isnan(column.value(row))]
        # To the printed digit: what a reader sees as equal shares its place.
        places = sorted({float(shown[row.label]) for row in rivals}, reverse=True) if column.ranked else []
        for row in rows:
            text = _tex(shown[row.label])
            if len(rivals) > 1 and row in rivals and float(shown[row.label]) in places[:2]:
                text = rf"\textbf{{{text}}}" if float(text) == places[0] else rf"\underline{{{text}}}"
            cells[row.label].append(text)
    return cells


def _groups_line(groups: Sequence[tuple[Section, Sequence[Column]]]) -> str:
    named = [
        rf"\multicolumn{{{len(columns)}}}{{c}}{{{_tex(section.benchmark)}}}" for section, columns in groups
    ]
    return _line(["", *named])


def _rules(groups: Sequence[tuple[Section, Sequence[Column]]]) -> str:
    start, rules = 2, []
    for _, columns in groups:
        rules.append(rf"\cmidrule(lr){{{start}-{start + len(columns) - 1}}}")
        start += len(columns)
    return "".join(rules)


def _float(caption: str, cells: Cells, notes: Sequence[str]) -> str:
    width = len(cells.heads)
    lines = [*_head(caption, width), _line(map(_tex, cells.heads))]
    for b, (name, block) in enumerate(cells.blocks):
        lines += _block_title(name, width)
        for i, line in enumerate(block):
            shown = [_tex(cell) for cell in line]
            if (b, i) in cells.bold:
                shown = [rf"\textbf{{{cell}}}" for cell in shown]
            elif (b, i) in cells.underlined:
                places = zip(cells.heads, shown, strict=True)
                shown = [rf"\underline{{{cell}}}" if head in render.RANKED else cell for head, cell in places]
            lines.append(_line(shown))
    return "\n".join([*lines, *_tail(notes)])


def _head(caption: str, width: int) -> list[str]:
    return [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
    ]


def _block_title(name: str, width: int) -> list[str]:
    return [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(name)}}}}} \\"]


def _tail(notes: Sequence[str]) -> list[str]:
    below = [rf"\par\smallskip\raggedright {_tex(note)}" for note in notes]
    return [r"\bottomrule", r"\end{tabular}", *below, r"\end{table}"]


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))
