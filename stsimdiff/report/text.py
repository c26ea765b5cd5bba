"""Tables of cells as the text of a terminal, of Markdown, LaTeX and CSV, and any text made fit for these."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich import box
from rich.align import Align
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from stsimdiff.terminal import Console
from stsimdiff.terminal import clean as printable

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "–"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet takes for a formula."""
LABEL_WIDTH = (12, 20)
"""Characters that the words of a line get where room is short; longer ones go over several lines."""


class Cell(NamedTuple):
    """What stands at one place of a table.

    Attributes:
        text: what is read.
        value: the number that the text shows; ``None`` for words, and where there is none.
        rank: 1 for the best of a block, 2 for the second, 0 for the others.
        link: where the text leads, in Markdown.
        wrong: whether a terminal shows it in red.
        note: letters of notes below a table of LaTeX, with commas between them.
    """

    text: str
    value: float | None = None
    rank: int = 0
    link: str = ""
    wrong: bool = False
    note: str = ""


@dataclass(frozen=True)
class Cells:
    """A table: a heading a column, and blocks of lines.

    Attributes:
        blocks: each with its title, which is empty where it has none.
        text_columns: how many columns, at the left, hold text; they stand in every part of a table that is too wide.
        result: the column that a table that is too wide begins with.
        above: titles over groups of columns, from the first behind the text on, and how many columns each spans.
    """

    headings: Sequence[str]
    blocks: Sequence[tuple[str, Sequence[Sequence[Cell]]]]
    text_columns: int = 1
    result: int = 1
    above: Sequence[tuple[str, int]] = ()

    def take(self, columns: Iterable[int]) -> Cells:
        """The same lines with only these columns."""
        kept = list(columns)
        blocks = [(title, [[line[i] for i in kept] for line in lines]) for title, lines in self.blocks]
        return Cells([self.headings[i] for i in kept], blocks, self.text_columns)


def number(value: float | None, form: str = ".1f", mark: str = "", empty: str = EMPTY) -> Cell:
    """A number as ``form`` writes it, with ``mark`` behind it, or a dash where there is none."""
    if value is None or math.isnan(value):
        return Cell(empty)
    return Cell(f"{value:{form}}{mark}", value)


def one_line(text: str) -> str:
    """Printable, with runs of blanks and line breaks as one blank, without any at the ends."""
    return " ".join(printable(text).split())


def cell(value: Any) -> Any:
    """What stands in a cell of a CSV file: text on one line, and none that a spreadsheet would run as a formula."""
    if not isinstance(value, str):
        return value
    return f"'{one_line(value)}" if value.startswith(FORMULA) else one_line(value)


def csv(frame: pd.DataFrame) -> str:
    """A frame as the text of a CSV file, names of columns included."""
    return frame.rename(columns=cell).map(cell).to_csv(index=False)


def markdown(cells: Cells) -> str:
    """A table of GitHub's Markdown; the best is bold, the second underlined."""
    more = len(cells.headings) - cells.text_columns
    lines = [map(escaped, cells.headings), [":---"] * cells.text_columns + ["---:"] * more]
    for title, block in cells.blocks:
        lines += [[f"*{escaped(title)}*", *[""] * (len(cells.headings) - 1)]] if title else []
        lines += [map(_markdown, line) for line in block]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown(cell: Cell) -> str:
    text = f"[{escaped(cell.text)}]({cell.link})" if cell.link else escaped(cell.text)
    return (text, f"**{text}**", f"<ins>{text}</ins>")[cell.rank]


