"""A run's table as a whole, in Markdown and the terminal: sections, comparisons in pairs, the paper's table."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from stsimdiff.report import text
from stsimdiff.report.breakdown import tables
from stsimdiff.report.columns import block_title, brief_cells, main_cells
from stsimdiff.report.pairs import Pair, against
from stsimdiff.report.paper import TABLE1, paper_table, plain, printed_column
from stsimdiff.report.text import EMPTY, Cell, Cells, escaped, number
from stsimdiff.report.verdict import leader, planned_pairs
from stsimdiff.terminal import Console

if TYPE_CHECKING:
    from stsimdiff.report.section import Section, TableRow
    from stsimdiff.report.table import Table

PAPER_HEADINGS = {
    "videomme_short": "VideoMME short",
    "videomme_medium": "VideoMME medium",
    "videomme_long": "VideoMME long",
    "videomme_overall": "VideoMME overall",
    "longvideobench_relation": "LVB relation",
    "longvideobench_perception": "LVB perception",
    "longvideobench_overall": "LVB overall",
    "egoschema": "EgoSchema",
}
PAIR_HEADINGS = (
    "method", "minus", "points", "95 % interval", "McNemar p", "clustered p", "Holm p", "verdict", "n needed",
)  # fmt: skip


ALL_PAIR_HEADINGS = 130
"""Characters from which on a terminal shows them all, a line a pair; below, the tests whose larger p is Holm's stand in
``pairs.csv`` and ``table.md`` alone."""
BRIEF_PAIR_HEADINGS = [
    i for i, heading in enumerate(PAIR_HEADINGS) if heading not in ("McNemar p", "clustered p")
]


def pair_cells(section: Section) -> Cells:
    """Differences in pairs, a block for each retention; ``pairs.csv`` holds them all."""
    blocks: dict[float, list[list[Cell]]] = {}
    for pair in shown_pairs(section):
        blocks.setdefault(pair.retention, []).append(pair_line(pair))
    return Cells(PAIR_HEADINGS, [(block_title(retention), lines) for retention, lines in blocks.items()])


def shown_pairs(section: Section) -> list[Pair]:
    """Of each block every arm against the leader and against the proposed method, and these two against all tokens.

    The proposed method is the one with its own defaults, or the first of its variants where the block has no such arm.
    Where its comparisons are planned, they are shown and no others.
    """
    if section.planned:
        return planned_pairs(section)
    pairs: dict[tuple[float, frozenset[str]], Pair] = {}
    for retention, rows in section.blocks().items():
        variants = [row for row in rows if row.proposed]
        proposed = [row for row in variants if row.bare] or variants[:1]
        first = leader(rows)
        # Of a sweep of another method: its own defaults.
        proposed = proposed or [row for row in rows if row.bare and row.swept]
        anchors = [row.label for row in ([first] if first else []) + proposed]
        for anchor in dict.fromkeys(anchors):
            for name, pair in against(section.pairs, retention, anchor).items():
                pairs.setdefault((retention, frozenset((name, anchor))), pair)
        for row in rows:
            if row.reference:
                pairs.update(
                    ((retention, frozenset((pair.method, pair.against))), pair)
                    for pair in section.pairs
                    if pair.retention == retention and pair.method == row.label
                )
    labelled = {(row.retention, row.label): row for row in section.rows}
    full = {row.label for row in section.rows if row.method == "none"}
    return [_forwards(pair, labelled, full) for pair in pairs.values()]


def _forwards(pair: Pair, rows: Mapping[tuple[float, str], TableRow], full: Collection[str]) -> Pair:
    """All tokens are what one subtracts, also where they were what the others are seen from; and so is a variant of
    the proposed method, from the method itself: what a part or a setting of it is worth."""
    if pair.against in full:
        return pair
    method, against_ = (rows.get((pair.retention, name)) for name in (pair.method, pair.against))
    if method and against_ and method.proposed and against_.proposed and against_.bare and not method.bare:
        return pair.turned()
    return pair.turned() if pair.method in full else pair


def pair_line(pair: Pair) -> list[Cell]:
    """The cells of a comparison, under ``PAIR_HEADINGS``."""
    bounds = EMPTY if math.isnan(pair.ci_low) else f"{pair.ci_low:+.1f} to {pair.ci_high:+.1f}"
    ps = (pair.p_mcnemar, pair.p_cluster, pair.p)
    return [
        Cell(pair.method),
        Cell(pair.against),
        number(pair.difference, "+.1f"),
        Cell(bounds, pair.ci_low),
        *(Cell(f"{p:.3f}" if p >= 0.001 else "<0.001", p) for p in ps),
        Cell(pair.verdict),
        Cell(EMPTY) if math.isinf(pair.n_needed) else number(pair.n_needed, ".0f"),
    ]


def difference_line(pair: Pair) -> str:
    """A comparison in a sentence: ``a minus b: +1.2 points (-0.3 to 2.7), Holm p 0.120: better``."""
    cells = dict(zip(PAIR_HEADINGS, (cell.text for cell in pair_line(pair)), strict=True))
    return (
        f"{pair.method} minus {pair.against}: {cells['points']} points ({cells['95 % interval']}), "
        f"Holm p {cells['Holm p']}: {pair.verdict}"
    )


def paper_cells() -> Cells:
    """The paper's main table; an empty cell stays empty."""
    frame = paper_table(TABLE1)
    names = [name for name in PAPER_HEADINGS if name in frame]
    blocks = [
        (
            block_title(float(retention)),
            [
                [Cell(line["method"]), *(number(line[name], empty="") for name in names)]
                for _, line in rows.iterrows()
            ],
        )
        for retention, rows in sorted(frame.groupby("retention"), reverse=True)
    ]
    return Cells(["method", *(PAPER_HEADINGS[name] for name in names)], blocks)


