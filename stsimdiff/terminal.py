"""What is printed: text that is not ours made fit for a terminal, and standard streams that never end a run.

Answers, labels, file names and errors may hold anything. Here their control characters become visible escapes, what the
terminal's encoding lacks is replaced, and a reader that went away (``| head -1``) or a full disk costs what is printed
and nothing else.
"""

from __future__ import annotations

import errno
import io
import logging
import re
import select
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

import rich.console
from rich.segment import Segment
from typing_extensions import override

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and newline."""
UNPRINTABLE = re.compile(
    rf"{CONTROL.pattern}|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Those, marks that turn the direction of what stands beside them, and halves of a character that no file can hold."""


def clean(text: object) -> str:
    """The text with every character that a terminal would act on, and half characters, as an escape: ``\\u001b``."""
    cleaned = str(text)
    # Nearly every text has none, and Python says so faster: what UNPRINTABLE finds is not printable to it either.
    return (
        cleaned
        if cleaned.isprintable()
        else UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", cleaned)
    )


def say(*texts: object, error: bool = False) -> None:
    """Print a line, cleaned, at once; on standard error if ``error``."""
    print(*map(clean, texts), file=sys.stderr if error else sys.stdout, flush=True)


class Console(rich.console.Console):
    """Rich's console for text that is not ours: no markup, no emoji codes, no control characters.

    What is bold or dim is said by ``style`` or by :class:`rich.text.Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """See rich; every segment of text is cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean(segment.text))

    @override
    def on_broken_pipe(self) -> None:
        """Nobody reads on: the rest is printed nowhere, and the program goes on."""
        self.quiet = True


class Formatter(logging.Formatter):
    """A log line, cleaned."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


class _Descriptor(io.FileIO):
    """The raw end of a standard stream; what cannot be written is dropped, and the first reason kept."""

    failure: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            # None where the other end made the stream non-blocking and is slow to read.
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            # A reader that has seen enough is no failure.
            if error.errno != errno.EPIPE:
                self.failure = self.failure or error
            return len(data)


def prepare() -> None:
    """Make this process's standard streams unfailing; called once, where a command or a job begins.

    Streams that somebody else put in place (tests, notebooks, workers of a pool) are left alone.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        raw = _Descriptor(stream.fileno(), "w", closefd=False)
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors="replace" if name == "stdout" else "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            ),
        )
    sys.excepthook = _show


def unwritten() -> str:
    """Why something could not be printed, a sentence each; empty where all was, or where the reader went away."""
    sentences = []
    for name, stream in (("output", sys.stdout), ("error", sys.stderr)):
        failure = getattr(_raw(stream), "failure", None)
        if failure is not None:
            sentences.append(f"standard {name} could not be written: {failure.strerror}")
    return "; ".join(sentences)


def _raw(stream: TextIO | None) -> Any:
    if stream is None:
        return None
    stream.flush()
    return getattr(getattr(stream, "buffer", None), "raw", None)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback, cleaned."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip(), error=True)


def log_to_stderr() -> None:
    """The project's log on standard error, a message a line: in the command and in each job that it starts.

    Standard streams are made such that printing never ends the process; see :func:`prepare`.
    """
    prepare()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("stsimdiff").setLevel(logging.INFO)
