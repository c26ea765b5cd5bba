"""An arm's folder, ``arm.json`` and ``answers.jsonl``: the one place that writes and reads it.

A line a sample, safe before the next sample begins. Each process writes a file of its own; readers see all of them as
one. Which line counts, and what is said of the others, is one rule for a run that goes on, its score, its report and a
plan. What scores or tabulates answers lives elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from stsimdiff import lock
from stsimdiff.errors import DataError
from stsimdiff.evaluate.stored import Row, checked_arm, checked_line, json_bytes, parsed_line, strict_json
from stsimdiff.files import cut_torn_line, lines, make_folder, write_whole
from stsimdiff.lock import Lock, LockHeld

log = logging.getLogger(__name__)

RECORD = "arm.json"
SUBMISSION = "submission.json"
"""In an arm's folder: ``{video_idx: place of the answer, from 0}``, as EgoSchema's server takes it. A question without
a readable letter is left out: the server counts it as missing, and nothing is guessed."""
FILE = re.compile(r"answers(\.\d+(-of-\d+)?)?\.jsonl")
"""Files of answers; processes of version 0.1.0 named theirs ``answers.0-of-2.jsonl``."""
BEGIN, END = b'{"id": "', b', "error": null}'
TAIL = re.compile(rb'(?:, "asking": (\d+))?, "of": "([0-9a-f]{12}-[0-9a-f]{12})", "error": null\}$')
"""How the line of an answer begins and ends as it is written here. Which lines count is read from no more than that, so
that a finished sweep of half a million lines starts in seconds; the rest is read when it is scored."""

Ends = dict[Path, tuple[int, int]]
"""Of each file: bytes and lines that were read of it."""


class State(NamedTuple):
    """What the lines of a sample say.

    Attributes:
        answered: whether one of them is an answer.
        of: digests of the question and the video that it is of; ``None`` where the line says none.
        asking: how often earlier lines were withdrawn.
    """

    answered: bool
    of: str | None = None
    asking: int = 0

    def gives_way_to(self, other: State) -> bool:
        """Whether a line read after this one counts instead: of a later asking, or of the same if this is no answer."""
        return other.asking > self.asking or (other.asking == self.asking and not self.answered)


sync = getattr(os, "fdatasync", os.fsync)
"""Waits until an answer and the file's new length are on the disk; when it was changed need not be."""
SYNC_SECONDS = 1.0
"""A file's answers are synced at most so often while it is open, and when it is closed."""