def paper_title() -> str:
    """Whose numbers they are and on what data, so that nobody takes them for ours."""
    return (
        "The PAPER'S Table 1 (arXiv 2605.22158): the authors' printed numbers, not ours, on their runs of VideoMME, "
        "LongVideoBench (LVB) and EgoSchema with LLaVA-Video-7B, 64 frames; accuracy in %, an empty cell was not "
        "available"
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
        if section.planned:
            return f"No comparison was planned: proposed={section.planned} has no answers in this table."
        return (
            f"None of the {len(section.pairs)} differences in pairs is shown, since no block has a leader or the "
            "proposed method; pairs.csv holds them."
        )
    over = f"all {len(section.pairs)} pairs of this table"
    if section.planned:
        over = (
            f"the {len(shown_pairs(section))} planned comparisons of proposed={section.planned} with each other arm "
            f"(pairs.csv holds all {len(section.pairs)} pairs, the others corrected over all of them)"
        )
    return (
        "Interval and clustered p count videos, not questions; McNemar's exact p takes questions as independent. A "
        f"method is called better or worse where the larger p, with Holm's correction over {over}, is below 0.05; each "
        "interval is for its pair alone. n needed: questions needed to detect such a difference in such a table with "
        "80 % power."
    )


def has_paper_table(table: Table) -> bool:
    """Whether a run asks what the paper's Table 1 asks: its model on one of its benchmarks."""
    return any(
        "llavavideo" in plain(section.model) and printed_column(section.benchmark)
        for section in table.sections
    )


def _parts(section: Section) -> Iterator[str | Cells | Sequence[str]]:
    """What stands below a section's title: tables, lists of sentences, and the title of one of the tables."""
    yield main_cells(section)
    yield section.notes
    if section.pairs:
        cells = pair_cells(section)
        if cells.blocks:
            yield f"{PAIRS_TITLE}:"
            yield cells
        yield [pairs_note(section)]
    yield section.about


# Markdown


def markdown(table: Table) -> str:
    """The whole report as GitHub Markdown."""
    parts = [f"# {escaped(table.run)}"]
    for section in table.sections:
        parts += [f"## {escaped(title(section))}", _list(section.verdicts)]
        for part in _parts(section):
            if isinstance(part, str):
                parts.append(escaped(part))
            else:
                parts.append(text.markdown(part) if isinstance(part, Cells) else _list(part))
    parts += [_list(table.notes)] if table.notes else []
    if has_paper_table(table):
        parts += ["## The paper's numbers", f"{escaped(paper_title())}.", text.markdown(paper_cells())]
    return "\n\n".join(parts) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


# Terminal


def show(table: Table, console: Console) -> None:
    """Print what a reader wants first, on one screen: verdicts, a line an arm, and a line a warning."""
    for section in table.sections:
        heading = f"{table.run}: {section.model} on {section.benchmark}, budget: {section.budget}"
        _print_line(console, heading, "bold")
        _print_lines(console, section.verdicts)
        text.terminal(brief_cells(section), console)
        for line in briefly(section.notes):
            _print_line(console, f"- {line}", "yellow")
    for line in briefly(table.notes):
        _print_line(console, f"- {line}", "yellow")
    for note in dict.fromkeys(section.about[0] for section in table.sections if section.about):
        _print_lines(console, [note])  # whole: it says what the numbers are not
    _print_lines(console, [attribution.sentence() for attribution in table.attributions])
    show_breakdown(table, console)


def briefly(notes: Sequence[str]) -> list[str]:
    """The first note of each kind, and how many more there are; a kind is known by how its notes begin."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for note in notes:
        kinds.setdefault(tuple(note.split()[:2]), []).append(note)
    return [f"(+{len(same) - 1} like it) {same[0]}" if len(same) > 1 else same[0] for same in kinds.values()]


def clauses(line: str, width: int) -> str:
    """The longest beginning of a text that fits the width and says something whole: it ends before a parenthesis or
    at the end of a sentence or clause, at a comma where there is no other. All of the text where nothing does.
    """
    if cell_len(line) <= width:
        return line
    for end in (r"(?<=\.)(?= )|[;:](?= )|(?= \()", ",(?= )"):
        ends = [match.start() for match in re.finditer(end, line)]
        parts = [line[:place] for place in ends if line[:place].count("(") == line[:place].count(")")]
        if fitting := [part for part in parts if cell_len(part) <= width]:
            return fitting[-1]
    return line


def show_breakdown(table: Table, console: Console) -> None:
    """Print the accuracies by the values of a column, where they were asked for."""
    for name, cells in tables(table.parts):
        console.print(Text(f"\n{name}:", style="bold"))
        text.terminal(cells, console)


def show_full(table: Table, console: Console) -> None:
    """Print the whole report, and at its end the verdicts, which a reader in a hurry finds last."""
    for section in table.sections:
        console.print(Text(f"\n{table.run}: {title(section)}", style="bold"))
        for part in _parts(section):
            if isinstance(part, str):
                console.print(Text(f"\n{part}", style="bold"))
            elif isinstance(part, Cells):
                narrow = part.headings == PAIR_HEADINGS and console.width < ALL_PAIR_HEADINGS
                text.terminal(part.take(BRIEF_PAIR_HEADINGS) if narrow else part, console)
            else:
                _print_lines(console, part)
    _print_lines(console, table.notes)
    if has_paper_table(table):
        console.print(Text(f"\n{paper_title()}:", style="bold"))
        text.terminal(paper_cells(), console)
    show_breakdown(table, console)
    for section in table.sections:
        console.print(Text(f"\nVerdict, {title(section)}:", style="bold"))
        _print_lines(console, section.verdicts)
    if table.attributions:
        console.print(Text("\nWhat turned the answers (attribution.md):", style="bold"))
        for attribution in table.attributions:
            _print_lines(
                console, [attribution.sentence(), *map(difference_line, attribution.differences.values())]
            )


def _print_line(console: Console, line: str, style: str) -> None:
    """One line; of what is too long for it as many clauses as fit, since ``table.md`` has it as a whole."""
    console.print(Text(clauses(line, console.width), style=style), no_wrap=True, overflow="ellipsis")


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        grid = Grid.grid(padding=(0, 1))
        grid.add_row("-", Text("\n".join(_wrapped(line, console.width - 2)), overflow="fold"))
        console.print(grid)


def _wrapped(line: str, width: int) -> list[str]:
    """Lines of at most so many characters; a number stays with its unit, and with what it is compared with."""
    together = re.sub(r"(?<=\d) (?=%)|(?<= [<=]) (?=\d)|(?<=\b[pn]) (?=[<=] )", "\xa0", line)
    parts = textwrap.wrap(together, width, break_long_words=False, break_on_hyphens=False)
    return [part.replace("\xa0", " ") for part in parts]
