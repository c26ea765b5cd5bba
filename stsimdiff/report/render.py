"""A table as text: Markdown and the terminal; ``latex`` makes the rest. Numbers are formatted here, made elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from stsimdiff.report.pairs import Pair, against
from stsimdiff.report.paper import TABLE1, paper_table, printed_column
from stsimdiff.report.section import PROPOSED
from stsimdiff.report.verdict import leader
from stsimdiff.terminal import Console

if TYPE_CHECKING:
    from stsimdiff.report.section import Row, Section
    from stsimdiff.report.table import Table

EMPTY = "–"
LABEL_WIDTH = (12, 20)
"""Characters that names of methods get where room is short; longer ones go over several lines."""

PAPER_HEADS = {
    "videomme_short": "VideoMME short",
    "videomme_medium": "VideoMME medium",
    "videomme_long": "VideoMME long",
    "videomme_overall": "VideoMME overall",
    "longvideobench_relation": "LVB relation",
    "longvideobench_perception": "LVB perception",
    "longvideobench_overall": "LVB overall",
    "egoschema": "EgoSchema",
}


@dataclass(frozen=True)
class Cells:
    """What all three outputs print: a heading a column, and blocks of lines under a title each."""

    heads: list[str]
    blocks: list[tuple[str, list[list[str]]]]
    bold: frozenset[tuple[int, int]] = frozenset()
    underlined: frozenset[tuple[int, int]] = frozenset()
    """(block, line) of the best methods, and of the second."""

    def take(self, columns: Sequence[int]) -> Cells:
        """The same lines with only these columns."""
        blocks = [(title, [[line[i] for i in columns] for line in lines]) for title, lines in self.blocks]
        return Cells([self.heads[i] for i in columns], blocks, self.bold, self.underlined)


RANKED = ("method", "overall %")
"""Heads of the columns in which the second is underlined."""


def _headed(cells: Cells, line: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(cells.heads, line, strict=True)


def number(value: float, digits: int = 1) -> str:
    """A number with fixed digits, or a dash where there is none."""
    return EMPTY if math.isnan(value) else f"{value:.{digits}f}"


def _prefill(row: Row) -> str:
    return number(row.prefill_ms, 1 if row.prefill_ms >= 100 else 2)


def _kept(kind: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        mark = "!" if row.missed and row.budget == kind else ""
        return number(100 * getattr(row, f"retention_{kind}")) + mark

    return cell


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("overall %", lambda row: number(row.overall)),
    ("95 % interval", lambda row: interval(row.ci_low, row.ci_high)),
    ("tokens kept %", _kept("tokens")),
    ("compute kept %", _kept("compute")),
    ("LLM FLOPs %", lambda row: number(100 * row.llm_flops_ratio)),
    ("prefill ms", _prefill),
    ("n", lambda row: str(row.n)),
    ("n failed", lambda row: str(row.n_failed)),
    ("n unparsed", lambda row: str(row.n_unparsed)),
)


def columns_of(section: Section) -> list[tuple[str, Callable[[Row], str]]]:
    """The columns of a section: ``COLUMNS``, the mean over the families where the benchmark has one, what decoding
    costs where a method acts then, and how many questions lack a usable video where some do."""
    shown = list(COLUMNS)
    if section.macro:
        shown.insert(0, ("macro %", lambda row: number(row.macro)))
    if section.decoding:
        after = [head for head, _ in shown].index("prefill ms") + 1
        shown[after:after] = [
            ("KV kept %", lambda row: number(100 * row.kv_kept)),
            ("ms a token", lambda row: number(row.token_ms)),
        ]
    if any(row.n_missing for row in section.rows):
        after = [head for head, _ in shown].index("n failed") + 1
        shown.insert(after, ("n video missing", lambda row: str(row.n_missing)))
    return shown


def interval(low: float, high: float) -> str:
    """An interval as it is printed, or a dash where there is none."""
    return EMPTY if math.isnan(low) else f"{low:.1f}–{high:.1f}"


def paper_columns(section: Section) -> list[tuple[str, Callable[[Row], str]]]:
    """The paper's number and ours minus it, where it printed any; marked where the baseline gate is not met."""
    if all(math.isnan(row.paper) for row in section.rows):
        return []
    mark = "" if section.gate_met else " (!)"
    return [
        (f"paper{mark}", lambda row: number(row.paper)),
        (f"ours - paper{mark}", lambda row: signed(row.overall - row.paper)),
    ]


