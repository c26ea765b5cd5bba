"""What W&B is given, read back from its own offline files; no network, no key."""

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("wandb")

from wandb.proto.wandb_internal_pb2 import Record, RunRecord
from wandb.sdk.internal.datastore import DataStore

from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.wandb_log import log_run
from stsimdiff.report.table import make

ARM = {
    "arm": "0123456789ab",
    "method": "st_simdiff",
    "label": "st_simdiff tau_sim=0.7",
    "compressor": {"_target_": "stsimdiff.compressors.st_simdiff.STSimDiff", "tau_sim": 0.7},
    "budget": {"kind": "tokens", "retention": 0.3},
    "model": {"name": "embedded", "path": "/models/embedded"},
    "benchmark": {
        "name": "clips",
        "task": "clips",
        "families": ["attr", "order"],
        "chance": 25.0,
        "note": "toy",
    },
    "code": "abc",
    "provenance": {"versions": {"torch": "2.9"}, "device": "cpu", "seed": 0},
}


def stored(number: int) -> dict:
    identity = {"id": f"q{number}", "video": f"v{number // 2}", "family": ("attr", "order")[number % 2]}
    if number == 7:
        error = {"type": "ValueError", "message": "no frames", "traceback": "..."}
        return identity | {"answer": None, "parsed": None, "correct": None, "error": error}
    return identity | {
        "answer": "B" if number % 3 else "C",
        "parsed": "B" if number % 3 else None,
        "target": "B",
        "correct": bool(number % 3),
        "retention_tokens": 0.3,
        "retention_compute": 0.3,
        "llm_flops": 3e8 + number,
        "llm_flops_all": 1e9,
        "times": {"prefill": 0.02 + number / 1000},
        "error": None,
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with one answered arm and one that has not begun; no key anywhere."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    folder = tmp_path / "results" / "sweep 1"
    for name, arm in (("a", ARM), ("b", ARM | {"arm": "ba9876543210", "method": "none", "label": "none"})):
        (folder / name).mkdir(parents=True)
        (folder / name / "arm.json").write_text(json.dumps(arm))
    (folder / "a" / "answers.jsonl").write_text("".join(json.dumps(stored(i)) + "\n" for i in range(12)))
    return folder


def records(place: str) -> list[Record]:
    (path,) = Path(place).glob("run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    found = []
    while (data := store.scan_data()) is not None:
        found.append(Record.FromString(data))
    store.close()
    return found


def header(found: list[Record]) -> RunRecord:
    return next(record.run for record in found if record.WhichOneof("record_type") == "run")


def summary(found: list[Record]) -> dict:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in found
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }


def test_offline_run_holds_config_summary_and_samples(run: Path, capfd: pytest.CaptureFixture) -> None:
    (place,) = log_run(run, "stsimdiff-test")
    said = capfd.readouterr()
    assert said.out.splitlines() == [
        f"W&B: 1 arm logged offline; to upload: wandb sync '{run}/wandb'/offline-run-*"
    ]
    assert said.err == ""
    assert Path(place).parent == run / "wandb"

    found = records(place)
    begun = header(found)
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert {key: config[key] for key in ARM} == ARM
    assert (begun.run_group, begun.project) == ("sweep 1", "stsimdiff-test")
    assert begun.display_name == "st_simdiff tau_sim=0.7 30 % tokens"

    make(run, None)
    with (run / "table.csv").open() as stream:
        row = next(line for line in csv.DictReader(stream) if line["method"] == ARM["label"])
    logged = summary(found)
    for name in list(row)[3:]:
        assert logged[name] == pytest.approx(float(row[name])), name
    assert (logged["n"], logged["n_failed"], logged["n_unparsed"]) == (11, 1, 4)

    table = json.loads((Path(place) / "files" / logged["samples/path"]).read_text())
    assert table["columns"] == [
        *("id", "video", "family", "answer", "parsed", "target", "correct"),
        *("retention_tokens", "retention_compute", "prefill_ms", "error"),
    ]
    assert len(table["data"]) == 12
    assert table["data"][1] == ["q1", "v0", "order", "B", "B", "B", True, 0.3, 0.3, pytest.approx(21.0), None]
    assert table["data"][7] == ["q7", "v3", "order", *[None] * 7, "no frames"]
    assert any(
        record.WhichOneof("record_type") == "request" or record.HasField("artifact") for record in found
    )


def test_only_what_changed_is_logged_again_and_under_the_same_id(run: Path) -> None:
    (first,) = log_run(run, "stsimdiff-test", "offline")
    earlier = header(records(first)).run_id
    written = {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")}
    assert log_run(run, "stsimdiff-test", "offline") == [first]
    assert {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")} == written
    with (run / "a" / "answers.jsonl").open("a") as stream:
        stream.write(json.dumps(stored(13)) + "\n")
    (second,) = log_run(run, "stsimdiff-test", "offline")
    assert summary(records(second))["n"] == 12
    assert header(records(second)).run_id == earlier
    assert [str(path) for path in (run / "wandb").glob("offline-run-*")] == [second]


def test_modes_are_checked_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    with pytest.raises(ConfigError, match="needs a key"):
        log_run(tmp_path, "p", "online")
    with pytest.raises(ConfigError, match="'on' is unknown"):
        log_run(tmp_path, "p", "on")
