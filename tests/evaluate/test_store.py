"""Answers survive what happens to processes and disks: kills, torn lines, second writers, full and read-only disks."""

import errno
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.processes import python
from stsimdiff.errors import DataError
from stsimdiff.evaluate.store import ArmStore, arm_folders, done_ids, read_answers, read_record, write_record

RECORD = {"arm": "0123456789ab", "method": "random", "label": "random", "provenance": {"git": "one"}}


def answer(sample: str, error: str | None = None, **more: object) -> dict:
    return {"id": sample, "video": f"{sample}.mp4", "answer": None if error else "B", "error": error, **more}


def open_store(folder: Path, first: int = 0, **record: object) -> ArmStore:
    return ArmStore(folder, {**RECORD, **record}, first=first)


def test_a_row_is_on_disk_when_append_returns(tmp_path):
    with open_store(tmp_path / "arm") as store:
        store.append(answer("q1", text="ä\nline"))
        assert json.loads((tmp_path / "arm" / "answers.jsonl").read_text())["text"] == "ä\nline"
        assert (tmp_path / "arm" / "answers.jsonl").read_bytes().count(b"\n") == 1
    assert read_record(tmp_path / "arm") == RECORD
    assert arm_folders(tmp_path) == [tmp_path / "arm"]


def test_a_second_run_answers_only_what_is_missing(tmp_path):
    with open_store(tmp_path) as store:
        store.append(answer("q1"))
        store.append(answer("q2", error="decoding failed"))
    with open_store(tmp_path) as store:
        assert store.done() == {"q1", "q2"}
        assert store.done(retry_failed=True) == {"q1"}
        store.append(answer("q2", try_number=2))
        assert store.done(retry_failed=True) == {"q1", "q2"}
    rows = read_answers(tmp_path)
    assert [row["id"] for row in rows] == ["q1", "q2"]
    assert rows[1]["try_number"] == 2


def test_an_answer_is_never_superseded_and_a_later_failure_is(tmp_path):
    with open_store(tmp_path) as store:
        store.append(answer("q1"))
        with pytest.raises(ValueError, match="'q1' has an answer already"):
            store.append(answer("q1"))
        with pytest.raises(ValueError, match="'q1' has an answer already"):
            store.append(answer("q1", error="late"))
        store.append(answer("q2", error="first"))
        store.append(answer("q2", error="second"))
    assert [row["error"] for row in read_answers(tmp_path)] == [None, "second"]


def test_nan_is_refused_and_leaves_no_trace(tmp_path):
    with open_store(tmp_path) as store:
        with pytest.raises(ValueError, match="JSON"):
            store.append(answer("q1", cost=float("nan")))
        assert store.done() == set()
    assert read_answers(tmp_path) == []


@pytest.mark.parametrize("torn", [b'{"id": "q2", "ans', b"\x00" * 20, b'{"id": "q2", "error": null}'])
def test_a_torn_last_line_is_dropped_and_said(tmp_path, caplog, torn):
    with open_store(tmp_path) as store:
        store.append(answer("q1"))
    with (tmp_path / "answers.jsonl").open("ab") as stream:
        stream.write(torn)
    assert [row["id"] for row in read_answers(tmp_path)] == ["q1"]
    with open_store(tmp_path) as store:
        assert store.dropped == len(torn)
        assert f"dropped a torn last line of {len(torn)} bytes" in caplog.text
        assert store.done() == {"q1"}
        store.append(answer("q2"))
    assert [row["id"] for row in read_answers(tmp_path)] == ["q1", "q2"]


def test_a_file_of_one_long_torn_line_becomes_empty(tmp_path):
    (tmp_path / "answers.jsonl").write_bytes(b"x" * 200_000)
    with open_store(tmp_path) as store:
        assert (store.dropped, store.done()) == (200_000, set())
    assert (tmp_path / "answers.jsonl").stat().st_size == 0


def test_a_broken_line_in_the_middle_names_file_and_line(tmp_path):
    (tmp_path / "answers.jsonl").write_text(
        '{"id": "q1", "error": null}\noops\n{"id": "q2", "error": null}\n'
    )
    with pytest.raises(DataError, match=r"answers\.jsonl:2: not JSON"):
        read_answers(tmp_path)
    with pytest.raises(DataError, match="jsonl:2:"), open_store(tmp_path):
        pass
    assert not list(tmp_path.glob(".lock*")), "a store that could not be opened must give its lock back"


