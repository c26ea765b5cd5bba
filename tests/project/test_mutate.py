"""Random changes of a toy package: which are made, which its tests notice, and what is said of the others."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

from helpers.processes import python
from scripts.mutate.changes import changes, sample

SOURCE = '''\
"""Shapes."""

LIMIT = 3


def area(width: int = 2, height: int = 1) -> int:
    """Of a rectangle, 0 or more."""
    if width < 0 or height < 0:
        raise ValueError(f"{width + 1} is too small")
    return width * height


def count(values):
    found = 0
    for value in values:
        found += value > LIMIT
    return found


def never(values):
    return values[1:] + [1]
'''
TESTS = """\
import pytest
from toy.shapes import area, count


@pytest.fixture(scope="module")
def counted():
    return count([1, 5, 7])


def test_area():
    assert area(2, 3) == 6


def test_sign():
    with pytest.raises(ValueError):
        area(-1, 1)


def test_something_else(counted):
    assert counted >= 0


def test_count(counted):
    assert counted == 2


def test_broken():
    assert area(1, 1) == 2
"""


def made(text: str) -> list[tuple[str, str]]:
    """What may become of a line, by kind."""
    found = changes("a.py", text.encode())
    for change in found:
        ast.parse(change.apply(text.encode()))
    return sorted((change.kind, change.after) for change in found)


def test_every_kind_of_change() -> None:
    assert made("x = a < b") == [("comparison", "x = (a < b)".replace("<", op)) for op in ("<=", ">=")]
    assert made("x = a + b") == [("operator", "x = (a - b)")]
    assert made("x = a and not b") == [("and, or", "x = (a or not b)"), ("unary operator", "x = a and b")]
    assert made("x = 0.5") == [("constant", "x = 0.25"), ("constant", "x = 1.0")]
    assert made("x = True") == [("constant", "x = False")]
    assert made("x[2] = 7") == [
        ("constant", "x[1] = 7"),
        ("constant", "x[2] = 6"),
        ("constant", "x[2] = 8"),
        ("constant", "x[3] = 7"),
        ("statement", "pass"),
    ]
    assert made("x = min(a, b)") == [("name", "x = max(a, b)")]
    assert made("x = f(a, b, c)") == [("arguments", "x = f(b, a, c)")]
    assert made("x = f(a, a)") == []
    assert made("x = y[a:b]") == [("bound", "x = y[:b]"), ("bound", "x = y[a:]")]
    assert made("x += y") == [("operator", "x -= y"), ("statement", "pass")]
    assert made("raise A(1)") == made("f()") == [("statement", "pass")]
    assert made("def f(): return a") == [("result", "def f(): return None")]
    assert made("while a: break") == [
        ("condition", "while (not a): break"),
        ("statement", "while a: continue"),
    ]
    assert made("x = [a for a in b if a.ok]") == [("condition", "x = [a for a in b if (not a.ok)]")]


def test_words_annotations_and_decorators_stay() -> None:
    for text in (
        '"""1 + 1"""',
        'f"{a + 1}"',
        "x: Literal[1]",
        "@d(True)\ndef f(x: A | B) -> C[1]: x",
        "zip(strict=True)",
    ):
        assert [kind for kind, _ in made(text) if kind != "statement"] == []


def test_what_the_import_runs_is_told_apart() -> None:
    source = "A = 1\nclass B:\n    c = 2\n    def d(self, e=3):\n        return 4\n"
    found = {change.before: change.imported for change in changes("a.py", source.encode())}
    assert found == {"A = 1": True, "c = 2": True, "def d(self, e=3):": True, "return 4": False}


def test_places_after_letters_of_several_bytes() -> None:
    assert made('x = "äöü€", a - b') == [("operator", 'x = "äöü€", (a + b)')]


def test_a_draw_depends_on_the_seed_alone_and_takes_a_place_once() -> None:
    found = changes("a.py", SOURCE.encode())
    drawn = sample(found, 8, 1)
    assert drawn == sample(found, 8, 1) != sample(found, 8, 2)
    assert len({(change.start, change.stop) for change in drawn}) == 8
    everything = sample(found, 1000, 1)
    assert len(everything) == len({(change.start, change.stop) for change in found})


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for name, text in {"toy/__init__.py": "", "toy/shapes.py": SOURCE, "tests/test_shapes.py": TESTS}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "yaml").mkdir()
    (root / "yaml" / "mine.py").write_text("limit = 1\n")
    (root / "equivalent.yaml").write_text(
        "- module: toy/shapes.py\n  line: found = 0\n  becomes: [found = 1]\n  why: a try\n"
        "- module: toy/shapes.py\n  line: gone\n  becomes: [found = 1]\n  why: a try\n"
    )
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def run(toy: Path, *words: str) -> tuple[int, str, dict]:
    out = toy.parent / f"out_{toy.name}"
    files = ["--equivalent", str(toy / "equivalent.yaml"), "--out", str(out), "--root", str(toy)]
    command = ["-m", "scripts.mutate", "--modules", "toy/*.py", "--preload", *files, *words]
    done = python(*command, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    report = out / "report.json"
    return (
        done.returncode,
        done.stdout + done.stderr,
        json.loads(report.read_text()) if report.is_file() else {},
    )


def test_what_is_noticed_and_what_is_not(toy: Path) -> None:
    code, said, report = run(toy, "--seed", "3", "--count", "1000", "--threshold", "90")
    outcomes = {
        (one["change"]["before"], one["change"]["after"]): (one["outcome"], one["by"])
        for one in report["tried"]
    }
    product = outcomes["return width * height", "return (width / height)"]
    assert product == ("noticed", "tests/test_shapes.py::test_area")
    # Run by a fixture of the module alone: every test that asks for it is asked.
    assert outcomes["found += value > LIMIT", "pass"] == ("noticed", "tests/test_shapes.py::test_count")
    assert outcomes["return values[1:] + [1]", "return (values[1:] - [1])"][0] == "not noticed"
    defaults = [outcome for (line, _), (outcome, _) in outcomes.items() if line.startswith("def area")]
    assert defaults == ["not noticed"] * 2
    noticed = sum(outcome == "noticed" for outcome, _ in outcomes.values())
    assert report["percent"] == round(100 * noticed / len(outcomes), 1) < 90 and code == 1
    assert report["fail_unchanged"] == ["tests/test_shapes.py::test_broken"]
    assert "nothing changes 'gone' to 'found = 1' any more" in said
    assert (toy / "toy" / "shapes.py").read_text() == SOURCE


def test_lines_can_be_named_and_equivalent_changes_do_not_count(toy: Path) -> None:
    code, _, report = run(toy, "--at", "toy/shapes.py:14", "--workers", "2")
    assert [(one["change"]["after"], one["outcome"]) for one in report["tried"]] == [
        ("found = -1", "noticed")
    ]
    assert [(one["after"], one["why"]) for one in report["equivalent"]] == [("found = 1", "a try")]
    assert code == 0 and report["percent"] == 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "toy/shapes.py:1"], "nothing can be changed at toy/shapes.py:1"),
        (["--tests", "nowhere/*.py"], "'nowhere/*.py' names no Python file"),
        (["--preload", "yaml", "--modules", "yaml/*.py"], "--preload imports yaml, which is to be changed"),
        (["--count", "0"], "--count=0 and --workers=1 must be 1 or more"),
    ],
)
def test_wrong_options_are_named(toy: Path, words: list[str], message: str) -> None:
    code, said, _ = run(toy, *words)
    assert code == 2 and message in said and "Traceback" not in said
