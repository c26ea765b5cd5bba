"""What a person watches while a run answers: a bar in a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 60.0


class Progress:
    """A bar with the arm, the samples done, failures and the time left; ``with Progress(total) as progress``.

    Args:
        total: samples that this process will answer.
        show: off in all processes of a run but the first, whose share is shown as an example of the others'.
    """

    def __init__(self, total: int, *, show: bool = True) -> None:
        self.total, self.done, self.failed, self._show = total, 0, 0, show
        self._arm = ""
        self._console = Console(stderr=True)
        self._started = self._said = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, failed=0)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
        if self._show and not self._console.is_terminal:
            self._say()

    def arm(self, label: str, retention: float) -> None:
        """Say which arm answers now."""
        self._arm = f"{label} at {100 * retention:g} %"
        self._bar.update(self._task, description=self._arm)

    def step(self, *, failed: bool) -> None:
        """One sample more."""
        self.done += 1
        self.failed += failed
        self._bar.update(self._task, advance=1, failed=self.failed)
        if self._show and not self._console.is_terminal and time.monotonic() - self._said >= LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        spent = self._said - self._started
        left = spent / max(self.done, 1) * (self.total - self.done)
        print(
            f"{self.done} of {self.total} answered, {self.failed} failed, {spent:.0f} s, about {left:.0f} s left"
            f" (now: {self._arm})",
            file=sys.stderr,
            flush=True,
        )