def escaped(text: str) -> str:
    """Escapes what GitHub's Markdown would read as markup (an underscore within a word is none)."""
    return re.sub(r"([\\|*`<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def latex(cells: Cells) -> str:
    """A ``tabular`` of booktabs; the best is bold, the second underlined."""
    width = len(cells.headings)
    lines = [
        rf"\begin{{tabular}}{{{'l' * cells.text_columns}{'r' * (width - cells.text_columns)}}}",
        r"\toprule",
    ]
    if cells.above:
        named = [rf"\multicolumn{{{span}}}{{c}}{{{tex(title)}}}" for title, span in cells.above]
        lines.append(_tex_line([*[""] * cells.text_columns, *named]))
        ends = [
            cells.text_columns + sum(span for _, span in cells.above[:i]) for i in range(len(cells.above) + 1)
        ]
        rules = zip(ends[:-1], ends[1:], strict=True)
        lines.append("".join(rf"\cmidrule(lr){{{start + 1}-{end}}}" for start, end in rules))
    lines.append(_tex_line(map(tex, cells.headings)))
    for title, block in cells.blocks:
        lines.append(r"\midrule")
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{tex(title)}}}}} \\"] if title else []
        lines += [_tex_line(map(_latex, line)) for line in block]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex(cell: Cell) -> str:
    text = tex(cell.text)
    marked = (text, rf"\textbf{{{text}}}", rf"\underline{{{text}}}")[cell.rank]
    return rf"{marked}\tnote{{{cell.note}}}" if cell.note else marked


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind the end of a line it begins an option, as a star does
    "*": "{*}",
    "–": "--",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "’": "'",
    "×": r"$\times$",
    "τ": r"$\tau$",
}
_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0327", "`'^~\"rvc", strict=True))
"""Combining marks, and LaTeX's commands for them."""


def tex(text: str) -> str:
    """Escapes what LaTeX would read as a command; of what pdflatex lacks the code point stands there."""
    return re.sub(r"τ_([A-Za-z]+)|.", _tex, unicodedata.normalize("NFC", " ".join(text.split())))


def _tex(match: re.Match[str]) -> str:
    if match[1]:
        return rf"$\tau_\mathrm{{{match[1]}}}$"
    character = match[0]
    if character in _TEX or " " <= character <= "~":
        return _TEX.get(character, character)
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return rf"\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"U+{ord(character):04X}"


def terminal(cells: Cells, console: Console) -> None:
    """Print a table; what does not fit the width is folded between words, or follows in further tables of the same
    lines, the result first. No number is ever cut."""
    every = range(cells.text_columns, len(cells.headings))
    for fold in (False, True):
        if _fits(cells, every, fold, console):
            groups = [every]
            break
    else:
        groups = [every[cells.result - cells.text_columns :], every[: cells.result - cells.text_columns]]
    for rest in groups:
        while rest:
            size = next(n for n in range(len(rest), 0, -1) if n == 1 or _fits(cells, rest[:n], True, console))
            console.print(_grid(cells, rest[:size], fold))
            rest = rest[size:]


def _fits(cells: Cells, columns: Sequence[int], fold: bool, console: Console) -> bool:
    grid = _grid(cells, columns, fold)
    for column in grid.columns[: cells.text_columns]:
        column.min_width = max(LABEL_WIDTH[0], column.min_width or 0)
        column.max_width = max(LABEL_WIDTH[1], column.min_width)
    # Of any width: a console's own would cut the measure down to what it has.
    return grid.__rich_measure__(console, console.options.update(max_width=10**6)).minimum <= console.width


def _grid(cells: Cells, columns: Sequence[int], fold: bool) -> Table:
    cells = cells.take([*range(cells.text_columns), *columns])
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, heading in enumerate(cells.headings):
        texts = [line[i].text for _, block in cells.blocks for line in block]
        parts = [*heading.split(), *(" ".join(texts).split() if fold else texts)]
        is_text = i < cells.text_columns
        align: Literal["left", "right"] = "left" if is_text else "right"
        # The title of a block stands in the first column, on one line.
        titles = [cell_len(title) for title, _ in cells.blocks] if i == 0 else []
        grid.add_column(
            Align(Text(heading), align, vertical="bottom"),
            justify=align,
            width=None if is_text else max(map(cell_len, parts), default=0),
            min_width=max(titles, default=None),
            overflow="fold",
        )
    for title, block in cells.blocks:
        if title:
            grid.add_row(Text(title, style="italic"))
        for i, line in enumerate(block):
            shown = [
                Text(cell.text, style="red" if cell.wrong else ("", "bold", "underline")[cell.rank])
                for cell in line
            ]
            grid.add_row(*shown, end_section=bool(title) and i == len(block) - 1)
    return grid
