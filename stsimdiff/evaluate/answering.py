"""The loop of a pass: videos, their open questions, the arms that have not answered; each answer is stored at once.

What an answer is made of stands in :mod:`session`; here stands the order, what failed, and when a run gives up. All
processes of a run work through the same videos: each takes the next one that no other has claimed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stsimdiff.config.arms import Arm, asked_settings
from stsimdiff.config.settings import Settings
from stsimdiff.data.videos import failures_allowed
from stsimdiff.errors import DataError, RunFailed, Stopped, UserError, VideoError
from stsimdiff.evaluate.changed import UNKNOWN, video_digest
from stsimdiff.evaluate.claims import POLL_SECONDS, Claim, Claims
from stsimdiff.evaluate.failures import failure, once_more
from stsimdiff.evaluate.guard import WeightsChanged
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.progress import Board, Progress
from stsimdiff.evaluate.questions import Question
from stsimdiff.evaluate.store import ArmStore
from stsimdiff.files import fingerprint
from stsimdiff.models.base import EncodedVideo
from stsimdiff.source import own_frame

if TYPE_CHECKING:
    from stsimdiff.evaluate.session import PreparedQuestion, Session

log = logging.getLogger(__name__)

LEAST = 10
"""Failures that any share of the videos but 0% allows while a run answers."""


@dataclass
class Work:
    """The questions that each arm has still to answer, and why some videos are known to be unusable."""

    stores: dict[str, ArmStore]
    arms: Sequence[Arm]
    questions: Sequence[Question]
    retry_failed: bool
    unusable: Mapping[str, str] = field(default_factory=dict)
    missing: dict[str, set[str]] = field(default_factory=dict)
    again: dict[str, set[str]] = field(default_factory=dict)
    """By arm that remembers: answered questions whose video has an open one behind them. They are asked once more, so
    that it knows then what it knew, and their answers stay as they are."""

    def __post_init__(self) -> None:
        wanted = {question.id for question in self.questions}
        for arm in self.arms:
            self.missing[arm.id] = wanted - self.stores[arm.id].done(self.retry_failed)
            if arm.remembers:
                self.again[arm.id] = self._before(arm.id)

    def _before(self, arm: str) -> set[str]:
        found: set[str] = set()
        videos: set[str] = set()
        states = self.stores[arm].states
        for question in reversed(self.questions):
            if question.id in self.missing[arm]:
                videos.add(question.video)
            elif question.video in videos and (state := states.get(question.id)) and state.answered:
                found.add(question.id)
        return found

    @property
    def samples(self) -> int:
        """Answers still to give."""
        return sum(len(ids) for ids in self.missing.values())

    @property
    def open_videos(self) -> int:
        """Videos with an open question."""
        open_ids = set().union(*self.missing.values())
        return len({question.video for question in self.questions if question.id in open_ids})

    def by_video(self, among: Iterable[str] | None = None) -> dict[str, list[Question]]:
        """Videos with an open question, each with the questions to ask, the largest files first: they take longest.

        Args:
            among: the videos that are looked at; all if not given.
        """
        open_ids = set().union(*self.missing.values())
        videos = {question.video for question in self.questions if question.id in open_ids}
        videos &= videos if among is None else set(among)
        open_ids |= set().union(*self.again.values())
        pending = [q for q in self.questions if q.video in videos and q.id in open_ids]
        ordered = sorted(pending, key=lambda question: question.video)
        groups = {path: list(group) for path, group in groupby(ordered, key=lambda question: question.video)}
        # Within a factor of two they take about as long, and stay in the order of their names.
        return dict(sorted(groups.items(), key=lambda item: -_size(Path(item[0])).bit_length()))

    def look(self) -> int:
        """Leave to others what they have answered by now, failures too; returns how many samples that are."""
        before = self.samples
        for arm in self.arms:
            if found := self.stores[arm.id].look():
                self.missing[arm.id] -= found
                if arm.remembers:
                    self.again[arm.id] = self._before(arm.id)
        return before - self.samples


def _size(video: Path) -> int:
    """Bytes of a video's file, or of all files of its folder of frames; 0 where there is none."""
    try:
        return (
            sum(file.stat().st_size for file in video.iterdir()) if video.is_dir() else video.stat().st_size
        )
    except OSError:
        return 0