def signed(value: float) -> str:
    """A difference with its sign, or a dash where there is none."""
    return EMPTY if math.isnan(value) else f"{value:+.1f}"


def main_cells(section: Section) -> Cells:
    """Method, accuracy of each family, then the columns of ``COLUMNS``."""
    columns = [*columns_of(section), *paper_columns(section)]
    heads = ["method", *section.families, *(head for head, _ in columns)]
    blocks: list[tuple[str, list[list[str]]]] = []
    bold: set[tuple[int, int]] = set()
    second: set[tuple[int, int]] = set()
    for retention, rows in section.blocks().items():
        lines: list[list[str]] = []
        for row in rows:
            if row.best:
                bold.add((len(blocks), len(lines)))
            if row.second:
                second.add((len(blocks), len(lines)))
            families = [number(row.families[name]) for name in section.families]
            lines.append([row.label, *families, *(cell(row) for _, cell in columns)])
        blocks.append((f"retention {100 * retention:.4g} %", lines))
    return Cells(heads, blocks, frozenset(bold), frozenset(second))


def pair_cells(section: Section) -> Cells:
    """Differences in pairs, a block for each retention; ``pairs.csv`` holds them all."""
    blocks: dict[float, list[list[str]]] = {}
    for pair in shown_pairs(section):
        blocks.setdefault(pair.retention, []).append(pair_line(pair))
    heads = [
        "method",
        "minus",
        "points",
        "95 % interval",
        "McNemar p",
        "clustered p",
        "Holm p",
        "verdict",
        "n needed",
    ]
    return Cells(heads, [(f"retention {100 * r:.4g} %", lines) for r, lines in blocks.items()])


def shown_pairs(section: Section) -> list[Pair]:
    """Of each block every arm against the leader and against the proposed method, and these two against all tokens.

    The proposed method is the one with its own defaults, or the first of its variants where the block has no such arm.
    """
    found: dict[tuple[float, frozenset[str]], Pair] = {}
    for retention, rows in section.blocks().items():
        variants = [row for row in rows if row.method == PROPOSED]
        proposed = [row for row in variants if row.bare] or variants[:1]
        first = leader(rows)
        anchors = [row.label for row in ([first] if first else []) + proposed]
        for anchor in dict.fromkeys(anchors):
            for name, pair in against(section.pairs, retention, anchor).items():
                found.setdefault((retention, frozenset((name, anchor))), pair)
        for row in rows:
            if row.reference:
                found.update(
                    ((retention, frozenset((pair.method, pair.against))), pair)
                    for pair in section.pairs
                    if pair.retention == retention and pair.method == row.label
                )
    labelled = {(row.retention, row.label): row for row in section.rows}
    full = {row.label for row in section.rows if row.method == "none"}
    return [_forwards(pair, labelled, full) for pair in found.values()]


def _forwards(pair: Pair, rows: Mapping[tuple[float, str], Row], full: Collection[str]) -> Pair:
    """All tokens are what one subtracts, also where they were what the others are seen from; and so is a variant of
    the proposed method, from the method itself: what a part or a setting of it is worth."""
    if pair.against in full:
        return pair
    method, against_ = (rows.get((pair.retention, name)) for name in (pair.method, pair.against))
    if (
        method
        and against_
        and method.method == against_.method == PROPOSED
        and against_.bare
        and not method.bare
    ):
        return pair.turned()
    return pair.turned() if pair.method in full else pair


def pair_line(pair: Pair) -> list[str]:
    """The cells of a comparison, under the heads of ``pair_cells``."""
    bounds = EMPTY if math.isnan(pair.ci_low) else f"{pair.ci_low:+.1f} to {pair.ci_high:+.1f}"
    return [
        pair.method,
        pair.against,
        f"{pair.difference:+.1f}",
        bounds,
        *(f"{p:.3f}" if p >= 0.001 else "<0.001" for p in (pair.p_mcnemar, pair.p_cluster, pair.p_holm)),
        pair.verdict,
        EMPTY if math.isinf(pair.n_needed) else f"{pair.n_needed:.0f}",
    ]