class ArmStore:
    """The folder of one arm, open for one process, which writes a file of its own: the first that no other one holds.

    Use it as a context manager. ``append`` returns when the row is on disk; a process killed at any moment loses
    no row that ``append`` returned for.

    Args:
        folder: the arm's folder; made if absent.
        record: what ``arm.json`` says, as ``stsimdiff.config.arms.arm_record`` makes it.
        launch: name of the job that this process runs; see :class:`stsimdiff.lock.Lock`.
        first: number of the file that is tried first, so that the processes of one run need not look for long.

    Raises:
        DataError: for a folder that cannot be written, or belongs to another arm.
    """

    def __init__(self, folder: Path, record: Row, launch: str | None = None, first: int = 0) -> None:
        self.folder = Path(folder)
        self.record = record
        self.dropped = 0
        """Bytes of a torn last line that were dropped on opening; the sample will be asked again."""
        self._launch, self._first = launch, first
        self.number = first
        """Of the file, once it is open."""
        self._path, self._lock = self._place(first)
        self._descriptor = -1
        self._synced = -math.inf
        self._ends: Ends = {}
        self.states: dict[str, State] = {}
        """Of each sample that has a line that counts."""
        self._asking: dict[str, int] = {}

    def __enter__(self) -> ArmStore:
        make_folder(self.folder)
        self._take()
        try:
            write_record(self.folder, self.record)
            self._open()
            self.states, self._asking = _read_states(self.folder, self._ends)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give up the lock; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if descriptor >= 0:
                with self._refused():
                    sync(descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            self._lock.release()

    def flush(self) -> None:
        """Let processes of other machines read the answers so far.

        Raises:
            DataError: when the disk refuses them.
        """
        with self._refused():
            # A network file system sends what was written when a descriptor is closed, any of the file.
            os.close(os.dup(self._descriptor))

    def append(self, row: Row) -> None:
        """Put one answer into the file, where it survives the end of this process.

        Syncing takes as long as a small model's answer, so it is done once in :data:`SYNC_SECONDS`: what a machine that
        loses its power may lose is asked again.

        Args:
            row: JSON values with an ``id``; ``error`` is ``None`` for an answer and a message for a failure.

        Raises:
            DataError: when the disk is full or the file cannot be written; earlier rows stay readable.
            ValueError: for a sample that has an answer already, or a row that is not JSON (NaN included).
        """
        if self._descriptor < 0:
            raise ValueError(f"{self._path} is not open")
        if row["id"] in self.states and self.states[row["id"]].answered:
            raise ValueError(f"{self._path}: sample {row['id']!r} has an answer already")
        asking = self._asking.get(row["id"], 0)
        ends = {"asking": asking} if asking else {}
        ends |= {"of": row["of"]} if "of" in row else {}
        between = {name: value for name, value in row.items() if name not in ("id", "error", *ends)}
        line = (
            json_bytes({"id": row["id"], **between, **ends, "error": row.get("error")}, allow_nan=False)
            + b"\n"
        )
        self._write(line)
        self.states[row["id"]] = State(_succeeded(row), row.get("of"), asking)

    def withdraw(self, sample: str, why: str) -> None:
        """Have a sample asked again, though it has a line: its lines so far no longer count.

        Raises:
            DataError: as :meth:`append` does.
        """
        asking = self.states.pop(sample).asking
        self._write(json_bytes({"withdrawn": asking, "id": sample, "why": why}) + b"\n")
        self._asking[sample] = asking + 1

    def _write(self, line: bytes) -> None:
        with self._refused():
            state = os.fstat(self._descriptor)
            if not state.st_nlink:
                raise FileNotFoundError(errno.ENOENT, "it was removed while the run was going on")
            try:
                _write_all(self._descriptor, line)
                if time.monotonic() - self._synced >= SYNC_SECONDS:
                    sync(self._descriptor)
                    self._synced = time.monotonic()
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, state.st_size)
                raise

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Say what the disk refuses."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot write {self._path}: {error.strerror}; the {len(self.states)} answers before it are kept; "
                "start the same run again to continue"
            ) from error

    def done(self, retry_failed: bool = False) -> set[str]:
        """Ids that need no answer: answered in any shard, and failed ones too unless ``retry_failed``."""
        return {sample for sample, state in self.states.items() if state.answered or not retry_failed}

    def look(self) -> set[str]:
        """Read what other processes have written since this was last called; returns the samples of those lines.

        Raises:
            DataError: for a line that is damaged, or a file that cannot be read.
        """
        _, states, withdrawn = _read(self.folder, [], ends=self._ends, but=self._path)
        for sample, asking in withdrawn.items():
            self._asking[sample] = max(asking + 1, self._asking.get(sample, 0))
            if sample in self.states and self.states[sample].asking <= asking:
                del self.states[sample]
        lines = {id_: state for id_, state in states.items() if state.asking >= self._asking.get(id_, 0)}
        for sample, state in lines.items():
            if sample not in self.states or self.states[sample].gives_way_to(state):
                self.states[sample] = state
        return set(lines)

    def _place(self, number: int) -> tuple[Path, Lock]:
        """The file of answers of a number, and its lock. The first has the name that version 0.1.0 gave it."""
        answers, lock_name = (
            (f"answers.{number}.jsonl", f".lock.{number}") if number else ("answers.jsonl", ".lock.0-of-1")
        )
        return self.folder / answers, Lock(self.folder / lock_name, self._launch)

    def _take(self) -> None:
        for number in chain([self._first], (n for n in count() if n != self._first)):
            self._path, self._lock = self._place(number)
            with contextlib.suppress(LockHeld):
                self._lock.take()
                self.number = number
                return

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self.dropped = cut_torn_line(self._path)
            _sync_folder(self.folder)
        except OSError as error:
            raise DataError(f"cannot open {self._path}: {error.strerror}") from error
        if self.dropped:
            log.warning(
                "%s: dropped a torn last line of %d bytes; its sample is asked again",
                self._path,
                self.dropped,
            )


