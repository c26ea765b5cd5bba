"""The file of a run that holds a line for each measurement of the latency protocol."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from stsimdiff.errors import DataError

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
    *lines, _torn = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
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
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.warning("%s: dropped a torn last line; its round is measured again", file)
        os.truncate(file, whole)
