"""Imports run one way: from a layer to those below it, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import stsimdiff
from stsimdiff.commands import cli

LAYERS = (
    {
        "budget",
        "errors",
        "extras",
        "files",
        "graph",
        "lock",
        "ranks",
        "registry",
        "resources",
        "schema",
        "source",
        "stand_ins",
        "terminal",
    }
    | {"tokens", "trace"},
    {"video"},
    {"data"},
    {"compressors"},
    {"engine"},
    {"cost"},
    {"models"},
    {"config"},
    {"conformance"},
    {"evaluate"},
    {"report"},
    {"latency", "plan"},
    {"kit"},
    {"launchers"},
    {"commands", "api"},
)
"""Modules and packages, the lowest layer first. The modules that ``python -m`` runs belong to the highest."""


def graph(package: Path) -> dict[str, set[str]]:
    """The modules of a package by dotted name, and those of it that each one imports: anywhere in it, in a function
    or for a type checker alone too."""
    files = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {name: set(_imported(name, file, set(files))) - {name} for name, file in files.items()}


def _imported(name: str, file: Path, known: set[str]):
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" for alias in node.names]
        for dotted in found:
            # The name of a module, or what one defines.
            yield from [part for part in (dotted, dotted.rpartition(".")[0]) if part in known][:1]


def problems(package: Path, layers=LAYERS) -> list[str]:
    """A sentence for each import that runs upwards, each module of no layer, and the first circle."""
    imports, found = graph(package), []
    rank = {name: number for number, names in enumerate(layers) for name in names}

    def layer(module: str) -> int | None:
        parts = module.split(".")[1:]
        return len(layers) - 1 if parts[-1:] == ["__main__"] else rank.get(parts[0]) if parts else -1

    for module, others in sorted(imports.items()):
        if layer(module) is None:
            found.append(f"{module} is in no layer")
            continue
        above = [other for other in sorted(others) if (layer(other) or 0) > layer(module)]
        found += [f"{module} imports {other}, which lies above it" for other in above]
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found.append(f"a circle: {' -> '.join(error.args[1])}")
    return found


def test_imports_run_downwards_without_a_circle():
    assert len(graph(Path(stsimdiff.__file__).parent)) > 100
    assert problems(Path(stsimdiff.__file__).parent) == []


def test_every_layer_is_there():
    here = {name.split(".")[1] for name in graph(Path(stsimdiff.__file__).parent) if "." in name}
    assert here - {"__main__"} == set().union(*LAYERS)


def test_every_command_stands_with_the_others():
    assert {module.rpartition(".")[0] for module in cli.COMMANDS.values()} == {"stsimdiff.commands"}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("low.py", "", None),
        ("high/a.py", "from house.low import x\nimport house.low\nimport os\n", None),
        ("high/__main__.py", "from house.top import main\n", None),
        ("low.py", "from house.high import a\n", "house.low imports house.high.a, which lies above it"),
        ("low.py", "import house.high.a as b\n", "house.low imports house.high.a, which lies above it"),
        ("low.py", "from house.high.a import f\n", "house.low imports house.high.a, which lies above it"),
        ("low.py", "from house.high import g\n", "house.low imports house.high, which lies above it"),
        ("low.py", "def f():\n    from house import top\n", "house.low imports house.top, which lies above it"),
        (
            "high/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..top import T\n",
            "house.high.a imports house.top, which lies above it",
        ),
        ("high/a.py", "from . import b\n", "a circle: house.high.a -> house.high.b -> house.high.a"),
        ("high/a.py", "def f():\n    from .b import g\n", "a circle: house.high.a -> house.high.b -> house.high.a"),
        ("high/__init__.py", "from house.high.b import g\n", None),
        ("new.py", "", "house.new is in no layer"),
    ],
)  # fmt: skip
def test_what_a_tree_may_not_hold_is_found(tmp_path, file, text, said):
    house = tmp_path / "house"
    (house / "high").mkdir(parents=True)
    files = {"__init__": "", "low": "", "top": "", "high/__init__": "", "high/a": "def f(): ..."}
    files["high/b"] = "from house.high import a\n"
    for name, content in files.items():
        (house / f"{name}.py").write_text(content)
    (house / file).write_text(text)
    found = problems(house, ({"low"}, {"high"}, {"top"}))
    if said and said.startswith("a circle"):
        assert len(found) == 1 and set(found[0].partition(": ")[2].split(" -> ")) == {
            "house.high.a",
            "house.high.b",
        }
    else:
        assert found == ([said] if said else [])
