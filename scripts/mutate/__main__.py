"""Changes the code at random and tells which changes the tests notice.

Draws COUNT changes by a seed over the modules, makes each alone in a copy of the working tree, and runs the tests that
run the changed line until one fails. Which tests run which line is found out first, by running each test file once
under coverage; what is known is kept in OUT/map.json and made anew only for the test files that something changed
under. The first time takes about as long as the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from scripts.mutate import trying
from scripts.mutate.changes import Change, changes, sample
from scripts.mutate.trying import Map, Tried

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "stsimdiff/engine/compression.py",
    "stsimdiff/engine/attention.py",
    "stsimdiff/engine/slicing.py",
    "stsimdiff/tokens.py",
    "stsimdiff/trace.py",
    "stsimdiff/graph.py",
    "stsimdiff/budget.py",
    "stsimdiff/video/frames.py",
    "stsimdiff/compressors/*.py",
    "stsimdiff/cost/*.py",
    "stsimdiff/data/archives.py",
    "stsimdiff/config/arms.py",
    "stsimdiff/evaluate/questions.py",
    "stsimdiff/evaluate/scoring.py",
    "stsimdiff/evaluate/store.py",
    "stsimdiff/evaluate/stored.py",
    "stsimdiff/report/comparison.py",
    "stsimdiff/report/pairs.py",
    "stsimdiff/report/rows.py",
    "stsimdiff/report/section.py",
    "stsimdiff/report/statistics.py",
    "stsimdiff/report/table.py",
    "stsimdiff/report/verdict.py",
)
"""What a wrong number can come from."""
PRELOAD = (
    "torch", "transformers", "scipy.stats", "pandas", "statsmodels.api", "matplotlib.pyplot",
    "plotly.graph_objects", "hydra", "hypothesis", "av", "cv2", "datasets", "wandb", "lmms_eval.api.task",
)  # fmt: skip
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")


class Wrong(Exception):
    """An option that cannot be followed; the message says why."""


def main() -> int:
    """The exit code: 0, 1 where fewer changes than ``--threshold`` were noticed, 2 for what cannot be done."""
    options = _options()
    # The copy goes and the tests end with the command, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _run(options, lambda text: print(text, flush=True))
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--count", type=int, default=120, help="changes to draw")
    parser.add_argument(
        "--modules", nargs="+", default=MODULES, metavar="PATH", help="files to change; * stands for any name"
    )
    parser.add_argument(
        "--at", nargs="+", default=[], metavar="PATH:LINE", help="every change of these lines instead"
    )
    parser.add_argument(
        "--tests", nargs="+", default=["tests/**/test_*.py"], metavar="PATH", help="test files to ask"
    )
    parser.add_argument("--without", nargs="+", default=[], metavar="PATH", help="test files to leave out")
    parser.add_argument(
        "--threshold", type=float, default=95.0, help="percent below which the exit code is 1"
    )
    parser.add_argument(
        "--most", type=float, default=60.0, metavar="SECONDS", help="of tests for each change"
    )
    parser.add_argument("--workers", type=int, default=1, help="changes tried side by side")
    parser.add_argument("--out", type=Path, default=Path("results/mutation"), help="folder of report and map")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the repository")
    parser.add_argument(
        "--equivalent", type=Path, default=EQUIVALENT, help="changes that change nothing, reviewed"
    )
    parser.add_argument(
        "--preload", nargs="*", default=PRELOAD, metavar="PACKAGE", help="imported once for all"
    )
    return parser.parse_args()


def _run(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    root = options.root.resolve()
    if options.count < 1 or options.workers < 1:
        raise Wrong(f"--count={options.count} and --workers={options.workers} must be 1 or more")
    modules = _files(root, [place.rpartition(":")[0] for place in options.at] or options.modules)
    without = _files(root, options.without) if options.without else []
    tests = [name for name in _files(root, options.tests) if name not in without]
    found = [change for module in modules for change in changes(module, (root / module).read_bytes())]
    drawn = _at(found, options.at) if options.at else sample(found, options.count, options.seed)
    reasons = _equivalent(options.equivalent, found, say)
    to_try = [change for change in drawn if _key(change) not in reasons]
    known = len(drawn) - len(to_try)
    say(
        f"{len(drawn)} of {len(found)} changes of {len(modules)} modules, {known} of them known to be equivalent"
    )

    with tempfile.TemporaryDirectory(prefix="mutate_") as scratch:
        packages = sorted({module.partition("/")[0] for module in modules})
        trees = [Path(scratch) / str(number) / "tree" for number in range(options.workers)]
        # The tree may move on while its copy is tried.
        revision = _revision(root)
        for tree in trees:
            trying.copy_tree(root, tree)
        _preload(options.preload, packages)
        lines = Map(options.out / "map.json", packages)
        outdated = lines.outdated(trees[0], tests)
        for name, ran in zip(
            outdated, _each(trees, trying.observe, [(n, packages) for n in outdated]), strict=True
        ):
            lines.add(name, ran)
            failing = f", {len(ran.failed)} fail without a change and are left out" if ran.failed else ""
            say(f"{name}: {len(ran.seconds)} tests, {sum(ran.seconds.values()):.0f} s{failing}")
        said = {
            "revision": revision,
            "seed": None if options.at else options.seed,
            "modules": modules,
            "changes": len(found),
            "most_seconds": options.most,
            "fail_unchanged": lines.failed,
            "equivalent": [
                asdict(one) | {"why": reasons[_key(one)]} for one in drawn if _key(one) in reasons
            ],
        }
        tried: list[Tried] = []
        jobs = [(change, lines.tests(change), options.most) for change in to_try]
        for one in _each(trees, trying.attempt, jobs):
            tried.append(one)
            say(f"{len(tried)} of {len(to_try)}: {_line(one)}")
            # What was tried stays, whatever ends the command.
            _write(options.out, said, tried)
        percent = _write(options.out, said, trying.confirm(trees[0], tried, lines))
    say(f"{percent} % of {len(tried)} noticed; {options.out / 'report.md'}")
    return 0 if percent >= options.threshold else 1


def _write(out: Path, said: dict[str, Any], tried: list[Tried]) -> float:
    """Write both reports; the percentage that was noticed, 100 where nothing had to be tried."""
    noticed = sum(one.outcome != "not noticed" for one in tried)
    said = said | {
        "percent": round(100 * noticed / len(tried), 1) if tried else 100.0,
        "tried": [asdict(one) for one in tried],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(said, indent=1))
    (out / "report.md").write_text(report(said))
    return said["percent"]


def _preload(names: Iterable[str], packages: list[str]) -> None:
    """Import what every change would import; packages that are not installed are left out."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    loaded = [package for package in packages if package in sys.modules]
    if loaded:
        raise Wrong(
            f"--preload imports {', '.join(loaded)}, which is to be changed; leave out what imports it"
        )


