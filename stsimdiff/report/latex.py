"""A run's table for a paper: the numbers alone, what a reader must know as notes below, the rest as comments.

Methods stand one below the other, benchmarks side by side, a block for each retention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stsimdiff.budget import TOLERANCE
from stsimdiff.errors import ConfigError
from stsimdiff.report import columns, text
from stsimdiff.report.columns import OVERALL, Column, block_title, categories, published
from stsimdiff.report.labels import greek
from stsimdiff.report.section import FAULTS
from stsimdiff.report.text import EMPTY, Cell, Cells, tex
from stsimdiff.schema import suggestion

if TYPE_CHECKING:
    from stsimdiff.report.section import Section, TableRow
    from stsimdiff.report.table import Table

CATEGORIES = "categories"
"""Stands for the accuracies of all of a benchmark's categories where columns are chosen."""
RANKED = ("overall", "macro", "relative", "equal_compute", "hard")
"""Columns whose highest numbers are marked, beside those of the categories."""
URGENT = ("Baseline gate", "Fidelity", "FAILED", "NOT FINISHED", "NO ANSWERS", "ROWS DIFFER", "MOSTLY UNREAD")
"""How notes begin without which the numbers would mislead."""


def check(table: Table, chosen: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a column that no section of the table has."""
    names = {
        CATEGORIES: None,
        **{column.name: None for section in table.sections for column in _offered(section)},
    }
    for name in chosen:
        if name not in names:
            raise ConfigError(
                f"columns={name} is unknown; allowed, with commas between them: {', '.join(names)}"
                f"{suggestion(name, names)}"
            )


def latex(table: Table, chosen: Sequence[str] = ()) -> str:
    """``table.tex``: for each model and kind of budget a ``threeparttable`` that goes into a float of the paper's own.

    Args:
        table: the run's.
        chosen: names of columns as in ``table.csv``, ``categories`` among them; if empty, the categories, the overall
            accuracy and the paper's numbers.
    """
    together: dict[tuple[str, str], list[Section]] = {}
    for section in table.sections:
        together.setdefault((section.model, section.budget), []).append(section)
    about = dict.fromkeys(
        line for section in table.sections for line in [*section.about[1:], *section.verdicts]
    )
    parts = [
        r"% needs \usepackage{booktabs,threeparttable}; stands in "
        r"\begin{table}\centering\caption{...}\input{table}\end{table}",
        *(_threeparttable(sections, chosen) for sections in together.values()),
        "\n".join(f"% {' '.join(line.split())}" for line in [*about, *table.notes]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _threeparttable(sections: Sequence[Section], chosen: Sequence[str]) -> str:
    notes: dict[str, str] = {}
    cells = _layout(sections, chosen, notes)
    first = sections[0]
    counted = ", ".join(
        f"{max(row.n for row in section.rows)} of {section.benchmark}" for section in sections
    )
    sentences = [
        f"{first.model}, budget of kind {first.budget}. Accuracy in %; best bold, second underlined. "
        f"Questions: {counted}.",
        *(section.about[0] for section in sections if section.about),
        *(note for section in sections for note in section.notes if note.startswith(URGENT)),
    ]
    return "\n".join(
        [
            r"\begin{threeparttable}",
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            text.latex(cells),
            r"\begin{tablenotes}[flushleft]",
            *(rf"\item {tex(note)}" for note in dict.fromkeys(sentences)),
            *(rf"\item[{letter}] {tex(note)}" for note, letter in notes.items()),
            r"\end{tablenotes}",
            r"\end{threeparttable}",
        ]
    )


def _remarks(row: TableRow) -> list[str]:
    """What a reader must know of a row before comparing its numbers."""
    sentences = [f"{FAULTS[row.fault].capitalize()}."] if row.fault else []
    if row.missed:
        sentences.append(
            f"Off its budget by more than {100 * TOLERANCE:.0f} % (relative, mean over the questions)."
        )
    return sentences


def _layout(sections: Sequence[Section], chosen: Sequence[str], notes: dict[str, str]) -> Cells:
    groups = [(section, _columns(section, chosen)) for section in sections]
    groups = [(section, shown) for section, shown in groups if shown]
    blocks = []
    retentions = dict.fromkeys(r for section in sections for r in section.blocks())
    for retention in sorted(retentions, reverse=True):
        parts = [(section.blocks().get(retention, []), shown) for section, shown in groups]
        marked = [_marked(rows, shown, notes) for rows, shown in parts]
        lines = []
        for label in dict.fromkeys(row.label for rows, _ in parts for row in rows):
            line = [Cell(greek(label))]
            for ranked, (_, shown) in zip(marked, parts, strict=True):
                line += ranked.get(label, [Cell(EMPTY)] * len(shown))
            lines.append(line)
        blocks.append((block_title(retention), lines))
    headings = ["method", *(column.header(section) for section, shown in groups for column in shown)]
    return Cells(headings, blocks, above=[(section.benchmark, len(shown)) for section, shown in groups])


def _offered(section: Section) -> list[Column]:
    known = [column for column in columns.COLUMNS if column.heading and column.is_in(section)]
    return [*categories(section.categories), *known]


def _columns(section: Section, chosen: Sequence[str]) -> list[Column]:
    """The columns of a section, those that were chosen in the order in which they were."""
    per_category = categories(section.categories) if len(section.categories) > 1 else []
    overall = replace(OVERALL, heading="overall")
    if not chosen:
        return [*per_category, overall, *published(section)]
    named = {column.name: [column] for column in _offered(section)} | {
        CATEGORIES: per_category,
        OVERALL.name: [overall],
    }
    return [column for name in dict.fromkeys(chosen) for column in named.get(name, [])]


def _marked(
    rows: Sequence[TableRow], shown: Sequence[Column], notes: dict[str, str]
) -> dict[str, list[Cell]]:
    """The cells of a block's rows, by label, with the best and the second of each accuracy that is ours.

    A remark on a row gets a letter in ``notes``, which stands at the row's accuracy.
    """
    cells_by_label: dict[str, list[Cell]] = {row.label: [] for row in rows}
    for column in shown:
        # A mark such as "!" is a note here.
        cells = {row.label: (cell := column.cell(row))._replace(text=cell.text.rstrip("!")) for row in rows}
        # To the printed digit: what a reader sees as equal shares its rank.
        rivals = {
            row.label: round(value, 1)
            for row in rows
            if row.competes and (value := cells[row.label].value) is not None
        }
        ranked = len(rivals) > 1 and (column.name in RANKED or column.name.startswith("acc_"))
        best = sorted(set(rivals.values()), reverse=True)[:2] if ranked else []
        for label, cell in cells.items():
            rank = 1 + best.index(rivals[label]) if rivals.get(label) in best else 0
            cells_by_label[label].append(cell._replace(rank=rank))
    if shown:
        names = [column.name for column in shown]
        at = names.index(OVERALL.name) if OVERALL.name in names else 0
        for row in rows:
            letters = [notes.setdefault(remark, chr(ord("a") + len(notes))) for remark in _remarks(row)]
            cells_by_label[row.label][at] = cells_by_label[row.label][at]._replace(note=",".join(letters))
    return cells_by_label
