"""The lists of files in CONTRIBUTING: each is short, and who is built in has all files of its list."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT
from stsimdiff.report import columns

MOST = {"method": 3, "family": 3, "benchmark": 2, "column": 1}


def files(kind: str) -> list[str]:
    """The files of the first table of a section."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"## Add a {kind}")[2]
    rows = re.search(r"\| file \| what \|\n\| --- \| --- \|\n((?:\|.*\n)+)", text)[1]
    return [file for row in rows.splitlines() for file in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def chosen(root: Path, group: str) -> dict[str, dict]:
    files = (root / "configs" / group).glob("[!_]*.yaml")
    return {file.stem: yaml.safe_load(file.read_text()) for file in files if file.stem != "custom"}


def classes(root: Path, package: str, bases: set[str]) -> set[str]:
    """Dotted paths of the classes below some bases that nothing else is derived from."""
    found, above = {}, set(bases)
    for _ in range(3):
        for file in sorted((root / "stsimdiff" / package).glob("*.py")):
            for name, base in re.findall(r"^class ([A-Z]\w*)\((\w+)", file.read_text(), re.MULTILINE):
                if base in above:
                    found[f"stsimdiff.{package}.{file.stem}.{name}"] = base
                    above.add(name)
    return {path for path in found if path.rpartition(".")[2] not in {*found.values(), "ScoreCompressor"}}


def module(root: Path, path: str) -> Path:
    return root / (path.rpartition(".")[0].replace(".", "/") + ".py")


def method(root: Path) -> set[str]:
    """What lacks one of its files."""
    targets = {name: given["_target_"] for name, given in chosen(root, "compressor").items()}
    rows = re.findall(
        r"^\| `(\w+)` \| `", (root / "stsimdiff/compressors/README.md").read_text(), re.MULTILINE
    )
    written = classes(root, "compressors", {"Compressor"})
    # A method may be the base of another one.
    extra = {path for path in set(targets.values()) - written if not module(root, path).is_file()}
    return (set(targets) ^ set(rows)) | (written - set(targets.values())) | extra


def family(root: Path) -> set[str]:
    """What lacks one of its files."""
    text = (root / "stsimdiff/models/info.py").read_text()
    rows = dict(re.findall(r'^    "(\w+)": Info\(\s*"([\w.]+)"', text, re.MULTILINE))
    named = {given["family"] for name, given in chosen(root, "model").items()}
    written = classes(root, "models", {"Family"}) - {"stsimdiff.models.base.Family"}
    return (set(rows) ^ named) | (set(rows.values()) ^ written)


def benchmark(root: Path) -> set[str]:
    """What lacks one of its files."""
    texts = [file.read_text().replace("!function", "") for file in (root / "tasks").rglob("*.yaml")]
    tasks = {yaml.safe_load(text)["task"] for text in texts}
    return {given["task"] for given in chosen(root, "benchmark").values()} ^ tasks


@pytest.mark.parametrize("kind", MOST)
def test_a_list_is_short(kind) -> None:
    assert 1 <= len(files(kind)) <= MOST[kind]
    assert all("NAME" in file or (ROOT / file).is_file() for file in files(kind))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (method, "dart"),
        (method, "evs"),
        (family, "internvl"),
        (family, "nvila"),
        (benchmark, "clips"),
    ],
)
def test_who_lacks_a_file_of_its_list_is_named(kind, name, tmp_path) -> None:
    assert kind(ROOT) == set()
    for file in files(kind.__name__):
        root = tmp_path / file.replace("/", "_")
        for folder in ("configs", "tasks", "stsimdiff/compressors", "stsimdiff/models"):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        path = root / file.replace("NAME", name)
        assert path.is_file(), path
        if "NAME" in file:
            path.unlink()
        else:
            text = path.read_text()
            row = rf'^\| `{name}` .*\n|^    "{name}": Info\(\n(        .*\n)+    \),\n'
            without = re.sub(row, "", text, flags=re.MULTILINE)
            assert without != text
            path.write_text(without)
        assert kind(root), f"{name} without {file}"


def test_a_column_is_one_value() -> None:
    (file,) = files("column")
    assert Path(columns.__file__) == ROOT / file
    # That it then stands in every output: tests/report/test_table_columns.py adds one.
    names = [column.name for column in columns.COLUMNS]
    assert len(names) == len(set(names)) > 10
