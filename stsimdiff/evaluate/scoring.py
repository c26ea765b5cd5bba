"""The score of an arm: its stored answers replayed through the task's own functions, kept as ``metrics.json``.

Of a benchmark whose answers are not public there is no score, but a file of predictions for the server that has them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stsimdiff.config.arms import Arm
from stsimdiff.config.settings import Settings
from stsimdiff.data import parsing
from stsimdiff.data.parsing import LETTERS
from stsimdiff.evaluate import questions
from stsimdiff.evaluate.questions import Question, replay
from stsimdiff.evaluate.store import SUBMISSION, checked_answers, shards
from stsimdiff.files import fingerprint, write_whole

METRICS = "metrics.json"
SHOWN = 80
"""Characters of an answer that a message shows."""


@dataclass(frozen=True)
class Scores:
    """What stands in the way of a run's success.

    Attributes:
        failed: samples without an answer.
        unread: a message for every arm of which most answers give no letter; the text-only control, which may well
            refuse to answer, is left out.
    """

    failed: int
    unread: list[str]


def score(settings: Settings, task: Any, arms: Sequence[Arm], questions: Sequence[Question]) -> Scores:
    """Score every arm whose answers, questions or task have changed; returns what is wrong with them.

    Args:
        settings: what the arms share.
        task: the lmms-eval task.
        arms: the arms of this pass.
        questions: all that they were asked.

    Raises:
        DataError: for a stored line that cannot be read.
        OSError: when ``metrics.json`` cannot be written.
    """
    by_id = {question.id: question for question in questions}
    names = fingerprint(*by_id, digits=64)
    failed, unread = 0, []
    for arm in arms:
        folder = settings.folder / arm.folder
        of = _state(folder, names, settings)
        known = _known(folder / METRICS)
        sent = bool(settings.benchmark.server)
        if known.get("of") != of or (sent and not (folder / SUBMISSION).is_file()):
            known = _scored(folder, task, by_id, settings) | {"of": of}
            if sent:
                write_whole(folder / SUBMISSION, _submission(folder, by_id))
            write_whole(folder / METRICS, json.dumps(known, indent=1) + "\n")
        failed += known["n_failed"]
        if arm.method != "no_video" and parsing.mostly_unread(known["n_unread"], known["n"]):
            unread.append(_unread(arm, known, questions))
    return Scores(failed, unread)


def _unread(arm: Arm, known: Mapping[str, Any], questions: Sequence[Question]) -> str:
    name = f"{arm.label} at {100 * arm.budget.retention:.4g} %"
    tokens = max(question.max_new_tokens for question in questions)
    return (
        f"{known['n_unread']} of {known['n']} answers of {name} give no letter, such as {', '.join(known['unread'])}: "
        "its accuracy says nothing about the method. Look at the weights, model.dtype and benchmark.prompt; a model "
        f"that thinks aloud needs more than benchmark.max_new_tokens={tokens}. "
        "All answers are stored."
    )


def _scored(folder: Path, task: Any, by_id: Mapping[str, Question], settings: Settings) -> dict[str, Any]:
    rows = [row for row in checked_answers(folder) if row["id"] in by_id]
    rows = [row for row in rows if row["error"] is None]
    answered = [(by_id[row["id"]], row["answer"]) for row in rows]
    unread = [row["answer"] for row in rows if row["parsed"] is None]
    known = not settings.benchmark.server
    return {
        "task": settings.benchmark.task,
        "n": len(answered),
        "n_failed": len(by_id) - len(answered),
        "n_unread": len(unread),
        "unread": [repr(text if len(text) <= SHOWN else f"{text[:SHOWN]} ...") for text in _three(unread)],
        "accuracy": _percent([row["correct"] for row in rows]) if known else None,
        "stock": _stock(rows) if known else None,
        "metrics": replay(task, answered) if answered and known else {},
    }


def _submission(folder: Path, by_id: Mapping[str, Question]) -> str:
    rows = [row for row in checked_answers(folder) if row["id"] in by_id and row["parsed"] is not None]
    choices = {by_id[row["id"]].document["video_idx"]: LETTERS.index(row["parsed"]) for row in rows}
    return json.dumps(choices, indent=1) + "\n"


def _stock(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How lmms-eval's own function reads the same texts; ``None`` for answers that an earlier version stored.

    What it drew lots for, or raised on, counts as wrong.
    """
    if not rows or any("stock_correct" not in row for row in rows):
        return None
    return {
        "accuracy": _percent([row["stock_correct"] for row in rows]),
        "n_differing": sum(row["stock_parsed"] != row["parsed"] for row in rows),
        "errors": dict(Counter(row["stock_error"] for row in rows if row.get("stock_error"))),
    }


def _percent(right: Sequence[bool | None]) -> float | None:
    return 100 * sum(map(bool, right)) / len(right) if right else None


def _three(texts: Sequence[str]) -> list[str]:
    """The three most frequent texts, or fewer where there are no more."""
    return [text for text, _ in Counter(texts).most_common(3)]


def _state(folder: Path, names: str, settings: Settings) -> str:
    """12 hex digits that change with whatever the score is made from: stored lines, questions, the task's code."""
    files = [
        (path.name, status.st_size, status.st_mtime_ns) for path in shards(folder) for status in [path.stat()]
    ]
    return fingerprint([names, files, settings.benchmark.task, settings.benchmark.code, _code()])


@cache
def _code() -> str:
    """Version of what scores beside the task's own files."""
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (parsing, questions))
    return f"{fingerprint(sources)}, lmms_eval {version('lmms_eval')}"


def _known(path: Path) -> dict[str, Any]:
    """What ``metrics.json`` says; nothing where it is absent or was cut off, since it is made again then."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