def write_record(folder: Path, record: Row) -> None:
    """Write ``arm.json`` atomically.

    A resumed arm keeps its first provenance, since earlier answers have it; later ones are listed as ``resumed``.
    A record whose provenance is still empty changes nothing that is known.

    Raises:
        DataError: when the folder holds another arm, or cannot be written.
    """
    path = folder / RECORD
    if path.exists():
        known = read_record(folder)
        if known.get("arm") != record["arm"]:
            raise DataError(
                f"{path} is of arm {known.get('arm')}, not {record['arm']}; choose another run=NAME"
            )
        origin, resumed = known.get("provenance"), known.get("resumed", [])
        # Whose answers do not fit the data as it is now are withdrawn: those that count are of this revision.
        moved = "benchmark" in record and _revision(known) != _revision(record)
        if moved:
            known = {**known, "benchmark": record["benchmark"]}
        if not record["provenance"] or record["provenance"] in (origin, *resumed):
            if not moved:
                return
            record = known
        elif origin:
            record = {**known, "resumed": [*resumed, record["provenance"]]}
    try:
        write_whole(path, json_bytes(record, indent=2) + b"\n")
        _sync_folder(folder)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def _revision(record: Row) -> Any:
    return (record.get("benchmark") or {}).get("revision")


def read_record(folder: Path) -> Row:
    """What ``arm.json`` says. Raises :class:`DataError` when it is missing or broken."""
    path = folder / RECORD
    try:
        record = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is broken: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} is broken: a {type(record).__name__} where an arm's record was expected")
    return record


def read_answers(folder: Path) -> list[Row]:
    """All answers of an arm, one a sample, in the order they were first given.

    Raises:
        DataError: as :func:`counted_lines` does.
    """
    return [row for _, row in counted_lines(folder).values()]


def checked_answers(
    folder: Path, notes: list[str] | None = None, record: Mapping[str, Any] | None = None
) -> list[Row]:
    """As :func:`read_answers`, each value checked, whole numbers as floats where numbers are counted with.

    Args:
        folder: of the arm.
        notes: gets a sentence for every answer and torn line that does not count.
        record: what :func:`checked_record` says of the folder; read from it if not given.

    Raises:
        DataError: for a line that is damaged, with file, line number, name and value.
    """
    server = (record or checked_record(folder))["benchmark"].get("server")
    layers: int | None = None
    rows = []
    for place, line in _counted(folder, [] if notes is None else notes).values():
        row = checked_line(line, place)
        if row["error"] is None and row["correct"] is None and not server:
            raise DataError(f"{place}: correct=None without an error; allowed: true or false")
        counts = row.get("tokens_per_layer")
        if counts is not None and len(counts) != (layers := len(counts) if layers is None else layers):
            raise DataError(
                f"{place}: tokens_per_layer has {len(counts)} layers, the lines before it {layers}"
            )
        rows.append(row)
    return rows


def checked_record(folder: Path) -> Row:
    """As :func:`read_record`, each value checked, ``benchmark.families`` as ``categories``; raises as it does."""
    return checked_arm(read_record(folder), str(folder / RECORD))


def counted_lines(folder: Path) -> dict[str, tuple[str, Row]]:
    """The line that counts for each sample of an arm, and its place, in the order they were first given.

    An answer supersedes the failures of the same sample, a later failure an earlier one, nothing an answer. A line
    ``withdrawn`` takes back those of its sample up to that asking, in whichever shard they are. A torn last line of a
    shard is left out: its writer was stopped, or is still at it.

    Args:
        folder: of the arm.

    Raises:
        DataError: for a line that is not JSON, or without an id, with file and line number.
    """
    return {
        sample: (place, parsed_line(line, place)) for sample, (place, line) in _counted(folder, []).items()
    }


def _counted(folder: Path, notes: list[str]) -> dict[str, tuple[str, bytes]]:
    """As :func:`counted_lines`, the lines as they stand in the files; ``notes`` as :func:`checked_answers` has it."""
    problems: list[str] = []
    lines, states, withdrawn = _read(folder, problems)
    _warn(problems)
    notes += problems
    counting = _counting(states, withdrawn)
    return {
        sample: (f"{file}:{number}", line)
        for sample, (file, number, line) in lines.items()
        if sample in counting
    }


def _asking(row: Row, place: str) -> int:
    """Number of the asking that a line answers, or withdraws."""
    name = "withdrawn" if "withdrawn" in row else "asking"
    number = row.get(name, 0)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise DataError(
            f"{place}: {name}={number!r:.100}; allowed: a whole number from 0; remove the line to go on"
        )
    return number


def done_ids(folder: Path, retry_failed: bool = False) -> set[str]:
    """Ids that need no answer in an arm's folder, as :meth:`ArmStore.done`, without opening it for writing."""
    return {
        sample for sample, state in _read_states(folder, {})[0].items() if state.answered or not retry_failed
    }


def arm_folders(run: Path) -> list[Path]:
    """The arm folders of a run, sorted by name."""
    return sorted(path.parent for path in run.glob(f"*/{RECORD}"))


