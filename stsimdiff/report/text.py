"""Text that is not ours (labels, names, ids, messages) made fit for a line, a cell of a CSV file, or a terminal."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters but tab and newline, marks that turn the direction of what stands beside them, and halves of a
character that no file can hold."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet takes for a formula."""


def printable(text: str) -> str:
    """The text with every character that a terminal would act on, and half characters, as an escape: ``\\u001b``."""
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


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
