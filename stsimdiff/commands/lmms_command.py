"""What lmms-eval's own command is told by its model, and how it ends.

That command builds the model first and then its tasks, with no word of ours between, and turns every exception into
exit code 0. So the model leaves here where the data lies, and what is refused ends the process itself.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from stsimdiff.config.checks import Folder
from stsimdiff.schema import check
from stsimdiff.terminal import say

_told: tuple[str | None, str | None] | None = None


def tell(data: Any, benchmark_data: Any) -> None:
    """Say where the data lies: ``data``, a folder that holds one for each public benchmark, or ``benchmark_data``, that
    of the benchmark itself; ``None`` for the usual places."""
    global _told
    _told = check("data", data, Folder | None), check("benchmark.data", benchmark_data, Folder | None)


def root(name: str | None) -> str | None:
    """The folder of a benchmark as told; of one that is no public one (``None``) only its own."""
    from stsimdiff.data.benchmarks import folder_in

    data, benchmark_data = _told or (None, None)
    if benchmark_data or not data or not name:
        return benchmark_data
    return str(folder_in(Path(data), name))


@contextmanager
def ending(words: Sequence[str] = ()) -> Iterator[None]:
    """Turn what is refused into a message and exit code 2, and any other exception into exit code 1."""
    from stsimdiff.commands.cli import errors_as_messages

    try:
        with errors_as_messages(list(words)):
            yield
    except Exception as error:
        say("".join(traceback.format_exception(error)), error=True)
        raise SystemExit(1) from error


def ending_here() -> Any:
    """:func:`ending` where lmms-eval's own command runs, else nothing: our own command has messages of its own."""
    return ending() if _told is not None else nullcontext()