@pytest.mark.parametrize("number", [0, 1, 7])
def test_each_process_writes_a_file_of_its_own_and_all_are_read_as_one(tmp_path, number):
    # What version 0.1.0 wrote with two processes.
    (tmp_path / "answers.1-of-2.jsonl").write_text(json.dumps(answer("q1")) + "\n")
    with open_store(tmp_path) as first, open_store(tmp_path, number) as second:
        first.append(answer("q2"))
        second.append(answer("q3", error="no"))
    assert sorted(path.name for path in tmp_path.glob("answers*")) == sorted(
        ["answers.1-of-2.jsonl", "answers.jsonl", f"answers.{number or 1}.jsonl"]
    )
    with open_store(tmp_path) as store:
        assert store.done() == {"q1", "q2", "q3"}
        store.append(answer("q3"))
    assert {row["id"]: row["error"] for row in read_answers(tmp_path)} == {"q1": None, "q2": None, "q3": None}


def test_what_other_processes_write_is_seen_by_looking(tmp_path):
    with open_store(tmp_path) as mine:
        mine.append(answer("q1", error="no"))
        with open_store(tmp_path) as other:
            assert other.states.keys() == {"q1"} and other.look() == set()
            other.append(answer("q1"))
            other.append(answer("q2", error="no"))
            assert mine.states.keys() == {"q1"} and not mine.states["q1"].answered
            assert mine.look() == {"q1", "q2"}
            assert mine.states["q1"].answered and not mine.states["q2"].answered
            assert mine.look() == set(), "a line is read once"
            other.withdraw("q1", "the question has changed")
            assert mine.look() == set() and mine.states.keys() == {"q2"}
            other.append(answer("q1"))
            assert mine.look() == {"q1"} and mine.states["q1"].asking == 1
            with pytest.raises(ValueError, match="'q1' has an answer already"):
                mine.append(answer("q1"))
            # Half a line is read when it is whole.
            whole = json.dumps(answer("q3")).encode() + b"\n"
            with (tmp_path / "answers.1.jsonl").open("ab", buffering=0) as stream:
                stream.write(whole[:9])
                assert mine.look() == set()
                stream.write(whole[9:])
                assert mine.look() == {"q3"}
            with (tmp_path / "answers.1.jsonl").open("ab", buffering=0) as stream:
                stream.write(b"oops\n")
            with pytest.raises(DataError, match=r"answers\.1\.jsonl:6: not JSON"):
                mine.look()


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("owner", ["dead", "pid of another process", "torn"])
def test_a_stale_lock_is_taken_over(tmp_path, owner):
    path = tmp_path / ".lock.0-of-1"
    pid = dead_process() if owner == "dead" else os.getppid()
    content = {"pid": pid, "host": socket.gethostname(), "started": "long ago", "since": "2020-01-01"}
    path.write_text("" if owner == "torn" else json.dumps(content))
    os.utime(path, (1, 1))
    with open_store(tmp_path) as store:
        store.append(answer("q1"))
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_the_lock_of_another_host_is_respected(tmp_path):
    content = {"pid": 1, "host": "elsewhere", "started": None, "since": "2020-01-01"}
    (tmp_path / ".lock.0-of-1").write_text(json.dumps(content))
    with open_store(tmp_path) as store:
        store.append(answer("q1"))
    assert [path.name for path in tmp_path.glob("answers*")] == ["answers.1.jsonl"]
    assert json.loads((tmp_path / ".lock.0-of-1").read_text()) == content


CONTENDER = """
import sys
from pathlib import Path
from stsimdiff.errors import DataError
from stsimdiff.lock import Lock
sys.stdin.readline()
lock = Lock(Path(sys.argv[1]))
try:
    lock.take()
except DataError:
    print("refused", flush=True)
else:
    print("held", flush=True)
sys.stdin.readline()
"""


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
    path = tmp_path / ".lock.0-of-1"
    content = {"pid": dead_process(), "host": socket.gethostname(), "started": None, "since": "2020-01-01"}
    path.write_text(json.dumps(content))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(path)], stdin=-1, stdout=-1, text=True, bufsize=1
        )
        for _ in range(6)
    ]
    for child in children:
        child.stdin.write("go\n")
    said = sorted(child.stdout.readline().strip() for child in children)
    for child in children:
        child.communicate("end\n")
    assert said == ["held", *["refused"] * 5]


def test_the_folder_of_another_arm_is_refused(tmp_path):
    with open_store(tmp_path):
        pass
    with pytest.raises(DataError, match=r"arm\.json is of arm 0123456789ab, not 00"):
        open_store(tmp_path, arm="00").__enter__()


