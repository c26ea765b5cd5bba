"""Stored answers whose question or video has changed since: named, withdrawn, and so asked again.

A stored line says which question and which video it is of, by digests of their contents. Where a file lies and when it
was written do not matter, and a video that looks unchanged is not read again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from stsimdiff.data.digests import file_digest, say_what_takes_long
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.questions import Question
from stsimdiff.evaluate.store import ArmStore
from stsimdiff.video.parts import Part

log = logging.getLogger(__name__)

UNKNOWN = "0" * 12
"""Stands for the digest of a video that cannot be read."""
SHOWN = 5
"""Questions that a warning names."""


def video_digest(path: str) -> str:
    """12 hex digits of a video's content, or :data:`UNKNOWN`."""
    try:
        return file_digest(Part.of(path).file)[:12]
    except OSError:
        return UNKNOWN


def withdraw_changed(
    stores: Mapping[str, ArmStore],
    questions: Sequence[Question],
    others: Callable[[], Sequence[Question]],
    processes: Processes | None = None,
) -> None:
    """Withdraw the stored lines of what has changed, with one warning that names the first questions.

    Args:
        stores: open, by arm.
        questions: those that the run asks.
        others: questions of the same data that are not asked this time; their answers count all the same.
        processes: this process among those of the run, which share the videos that have to be looked at.
    """
    processes = processes or Processes()
    by_id = {question.id: question for question in questions}
    stored = set().union(*(store.states for store in stores.values()))
    left = stored - by_id.keys()
    more = {question.id: question for question in others()} if left else {}
    gone = sorted(left - more.keys()) if more else []
    known = {**more, **by_id}
    files = {id_: Part.of(question.video).file for id_, question in known.items()}
    turn = {file: i for i, file in enumerate(sorted(set(files.values())))}
    looked_at = [
        known[sample]
        for sample in sorted(stored & known.keys())
        if turn[files[sample]] % processes.world == processes.rank
    ]
    say_what_takes_long({files[question.id] for question in looked_at}, "the videos of stored answers")
    changed: dict[str, str] = {}
    for question in looked_at:
        for store in stores.values():
            state = store.states.get(question.id)
            part = _changed_part(state.of, question) if state and state.of else None
            if part:
                changed[question.id] = part
                store.withdraw(question.id, f"the {part} has changed")
    if changed:
        named = [f"{sample} (the {part})" for sample, part in changed.items()]
        log.warning(
            "%d stored questions have changed since they were answered: %s; those answers no longer count, and the "
            "questions are asked again",
            len(changed),
            _first(named),
        )
    if gone and processes.rank == 0:
        log.warning(
            "%d stored questions are not in the data any more: %s; their answers still count in the table; choose "
            "another run=NAME to leave them out",
            len(gone),
            _first(gone),
        )


def _changed_part(of: str, question: Question) -> str | None:
    """What is not as it was: the question, its video, or nothing."""
    question_digest, _, video = of.partition("-")
    if question_digest != question.digest:
        return "question"
    now = video_digest(question.video)
    return "video" if UNKNOWN not in (video, now) and video != now else None


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
