"""A pass from its questions to its scores: the stores are opened, what is missing is answered, all is scored.

Used by the launchers and by the model that lmms-eval's own command loads.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from stsimdiff.config.arms import Arm, arm_record
from stsimdiff.config.settings import Settings
from stsimdiff.data.videos import unusable_videos
from stsimdiff.errors import DataError, RunFailed, Stopped
from stsimdiff.evaluate.answering import Work, answer_all
from stsimdiff.evaluate.changed import withdraw_changed
from stsimdiff.evaluate.claims import Claims
from stsimdiff.evaluate.limits import sigterm_raises
from stsimdiff.evaluate.moments import with_moments
from stsimdiff.evaluate.overlays import Overlays
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.progress import Board
from stsimdiff.evaluate.provenance import provenance
from stsimdiff.evaluate.questions import Question, all_questions, load_task
from stsimdiff.evaluate.reading import Reader
from stsimdiff.evaluate.scoring import score
from stsimdiff.evaluate.session import Session
from stsimdiff.evaluate.shared import SharedModel
from stsimdiff.evaluate.shown import note_shown
from stsimdiff.evaluate.store import ArmStore, checked_answers, write_record
from stsimdiff.evaluate.stored import check_column


def run_arms(
    settings: Settings,
    arms: Sequence[Arm],
    shared: SharedModel | None = None,
    *,
    report: Callable[[Settings], list[str]] | None = None,
    processes: Processes | None = None,
) -> int:
    """Answer what is missing, score it, and have the report made; returns how many lines were written.

    Args:
        settings: what the arms share.
        arms: the arms of this pass.
        shared: what the passes of one command share.
        report: makes the report of the run's folder and gives what of it could not be made; none where a later pass
            of the same folder makes it.
        processes: this process among those of the run, joined; a single one if not given.

    Raises:
        UserError: before a model is loaded, for data that is missing or wrong; later when the run's folder can no
            longer be written.
        RunFailed: at the end, when a sample of these arms has no answer, or most answers of one cannot be read.
    """
    processes = processes or Processes()
    if processes.rank > 0:
        # The first process prepares the data; the others then find it in place.
        processes.wait()
    settings, task, questions, unusable = prepare(settings)
    if processes.rank == 0:
        Board.clear(settings.folder)
        processes.wait()
    try:
        answered = answer_missing(
            settings,
            task,
            arms,
            questions,
            processes,
            unusable,
            open_session=partial(Session, shared=shared),
            overlays=Overlays(settings, questions),
        )
    except RunFailed as failure:
        if processes.world > 1:
            raise Stopped(str(failure)) from failure
        raise
    processes.wait()
    if processes.rank == 0:
        conclude(settings, task, arms, questions, report=report)
    return answered


def prepare(settings: Settings) -> tuple[Settings, Any, list[Question], dict[str, str]]:
    """Settings with what is known of the videos, the task, its questions, and the unusable videos with the reason.

    Raises:
        UserError: for data that is missing or wrong.
    """
    task = load_task(settings.benchmark)
    questions = asked(settings, task)
    if settings.breakdown:
        known = {name for question in questions for name in question.columns}
        check_column(settings.breakdown, known, settings.benchmark.name)
    settings, unusable = _checked_videos(settings, questions)
    return settings, task, questions, unusable


def asked(settings: Settings, task: Any) -> list[Question]:
    """The questions of a run, with the moments that are known of them."""
    questions = all_questions(task, settings.limit, settings.benchmark.categories)
    return with_moments(settings.benchmark, questions, lambda: all_questions(task, None, None))


def conclude(
    settings: Settings,
    task: Any,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    *,
    report: Callable[[Settings], list[str]] | None = None,
) -> None:
    """Score what all processes stored and have the report made, one process of the run at a time.

    Args:
        settings: what the arms share.
        task: the lmms-eval task.
        arms: those to score.
        questions: all of the run's.
        report: as :func:`run_arms` takes it.

    Raises:
        RunFailed: when a sample of these arms has no answer, or most answers of an arm cannot be read; the table is
            written.
    """
    with (
        _write_errors_as_messages(settings.folder),
        Claims(settings.folder) as claims,
        claims.alone("report", "makes the table"),
    ):
        scores = score(settings, task, arms, questions)
        unmade = report(settings) if report else []
        claims.clear()
    problems = []
    if scores.failed:
        problems.append(
            f"{scores.failed} samples have no answer{_reasons(settings, arms)}\nAll reasons are in "
            f'{settings.folder}/*/answers*.jsonl under "error". Everything else is stored: retry_failed=true asks only '
            "these again."
        )
    problems += scores.unread
    if unmade:
        problems += [*unmade, "All answers are stored; start the same command again to make the rest."]
    if problems:
        raise RunFailed("\n".join(problems))


@contextmanager
def _write_errors_as_messages(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses while scores and tables are written into a message; the answers are stored by then."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; all answers are stored in {folder}: "
            "free or repair the disk and start the same command again"
        ) from error


def _reasons(settings: Settings, arms: Sequence[Arm]) -> str:
    """The most frequent reasons of failures, a line each, for a message."""
    counts: Counter[str] = Counter()
    for arm in arms:
        for row in checked_answers(settings.folder / arm.folder):
            if row["error"] is not None:
                where = row["error"].get("where")
                reason = f"{row['error']['type']}: {row['error']['message']}"
                counts[reason + (f"\n    {where}" if where else "")] += 1
    return "".join(f"\n  {count} times {reason}" for reason, count in counts.most_common(3))


def _checked_videos(settings: Settings, questions: Sequence[Question]) -> tuple[Settings, dict[str, str]]:
    """The videos that cannot be used, and settings whose note, in every arm's record and table, says how many."""
    videos = [question.video for question in questions]
    unusable = unusable_videos(settings.benchmark, videos, settings.max_failures)
    if not unusable:
        return settings, unusable
    lost = sum(question.video in unusable for question in questions)
    note = (
        f"{settings.benchmark.note}. {lost} of {len(questions)} questions FAILED for lack of a usable video"
    )
    benchmark = dataclasses.replace(settings.benchmark, note=note, missing_questions=lost)
    return dataclasses.replace(settings, benchmark=benchmark), unusable


