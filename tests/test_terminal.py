"""What is printed: nothing of others commands the terminal, and no terminal, log or reader ends a run."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.synthetic_run import answers, write_arm
from stsimdiff import terminal
from stsimdiff.commands import cli, messages
from stsimdiff.evaluate import progress
from stsimdiff.evaluate.store import ArmStore, read_answers, read_record
from stsimdiff.report.publish import publish
from stsimdiff.report.rows import read

HOSTILE = "\x1b[31mred \x1b]0;title\x07 a\rb \x9b2J \u202edcba\u202c \x00 \udcff [/x] [bold]b[/bold] :smile:"
CLEAN = re.sub(r"[\x00-\x1f\x9b\u202c\u202e\udcff]", lambda found: f"\\u{ord(found[0]):04x}", HOSTILE)


def test_control_characters_become_escapes_and_everything_else_stays():
    assert terminal.clean(HOSTILE) == CLEAN and "\\u001b[31mred \\u001b]0;title\\u0007 a\\u000db" in CLEAN
    assert terminal.clean(CLEAN) == CLEAN
    plain = "zwei\nZeilen\tund Tab, ü, 日本, שלום, \u200d, 👍, –"
    assert terminal.clean(plain) == plain


@pytest.mark.parametrize("styled", [False, True])
def test_a_console_shows_text_of_others_as_it_is_written(styled):
    shown = io.StringIO()
    console = terminal.Console(file=shown, width=300, force_terminal=styled, color_system=None)
    table = progress_table(HOSTILE)
    console.print(HOSTILE)
    console.print(table)
    said = shown.getvalue()
    assert len(re.findall(re.escape("\\u001b[31mred \\u001b]0;title"), said)) == 3
    assert not terminal.CONTROL.search(said) and "[bold]b[/bold] :smile:" in said


def progress_table(text: str):
    from rich.table import Table

    table = Table()
    table.add_column(text)
    table.add_row(text)
    return table


def test_the_progress_of_an_arm_whose_label_is_markup(monkeypatch, tmp_path):
    shown = io.StringIO()
    console = terminal.Console(file=shown, width=300, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    with progress.Progress(1, 1, 1, tmp_path / "log") as bar:
        bar.arm(HOSTILE, 0.3)
        bar._bar.refresh()
        bar.step(failed=False)
    assert CLEAN.split(" a")[0] in shown.getvalue() and "[/x] [bold]b[/bold]" in shown.getvalue()
    assert "\x1b]0" not in shown.getvalue()
    assert CLEAN in (tmp_path / "log").read_text(encoding="utf-8")


def test_log_lines_and_messages_are_cleaned(capsys):
    record = logging.LogRecord("stsimdiff", logging.INFO, "", 0, "broken: %s", (HOSTILE,), None)
    assert terminal.Formatter("%(message)s").format(record) == f"broken: {CLEAN}"
    with pytest.raises(SystemExit), cli.errors_as_messages([]):
        raise messages.HYDRA_ERRORS[0](HOSTILE)
    assert not terminal.UNPRINTABLE.search(capsys.readouterr().err)


def test_every_character_that_a_terminal_acts_on_is_escaped_and_no_other():
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    escaped = {char for char in every if terminal.clean(char) != char}
    assert escaped == set(terminal.UNPRINTABLE.findall("".join(every)))
    assert {"\x1b", "\u202e", "\ud800"} < escaped and not {"a", "\n", "\t", "\u00e9", "\u4e2d"} & escaped
    assert terminal.clean(None) == "None"


def test_nothing_in_the_package_prints_past_this_module():
    found = []
    for path in (ROOT / "stsimdiff").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            name = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            called = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
            if (called or name == "rich.console") and path.name != "terminal.py":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_every_text_file_is_opened_with_its_encoding():
    for path in [*(ROOT / "stsimdiff").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            mode = next((a.value for a in node.args[-1:] if isinstance(a, ast.Constant)), "r")
            other = {"os.open", "Image.open", "tarfile.open", "archive.open", "av.open", "self._open"}
            text = name in ("read_text", "write_text") or (name == "open" and mode in ("r", "w", "a", "x"))
            if text and ast.unparse(node.func) not in other:
                given = {keyword.arg for keyword in node.keywords}
                assert "encoding" in given, f"{path}:{node.lineno}: {ast.unparse(node)}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    rows = answers(0.8, 0.3)
    rows[0]["answer"] = rows[0]["video"] = rows[0]["id"] = HOSTILE
    write_arm(run, "none", 1.0, answers(0.9, 1.0), label="none ü")
    write_arm(run, "random", 0.3, rows, label="random [/x]")
    return run


def test_a_reader_that_went_away_costs_no_file(run):
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    published = publish(run, terminal.Console(file=stream))
    assert published.page.is_file() and (run / "table.csv").is_file() and not published.unmade
    with pytest.raises(BrokenPipeError):
        stream.close()


def started(*words: str, stdout: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


def test_the_command_with_a_reader_that_went_away(run):
    reading, writing = os.pipe()
    os.close(reading)
    done = started("-m", "stsimdiff.report", str(run), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (run / "report.html").is_file()


def test_the_command_in_a_terminal_that_knows_ascii_alone(run):
    done = started("-m", "stsimdiff", "report", str(run), stdout=subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode("ascii")
    assert "none ?" in said and "random [/x]" in said and "Page: " in said
    assert (run / "report.html").is_file()


SCRIPT = """
import logging, sys
from stsimdiff.terminal import Console, log_to_stderr, say, unwritten
log_to_stderr()
for _ in range(3000):
    say("Größe 日本 \\udcff \\x1b[1m")
    say("Größe 日本 \\udcff \\x1b[1m", error=True)