def writer(folder: Path) -> dict[str, Any] | None:
    """The live process that has an arm's folder open, as its lock names it; ``None`` where there is none."""
    return next(filter(None, map(lock.holder, folder.glob(".lock.*"))), None)


def shards(folder: Path) -> list[Path]:
    """The files with an arm's answers, one a process."""
    return sorted(path for path in folder.glob("answers*.jsonl") if FILE.fullmatch(path.name))


def _read_states(folder: Path, ends: Ends) -> tuple[dict[str, State], dict[str, int]]:
    """The state of each sample that has a line that counts, and the number of the next asking where it is not 0."""
    notes: list[str] = []
    _, states, withdrawn = _read(folder, notes, ends=ends)
    _warn(notes)
    return _counting(states, withdrawn), {sample: number + 1 for sample, number in withdrawn.items()}


def _counting(states: Mapping[str, State], withdrawn: Mapping[str, int]) -> dict[str, State]:
    return {sample: state for sample, state in states.items() if state.asking > withdrawn.get(sample, -1)}


def _read(
    folder: Path, notes: list[str], *, ends: Ends | None = None, but: Path | None = None
) -> tuple[dict[str, tuple[str, int, bytes]], dict[str, State], dict[str, int]]:
    """By sample: its best line with its place, what that says, and the last asking that was withdrawn.

    Args:
        folder: of the arm.
        notes: gets a sentence for each answer and torn line that does not count.
        ends: what of each file was read before, which is not read again; moved to where this comes to.
        but: a file that is left out.
    """
    ends = {} if ends is None else ends
    lines: dict[str, tuple[str, int, bytes]] = {}
    states: dict[str, State] = {}
    withdrawn: dict[str, int] = {}
    for path in shards(folder):
        if path == but:
            continue
        file = str(path)
        for number, line in _lines(path, notes, ends):
            if answered := _answered(line):
                sample, state = answered
            else:
                row = parsed_line(line, f"{file}:{number}")
                sample, asking = row["id"], _asking(row, f"{file}:{number}")
                if "withdrawn" in row:
                    withdrawn[sample] = max(asking, withdrawn.get(sample, -1))
                    continue
                state = State(_succeeded(row), row.get("of"), asking)
            earlier = states.get(sample)
            if earlier is None or earlier.gives_way_to(state):
                lines[sample], states[sample] = (file, number, line), state
            elif state.answered and state.asking == earlier.asking:
                there, first, _ = lines[sample]
                notes.append(
                    f"{file}:{number}: question {sample!r} is answered in {there}:{first} already; that one counts"
                )
    return lines, states, withdrawn


_LOGGED: set[str] = set()
"""What was said of lines that do not count: an arm is read more than once in a run."""


def _warn(notes: list[str]) -> None:
    """Log each sentence once."""
    for sentence in notes:
        if sentence not in _LOGGED:
            _LOGGED.add(sentence)
            log.warning(sentence)


def _answered(line: bytes) -> tuple[str, State] | None:
    """The sample of an answer's line and its state, or ``None`` where the line has to be parsed to know."""
    if not (line.startswith(BEGIN) and line.endswith(END)):
        return None
    end = line.find(b'", ', len(BEGIN))
    name = line[len(BEGIN) : end]
    if not (end > 0 and name.isascii() and b'"' not in name and b"\\" not in name):
        return None
    tail = TAIL.search(line[-120:])
    if tail is None:
        # A line without digests says nothing of an asking either.
        return (name.decode(), State(True)) if b'"asking": ' not in line[-120:] else None
    return name.decode(), State(True, tail[2].decode(), int(tail[1] or 0))


def _lines(path: Path, notes: list[str], ends: Ends) -> Iterator[tuple[int, bytes]]:
    """Complete lines with their numbers; a torn last one is left out and said.

    Args:
        path: of the file.
        notes: gets a sentence of a torn line.
        ends: what of the file was read before; moved to the end of the last complete line.
    """
    start, before = ends.get(path, (0, 0))
    try:
        # The file's length would be that of a moment ago on a network file system, as long as it is not opened.
        complete, torn = lines(path, start)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    ends[path] = start + sum(map(len, complete)) + len(complete), before + len(complete)
    if torn:
        notes.append(
            f"{path}:{before + len(complete) + 1}: the last line is torn and was dropped: its writer was stopped, or "
            "is still writing; run again to answer it"
        )
    return enumerate(complete, start=before + 1)


def _succeeded(row: Row) -> bool:
    return row.get("error") is None


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    # A new file is safe only once its folder's entry is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
