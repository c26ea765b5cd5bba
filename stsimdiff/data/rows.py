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
from stsimdiff.data.parsing import LETTERS, labelled, without_letters
from stsimdiff.data.question_files import read_files
from stsimdiff.errors import DataError

SHOWN = 200
"""Characters of a row that a message shows."""


def read_rows(benchmark: Benchmark, root: Path) -> list[dict[str, Any]]:
    """The rows of all question files in order, with the stock columns in the stock form.

    Raises:
        DataError: for files that do not fit together, and for a row whose options or answer cannot be read.
    """
    files = benchmark.question_files(root)
    rows = benchmark.read_kinds(files) if benchmark.folders else benchmark.rows(read_files(files))
    checked = [_options(benchmark, row, f"question {number} of {root}") for number, row in enumerate(rows)]
    column = benchmark.answered
    if column is None:
        # Whatever a copy may say there is not the server's word.
        return [row | {"answer": None} for row, _ in checked]
    texts = _says_texts([(row[column], options) for row, options in checked], benchmark.counted)
    return [
        row | {column: _answer(benchmark, row, options, texts, f"question {number} of {root}")}
        for number, (row, options) in enumerate(checked)
    ]


def place_of(value: Any, options: list[str], *, counted: bool, texts: bool | None = None) -> int | None:
    """Which option an answer's column means, from 0; ``None`` where it is not plainly one of them.

    Args:
        value: a letter in either case, bare or as ``(B)`` or ``B.``; or the text of one option; or, where the
            column counts, a number from 0.
        options: the texts of the options, with their letters or without.
        counted: whether the column holds a number. Where it holds a letter, nobody knows whether a number counts
            from 0 or from 1.
        texts: whether the column holds the options' texts; ``None`` where that is not known, so that what is both a
            letter and the text of another option, or a number, is neither.
    """
    text, bare = str(value).strip(), without_letters(options)
    places = [place for place, option in enumerate(options) if text in (option.strip(), bare[place])]
    by_text = places[0] if len(places) == 1 else None
    if counted and re.fullmatch(r"\d+(\.0)?", text):
        place = int(float(text))
        other = texts and places not in ([], [place])
        return place if place < len(options) and not other else None
    letter = re.fullmatch(r"\(?([A-Ja-j])[).:]?", text)
    if letter is None:
        return by_text if texts or not re.fullmatch(r"\d+", text) else None
    place = LETTERS.index(letter[1].upper())
    if texts and places:
        return by_text
    certain = texts is not None or places in ([], [place])
    return place if place < len(options) and certain else None


def _says_texts(answers: list[tuple[Any, list[str]]], counted: bool) -> bool | None:
    """Whether a column holds the options' texts rather than letters or numbers; ``None`` where no row decides."""
    for value, options in answers:
        text = str(value).strip()
        if not re.fullmatch(r"\(?[A-Ja-j][).:]?|\d+(\.0)?", text):
            return place_of(value, options, counted=counted, texts=True) is not None
    places = [place_of(value, options, counted=counted, texts=False) for value, options in answers]
    return False if None not in places else None


def _options(benchmark: Benchmark, row: dict[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """The row with its pads and its options in the stock form, and the options."""
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
    return _lettered(benchmark, row, options, name)


def _lettered(
    benchmark: Benchmark, row: dict[str, Any], options: list[str], name: str
) -> tuple[dict[str, Any], list[str]]:
    """The row with options that the prompt shows with their letters, each once, and the options."""
    bare, letters = without_letters(options), LETTERS[: len(options)]
    own = bare != [text.strip() for text in options]
    strange = [text for text in options if (found := labelled(text)) and found in letters]
    if strange and not own and (benchmark.lettered == "row" or len(strange) == len(options)):
        raise DataError(
            f"{name} has options of which not each begins with its own letter, such as {strange[0]!r:.60}; put "
            f"{', '.join(f'{letter}.' for letter in letters)} before all of them or before none: {_shown(row)}"
        )
    if benchmark.lettered == "question":
        _in_the_question(benchmark, row, bare, name)
    elif benchmark.lettered == "row" and not own:
        options = [f"{letter}. {text}" for letter, text in zip(letters, bare, strict=True)]
        row = benchmark.with_options(row, options)
    elif benchmark.lettered == "task" and own:
        options, row = bare, benchmark.with_options(row, bare)
    return row, options


def _in_the_question(benchmark: Benchmark, row: Row, options: list[str], name: str) -> None:
    # lmms-eval's prompt of MLVU is the question's text alone: options that it does not show are never asked.
    asked = row["question"]
    what = f"in the column question, which is all that {benchmark.stock} asks: {_shown(row)}"
    if "candidates" in row and not any(text in asked for text in options):
        raise DataError(f"{name} shows none of its options {what}")
    shown = [letter for letter in LETTERS if re.search(rf"(?<![a-z]){letter}[).:\]]", asked, re.IGNORECASE)]
    absent = [letter for letter in LETTERS[: len(options)] if letter not in shown]
    if absent:
        raise DataError(f"{name} shows no letter {', '.join(absent)} before an option {what}")
    more = (
        re.findall(rf"^\s*\(([{LETTERS[len(options)]}-J])\)", asked, re.MULTILINE)
        if len(options) < 10
        else []
    )
    if more:
        raise DataError(f"{name} has {len(options)} options and shows ({more[0]}) too {what}")


def _answer(benchmark: Benchmark, row: Row, options: list[str], texts: bool | None, name: str) -> str | int:
    """The right answer in the stock form."""
    column = benchmark.columns[-1]
    place = place_of(row[column], options, counted=benchmark.counted, texts=texts)
    if place is None:
        raise DataError(
            f"{name}: {column}={row[column]!r} is none of its {len(options)} options; "
            f"the stock form is {benchmark.answer(0, options)!r} for the first one: {_shown(row)}"
        )
    return benchmark.answer(place, options)


def _shown(row: Row) -> str:
    text = str(row)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