def _files(root: Path, patterns: Iterable[str]) -> list[str]:
    """Files under the root that patterns name, each once."""
    names: dict[str, None] = {}
    for pattern in patterns:
        some = sorted(str(path.relative_to(root)) for path in root.glob(pattern) if path.suffix == ".py")
        if not some:
            raise Wrong(f"{pattern!r} names no Python file in {root}")
        names |= dict.fromkeys(some)
    return list(names)


def _at(found: list[Change], places: list[str]) -> list[Change]:
    wanted = [place.rpartition(":") for place in places]
    for module, _, line in wanted:
        if not line.isdecimal() or not any(c.module == module and c.line == int(line) for c in found):
            raise Wrong(
                f"nothing can be changed at {module}:{line}; name a file and a line, for example a.py:12"
            )
    return [c for c in found if any((c.module, str(c.line)) == (module, line) for module, _, line in wanted)]


def _key(change: Change) -> tuple[str, str, str]:
    return change.module, change.before, change.after


def _equivalent(
    path: Path, found: list[Change], say: Callable[[str], None]
) -> dict[tuple[str, str, str], str]:
    """Why changes change nothing that a test could see, by module, line before and line after."""
    listed = yaml.safe_load(path.read_text()) if path.is_file() else []
    reasons = {
        (one["module"], one["line"], new): one["why"] for one in listed or [] for new in one["becomes"]
    }
    here, keys = {change.module for change in found}, {_key(change) for change in found}
    for key in reasons:
        if key[0] in here and key not in keys:
            say(f"{path.name}: in {key[0]} nothing changes {key[1]!r} to {key[2]!r} any more")
    return reasons


_tree: Path
"""The scratch copy of a worker process."""


def _begin(trees: Any) -> None:
    global _tree
    _tree = trees.get()


def _in_tree(work: Callable[..., Any], job: tuple) -> Any:
    return work(_tree, *job)


def _each(trees: list[Path], work: Callable[..., Any], jobs: list[tuple]) -> Iterable[Any]:
    """``work(tree, *job)`` of each job, in order; as many side by side as there are trees."""
    if len(trees) == 1:
        yield from (work(trees[0], *job) for job in jobs)
        return
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    for tree in trees:
        queue.put(tree)
    with ProcessPoolExecutor(len(trees), context, initializer=_begin, initargs=(queue,)) as pool:
        yield from pool.map(_in_tree, itertools.repeat(work), jobs)


def _line(one: Tried) -> str:
    change = one.change
    return f"{one.outcome} ({one.seconds:.0f} s) {change.module}:{change.line}: {change.before}  ->  {change.after}"


def _revision(root: Path) -> str:
    """The commit's short name, with ``+`` where the working tree differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "none") + ("+" if git("status", "--porcelain") else "")


def report(said: dict[str, Any]) -> str:
    """The run as a page of Markdown."""
    tried = said["tried"]
    count = Counter(one["outcome"] for one in tried)
    drawn = "chosen by line" if said["seed"] is None else f"drawn with seed {said['seed']}"
    rows = [
        f"# {said['percent']} % of {len(tried)} changes noticed",
        "",
        f"Revision {said['revision']}; {len(tried) + len(said['equivalent'])} of {said['changes']} changes {drawn}, "
        f"{len(said['equivalent'])} of them equivalent. Of the others {count['noticed']} were noticed, "
        f"{count['timed out']} made the tests hang, which is noticed too, and {count['not noticed']} were not. "
        f"Of the tests that run a changed line the cheapest were run, {said['most_seconds']:g} s of them at most.",
        "",
    ]
    if said["fail_unchanged"]:
        rows += [f"Left out, as they fail without a change: {', '.join(said['fail_unchanged'])}.", ""]
    rows += [
        "| outcome | place | kind | line | becomes | noticed by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(tried, key=lambda one: ["not noticed", "timed out", "noticed"].index(one["outcome"])):
        by = one["by"] + (f" ({one['left_out']} tests left out)" if one["left_out"] and not one["by"] else "")
        rows.append(_row(one["outcome"], one["change"], by))
    rows += [_row("equivalent", change, change["why"]) for change in said["equivalent"]]
    return "\n".join(rows) + "\n"


def _row(outcome: str, change: dict[str, Any], last: str) -> str:
    cells = (
        outcome,
        f"{change['module']}:{change['line']}",
        change["kind"],
        change["before"],
        change["after"],
        last,
    )
    code = [f"`{cell}`" if i in (3, 4) else cell for i, cell in enumerate(cells)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in code) + " |"


if __name__ == "__main__":
    sys.exit(main())