def answer_missing(
    settings: Settings,
    task: Any,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    processes: Processes | None = None,
    unusable: Mapping[str, str] | None = None,
    open_session: Callable[[Settings], Session] = Session,
    overlays: Overlays | None = None,
) -> int:
    """Open the stores, load the model if anything is missing, answer it; returns how many lines were written.

    Args:
        settings: what the arms share.
        task: the lmms-eval task.
        arms: the arms that answer.
        questions: all of the run's.
        processes: this process among those of the run; a single one if not given.
        unusable: videos that are known to be unusable, and why.
        open_session: gives the loaded model; called only if an answer is missing.
        overlays: which questions of the whole run get their overlay stored; chosen among ``questions`` if not given.
    """
    processes = processes or Processes()
    with sigterm_raises(), ExitStack() as stack:
        stores: dict[str, ArmStore] = {}
        first = processes.rank
        for arm in arms:
            record = arm_record(arm, settings, {})
            store = ArmStore(settings.folder / arm.folder, record, processes.launch, first)
            stores[arm.id] = stack.enter_context(store)
            # Who holds the files before it is mostly the same for all arms, and looking takes a second for each.
            first = store.number
        if processes.rank == 0:
            note_shown(settings.folder, settings.proposed, {arm.id: arm.shown for arm in arms})
        withdraw_changed(stores, questions, partial(_other_questions, task, questions, processes), processes)
        work = Work(stores, arms, questions, settings.retry_failed, unusable or {})
        if not work.samples:
            return 0
        reader = Reader(settings)
        stack.callback(reader.close)
        reader.start(processes.world)
        session = open_session(settings)
        session.reader = reader
        session.check(arms)
        session.overlays = overlays or Overlays(settings, questions)
        generation = {
            **(settings.model.generation or {}),
            **settings.benchmark.generation,
        }
        described, revision = session.family.describe(), settings.benchmark.revision
        origin = provenance(described, settings.seed, revision, generation)
        for arm in arms:
            if work.missing[arm.id]:
                write_record(stores[arm.id].folder, arm_record(arm, settings, origin))
        claims = stack.enter_context(Claims(settings.folder, processes.launch))
        return answer_all(session, task, work, processes, claims)


def withdraw_stored(
    settings: Settings, task: Any, arms: Sequence[Arm], questions: Sequence[Question]
) -> None:
    """Withdraw the stored answers whose question or video has changed, before open ones are counted.

    Raises:
        DataError: as opening a store does.
    """
    with ExitStack() as stack:
        stores = {
            arm.id: stack.enter_context(ArmStore(settings.folder / arm.folder, arm_record(arm, settings, {})))
            for arm in arms
            if (settings.folder / arm.folder).is_dir()
        }
        if stores:
            withdraw_changed(stores, questions, partial(_other_questions, task, questions, Processes()))


def _other_questions(task: Any, questions: Sequence[Question], processes: Processes) -> list[Question]:
    """The questions of the data that this run does not ask, for the first of its processes; none for the others."""
    if processes.rank > 0:
        return []
    ids = {question.id for question in questions}
    return [question for question in all_questions(task, None, None) if question.id not in ids]
