"""The errors a user can fix. Each message names the value, what is allowed and how to fix it."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input: configuration, files, budgets. The command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """A configuration value that is unknown or out of range."""


class BudgetError(UserError):
    """A budget that the method cannot meet on this model."""


class DataError(UserError):
    """A video or a data set that is missing, empty or broken."""


class VideoError(DataError):
    """A video that is missing, empty, broken, or takes too long to read; the questions about it have no answer.

    Attributes:
        limit: the seconds that it had, where that was not enough.
    """

    limit: float | None = None


class MissingParts(DataError):
    """Several things that are not on this machine.

    Attributes:
        parts: what is said of each.
    """

    def __init__(self, parts: list[str]) -> None:
        self.parts = list(dict.fromkeys(parts))
        listed = "\n".join(f"- {part}" for part in self.parts)
        super().__init__(f"missing on this machine:\n{listed}" if len(self.parts) > 1 else self.parts[0])


class MethodFault(Exception):
    """A method changed what is not its own: what it was lent, the model, or the state of the process.

    Nothing it changed reaches another sample; this sample has no answer.
    """


class RunFailed(Exception):
    """The run came to its end, but samples failed; everything answered is on disk. Exit code 1."""


class Stopped(RunFailed):
    """One of several processes gave up or died: the others wait for it in vain, so no later pass is begun."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; like an interrupt it is no error of a sample, and ends the run cleanly. Exit code 143."""


class CheckSkipped(Exception):
    """A check that cannot be made, and why: what it is about is not there. It has not failed."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a sentence of ours; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
