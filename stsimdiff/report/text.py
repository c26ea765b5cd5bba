"""Text that is not ours (labels, names, ids, messages) made fit for a line, a cell of a CSV file, or a terminal."""

from __future__ import annotations

from typing import Any

import pandas as pd

from stsimdiff.terminal import clean as printable

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet takes for a formula."""


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