def test_a_resumed_arm_keeps_its_first_provenance(tmp_path):
    with open_store(tmp_path, provenance={}):
        write_record(tmp_path, {**RECORD, "provenance": {"git": "one"}})
    for revision in ("one", "two", "two", "three"):
        with open_store(tmp_path, provenance={}):
            write_record(tmp_path, {**RECORD, "provenance": {"git": revision}})
    record = read_record(tmp_path)
    assert record["provenance"] == {"git": "one"}
    assert record["resumed"] == [{"git": "two"}, {"git": "three"}]


@pytest.mark.parametrize("content", ["", "{"])
def test_a_broken_record_is_named(tmp_path, content):
    (tmp_path / "arm.json").write_text(content)
    with pytest.raises(DataError, match=r"arm\.json is broken"):
        open_store(tmp_path).__enter__()


WRITER = """
import sys
from pathlib import Path
from stsimdiff.evaluate.store import ArmStore
record = {"arm": "0123456789ab", "provenance": {}}
with ArmStore(Path(sys.argv[1]), record) as store:
    done = store.done()
    for number in range(100_000):
        sample = f"q{number}"
        if sample not in done:
            store.append({"id": sample, "answer": "B" * (number % 3000), "error": None})
            print(sample, flush=True)
"""


def test_a_writer_killed_at_random_moments_loses_and_doubles_nothing(tmp_path):
    moments = random.Random(0)
    returned: list[str] = []
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            returned.append(writer.stdout.readline().strip())
            time.sleep(moments.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
            # A line may be cut when the kill comes between append and the end of print.
            returned += [line.strip() for line in writer.stdout if line.endswith("\n")]
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_bytes().split(b"\n")[:-1]]
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert set(returned) <= set(ids)
    assert len(returned) == len(set(returned)) > 8
    # At each kill, one answer may be on disk whose append had not returned.
    assert len(ids) - len(returned) <= 8
    assert ids == [f"q{number}" for number in range(len(ids))]


