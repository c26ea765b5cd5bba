"""The files that a repository is judged by before its code is read: licence, credits, citation, workflow, hooks."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT
from helpers.processes import python
from stsimdiff import compressors

NOTICE = (ROOT / "NOTICE").read_text()
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""sha256 of https://www.apache.org/licenses/LICENSE-2.0.txt."""


def test_the_licence_is_the_apache_licence_to_the_letter():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()


def test_the_notice_credits_every_method_and_every_recording():
    entries = dict(re.findall(r"^(\S[^\n:]*): (\S+/\S+)\n(?:    .*\n)*?    Licence: ", NOTICE, re.MULTILINE))
    named = {re.sub(r"\W", "", name).lower() for name in entries}
    controls = {"none", "no_video", "random", "uniform_frames", "spatial_pool", "chain"}
    methods = {name.replace("_", "") for name in compressors.BUILTIN if name not in controls}
    missing = {name for name in methods if not any(entry.endswith(name) for entry in named)}
    assert not missing, f"NOTICE has no entry, or no licence, for {missing}"
    recorded = set(
        re.findall(r"\| (\S+/\S+) \| `[0-9a-f]{40}`", (ROOT / "tests/golden/README.md").read_text())
    )
    assert len(recorded) >= 6 and recorded <= set(entries.values())


def test_the_citation_names_the_licence_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "stsimdiff contributors"}]
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2605.22158"


def test_the_wheel_says_that_it_is_typed_and_licensed():
    settings = (ROOT / "pyproject.toml").read_text()
    assert (ROOT / "stsimdiff/py.typed").exists() and '"stsimdiff" = ["py.typed"' in settings
    assert 'license-files = ["LICENSE", "NOTICE"]' in settings


@pytest.mark.parametrize("given", [None, "python3.13"])
def test_ci_installs_with_the_python_that_it_is_given(tmp_path, given):
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit 3\n')
    make.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    env.pop("PYTHON", None)
    done = subprocess.run(
        [ROOT / ".ci/run"], env=env | ({"PYTHON": given} if given else {}), capture_output=True
    )
    assert done.returncode == 3, done.stderr
    python = (tmp_path / "asked").read_text().removeprefix("install PYTHON=").strip()
    assert python == given or (given is None and re.fullmatch(r"(/.*/)?python3(\.11)?", python))


def test_the_workflow_runs_the_script_on_the_oldest_and_the_newest_python():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.13"]
    (step,) = [step for step in job["steps"] if step.get("run") == ".ci/run"]
    assert step["env"] == {"PYTHON": "python${{ matrix.python }}"}


def test_hooks_run_the_tools_of_the_environment():
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks["repo"] == "local"
    entries = [hook["entry"] for hook in hooks["hooks"]]
    tools = {entry.removeprefix(".venv/bin/").split()[0] for entry in entries}
    assert tools == {"ruff", "check-yaml", "check-added-large-files", "end-of-file-fixer"}
    assert all(os.access(Path(sys.executable).parent / tool, os.X_OK) for tool in tools)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/design.md", "docs/README.md"])
def test_what_the_guides_name_is_there(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    named = re.findall(r"`([\w.*]+(?:/[\w.*]+)*/?)`", text)
    paths = [path for path in named if "/" in path and not path.startswith("results/")]
    assert paths and (links or name == "CONTRIBUTING.md")
    for path in {path.replace("NAME", "*") for path in paths}:
        assert any(list(base.glob(path)) for base in (ROOT, ROOT / "stsimdiff")), f"{name}: {path}"
    for link in links:
        assert ((ROOT / name).parent / link).exists(), f"{name}: {link}"


def test_lint_checks_types_and_the_contracts_strictly():
    assert "\t$(BIN)/mypy\n" in (ROOT / "Makefile").read_text()
    strict = re.search(r"module = \[([^]]*)\]\ncheck_untyped_defs", (ROOT / "pyproject.toml").read_text())[1]
    modules = re.findall(r'"stsimdiff\.([\w.]+?)(?:\.\*)?"', strict)
    assert modules == ["compressors.base", "models.base", "tokens", "budget", "engine", "graph"]
    for module in modules:
        assert list((ROOT / "stsimdiff").glob(module.replace(".", "/") + "*")), module


def test_lint_asks_for_docstrings(tmp_path):
    file = tmp_path / "m.py"
    file.write_text('"""A module."""\n\n\ndef public():\n    return 1\n')
    words = [
        "check",
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
        "--output-format",
        "concise",
        str(file),
    ]
    done = subprocess.run([Path(sys.executable).parent / "ruff", *words], capture_output=True, text=True)
    assert done.returncode == 1 and "D103 Missing docstring in public function" in done.stdout


def test_the_index_lists_every_page():
    text = (ROOT / "docs/README.md").read_text()
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(
        re.findall(r"\((\S+)\)", text)
    )


def test_the_lists_name_what_they_say():
    """A list of CONTRIBUTING that names a table of the code (`BUILTIN`) beside a file: the file has that table."""
    rows = re.findall(r"^\| (`\S+\.py`.*?) \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    checked = 0
    for files, what in rows:
        for table in re.findall(r"`(_?[A-Z][A-Z_]+)`", what):
            # NAME stands for the module of any method.
            paths = [path.replace("NAME", "[a-z]*") for path in re.findall(r"`(\S+)`", files)]
            sources = [file.read_text() for path in paths for file in ROOT.glob(path)]
            assert any(re.search(rf"^{table}\b", source, re.MULTILINE) for source in sources), (files, table)
            checked += 1
    assert checked == 3  # FAMILIES, BENCHMARKS, COLUMNS: what was a table for each property is a row in one


def test_slow_tests_are_there_and_ci_runs_them():
    listed = (ROOT / "tests/slow.txt").read_text().split()
    assert listed == sorted(set(listed)) and len(listed) > 50
    for name in listed:
        file, _, test = name.partition("::")
        (path,) = (ROOT / "tests").rglob(f"{file}.py")
        assert re.search(rf"^ *def {test}\(", path.read_text(), re.MULTILINE), name
    targets = dict(re.findall(r"^([\w-]+): .*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert '-m "not slow"' in targets["test"] and "slow" not in targets["test-all"]
    assert "\nmake test-all 2>&1" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    """As ``python -m benchmarks.NAME`` and others import it, with no folder of theirs on the path."""
    done = python("-c", f"import benchmarks.{name}")
    assert done.returncode == 0, done.stderr
