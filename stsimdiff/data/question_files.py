"""Rows as a benchmark's authors store them: parquet, a list in JSON, or a JSON object a line. What a row means is not
known here, but for questions that lie as a list in the row of their video.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stsimdiff.errors import DataError
from stsimdiff.stand_ins import stand_in

Rows = list[dict[str, Any]]
_LINE = re.compile(r"(?:^|\n)\s*([A-J])[.):]\s*(.*?)\s*(?=\n\s*[A-J][.):]\s|$)", re.DOTALL)
"""An option on lines of its own: ``A. red``."""


def read_file(file: Path, columns: Sequence[str] | None = None) -> Rows:
    """The rows of one file; none where a JSON file holds no list of objects.

    Args:
        file: parquet, JSON or JSON lines.
        columns: those that are wanted; of parquet no others are read.

    Raises:
        DataError: for a file that cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix == ".parquet":
            return pyarrow.parquet.ParquetFile(file).read(columns=columns).to_pylist()
        text = file.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()] if file.suffix == ".jsonl" else []
        rows = [json.loads(line) for line in lines] if lines else json.loads(text or "[]")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = stand_in(file) or f"no readable {file.suffix[1:]} file: {error}"
        raise DataError(f"{file} is {reason}") from error
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []


def read_files(files: Sequence[Path]) -> Rows:
    """The rows of several files as one data set, each with the columns of all.

    Raises:
        DataError: as :func:`read_file` does, and for parquet files whose columns are not of one kind.
    """
    import pyarrow
    import pyarrow.parquet

    if any(file.suffix != ".parquet" for file in files):
        rows = [row for file in files for row in read_file(file)]
        names = dict.fromkeys(name for row in rows for name in row)
        return [dict.fromkeys(names) | row for row in rows]
    try:
        tables = [pyarrow.parquet.ParquetFile(file).read().replace_schema_metadata() for file in files]
        return pyarrow.concat_tables(tables, promote_options="permissive").to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        listed = ", ".join(str(file) for file in files)
        raise DataError(f"the question files {listed} cannot be read together: {error}") from error


def columns_of(file: Path) -> list[str]:
    """The columns of one file; raises as :func:`read_file` does."""
    import pyarrow
    import pyarrow.parquet

    if file.suffix != ".parquet":
        return list(dict.fromkeys(name for row in read_file(file) for name in row))
    try:
        return pyarrow.parquet.read_schema(file).names
    except (OSError, pyarrow.ArrowException) as error:
        reason = stand_in(file) or f"no readable parquet file: {error}"
        raise DataError(f"{file} is {reason}") from error


def spread(rows: Rows) -> Rows:
    """Rows of videos as rows of their questions, where a column ``qa`` lists these: MotionBench's file.

    As lmms-eval's ``motionbench_process_docs`` does it, questions without an answer (``NA``: the half that a server
    scores) and those without options are left out, and runs of blanks become one.
    """
    found: Rows = []
    for row in rows:
        if "qa" not in row:
            found.append(row)
            continue
        about = {
            name: value for name, value in row.items() if name != "qa" and not isinstance(value, Mapping)
        }
        info = row.get("video_info")
        about |= {"duration": info["duration"]} if isinstance(info, Mapping) and "duration" in info else {}
        for asked in row["qa"] or ():
            text, answer = (
                str(asked.get("question") or "").strip(),
                str(asked.get("answer") or "").strip().upper(),
            )
            lines = list(_LINE.finditer(text))
            options = [{"label": line[1], "text": _blanks(line[2])} for line in lines if line[2].strip()]
            if answer in {option["label"] for option in options}:
                question = _blanks(text[: lines[0].start()]) or _blanks(text)
                id_ = str(asked.get("uid") or f"{row.get('key')}_{len(found)}")
                found.append({**about, "id": id_, "question": question, "options": options, "answer": answer})
    return found


def _blanks(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
