"""What a person watches while a run answers: a bar in a terminal, a line a minute elsewhere and in a log file.

Each of several processes says how far it is in a small file of its own, and the one that shows adds them up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from stsimdiff.evaluate.processes import Processes
from stsimdiff.files import fingerprint, write_whole
from stsimdiff.terminal import Console, clean, say

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0
TOLD_SECONDS = 2.0
"""Seconds after which a process says again how far it is, or looks at what the others say."""


@dataclass
class Counts:
    """How far a process is, or several together.

    Attributes:
        total: answers to give.
        videos: that they are about.
        questions: that they belong to.
        done: answers given, failures included.
        failed: those of them that are failures.
        at_video: videos begun.
        at_question: questions begun.
        seconds: since the first video.
        busy: seconds of these in which a video was encoded or a question answered.
    """

    total: int = 0
    videos: int = 0
    questions: int = 0
    done: int = 0
    failed: int = 0
    at_video: int = 0
    at_question: int = 0
    seconds: float = 0.0
    busy: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = vars(self), vars(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class Board:
    """What the processes of one launch say, each in a file of its own below the run's folder.

    Args:
        folder: of the run.
        processes: this process among those of the run; one that is alone writes nothing.
        part: says which of the run's passes this is: jobs of one launch may answer several.
    """

    NAME = ".progress"

    def __init__(self, folder: Path, processes: Processes, part: str = "") -> None:
        self._folder, self._alone = folder / self.NAME, processes.world == 1 and processes.launch is None
        # Jobs of one launch have names of their own after its name.
        launch = (processes.launch or "ranks").partition(".")[0]
        self._pass = f"{launch}.{fingerprint(part, digits=8)}"
        self._own = f"{self._pass}.{processes.rank}-of-{processes.world}.json"

    @classmethod
    def clear(cls, folder: Path) -> None:
        """Remove what ranks of an earlier start said; before those of this one begin."""
        for path in (folder / cls.NAME).glob("ranks.*"):
            path.unlink(missing_ok=True)

    def tell(self, counts: Counts) -> None:
        """Say how far this process is. Raises :class:`OSError`."""
        if not self._alone:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / self._own, json.dumps(asdict(counts)) + "\n")

    def others(self) -> Counts:
        """How far the others are together with this pass, as far as they have said it."""
        counts = Counts()
        for path in () if self._alone else sorted(self._folder.glob(f"{self._pass}.*.json")):
            # One that another revision wrote, or that a disk lost, is one the less in a bar.
            with contextlib.suppress(OSError, ValueError, TypeError):
                if path.name != self._own:
                    counts += Counts(**json.loads(path.read_bytes()))
        return counts


class Progress:
    """A bar with the arm, videos, answers a second, failures and the time left; ``with Progress(...) as progress``.

    Args:
        total: samples (answers) that this process and others will give.
        videos: videos that they are about.
        questions: questions that they belong to.
        file: gets a line a minute, from every process into a file of its own; ``None`` for no file.
        show: off in all processes of a run but the first, which shows what all have done.
        board: what the others say.
        waited: seconds so far in which this process waited for frames.
    """

    def __init__(
        self,
        total: int,
        videos: int,
        questions: int,
        file: Path | None = None,
        *,
        show: bool = True,
        board: Board | None = None,
        waited: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._own, self._others = Counts(total, videos, questions), Counts()
        self._elsewhere = 0
        self._board, self._waited, self._show = board, waited, show
        self._arm, self._file = "", file
        self._console = Console(stderr=True)
        self._lines = show and not self._console.is_terminal
        self._started = self._said = self._told = time.monotonic()
        self._said_of = -1
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("answers, {task.fields[where]}, {task.fields[pace]},"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, where="", pace="")
        self._update()

    def __enter__(self) -> Progress:
        self._bar.start()
        self._tell()
        return self

    def __exit__(self, *exc: object) -> None:
        self._tell()
        self._update()
        self._bar.stop()
        if self._said_of != self._own.done:
            self._say()

    @contextmanager
    def working(self) -> Iterator[None]:
        """The model works; what is waited for in between does not count."""
        started, waited = time.monotonic(), self._waited()
        try:
            yield
        finally:
            self._own.busy += time.monotonic() - started - (self._waited() - waited)

    def video(self) -> None:
        """The next video begins."""
        self._own.at_video += 1

    def question(self, number: int) -> None:
        """The question of this number begins."""
        self._own.at_question = number

    def arm(self, label: str, retention: float) -> None:
        """Say which arm answers now."""
        self._arm = clean(f"{label} at {100 * retention:g} %")
        self._update()

    def step(self, *, failed: bool) -> None:
        """One sample more."""
        self._own.done += 1
        self._own.failed += failed
        self._update()
        now = time.monotonic()
        if now - self._told >= TOLD_SECONDS:
            self._tell()
        if now - self._said >= LINE_SECONDS:
            self._say()

    def _all(self) -> Counts:
        """All processes together: the work is that of this one, which they share."""
        here = self._own
        here.seconds = time.monotonic() - self._started
        # What is stored tells of processes that are no part of this launch, too; what they say is newer.
        done = here.done + max(self._others.done, self._elsewhere)
        work = {"total": here.total, "videos": here.videos, "questions": here.questions}
        return replace(here + self._others, done=done, **work)

    def elsewhere(self, samples: int) -> None:
        """Other processes have stored some of the answers, in the time of this one."""
        self._elsewhere += samples

    def _update(self) -> None:
        if self._bar.disable:
            return
        counts = self._all()
        where, pace = _where(counts), _pace(counts, self._own.seconds)
        self._bar.update(
            self._task,
            description=self._arm,
            total=counts.total,
            completed=counts.done,
            where=where,
            pace=pace,
        )

    def _tell(self) -> None:
        """Say how far this process is and, where it shows, hear it of the others."""
        self._told = time.monotonic()
        if self._board is None:
            return
        self._all()
        try:
            self._board.tell(self._own)
        except OSError as error:
            log.warning("cannot tell the other processes how far this one is: %s", error.strerror)
            self._board = None
            return
        if self._show:
            self._others = self._board.others()

    def _say(self) -> None:
        self._said, self._said_of = time.monotonic(), self._own.done
        counts, spent = self._all(), self._said - self._started
        left = spent / max(counts.done, 1) * (counts.total - counts.done)
        line = (
            f"{counts.done} of {counts.total} answered, {_where(counts)}, {_pace(counts, spent)}, {spent:.0f} s, about "
            f"{left:.0f} s left (now: {self._arm})"
        )
        if self._lines:
            say(line, error=True)
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')} {line}\n")
        except OSError as error:
            # Answers matter more than the log of their progress; a disk that takes neither stops the run elsewhere.
            log.warning("%s is no longer written: %s", self._file, error.strerror)
            self._file = None


def _where(counts: Counts) -> str:
    return (
        f"video {counts.at_video} of {counts.videos}, question {counts.at_question} of {counts.questions}, "
        f"{counts.failed} failed"
    )


def _pace(counts: Counts, spent: float) -> str:
    """Answers a second, and the share of all processes' time in which their model worked."""
    busy = 100 * counts.busy / counts.seconds if counts.seconds else 0
    return f"{counts.done / spent if spent else 0:.2g} a second, model busy {busy:.0f} %"