def difference_line(pair: Pair) -> str:
    """A comparison in a sentence: ``a minus b: +1.2 points (-0.3 to 2.7), Holm p 0.120: better``."""
    line = pair_line(pair)
    return (
        f"{pair.method} minus {pair.against}: {line[2]} points ({line[3]}), Holm p {line[6]}: {pair.verdict}"
    )


def paper_cells() -> Cells:
    """The paper's main table; an empty cell stays empty."""
    frame = paper_table(TABLE1)
    names = [name for name in PAPER_HEADS if name in frame]
    blocks = [
        (
            f"retention {100 * float(retention):.4g} %",
            [
                [line["method"], *("" if pd.isna(line[name]) else f"{line[name]:.1f}" for name in names)]
                for _, line in rows.iterrows()
            ],
        )
        for retention, rows in sorted(frame.groupby("retention"), reverse=True)
    ]
    return Cells(["method", *(PAPER_HEADS[name] for name in names)], blocks)


def paper_title(table: Table) -> str:
    """Whose numbers they are and on what data, so that nobody takes them for ours."""
    same = all(printed_column(section.benchmark) for section in table.sections)
    return (
        "The PAPER'S Table 1 (arXiv 2605.22158): the authors' printed numbers, not ours, "
        f"{'on their runs of' if same else 'on other data:'} VideoMME, LongVideoBench (LVB) and EgoSchema "
        "with LLaVA-Video-7B, 64 frames; accuracy in %, an empty cell was not available"
    )


def title(section: Section) -> str:
    """What stands above the table of a section."""
    counted = {
        "tokens": "video tokens left after the last drop",
        "compute": "mean over the decoder's layers of the video tokens entering each",
    }[section.budget]
    return f"{section.model} on {section.benchmark}, budget of kind {section.budget} ({counted})"


PAIRS_TITLE = "Differences in pairs, in points, on the same questions"


def pairs_note(section: Section) -> str:
    """How the comparisons were made, and which of the two tests decides."""
    if not shown_pairs(section):
        return (
            f"None of the {len(section.pairs)} differences in pairs is shown, since no block has a leader or the "
            "proposed method; pairs.csv holds them."
        )
    return (
        f"Interval and clustered p: videos counted, not questions. McNemar's exact p takes questions as independent. A "
        f"difference is called one (better, worse) where Holm's correction of the larger of both, over all "
        f"{len(section.pairs)} pairs of this table, is below 0.05; an interval stands for its pair alone. n needed: "
        "questions that would tell such a difference in such a table, with 80 % power."
    )


# Markdown


def markdown(table: Table) -> str:
    """The whole report as GitHub Markdown."""
    parts = [f"# {escaped(table.run)}"]
    for section in table.sections:
        parts += [f"## {escaped(title(section))}", _md_list(section.verdicts), _md_grid(main_cells(section))]
        parts.append(_md_list(section.notes))
        if section.pairs:
            cells = pair_cells(section)
            parts += [f"{escaped(PAIRS_TITLE)}:", _md_grid(cells)] if cells.blocks else []
            parts.append(_md_list([pairs_note(section)]))
        parts.append(_md_list(section.about))
    if table.notes:
        parts.append(_md_list(table.notes))
    parts += ["## The paper's numbers", f"{escaped(paper_title(table))}.", _md_grid(paper_cells())]
    return "\n\n".join(parts) + "\n"


def _md_grid(cells: Cells) -> str:
    lines = [grid_line(map(escaped, cells.heads)), grid_line([":---", *["---:"] * (len(cells.heads) - 1)])]
    for b, (name, block) in enumerate(cells.blocks):
        lines.append(grid_line([f"*{escaped(name)}*", *[""] * (len(cells.heads) - 1)]))
        for i, line in enumerate(block):
            shown = [escaped(cell) for cell in line]
            if (b, i) in cells.bold:
                shown = [f"**{cell}**" for cell in shown]
            elif (b, i) in cells.underlined:
                shown = [
                    f"<ins>{cell}</ins>" if head in RANKED else cell for head, cell in _headed(cells, shown)
                ]
            lines.append(grid_line(shown))
    return "\n".join(lines)