def answer_all(session: Session, task: Any, work: Work, processes: Processes, claims: Claims) -> int:
    """Answer every missing sample that no other process answers, video by video; returns how many lines were written.

    A sample that raises, ``SystemExit`` included, is written as failed and the rest goes on. What another process was
    at work on is waited for; if that one ends before it is done, the rest is answered here.

    Raises:
        ConfigError: when the settings and the model do not go together, as seen only now.
        DataError: when something cannot be stored; the answers before it are.
        RunFailed: when more went wrong in this call than ``max_failures`` allows.
    """
    videos = work.by_video()
    file = session.settings.folder / processes.file("progress", "log")
    total = work.samples, len(videos), sum(map(len, videos.values()))

    def lacks(path: str) -> bool:
        return path not in work.unusable and session.lacks(path, work.arms)

    def most() -> int:
        # What is read ahead is claimed, and no process shall be left without a video.
        workers = max(processes.world, claims.workers())
        return session.settings.video.ahead if workers == 1 else work.open_videos // (2 * workers)

    board = Board(session.settings.folder, processes, " ".join(arm.id for arm in work.arms))
    progress = Progress(*total, file, show=processes.show, board=board, waited=lambda: session.reader.waited)
    with progress:
        loop, said = _Loop(session, task, work, progress), False
        while videos:
            claimed = _claimed(session.settings, work, videos, claims, progress)
            if first := next(claimed, None):
                rest = chain([first], claimed)
                with closing(session.reader.over(rest, lacks, processes.world, most)) as read:
                    loop.videos(read, claims)
            else:
                if not said:
                    left = "1 video is" if len(videos) == 1 else f"{len(videos)} videos are"
                    log.info("%s left, which other processes answer; waiting for them", left)
                said = True
                time.sleep(POLL_SECONDS)
            progress.elsewhere(work.look())
            videos = work.by_video()
    return loop.written


def _claimed(
    settings: Settings, work: Work, videos: Iterable[str], claims: Claims, progress: Progress
) -> Iterator[tuple[str, tuple[list[Question], Claim]]]:
    """Of these videos each that no other process works on when its turn comes, and what is still open of it."""
    # Another model's or benchmark's answers about the same video are other work; on another device, or where files lie
    # elsewhere, it is the same.
    kind = fingerprint(repr(asked_settings(settings)), digits=8)
    names = {question.video: question.video_name for question in work.questions}
    for path in videos:
        claim = claims.take(f"{kind}-{fingerprint(names[path], digits=16)}")
        if claim is None:
            continue
        progress.elsewhere(work.look())
        still = work.by_video([path])
        if still:
            yield path, (still[path], claim)
        else:
            claims.give_back(claim)


def _allowed(limit: int | str, videos: int) -> int:
    """Failures that a run goes on with: of a share at least ``LEAST``, so that a short trial comes to its end."""
    allowed = failures_allowed(limit, videos)
    return allowed if isinstance(limit, int) or float(limit[:-1]) == 0 else max(allowed, LEAST)