Console().print("Größe 日本", style="bold")
logging.getLogger("stsimdiff").info("Größe %s", "日本 \\udcff")
print(unwritten(), file=open(sys.argv[1], "w", encoding="utf-8"))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path / "script.py"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1:strict", "utf-8:strict"])
def test_streams_of_any_encoding(tmp_path, script, encoding):
    done = started(
        *(str(script), str(tmp_path / "lost")),
        stdout=subprocess.PIPE,
        **{"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "lost").read_text() == "\n"
    name = encoding.partition(":")[0]
    # A stream's own way with what it lacks: standard output replaces, standard error escapes.
    assert done.stdout.decode(name).splitlines()[-1] == "Größe 日本".encode(name, "replace").decode(name)
    last = done.stderr.decode(name).splitlines()[-1]
    assert last == "Größe 日本 \\udcff".encode(name, "backslashreplace").decode(name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_standard_output_is_said_and_ends_nothing(tmp_path, script, run):
    with open("/dev/full", "wb") as full:
        done = started(str(script), str(tmp_path / "lost"), stdout=full)
        assert done.returncode == 0, done.stderr[-500:]
        assert "standard output could not be written: No space left" in (tmp_path / "lost").read_text()
        done = started("-m", "stsimdiff", "report", str(run), stdout=full)
    assert done.returncode == 1 and (run / "report.html").is_file()
    assert done.stderr.decode() == (
        "standard output could not be written: No space left on device; all else was done\n"
    )


def test_control_characters_on_the_command_line(command_line, capsys):
    assert command_line("run=a\x1b[31m") == 2
    assert capsys.readouterr().err == "run=a\\u001b[31m holds a control character; nothing here takes one\n"


def test_an_answer_with_lone_surrogates_is_stored_and_read_back(tmp_path):
    row = {
        "id": "q\udcff",
        "video": "v.mp4",
        "category": "f",
        "answer": HOSTILE,
        "correct": False,
        "error": None,
    }
    record = {"arm": "0" * 12, "label": "\ud800", "provenance": {}}
    folder = tmp_path / "run" / "arm"
    with ArmStore(folder, record) as store:
        store.append(row)
        store.append(row | {"id": "q2", "answer": "plain ü"})
    assert read_answers(folder) == [row, row | {"id": "q2", "answer": "plain ü"}]
    assert read_record(folder)["label"] == "\ud800"
    text = (folder / "answers.jsonl").read_text(encoding="utf-8")
    assert "plain ü" in text and "\\udcff" in text
    with ArmStore(folder, record) as store:
        assert store.done() == {"q\udcff", "q2"}


def test_the_reports_take_lone_surrogates(run):
    row = json.loads((run / "random_01" / "answers.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row["answer"] == HOSTILE
    failure = {"type": "ValueError", "message": "bad \udcff", "traceback": "\udcff"}
    with (run / "random_01" / "answers.jsonl").open("a", encoding="utf-8") as stream:
        failed = {"id": "\ud800", "video": "v", "category": "attr", "correct": None, "error": failure}
        stream.write(json.dumps(failed) + "\n")
    published = publish(run, None)
    assert not published.unmade and "bad \\udcff" in published.page.read_text(encoding="utf-8")
    assert CLEAN in set(read(run).samples["answer"].dropna())
