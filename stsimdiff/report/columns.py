"""The table's columns: one in ``COLUMNS`` stands in the terminal, Markdown, LaTeX and CSV, on the page and in W&B."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from stsimdiff.report.section import NAN, Section, TableRow
from stsimdiff.report.text import EMPTY, Cell, Cells, number


@dataclass(frozen=True)
class Column:
    """One number or word of an arm.

    Attributes:
        name: in ``table.csv`` and in W&B; that of an attribute of a row where neither ``taken`` nor ``of`` is given.
        heading: with the unit that is printed; empty for a column of the files alone.
        taken: the number from an arm's stored answers to the compared questions, as ``rows.read_samples`` gives them.
        of: the number from what is known of the row.
        scale: what is printed, by what the files hold.
        form: how it is printed.
        show: the printed cell, where more than the number decides.
        when: in which sections it is printed; in files it stands, empty in the others, where it is in one of them.
        zeros: whether it is printed where it is 0 in the whole section.
        later: its place in files, behind all columns of a lower number.
        is_text: whether it holds text, empty where there is none.
        published: whether it rests on the paper's numbers, which its heading says where the baseline gate is not met.
    """

    name: str
    heading: str = ""
    taken: Callable[[pd.DataFrame], float] | None = None
    of: Callable[[TableRow], Any] | None = None
    scale: float = 1.0
    form: str = ".1f"
    show: Callable[[TableRow], Cell] | None = None
    when: Callable[[Section], bool] | None = None
    zeros: bool = True
    later: int = 0
    is_text: bool = False
    published: bool = False

    def value(self, row: TableRow) -> Any:
        """What the files hold of a row."""
        if self.taken is not None:
            return row.values.get(self.name, NAN)
        return self.of(row) if self.of is not None else getattr(row, self.name)

    def cell(self, row: TableRow) -> Cell:
        """What is printed of a row."""
        if self.show is not None:
            return self.show(row)
        value = self.value(row)
        return Cell(value or EMPTY) if self.is_text else number(self.scale * value, self.form)

    def header(self, section: Section) -> str:
        """Its heading in a section."""
        return f"{self.heading} (!)" if self.published and not section.gate_met else self.heading

    def is_in(self, section: Section) -> bool:
        """Whether a section has such a number."""
        return self.when is None or self.when(section)

    def is_printed(self, section: Section) -> bool:
        """Whether it stands in the printed table of a section."""
        shown = bool(self.heading) and self.is_in(section)
        return shown and (self.zeros or any(map(self.value, section.rows)))


def interval(low: float, high: float) -> Cell:
    """An interval as it is printed."""
    return Cell(EMPTY) if low != low else Cell(f"{low:.1f}–{high:.1f}", low)


def _kept(kind: str, row: TableRow) -> Cell:
    mark = "!" if row.missed and row.budget == kind else ""
    return number(100 * getattr(row, f"retention_{kind}"), mark=mark)


def _category(name: str, row: TableRow) -> float:
    return row.categories.get(name, NAN)


def _swept(name: str, row: TableRow) -> Any:
    return row.swept.get(name)


def _flops(rows: pd.DataFrame) -> float:
    return float(rows["llm_flops"].sum(min_count=1) / (rows["llm_flops_all"].sum(min_count=1) or NAN))


def share_kept(moment: Any) -> float:
    """Of a stored ``moment``, the share of its tokens that is left; NaN where there is none, or no frame shows it."""
    if not isinstance(moment, dict) or not moment["question"]["tokens"]:
        return NAN
    return moment["question"]["kept"]["in_place"] / moment["question"]["tokens"]


def _prefill(row: TableRow) -> Cell:
    value = row.values["prefill_ms"]
    return number(value, ".1f" if value >= 100 else ".2f")


def _printed(section: Section) -> bool:
    return any(row.paper == row.paper for row in section.rows)


def _relative(section: Section) -> bool:
    """Whether the accuracy with all tokens is known, so that others can be given in percent of it."""
    return any(row.relative == row.relative for row in section.rows)


def _uneven(section: Section) -> bool:
    """Whether the rows of a block differ in compute, so that their accuracies at one compute differ too."""
    return any(row.equal == row.equal and abs(row.equal - row.overall) >= 0.05 for row in section.rows)


def _hard(section: Section) -> bool:
    """Whether the run has the arms that say which questions are hard."""
    return any(row.n_hard for row in section.rows)


def _moments(section: Section) -> bool:
    """Whether stored answers know what of their question's moment was kept."""
    return any(row.values["moment_kept"] == row.values["moment_kept"] for row in section.rows)


def _decoding(section: Section) -> bool:
    """Whether a method acts while answers are decoded, so that what that costs is shown."""
    return any(row.values["kv_kept"] == row.values["kv_kept"] for row in section.rows)


def marks(row: TableRow) -> str:
    """What a reader must know of a row before comparing it, in a few words."""
    marked = {
        "best": row.best,
        "second": row.second,
        "off budget": row.missed,
        row.fault: bool(row.fault),
        "variant": row.fidelity == "variant",
        f"{row.n_failed} failed": row.n_failed,
        "no answers": not row.n,
    }
    return ", ".join(word for word, holds in marked.items() if holds)


