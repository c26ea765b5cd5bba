"""The rows of a public benchmark: read from its parquet files, checked, and put into the form that lmms-eval expects.

Copies of the data sets differ in harmless ways: a right answer as ``(b)`` or as an option's text, pads that are empty.
The stock functions compare strings, and would score every such row as wrong without a word. What cannot be put right
without a guess is an error that names the row.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stsimdiff.data.benchmarks import PAD, Benchmark, Row
from stsimdiff.errors import DataError
from stsimdiff.evaluate.parsing import LETTERS

SHOWN = 200
"""Characters of a row that a message shows."""


def read_rows(benchmark: Benchmark, root: Path) -> list[dict[str, Any]]:
    """The rows of all question files in order, with the stock columns in the stock form.

    Raises:
        DataError: for files that do not fit together, and for a row whose options or answer cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    files = benchmark.question_files(root)
    try:
        tables = [pyarrow.parquet.ParquetFile(file).read().replace_schema_metadata() for file in files]
        rows = pyarrow.concat_tables(tables, promote_options="permissive").to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        listed = ", ".join(str(file) for file in files)
        raise DataError(f"the question files {listed} cannot be read together: {error}") from error
    return [_checked(benchmark, row, f"question {number} of {root}") for number, row in enumerate(rows)]


def place_of(value: Any, options: list[str], *, counted: bool) -> int | None:
    """Which option an answer's column means, from 0; ``None`` where it is not plainly one of them.

    Args:
        value: a letter in either case, bare or as ``(B)`` or ``B.``; or the text of one option; or, where the
            column counts, a number from 0.
        options: the texts of the options.
        counted: whether the column holds a number. Where it holds a letter, nobody knows whether a number counts
            from 0 or from 1.
    """
    text = str(value).strip()
    if counted and re.fullmatch(r"\d+(\.0)?", text):
        place = int(float(text))
        return place if place < len(options) else None
    if letter := re.fullmatch(r"\(?([A-Ja-j])[).:]?", text):
        place = LETTERS.index(letter[1].upper())
        return place if place < len(options) else None
    return options.index(text) if options.count(text) == 1 else None


def _checked(benchmark: Benchmark, row: dict[str, Any], name: str) -> dict[str, Any]:
    """The row with its pads and its answer in the stock form."""
    absent = [
        column for column in benchmark.columns if row[column] is None and not column.startswith("option")
    ]
    if absent:
        raise DataError(f"{name} has nothing in the column {', '.join(absent)}: {_shown(row)}")
    for column in row:
        # LongVideoBench's questions have four or five options in five columns.
        if re.fullmatch(r"option\d", column) and str(row[column] or "").strip().upper() in ("", PAD):
            row[column] = PAD
    options = benchmark.options(row)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise DataError(
            f"{name} has no list of 2 to {len(LETTERS)} options, but {options!r:.100}: {_shown(row)}"
        )
    if not all(isinstance(text, str) and text.strip() for text in options) or PAD in options:
        raise DataError(f"{name} has an empty option before its last one: {_shown(row)}")
    _in_the_question(benchmark, row, options, name)
    place = place_of(row[benchmark.columns[-1]], options, counted=benchmark.counted)
    if place is None:
        raise DataError(
            f"{name}: {benchmark.columns[-1]}={row[benchmark.columns[-1]]!r} is none of its {len(options)} options; "
            f"the stock form is {benchmark.answer(0)!r} for the first one: {_shown(row)}"
        )
    return row | {benchmark.columns[-1]: benchmark.answer(place)}


def _in_the_question(benchmark: Benchmark, row: Row, options: list[str], name: str) -> None:
    # lmms-eval's prompt of MLVU is the question's text alone: options that it does not show are never asked.
    if "candidates" in row and not any(text.strip() in row["question"] for text in options):
        raise DataError(
            f"{name} shows none of its options in the column question, which is all that {benchmark.stock} asks: "
            f"{_shown(row)}"
        )


def _shown(row: Row) -> str:
    text = str(row)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