def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with open_store(tmp_path) as store:
            store.append(answer("q1"))
            size = (tmp_path / "answers.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
            with pytest.raises(DataError, match=r"cannot write .*answers\.jsonl.*File too large"):
                store.append(answer("q2", text="x" * 1000))
            assert store.done() == {"q1"}
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            store.append(answer("q3"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [row["id"] for row in read_answers(tmp_path)] == ["q1", "q3"]


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with open_store(disk / "arm") as store, pytest.raises(DataError, match="No space left on device"):
            for number in range(1000):
                store.append(answer(f"q{number}", text="x" * 500))
        kept = read_answers(disk / "arm")
        assert 10 < len(kept) < 200
        with open_store(disk / "arm") as store:
            assert store.dropped == 0
            assert store.done() == {row["id"] for row in kept}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made_or_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the folder .*file/arm"):
        open_store(tmp_path / "file" / "arm").__enter__()
    with pytest.raises(DataError, match=r"cannot (make|open|write) /sys/kernel"):
        open_store(Path("/sys/kernel")).__enter__()
    if os.geteuid() == 0:
        return  # root may write everywhere else
    readonly = tmp_path / "readonly"
    readonly.mkdir(mode=0o555)
    with pytest.raises(DataError, match="cannot make .*readonly.*Permission denied"):
        open_store(readonly).__enter__()


def test_a_store_closed_twice_touches_no_other_file_and_takes_nothing_more(tmp_path):
    store = open_store(tmp_path).__enter__()
    store.close()
    # Its number belongs to the next file that is opened.
    with (tmp_path / "other").open("w") as other:
        store.close()
        other.write("x")
    for number in (0, 1, 2):
        os.fstat(number)
    with pytest.raises(ValueError, match="is not open"):
        store.append(answer("q1"))
    assert not list(tmp_path.glob(".lock*"))


def test_the_record_is_readable_text_wherever_it_is_read(tmp_path):
    label = "τ = 0.7, größer"
    with open_store(tmp_path, label=label):
        pass
    written = (tmp_path / "arm.json").read_bytes().decode("utf-8")
    assert f'\n  "label": "{label}",\n' in written and written.endswith("}\n")
    code = "import sys; from pathlib import Path; from stsimdiff.evaluate.store import read_record as r; "
    code += "print(ascii(r(Path(sys.argv[1]))['label']))"
    # A machine whose locale knows ASCII only.
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = python("-c", code, str(tmp_path), check=True, **ascii_only)
    assert done.stdout.strip() == ascii(label)


@pytest.mark.parametrize("sample", ["plain", "ä", 'a"b', 'a", "b', "back\\slash", "tab\tand\nline", ""])
def test_an_id_of_any_characters_is_known_again(tmp_path, sample):
    with open_store(tmp_path) as store:
        store.append(answer(sample))
        store.append(answer(f"{sample}2", error="no"))
    with open_store(tmp_path) as store:
        assert store.done() == {sample, f"{sample}2"} and store.done(retry_failed=True) == {sample}
    assert done_ids(tmp_path) == {sample, f"{sample}2"} and done_ids(tmp_path, True) == {sample}
    assert [row["id"] for row in read_answers(tmp_path)] == [sample, f"{sample}2"]


def test_an_answer_counts_whatever_lines_stand_around_it(tmp_path):
    """In lines that this program did not write: keys in another order, a failure behind an answer."""
    lines = [
        {"error": "no", "id": "only failed"},
        {"error": "no", "id": "answered later"},
        {"error": None, "id": "answered later"},
        {"error": None, "id": "failed later"},
        {"error": "no", "id": "failed later"},
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert done_ids(tmp_path) == {"only failed", "answered later", "failed later"}
    assert done_ids(tmp_path, retry_failed=True) == {"answered later", "failed later"}


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, read in (("arm.json", read_record), ("answers.jsonl", read_answers)):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=rf"cannot read .*/{name}: Is a directory"):
            read(tmp_path)
        (tmp_path / name).rmdir()
    with pytest.raises(DataError, match=r"cannot read .*/arm.json: No such file"):
        read_record(tmp_path)


def test_answers_are_synced_once_a_second_and_at_the_end(tmp_path, monkeypatch):
    """What a machine that loses its power would keep; a process that dies leaves every line."""
    synced, now = [], [100.0]

    def sync(descriptor: int) -> None:
        synced.append((tmp_path / "answers.jsonl").read_bytes().count(b"\n"))

    monkeypatch.setattr("stsimdiff.evaluate.store.sync", sync)
    monkeypatch.setattr("stsimdiff.evaluate.store.time.monotonic", lambda: now[0])
    with open_store(tmp_path) as store:
        for number, later in enumerate((0, 0.4, 0.5, 0.2, 5, 0.1)):
            now[0] += later
            store.append(answer(f"q{number}"))
            assert (tmp_path / "answers.jsonl").read_bytes().count(b"\n") == number + 1
        assert synced == [1, 4, 5]
    assert synced == [1, 4, 5, 6]


def test_a_length_that_a_network_file_system_remembers_is_not_believed(tmp_path, monkeypatch):
    """NFS says for up to a minute what a file's length was, as long as the file is not opened."""
    with open_store(tmp_path) as mine, open_store(tmp_path) as other:
        other.append(answer("q1"))
        assert mine.look() == {"q1"}
        path, stat = tmp_path / "answers.1.jsonl", Path.stat
        remembered = path.stat()
        other.append(answer("q2"))
        monkeypatch.setattr(
            Path, "stat", lambda self, **options: remembered if self == path else stat(self, **options)
        )
        assert mine.look() == {"q2"}


def test_what_is_refused_when_answers_are_flushed_is_an_error(tmp_path, monkeypatch):
    with open_store(tmp_path) as store:
        store.append(answer("q1"))
        store.flush()
        store.append(answer("q2"))

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched, pytest.raises(DataError, match="No space left on device"):
            patched.setattr(os, "close", full)
            store.flush()
    assert [row["id"] for row in read_answers(tmp_path)] == ["q1", "q2"]


def test_a_disk_that_refuses_the_last_sync_is_an_error(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    said = r"cannot write .*answers\.jsonl: No space left on device; the 2 answers"
    with pytest.raises(DataError, match=said), open_store(tmp_path) as store:
        store.append(answer("q1"))
        store.append(answer("q2"))
        monkeypatch.setattr("stsimdiff.evaluate.store.sync", full)
    monkeypatch.undo()
    with open_store(tmp_path) as store:
        assert store.done() == {"q1", "q2"}


def test_what_a_line_is_of_and_whether_it_failed_stand_at_its_end(tmp_path):
    # A sweep that goes on reads the ends alone.
    with open_store(tmp_path) as store:
        store.append({"of": "0123", "error": None, "id": "q1", "answer": "A"})
    text = (tmp_path / "answers.jsonl").read_text()
    assert text == '{"id": "q1", "answer": "A", "of": "0123", "error": null}\n'
