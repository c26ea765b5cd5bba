"""The file of a run that holds a line for each measurement of the latency protocol."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from stsimdiff.errors import DataError
from stsimdiff.files import cut_torn_line, lines

log = logging.getLogger(__name__)


MEASUREMENTS = "efficiency.jsonl"
"""The file of a run that holds a line for each measurement."""


def read_measurements(folder: Path) -> list[dict[str, Any]]:
    """The measurements of a run, the last one of each arm, question and repeat; none where there is no file.

    Raises:
        DataError: for a line that is no measurement.
    """
    file = folder / MEASUREMENTS
    if not file.is_file():
        return []
    rows: dict[tuple, dict[str, Any]] = {}
    # A line without its end is one that an interruption cut off.
    for number, line in enumerate(lines(file)[0], start=1):
        try:
            row = json.loads(line)
            key = row["pass"], row["arm"], row["question"], row["repeat"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number} is no measurement: {error!r}; remove the line") from error
        rows.pop(key, None)
        rows[key] = row
    return list(rows.values())


def drop_torn_line(file: Path) -> None:
    """Cut off what an interruption left unfinished, so that the next line stands alone."""
    if file.is_file() and cut_torn_line(file):
        log.warning("%s: dropped a torn last line; its round is measured again", file)