OVERALL = Column("overall", "overall %")
COLUMNS = (
    Column("retention"),
    Column("budget"),
    Column("macro", "macro %", when=lambda section: section.macro, later=1),
    OVERALL,
    Column("ci_low", "95 % interval", show=lambda row: interval(row.ci_low, row.ci_high)),
    Column("ci_high"),
    Column("relative", "of all tokens %", when=_relative, later=1),
    Column(
        "relative_low", "95 % interval", show=lambda row: interval(row.relative_low, row.relative_high),
        when=_relative, later=1,
    ),
    Column("relative_high", when=_relative, later=1),
    Column("equal_compute", "at equal compute %", of=lambda row: row.equal, when=_uneven, later=1),
    Column("retention_tokens", "tokens kept %", show=partial(_kept, "tokens")),
    Column("retention_compute", "compute kept %", show=partial(_kept, "compute")),
    Column("llm_flops_ratio", "LLM FLOPs %", taken=_flops, scale=100),
    Column("prefill_ms", "prefill ms", taken=lambda rows: 1000 * float(rows["prefill_s"].median()), show=_prefill),
    Column(
        "kv_kept", "KV kept %", taken=lambda rows: float(rows["kv_kept"].mean()), scale=100, when=_decoding, later=1
    ),
    Column(
        "token_ms", "ms a token", taken=lambda rows: 1000 * float(rows["token_s"].median()), when=_decoding, later=1
    ),
    Column("n", "n", form=".0f"),
    Column("n_failed", "n failed", form=".0f"),
    Column("n_missing", "n video missing", form=".0f", zeros=False),
    Column("n_unparsed", "n unparsed", taken=lambda rows: int(rows["parsed"].isna().sum()), form=".0f"),
    Column("fidelity", "fidelity", zeros=False, later=3, is_text=True),
    Column("fault", later=3, is_text=True),
    Column("hard", "hard %", when=_hard, later=4),
    Column("hard_low", when=_hard, later=4),
    Column("hard_high", when=_hard, later=4),
    Column("n_hard", when=_hard, later=4),
    Column(
        "moment_kept", "moment kept %", taken=lambda rows: float(rows["moment"].map(share_kept).mean()), scale=100,
        when=_moments, later=4,
    ),
    Column("paper", "paper", when=_printed, later=3, published=True),
    Column(
        "minus_paper", "ours - paper", of=lambda row: row.overall - row.paper, form="+.1f",
        when=_printed, later=3, published=True,
    ),
)  # fmt: skip
"""In the order of printing, behind the accuracies of the categories."""


BRIEF = (
    "overall",
    "ci_low",
    "relative",
    "retention_tokens",
    "retention_compute",
    "llm_flops_ratio",
)
"""The columns of the screen at the end of a run."""


def brief_cells(section: Section) -> Cells:
    """A section's table for the screen at the end of a run: a line an arm, its budget and its marks among the cells."""
    shown = [column for name in BRIEF for column in COLUMNS if column.name == name and column.is_in(section)]
    lines = [
        [
            cell._replace(wrong=bool(row.fault))
            for cell in (
                Cell(row.label, rank=rank),
                number(100 * row.retention, ".4g"),
                *(column.cell(row)._replace(rank=rank if column is OVERALL else 0) for column in shown),
                Cell(marks(row)),
            )
        ]
        for row in section.rows
        for rank in [1 if row.best else 2 * row.second]
    ]
    return Cells(
        ["method", "budget %", *(column.header(section) for column in shown), "marks"], [("", lines)]
    )


def taken(rows: pd.DataFrame) -> dict[str, float]:
    """The numbers that columns take from an arm's answers to the compared questions."""
    return {column.name: column.taken(rows) for column in COLUMNS if column.taken is not None}


def texts(row: TableRow) -> dict[str, str]:
    """A row's texts by their names in the files; those that are empty are left out."""
    return {column.name: text for column in COLUMNS if column.is_text and (text := column.value(row))}


def published(section: Section) -> list[Column]:
    """The columns of the paper's numbers that are printed of a section."""
    return [column for column in columns(section) if column.published]


def categories(names: Sequence[str]) -> list[Column]:
    """The accuracies of the categories as columns."""
    return [Column(f"acc_{name}", name, of=partial(_category, name), later=2) for name in names]


def columns(section: Section) -> list[Column]:
    """The columns that are printed of a section, in their order."""
    return [*categories(section.categories), *(column for column in COLUMNS if column.is_printed(section))]


def in_files(sections: Sequence[Section]) -> list[Column]:
    """The columns of the files of a run, in their order."""
    names = dict.fromkeys(name for section in sections for name in section.categories)
    columns = [column for column in COLUMNS if any(map(column.is_in, sections))]
    taken_names = {"method", "model", "benchmark", *(column.name for column in COLUMNS)}
    parameters = dict.fromkeys(name for section in sections for row in section.rows for name in row.swept)
    columns += [
        Column(f"compressor.{name}" if name in taken_names else name, of=partial(_swept, name), later=4)
        for name in parameters
    ]
    return sorted([*columns, *categories(list(names))], key=lambda column: column.later)


def main_cells(section: Section) -> Cells:
    """A section's table: method, accuracy of each category, then the columns of ``COLUMNS``."""
    shown = columns(section)
    blocks = []
    for retention, rows in section.blocks().items():
        lines = []
        for row in rows:
            cells = [Cell(row.name), *(column.cell(row) for column in shown)]
            if row.best:
                cells = [cell._replace(rank=1) for cell in cells]
            elif row.second:
                ranked = [True, *(column is OVERALL for column in shown)]
                cells = [cell._replace(rank=2 * here) for cell, here in zip(cells, ranked, strict=True)]
            if row.fault:
                cells = [cell._replace(wrong=True) for cell in cells]
            lines.append(cells)
        blocks.append((block_title(retention), lines))
    headings = ["method", *(column.header(section) for column in shown)]
    return Cells(headings, blocks, result=1 + len(section.categories))


def block_title(retention: float) -> str:
    """What stands above the rows of a block."""
    return f"retention {100 * retention:.4g} %"
