"""Reading `questions.jsonl`: of the generated clips, or of a user's own videos in the same format.

Everything is checked here, with file and line in each message, before a model is loaded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stsimdiff.data.digests import file_digest, say_what_takes_long
from stsimdiff.data.parsing import LETTERS
from stsimdiff.errors import DataError
from stsimdiff.files import fingerprint

FILE = "questions.jsonl"
KEYS = {
    "id": "a text that no other question has",
    "video": "the name of a file in videos/",
    # A question's category. What reads these files, and what they hold, is part of the identity of arms.
    "family": "the kind of question, a column of the table",
    "question": "a text",
    "options": "a list of 2 to 10 different texts",
    "answer": "the letter of the right option",
}


def read(root: Path) -> list[dict[str, Any]]:
    """The rows of ``root/questions.jsonl``, checked.

    Raises:
        DataError: when the file is missing, empty or not UTF-8, or for the first wrong line, with its number.
    """
    file = root / FILE
    wanted = "; ".join(f"{key}: {what}" for key, what in KEYS.items())
    if not file.is_file():
        raise DataError(f"{file} does not exist; it must hold a JSON object a line with {wanted}")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}") from error
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line, f"{file}, line {number}")
        if row["id"] in seen:
            raise DataError(f"{file}, line {number}: id={row['id']!r} is also that of line {seen[row['id']]}")
        seen[row["id"]] = number
        rows.append(row)
    if not rows:
        raise DataError(f"{file} holds no question; it must hold a JSON object a line with {wanted}")
    return rows


def content_revision(root: Path) -> str | None:
    """12 hex digits of the questions in a user's folder and of their videos' contents; ``None`` without questions.

    Where the folder lies, when it was written, and what else is in it do not matter.
    """
    if not (root / FILE).is_file():
        return None
    asked = sorted(read(root), key=lambda row: row["id"])
    videos = {name: root / "videos" / name for name in sorted({row["video"] for row in asked})}
    if not all(path.exists() for path in videos.values()):
        from stsimdiff.data.videos import VideoFolder

        # A row may leave out the suffix, or name another one than the file has.
        found = VideoFolder(root / "videos")
        videos = {name: path if path.exists() else found.path(name) for name, path in videos.items()}
    say_what_takes_long(videos.values(), f"the videos in {root}")
    contents = []
    for name, path in videos.items():
        try:
            contents.append([name, file_digest(path)])
        except OSError:
            contents.append([name, None])  # a missing video is said where the videos are looked at
    return fingerprint(json.dumps([asked, contents]))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that says a key twice says two things."""
    for number, (key, _) in enumerate(pairs):
        if key in dict(pairs[:number]):
            raise ValueError(f"the key {key!r} stands there twice")
    return dict(pairs)


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a {type(row).__name__} where an object was expected")
    for key in ("id", "video", "family", "question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f"{place}: {key}={row.get(key)!r}; expected {KEYS[key]}")
    options = row.get("options")
    if not (
        isinstance(options, list)
        and all(isinstance(option, str) and option.strip() for option in options)
        and 2 <= len(set(options)) == len(options) <= len(LETTERS)
    ):
        raise DataError(f"{place}: options={options!r}; expected {KEYS['options']}")
    texts = [*(row[key] for key in ("id", "video", "family", "question")), *options]
    if broken := [text for text in texts if re.search("[\ud800-\udfff\0]", text)]:
        raise DataError(
            f"{place}: {broken[0]!r} holds half a character or a null, which no model can be asked"
        )
    letters = LETTERS[: len(options)]
    if row["answer"] not in letters:
        raise DataError(f"{place}: answer={row['answer']!r}; expected one of {', '.join(letters)}")
    return {key: row[key] for key in KEYS}
