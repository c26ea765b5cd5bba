"""What a person watches while a run answers: a bar in a terminal, a line a minute elsewhere and in a log file."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from stsimdiff.terminal import Console, clean, say

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0


class Progress:
    """A bar with the arm, videos, questions, answers, failures and the time left; ``with Progress(...) as progress``.

    Args:
        total: samples (answers) that this process will give.
        videos: videos that they are about.
        questions: questions that they belong to.
        file: gets a line a minute, from every process into a file of its own; ``None`` for no file.
        show: off in all processes of a run but the first, whose share is shown as an example of the others'.
    """

    def __init__(
        self, total: int, videos: int, questions: int, file: Path | None = None, *, show: bool = True
    ) -> None:
        self.total, self.videos, self.questions = total, videos, questions
        self.done = self.failed = self.at_video = self.at_question = 0
        self._arm, self._file = "", file
        self._console = Console(stderr=True)
        self._lines = show and not self._console.is_terminal
        self._started = self._said = time.monotonic()
        self._said_of = -1
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("answers, {task.fields[where]}, {task.fields[failed]} failed,"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, failed=0, where=self._where())

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
        if self._said_of != self.done:
            self._say()

    def video(self) -> None:
        """The next video begins."""
        self.at_video += 1

    def question(self) -> None:
        """The next question begins."""
        self.at_question += 1

    def arm(self, label: str, retention: float) -> None:
        """Say which arm answers now."""
        self._arm = clean(f"{label} at {100 * retention:g} %")
        self._bar.update(self._task, description=self._arm, where=self._where())

    def step(self, *, failed: bool) -> None:
        """One sample more."""
        self.done += 1
        self.failed += failed
        self._bar.update(self._task, advance=1, failed=self.failed)
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._say()

    def _where(self) -> str:
        return f"video {self.at_video} of {self.videos}, question {self.at_question} of {self.questions}"

    def _say(self) -> None:
        self._said, self._said_of = time.monotonic(), self.done
        spent = self._said - self._started
        left = spent / max(self.done, 1) * (self.total - self.done)
        line = (
            f"{self.done} of {self.total} answered, {self._where()}, {self.failed} failed, {spent:.0f} s, about "
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