def grid_line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _md_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def escaped(text: str) -> str:
    """Escapes what GitHub's Markdown would read as markup (an underscore within a word is none)."""
    return re.sub(r"([\\|*`<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


# Terminal


def show(table: Table, console: Console) -> None:
    """Prints the report; columns that do not fit the width become further tables of the same methods."""
    for section in table.sections:
        console.print(Text(f"\n{table.run}: {title(section)}", style="bold"))
        cells, result = main_cells(section), 1 + len(section.families)
        _print_cells(console, cells, [range(1, result), range(result, len(cells.heads))])
        _print_lines(console, section.notes)
        if section.pairs:
            cells = pair_cells(section)
            if cells.blocks:
                console.print(Text(f"\n{PAIRS_TITLE}:", style="bold"))
                _print_cells(console, cells, [range(1, len(cells.heads))])
            _print_lines(console, [pairs_note(section)])
        _print_lines(console, section.about)
    _print_lines(console, table.notes)
    console.print(Text(f"\n{paper_title(table)}:", style="bold"))
    cells = paper_cells()
    _print_cells(console, cells, [range(1, len(cells.heads))])


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        grid = Grid.grid(padding=(0, 1))
        grid.add_row("-", Text(line, overflow="fold"))
        console.print(grid)


def _print_cells(console: Console, cells: Cells, groups: Sequence[Sequence[int]]) -> None:
    """One grid when everything fits; else the last group (the result) first, each cut into what fits."""
    lines = [line for _, block in cells.blocks for line in block]
    widths = [
        max((cell_len(text) for text in [*head.split(), *(line[i] for line in lines)]), default=0)
        for i, head in enumerate(cells.heads)
    ]
    words = (cell_len(word) for line in lines for word in line[0].split())
    least = min(max((LABEL_WIDTH[0], *words)), LABEL_WIDTH[1])
    room = console.width - least
    everything = [i for group in groups for i in group]
    if _taken(everything, widths) <= room:
        parts = [everything]
    else:
        parts = [part for group in (groups[-1], *groups[:-1]) for part in _cut(group, widths, room)]
    for part in parts:
        label = max(least, min(widths[0], console.width - _taken(part, widths)))
        _print_grid(console, cells.take([0, *part]), [label, *(widths[i] for i in part)])


def _taken(columns: Sequence[int], widths: Sequence[int]) -> int:
    """Characters that columns take in a line, each with the gap of two before it."""
    return sum(widths[i] + 2 for i in columns)


def _cut(columns: Sequence[int], widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns in their order, cut into parts that fit; a part has at least one column."""
    parts: list[list[int]] = []
    for i in columns:
        if not parts or _taken([*parts[-1], i], widths) > room:
            parts.append([])
        parts[-1].append(i)
    return parts


def _print_grid(console: Console, cells: Cells, widths: Sequence[int]) -> None:
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, (head, width) in enumerate(zip(cells.heads, widths, strict=True)):
        grid.add_column(
            Text(head), justify="right" if i else "left", width=width, overflow="fold", vertical="bottom"
        )
    for b, (name, block) in enumerate(cells.blocks):
        grid.add_row(Text(name, style="italic"))
        for i, line in enumerate(block):
            second = (b, i) in cells.underlined
            styles = ["underline" if second and head in RANKED else "" for head in cells.heads]
            shown = [Text(cell, style=style) for cell, style in zip(line, styles, strict=True)]
            bold = "bold" if (b, i) in cells.bold else ""
            grid.add_row(*shown, style=bold, end_section=i == len(block) - 1)
    console.print(grid)


def show_verdicts(table: Table, console: Console) -> None:
    """The sentences of all blocks, which a reader in a hurry finds last."""
    for section in table.sections:
        console.print(Text(f"\nVerdict, {title(section)}:", style="bold"))
        _print_lines(console, section.verdicts)
    if table.attributions:
        console.print(Text("\nWhat turned the answers (attribution.md):", style="bold"))
        for one in table.attributions:
            _print_lines(console, [one.sentence(), *map(difference_line, one.differences.values())])
