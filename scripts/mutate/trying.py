"""A scratch copy of the tree, the lines that each test runs there, and the tests of one change in a forked process.

The process that forks has imported the heavy packages and nothing of the code that is changed, so that a change costs
the imports of the project itself and the tests that run its line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from scripts.mutate.changes import Change

MEMORY = 12 << 30
"""Bytes that the tests of one change may take, so that a loop without end cannot take the machine's."""
AT_LEAST = 45.0
"""Seconds that the tests of a change may take in any case, the imports among them."""


LONGEST = 1800.0
"""Seconds that a test file may take under coverage."""


@dataclass
class Ran:
    """What one test file did when nothing was changed.

    Attributes:
        digests: of the files that decide it, by path: the file itself, its helpers and what it ran of the package.
        seconds: of each test that passed, by its pytest id.
        failed: ids of the tests that did not pass, which then say nothing about a change.
        processes: ids of the tests that started a process, whose lines nobody sees.
        lines: by module and line, which tests ran it; ``""`` stands for the import.
    """

    digests: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    lines: dict[str, dict[str, list[str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tried:
    """A change and what the tests said.

    Attributes:
        change: that was made.
        outcome: ``noticed``, ``not noticed`` or ``timed out``.
        by: the test that noticed it, or how the others ended.
        tests: how many were run at most.
        left_out: how many more run the line but were over the limit of time.
        seconds: it took.
    """

    change: Change
    outcome: str
    by: str
    tests: int
    left_out: int
    seconds: float


def copy_tree(root: Path, to: Path) -> None:
    """Copy what git tracks or would track, as it lies in the working tree."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    )
    for name in sorted(set(os.fsdecode(listed.stdout).split("\0")) - {""}):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


def fork(work: Callable[[], int], log: Path, limit: float) -> int | None:
    """Run ``work`` in a process of its own; its exit code, or ``None`` where it took more than ``limit`` seconds."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + limit
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        return None
    finally:
        # Whatever a test started and did not end belongs to the same group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _pytest(tree: Path, files: Sequence[str], plugin: object, *, bytecode: bool, stop: bool = False) -> int:
    """Run test files of a tree within this process, which has imported nothing of it.

    Args:
        tree: the scratch copy.
        files: one after another, so that a file is collected only when those before it have passed.
        plugin: for pytest.
        bytecode: whether compiled modules may be written.
        stop: end with the first test that fails.

    Returns:
        pytest's exit code of the first file that did not pass; 5 where no test was found in any.
    """
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    if not bytecode:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    quiet = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tree), "--basetemp", str(tree.parent / "tmp")]
    codes = []
    for file in files:
        codes.append(int(pytest.main([*quiet, *["-x"] * stop, file], plugins=[plugin])))
        if stop and codes[-1] not in (0, 5):
            break
    return next((code for code in codes if code not in (0, 5)), min(codes))


def _function(test: str) -> str:
    """The pytest id of a test function, all its parameters together."""
    return test.partition("[")[0]


class _Watch:
    """A pytest plugin that tells coverage which test or shared fixture is running, and notes how tests end."""

    def __init__(self, coverage: Any, ran: Ran) -> None:
        self.coverage, self.ran = coverage, ran
        self.contexts: list[str] = []
        self.users: dict[str, set[str]] = {}
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn") and self.contexts:
            test = self.contexts[0]
            if test not in self.ran.processes:
                self.ran.processes.append(test)

    @contextlib.contextmanager
    def _context(self, name: str) -> Iterator[None]:
        self.contexts.append(name)
        self.coverage.switch_context(name)
        try:
            yield
        finally:
            self.contexts.pop()
            self.coverage.switch_context(self.contexts[-1] if self.contexts else "")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        test, start = _function(item.nodeid), time.monotonic()
        for name in getattr(item, "fixturenames", ()):
            self.users.setdefault(name, set()).add(test)
        with self._context(test):
            result = yield
        self.ran.seconds[test] = self.ran.seconds.get(test, 0.0) + time.monotonic() - start
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        # What a shared fixture runs is run for every test that asks for it, not for the first alone.
        shared = fixturedef.scope != "function"
        with self._context(f"fixture {fixturedef.argname}") if shared else contextlib.nullcontext():
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and _function(report.nodeid) not in self.ran.failed:
            self.ran.failed.append(_function(report.nodeid))

    def tests(self, contexts: Iterable[str]) -> list[str]:
        """The tests that a line's contexts stand for."""
        found: set[str] = set()
        for name in contexts:
            found |= self.users.get(name.removeprefix("fixture "), set()) if " " in name else {name}
        return sorted(found - {""})


def watch(tree: Path, test_file: str, packages: Sequence[str], result: Path) -> int:
    """Run one test file unchanged and write what it :class:`Ran`; to be called in a forked process."""
    import coverage

    include = [str(tree / package / "*") for package in packages]
    measured = coverage.Coverage(data_file=None, config_file=False, include=include)
    ran = Ran({})
    plugin = _Watch(measured, ran)
    measured.start()
    code = _pytest(tree, [test_file], plugin, bytecode=True)
    measured.stop()
    for file in measured.get_data().measured_files():
        by_line = measured.get_data().contexts_by_lineno(file)
        ran.lines[str(Path(file).relative_to(tree))] = {
            str(line): plugin.tests(names) for line, names in by_line.items()
        }
    for test in ran.failed:
        ran.seconds.pop(test, None)
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    inside = {
        str(Path(file).relative_to(tree)) for file in loaded if file and Path(file).is_relative_to(tree)
    }
    # Of the package, what a test ran; what was imported and no more does not decide which lines the tests run.
    idle = {name for name in inside if name.split("/")[0] in packages} - {
        module for module, lines in ran.lines.items() if any(lines.values())
    }
    ran.digests = {name: digest(tree / name) for name in sorted((inside - idle) | {test_file})}
    result.write_text(json.dumps(asdict(ran)))
    return code


def observe(tree: Path, test_file: str, packages: Sequence[str]) -> Ran:
    """Run one test file unchanged in a process of its own.

    Raises:
        RuntimeError: when it cannot be run at all.
    """
    result, log = tree.parent / "ran.json", tree.parent / "log"
    result.unlink(missing_ok=True)
    code = fork(lambda: watch(tree, test_file, packages, result), log, LONGEST)
    if code not in (0, 1, 5):
        why = f"it takes more than {LONGEST:.0f} s" if code is None else f"exit code {code}"
        raise RuntimeError(
            f"{test_file} cannot be watched: {why}; leave it out with --without, or see what it says:\n"
            + log.read_text()[-2000:]
        )
    return Ran(**json.loads(result.read_text()))


def digest(path: Path) -> str:
    """Of a file's content; empty for one that is gone."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


class Map:
    """Which tests run which line, kept in a file and made anew for the test files that something changed under.

    Args:
        file: where it is kept.
        packages: top folders of the code whose lines are noted.
    """

    def __init__(self, file: Path, packages: Sequence[str]) -> None:
        self.file, self.packages = file, list(packages)
        kept = json.loads(file.read_text()) if file.is_file() else {}
        same = kept.get("packages") == self.packages
        self.ran = {name: Ran(**fields) for name, fields in kept["ran"].items()} if same else {}

    def outdated(self, tree: Path, test_files: Sequence[str]) -> list[str]:
        """The test files that are not known as they are now; what is known of any other but these is forgotten."""
        self.ran = {
            name: ran
            for name, ran in self.ran.items()
            if name in test_files and all(digest(tree / path) == was for path, was in ran.digests.items())
        }
        return [name for name in test_files if name not in self.ran]

    def add(self, name: str, ran: Ran) -> None:
        """Note what a test file ran."""
        self.ran[name] = ran
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fields = {name: asdict(ran) for name, ran in self.ran.items()}
        self.file.write_text(json.dumps({"packages": self.packages, "ran": fields}))

    @property
    def failed(self) -> list[str]:
        """Tests that do not pass unchanged."""
        return sorted(test for ran in self.ran.values() for test in ran.failed)

    def tests(self, change: Change) -> dict[str, float]:
        """Seconds of each test that runs a change's line, by id.

        Of a line that the import runs (a constant, a default), whichever test imported the module first, and of one
        that is run in another process: all tests of the files that run any line of the module, and where there are
        none the tests that start processes.
        """
        statement = range(change.statement[0], change.statement[1] + 1)
        for lines in () if change.imported else (range(change.line, change.last + 1), statement):
            found = {
                test: ran.seconds[test]
                for ran in self.ran.values()
                for line, tests in ran.lines.get(change.module, {}).items()
                if int(line) in lines
                for test in tests
                if test in ran.seconds
            }
            if found:
                return found
        files = [ran for ran in self.ran.values() if any(ran.lines.get(change.module, {}).values())]
        some = [ran.seconds for ran in files] or [
            {test: ran.seconds[test] for test in ran.processes if test in ran.seconds}
            for ran in self.ran.values()
        ]
        return {test: seconds for tests in some for test, seconds in tests.items()}


class _Chosen:
    """A pytest plugin that runs the chosen tests alone and writes down those that fail, a line each."""

    def __init__(self, tests: Iterable[str], result: Path) -> None:
        self.chosen, self.result = set(tests), result

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left = [item for item in items if _function(item.nodeid) not in self.chosen]
        items[:] = [item for item in items if _function(item.nodeid) in self.chosen]
        config.hook.pytest_deselected(items=left)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self.result.open("a") as file:
                file.write(report.nodeid + "\n")


def choose(tests: dict[str, float], most: float) -> dict[str, float]:
    """The cheapest tests that take ``most`` seconds together, and one in any case."""
    chosen: dict[str, float] = {}
    for test, seconds in sorted(tests.items(), key=lambda item: (item[1], item[0])):
        if chosen and sum(chosen.values()) + seconds > most:
            break
        chosen[test] = seconds
    return chosen


def attempt(tree: Path, change: Change, tests: dict[str, float], most: float) -> Tried:
    """Make one change in a tree, run the tests, and put the tree back as it was.

    Args:
        tree: the scratch copy.
        change: to make.
        tests: seconds of each test that may notice it.
        most: seconds of tests to choose, the cheapest first.
    """
    chosen, start = choose(tests, most), time.monotonic()
    if not chosen:
        return Tried(change, "not noticed", "no test runs it", 0, 0, 0.0)
    path = tree / change.module
    source, times = path.read_bytes(), path.stat()
    path.write_bytes(change.apply(source))
    try:
        code, failed = _run(tree, chosen, stop=True)
    finally:
        path.write_bytes(source)
        # Bytecode made from the source as it was is valid again.
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    ends = {None: "timed out", 0: "not noticed"}
    by = failed[0] if failed else "" if code in ends else f"pytest ended with {code}"
    return Tried(
        change, ends.get(code, "noticed"), by, len(chosen), len(tests) - len(chosen), time.monotonic() - start
    )


def confirm(tree: Path, tried: Sequence[Tried], known: Map) -> list[Tried]:
    """Run the tests that noticed something once more without a change; one that fails now has noticed nothing."""
    names = {_function(one.by) for one in tried if "::" in one.by}
    chosen = {
        test: seconds for ran in known.ran.values() for test, seconds in ran.seconds.items() if test in names
    }
    wrong = {_function(test) for test in _run(tree, chosen, stop=False)[1]} if chosen else set()
    return [
        replace(one, outcome="not noticed", by=f"{one.by} fails without a change too")
        if _function(one.by) in wrong
        else one
        for one in tried
    ]


def _run(tree: Path, chosen: dict[str, float], *, stop: bool) -> tuple[int | None, list[str]]:
    """Run chosen tests, the cheapest files first: pytest's exit code, and the ids of those that failed."""
    result, log = tree.parent / "failed", tree.parent / "log"
    result.unlink(missing_ok=True)
    cost: dict[str, float] = {}
    for test, seconds in chosen.items():
        file = test.partition("::")[0]
        cost[file] = cost.get(file, 0.0) + seconds
    files = sorted(cost, key=cost.get)
    limit = AT_LEAST + 4 * sum(chosen.values())
    code = fork(lambda: _pytest(tree, files, _Chosen(chosen, result), bytecode=False, stop=stop), log, limit)
    if code == 5:
        raise RuntimeError(f"pytest found none of {', '.join(chosen)} in {tree}: {log.read_text()[-2000:]}")
    return code, result.read_text().split("\n")[:-1] if result.is_file() else []