class _Loop:
    """One call of :func:`answer_all`. A video's features live as long as :meth:`video` runs, and no longer."""

    def __init__(self, session: Session, task: Any, work: Work, progress: Progress) -> None:
        self.session, self.task, self.work, self.progress = session, task, work, progress
        self.written = self.failures = self.asked = 0
        videos = len({question.video for question in work.questions})
        self.allowed = _allowed(session.settings.max_failures, videos)
        self.lost: dict[str, Exception | SystemExit] = {}
        """Arms that cannot answer the rest of the video's questions, and why."""
        self.digest = UNKNOWN
        """Of the video whose questions are being answered, as it was before it was read."""

    def videos(self, claimed: Iterable[tuple[str, tuple[list[Question], Claim]]], claims: Claims) -> None:
        """Have the open questions of videos answered, and give each video's claim back."""
        for path, (questions, claim) in claimed:
            try:
                self.video(path, questions, claim)
                self.flush()
            except BaseException:
                with suppress(DataError):  # what is on its way says more
                    self.flush()
                raise
            finally:
                claims.give_back(claim)

    def flush(self) -> None:
        """Let others read the answers so far, before they find the video free."""
        for store in self.work.stores.values():
            store.flush()

    def video(self, path: str, questions: Sequence[Question], claim: Claim) -> None:
        """Encode a video and have all its open questions answered, as long as this process has its claim."""
        self.progress.video()
        self.lost.clear()
        self.digest = video_digest(path)
        encoded: EncodedVideo | Exception | SystemExit
        try:
            if path in self.work.unusable:
                raise VideoError(self.work.unusable[path])
            with self.progress.working():
                encoded = once_more(lambda: self.session.encode(path, self.work.arms), self.session.free)
        except VideoError as error:
            encoded = error
        except UserError:
            # What the settings forbid, or a disk refuses, is no matter of one video.
            raise
        except (Exception, SystemExit) as error:
            encoded = error
        asked = [(question, self.ask(question, encoded)) for question in questions]
        try:
            # One arm after the other, so that its next question can continue from what this one left.
            for arm in self.work.arms:
                for number, (question, prompt) in enumerate(asked, start=self.asked + 1):
                    if claim.lost:
                        log.warning("%s: another process has taken it over, since this one stood still", path)
                        return
                    if question.id in self.work.again.get(arm.id, ()):
                        self.recall(arm, question, prompt)
                    if question.id in self.work.missing[arm.id]:
                        self.progress.question(number)
                        self.sample(arm, question, prompt)
        finally:
            self.session.forget_prefix()
        self.asked += len(asked)
        self.progress.question(self.asked)
        for _, prompt in asked if isinstance(encoded, EncodedVideo) else ():
            if isinstance(prompt, BaseException):
                self._went_wrong(prompt)
        # Known beforehand and allowed, it says nothing about how the run fares.
        if not isinstance(encoded, EncodedVideo) and path not in self.work.unusable:
            self._went_wrong(encoded)

    def ask(
        self, question: Question, encoded: EncodedVideo | Exception | SystemExit
    ) -> PreparedQuestion | Exception | SystemExit:
        """The question as all arms answer it, or why it cannot be asked."""
        if not isinstance(encoded, EncodedVideo):
            return encoded
        try:
            return once_more(lambda: self.session.ask(question, encoded), self.session.free)
        except (Exception, SystemExit) as error:
            return error

    def recall(self, arm: Arm, question: Question, asked: PreparedQuestion | Exception | SystemExit) -> None:
        """Ask an arm that remembers what it has answered in an earlier run, for what it knows then."""
        try:
            if isinstance(asked, BaseException):
                raise asked
            once_more(lambda: self.session.answer(arm, question, asked), self.session.free)
        except WeightsChanged as error:
            raise Stopped(str(error)) from error
        except (Exception, SystemExit) as error:
            # What it knew cannot be had again, so its later questions of this video have no answer.
            self.lost[arm.id] = error

    def sample(self, arm: Arm, question: Question, asked: PreparedQuestion | Exception | SystemExit) -> None:
        """Have one question answered by one arm, and store the answer or the reason why there is none."""
        self.progress.arm(arm.label, arm.budget.retention)
        asked = self.lost.get(arm.id, asked)
        if isinstance(asked, BaseException):
            self._store(arm, question, failure(question, asked))
            return
        try:
            with self.progress.working():
                row = once_more(lambda: self.session.row(self.task, arm, question, asked), self.session.free)
        except (Exception, SystemExit) as error:
            self._store(arm, question, failure(question, error))
            if isinstance(error, WeightsChanged):
                # The passes after this one have the same model.
                raise Stopped(str(error)) from error
            self._went_wrong(error)
        else:
            self._store(arm, question, row)

    def _store(self, arm: Arm, question: Question, row: dict[str, Any]) -> None:
        self.work.stores[arm.id].append({**row, "of": f"{question.digest}-{self.digest}"})
        self.work.missing[arm.id].discard(question.id)
        self.written += 1
        self.progress.step(failed=row["error"] is not None)

    def _went_wrong(self, error: BaseException) -> None:
        """Count one thing that went wrong, however many samples it cost: a broken video must not end a sweep."""
        self.failures += 1
        settings: Settings = self.session.settings
        where = own_frame(error)
        if self.failures > self.allowed:
            raise RunFailed(
                f"stopped after {self.failures} failures (max_failures={settings.max_failures}, here {self.allowed}; a "
                f"video that cannot be read counts once, whatever it cost); the last one: {type(error).__name__}: "
                f"{error}{f' ({where})' if where else ''}. What was answered is stored in {settings.folder}"
            )
