"""The files of a report are there whole or not at all, one command at a time, and what a disk refuses is said."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from helpers.synthetic_run import answers, write_arm
from stsimdiff import lock
from stsimdiff.commands.report import main
from stsimdiff.errors import DataError
from stsimdiff.files import write_whole
from stsimdiff.report import figures, publish
from stsimdiff.terminal import Console

FILES = {"table.csv", "table.md", "table.tex", "pairs.csv", "report.html"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(figures, "FORMATS", ("svg",))
    folder = tmp_path / "results" / "r"
    write_arm(folder, "fastv", 0.3, answers(0.6, 0.3))
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "first")
    write_whole(path, "half a character: \ud800")
    assert path.read_text() == "half a character: \\ud800"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "third")
    assert path.read_text() == "half a character: \\ud800"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_page_that_does_not_fit_is_not_there_and_said(run: Path) -> None:
    assert main([str(run)]) == 0
    whole = (run / "report.html").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "stsimdiff.report", str(run)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, len(whole) // 2)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert done.returncode == 1, done.stderr
    assert "embedded on clips, budget: tokens" in done.stdout and "Traceback" not in done.stderr
    assert f"NOT WRITTEN into {run}: report.html: File too large." in done.stdout
    assert not (run / "report.html").exists() and names(run) >= FILES - {"report.html"}
    assert not [name for name in names(run) if name.startswith(".") and "lock" not in name]


def test_a_folder_that_cannot_be_written_still_prints_the_table_and_says_where_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = names(run)
    (run / lock.REPORT).mkdir()  # no lock can be made

    def refused(path: Path, content: object) -> None:
        if run in path.parents:
            raise OSError(errno.EROFS, "Read-only file system")
        write_whole(path, content)

    monkeypatch.setattr(publish, "write_whole", refused)
    monkeypatch.setenv("COLUMNS", "300")
    assert main([str(run)]) == 1
    said = capsys.readouterr().out
    assert "At 30 % fastv (" in said
    assert said.count("Read-only file system") == 1 and "--output FOLDER" in said
    assert names(run) == before
    assert main([str(run), "--output", str(tmp_path / "out" / "there")]) == 0
    assert names(tmp_path / "out" / "there") >= {*FILES, "figures/accuracy_flops.svg"}
    assert names(run) == before
    (tmp_path / "file").touch()
    assert main([str(run), "--output", str(tmp_path / "file" / "x")]) == 2


def test_no_file_is_missing_while_another_report_is_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish.publish(run, None)
    before = names(run)
    assert before >= {*FILES, "figures/accuracy_flops.svg"}
    seen = []

    def watched(path: Path, content: object) -> None:
        write_whole(path, content)
        seen.append(before - names(run))

    monkeypatch.setattr(publish, "write_whole", watched)
    (run / "figures" / "thresholds_old.svg").write_text("of arms that are no more")
    assert publish.publish(run, None).unmade == []
    assert len(seen) > 7 and not any(seen)
    assert not (run / "figures" / "thresholds_old.svg").exists()


def test_figures_are_the_same_by_one_process_and_by_several(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FORMATS", ("pdf", "svg"))
    drawn = []
    for processes in (1, 3):
        assert publish.publish(run, None, run.parent / str(processes), processes=processes).unmade == []
        made = sorted((run.parent / str(processes) / "figures").iterdir())
        drawn.append({path.name: path.read_bytes() for path in made})
        page = (run.parent / str(processes) / "report.html").read_text()
        assert all(f'href="figures/{path.name}"' in page for path in made if path.suffix == ".svg")
    assert drawn[0] == drawn[1] and {"accuracy_flops.pdf", "retention_by_layer.svg"} <= set(drawn[0])


@pytest.mark.parametrize("killed", [False, True])
def test_a_figure_that_fails_in_another_process_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    publish.publish(run, None)
    here = os.getpid()

    def fails(*of: object) -> None:
        assert os.getpid() != here
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no such colour")

    monkeypatch.setattr(figures, "retention_by_layer", fails)
    published = publish.publish(run, None, processes=2)
    why = "BrokenProcessPool: " if killed else "ValueError: no such colour"
    assert f"NOT DRAWN: {run}/figures/retention_by_layer: {why}" in "\n".join(published.unmade)
    assert not (run / "figures" / "retention_by_layer.svg").exists() and published.page is not None
    assert killed or (len(published.unmade) == 1 and (run / "figures" / "accuracy_flops.svg").exists())


def test_a_second_report_waits_for_the_first(run: Path) -> None:
    done = threading.Event()
    write_arm(run.parent / "empty", "fastv", 0.3, None)

    def second() -> None:
        publish.publish(run.parent / "empty", None)
        done.set()

    with lock.alone(run.parent / "empty", lock.REPORT):
        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(0.5)
        assert not (run.parent / "empty" / "table.md").exists()
    thread.join(60)
    assert done.is_set() and (run.parent / "empty" / "table.md").exists()


def test_a_report_that_holds_the_lock_for_too_long_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with lock.alone(run, lock.REPORT):
        with pytest.raises(DataError, match=r"\.report\.lock has been held for"):
            publish.publish(run, None)
        assert main([str(run)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_is_read_while_another_process_answers(run: Path) -> None:
    folder = next(run.glob("*/answers.jsonl")).parent
    rows = answers(0.6, 0.3)
    with (folder / "answers.jsonl").open("w") as stream:
        for number, row in enumerate(rows[:4]):
            line = json.dumps(row) + "\n"
            stream.write(line[:40])
            stream.flush()
            (shown,) = publish.build(publish.read(run)).sections[0].rows
            assert shown.n == number
            stream.write(line[40:])
            stream.flush()
    console = Console(file=io.StringIO(), width=100)
    publish.show(publish.build(publish.read(run)), console)
    assert "torn" not in console.file.getvalue()
