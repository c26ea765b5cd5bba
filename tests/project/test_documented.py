"""Every command in the documents is run by CI, or is excepted for a reason and composes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from scripts import documented
from scripts.documented import Command
from stsimdiff.errors import ConfigError

FOUND = {path: list(documented.commands(path)) for path in documented.documents()}
ALL = [command for found in FOUND.values() for command in found]


def test_commands_are_read_as_bash_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '```\nSWEEP="a=1 \\\n  b=2"\nmake x   # why\n```\n\n```python\nf()\n```\n\n```text\nsaid\n```\n\n'
        "```bash\nrun $SWEEP \\\n  c=3\n```\n"
    )
    assert [command.line for command in documented.commands(page)] == ["make x", "run a=1 b=2 c=3"]
    assert len(ALL) > 40


def test_every_exception_is_one_of_a_command_that_ci_runs_nowhere_else() -> None:
    for pattern, reason in documented.EXCEPTIONS.items():
        assert any(re.search(pattern, command.line) for command in ALL), pattern
        for test in re.findall(r"tests/\S+\.py", reason):
            assert (documented.ROOT / test).exists(), reason


def test_ci_runs_the_others() -> None:
    steps = (documented.ROOT / ".ci/run").read_text()
    assert re.search(r"^.venv/bin/python -m scripts\.documented ", steps, re.MULTILINE)
    assert Command("", "make lint").is_a_step and not Command("", "make mutation").is_a_step
    # What runs here is started by something that is there, so that output in a block without a language is found.
    python = r"(\.venv/bin/)?python (-m (stsimdiff|lmms_eval|pytest|scripts\.\w+)|examples/)"
    known = rf"(make|pytest|eval|source|stsimdiff|{python}) ?"
    for command in ALL:
        assert command.exception or re.match(known, command.line), (
            f"{command.document}: {command.line!r} is no command that CI can run; write ```text above output, or say "
            "in scripts/documented.py why not"
        )


@pytest.mark.parametrize(
    "document", [path for path, found in FOUND.items() if found], ids=lambda path: path.name
)
def test_settings_of_commands_compose(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented.write_files(document, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in documented.files(document):
        sys.modules.pop(name.removesuffix(".py"), None)
    checked = 0
    for command in FOUND[document]:
        try:
            checked += documented.composed(command)
        except ConfigError as error:
            raise AssertionError(f"{command.document}: {command.line}: {error}") from error
    assert checked or document.name not in ("README.md", "clusters.md", "your-method.md", "real-run.md")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python -m stsimdiff compressor=random budget.retention=0.3,3", "retention"),
        ("python -m stsimdiff -m compressor=fastv compressor.layer=2,0 model=llava_video", "layer"),
        ("python -m stsimdiff profile --repeats 3 limit=0", "limit=0 is out of range"),
        ("make reproduce-table EXPERIMENT=table1 ARGS=max_failures=many", "max_failures='many'"),
        ("for n in a b; do make data BENCHMARK=$n ARGS=seed=-1; done", "benchmark/a"),
        ("python -m stsimdiff -m hydra/launcher=submitit_slurn shards=8", "submitit_slurn"),
        ("python -m stsimdiff -m hydra/launcher=joblib hydra.launcher.n_job=8", "n_job"),
    ],
)
def test_a_wrong_setting_is_found(line: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        documented.composed(Command("", line))


def test_commands_are_shortened(tmp_path: Path) -> None:
    run = tmp_path / "README" / "results" / "first"
    run.mkdir(parents=True)
    (run / "table.csv").touch()
    assert documented.short("python -m stsimdiff report results/<run>", tmp_path).endswith(f" report {run}")
    short = documented.short("make reproduce-table LIMIT=3", tmp_path)
    assert short == "make reproduce-table LIMIT=3 PROCESSES=1"
    assert documented.short("make compare LIMIT=112", tmp_path) == "make compare LIMIT=4 PROCESSES=1"
    assert documented.short("make compare", tmp_path) == "make compare PROCESSES=1 LIMIT=4"
    short = documented.short("make efficiency", tmp_path)
    assert short == 'make efficiency ARGS="--questions 1 --repeats 3"'
    assert documented.short("python -m lmms_eval --limit 112", tmp_path) == "python -m lmms_eval --limit 4"
    run = documented.short("python -m stsimdiff -m compressor=random run=x", tmp_path)
    assert run == "python -m stsimdiff -m compressor=random run=x logger=none limit=4"
    run = documented.short("python -m stsimdiff compressor=random limit=112", tmp_path)
    assert run == "python -m stsimdiff compressor=random limit=4 logger=none"
    assert documented.short("python -m stsimdiff --help", tmp_path) == "python -m stsimdiff --help"


def test_what_is_run_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each document in a folder of its own, with its files; a table once; one failure fails all, and ends nothing."""
    (tmp_path / "docs").mkdir()
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text("make lint\n")
    (tmp_path / "README.md").write_text(
        "```\nmake lint\nmake mutation\nmake reproduce-table\n```\n\n```yaml\n# a/b.yaml\nx: 1\n```\n"
    )
    (tmp_path / "CONTRIBUTING.md").write_text("```\nfalse\ntrue\n```\n")
    (tmp_path / "docs" / "b.md").write_text("```\nmake reproduce-table\ngrep 1 a/b.yaml\n```\n")
    (tmp_path / "Makefile").write_text("reproduce-table:\n\tcat a/b.yaml\n")
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    assert documented.main([str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    lines = sorted(re.findall(r"^[+-] .*(?=\n)", re.sub(r", \d+ s\)", ")", said), re.MULTILINE))
    assert lines == [
        "+ false (CONTRIBUTING.md)",
        "+ grep 1 a/b.yaml (b.md)",
        "+ make reproduce-table PROCESSES=1 LIMIT=4 (README.md)",
        "+ true (CONTRIBUTING.md)",
        "- make lint (README.md): a step of CI",
        "- make mutation (README.md): takes an hour; tests/project/test_mutate.py",
        "- make reproduce-table (b.md): run for another document",
    ]
    # `false`, and `grep` in a folder that does not hold the README's file.
    assert sorted(re.findall(r"exit code \d+", said)) == ["exit code 1", "exit code 2"]
    assert (tmp_path / "out" / "README" / "a" / "b.yaml").read_text() == "# a/b.yaml\nx: 1\n"
