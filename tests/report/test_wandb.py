"""What W&B is given, read back from its own offline files; no network, no key."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("wandb")


from helpers.synthetic_run import make
from helpers.wandb_files import header, history, records, summary
from helpers.written import csv_rows
from stsimdiff.config.wandb_mode import wandb_mode
from stsimdiff.errors import ConfigError
from stsimdiff.report import wandb_log
from stsimdiff.report.publish import publish
from stsimdiff.report.wandb_log import log_run

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
    identity = {"id": f"q{number}", "video": f"v{number // 2}", "category": ("attr", "order")[number % 2]}
    if number == 7:
        error = {"type": "ValueError", "message": "no frames", "traceback": "..."}
        return identity | {"answer": None, "parsed": None, "correct": None, "error": error}
    return identity | {
        "answer": "B" if number % 3 else "C",
        "parsed": "B" if number % 3 else None,
        "target": "B",
        "correct": bool(number % 3),
        "stock_parsed": "B" if number % 3 else "A",
        "stock_correct": bool(number % 3) if number else None,
        "stock_error": None if number else "drew lots",
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
    benchmark = dict(ARM["benchmark"])
    benchmark["categories"] = benchmark.pop("families")
    assert {key: config[key] for key in ARM} == ARM | {"benchmark": benchmark}
    assert (begun.run_group, begun.project) == ("sweep 1", "stsimdiff-test")
    assert begun.display_name == "st_simdiff tau_sim=0.7 30 % tokens"

    make(run, None)
    row = next(line for line in csv_rows(run / "table.csv") if line["method"] == ARM["label"])
    logged = summary(found)
    assert (logged["fidelity"], row.pop("fidelity"), row.pop("fault")) == ("official", "official", "")
    wanted = {
        **{"accuracy/overall": 1, "accuracy/overall_low": 1, "accuracy/overall_high": 1},
        **{"accuracy/attr": 1, "accuracy/order": 1, "cost/llm_flops": 100, "latency/prefill_ms": 1},
        **{"retention/budget": 100, "retention/tokens": 100, "retention/compute": 100},
        **{"count/n": 1, "count/n_failed": 1, "count/n_missing": 1, "count/n_unparsed": 1},
    }
    columns = [
        *(
            "overall",
            "ci_low",
            "ci_high",
            "acc_attr",
            "acc_order",
            "llm_flops_ratio",
            "prefill_ms",
            "retention",
        ),
        *("retention_tokens", "retention_compute", "n", "n_failed", "n_missing", "n_unparsed"),
    ]
    assert set(columns) | {"method", "budget"} == set(row)
    seen = history(found)
    for (name, scale), column in zip(wanted.items(), columns, strict=True):
        assert logged[name] == seen[name] == pytest.approx(scale * float(row[column])), name
    assert logged["retention/tokens"] == pytest.approx(30) and logged["retention/budget"] == 30
    assert (logged["count/n"], logged["count/n_failed"], logged["count/n_unparsed"]) == (11, 1, 4)
    assert {name.partition("/")[0] for name in seen if name[0] != "_"} == {
        *("accuracy", "cost", "latency", "retention", "count", "samples"),
    }
    assert (begun.job_type, begun.notes) == ("arm", "1 failed\nBenchmark clips: toy. Chance is 25.0 %.")
    assert list(begun.tags) == ["embedded", "clips", "st_simdiff", "30 % tokens"]

    table = json.loads((Path(place) / "files" / logged["samples/path"]).read_text())
    assert table["columns"] == [
        *("id", "video", "category", "answer", "parsed", "target", "correct"),
        *("stock_parsed", "stock_correct", "stock_error"),
        *("retention_tokens", "retention_compute", "prefill_ms", "error"),
    ]
    assert len(table["data"]) == 12
    stock = ["B", True, None]
    assert table["data"][1] == [
        *["q1", "v0", "order", "B", "B", "B", True, *stock, 30.0, 30.0, pytest.approx(21.0), None]
    ]
    assert table["data"][0][6:10] == [False, "A", None, "drew lots"]
    assert table["data"][7] == ["q7", "v3", "order", *[None] * 10, "no frames"]
    assert any(
        record.WhichOneof("record_type") == "request" or record.HasField("artifact") for record in found
    )


def test_the_reports_files_are_one_artifact(run: Path, capfd: pytest.CaptureFixture) -> None:
    published = publish(run, None)
    arm, report = log_run(run, "stsimdiff-test")
    assert "W&B: 1 arm logged offline" in capfd.readouterr().out
    found = records(report)
    begun = header(found)
    assert (begun.job_type, begun.run_group, begun.display_name) == ("report", "sweep 1", "sweep 1 report")
    (artifact,) = (record.artifact for record in found if record.HasField("artifact"))
    assert artifact.type == "report"
    staged = {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}
    wanted = {"table.csv", "table.md", "table.tex", "pairs.csv", "report.html", "figures/accuracy_flops.pdf"}
    assert wanted <= set(staged)
    assert all(content == (run / name).read_bytes() for name, content in staged.items())
    # Nothing new: nothing is logged again, nor of rows that were read before. Another table: the report alone is.
    assert log_run(run, "stsimdiff-test") == [arm, report]
    made = published.stored, published.table
    assert log_run(run, "stsimdiff-test", made=made) == [arm, report]
    publish(run, None, columns=["overall"])
    same, again = log_run(run, "stsimdiff-test")
    assert same == arm and again != report and not Path(report).exists()


def test_only_what_changed_is_logged_again_and_under_the_same_id(run: Path) -> None:
    (first,) = log_run(run, "stsimdiff-test", "offline")
    earlier = header(records(first)).run_id
    written = {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")}
    assert log_run(run, "stsimdiff-test", "offline") == [first]
    assert {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")} == written
    with (run / "a" / "answers.jsonl").open("a") as stream:
        stream.write(json.dumps(stored(13)) + "\n")
    (second,) = log_run(run, "stsimdiff-test", "offline")
    assert summary(records(second))["count/n"] == 12
    assert header(records(second)).run_id == earlier
    assert [str(path) for path in (run / "wandb").glob("offline-run-*")] == [second]


def add_arm(run: Path, name: str, identity: str) -> None:
    (run / name).mkdir()
    record = ARM | {"arm": identity, "label": name, "budget": {"kind": "tokens", "retention": 0.5}}
    (run / name / "arm.json").write_text(json.dumps(record))
    rows = [stored(number) for number in range(12)]
    (run / name / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_arm_more_is_logged_and_every_arm_is_there_once(run: Path) -> None:
    (first,) = log_run(run, "stsimdiff-test", "offline")
    add_arm(run, "c", "c" * 12)
    places = log_run(run, "stsimdiff-test", "offline")
    assert places[0] == first and len(places) == 2, "an arm that has not changed was logged again"
    again = log_run(run, "stsimdiff-test", "offline")
    assert again == places
    folders = sorted(str(path) for path in (run / "wandb").glob("offline-run-*"))
    assert folders == sorted(places)
    begun = [header(records(place)) for place in places]
    assert len({one.run_id for one in begun}) == 2 and {one.run_group for one in begun} == {"sweep 1"}
    for place in places:
        found = records(place)
        kinds = [record.WhichOneof("record_type") for record in found]
        assert kinds.count("run") == kinds.count("exit") == kinds.count("history") == 1
        logged = summary(found)
        assert logged["cost/llm_tflops"] == pytest.approx((3e8 + sum({*range(12)} - {7}) / 11) / 1e12)
        assert logged["latency/prefill_ms"] > 0
        assert len(list((run / "wandb" / "tables" / header(found).run_id).rglob("tmp*"))) == 1
        table = json.loads((Path(place) / "files" / logged["samples/path"]).read_text())
        assert len(table["data"]) == 12


def test_modes_are_checked_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    assert wandb_mode(None) == "offline"
    with pytest.raises(ConfigError, match="needs a key"):
        wandb_mode("online")
    with pytest.raises(ConfigError, match="logger.mode=on is unknown"):
        wandb_mode("on")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert (wandb_mode(None), wandb_mode("online"), wandb_mode("offline")) == ("offline", "online", "offline")
    for said, mode in (
        ("offline", "offline"),
        ("dryrun", "offline"),
        ("online", "offline"),
        ("disabled", None),
    ):
        monkeypatch.setenv("WANDB_MODE", said)
        assert wandb_mode(None) == mode
    monkeypatch.setenv("WANDB_MODE", "oflin")
    with pytest.raises(ConfigError, match="WANDB_MODE=oflin is unknown; allowed: online"):
        wandb_mode(None)


@pytest.fixture
def command(tmp_path: Path, command_line, data: Path, monkeypatch: pytest.MonkeyPatch):
    """The command line: two arms and one clip."""
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = ["-m", "compressor=none,random", "limit=4", "overlays=0", f"benchmark.data={data}", "run=w"]
    return partial(command_line, *words)


def test_secrets_reach_no_file(tmp_path: Path, command, monkeypatch, capfd) -> None:
    secret = "SECRETMARKER" + 28 * "a"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, secret)
    assert command("logger.mode=offline") == 0
    said = capfd.readouterr()
    assert secret not in said.out + said.err and "W&B: 2 arms logged offline" in said.out
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert {"arm.json", "answers.jsonl", "wandb.json", "multirun.yaml"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


def test_what_wandb_refuses_costs_no_answer_and_no_table(tmp_path: Path, command, monkeypatch, capfd) -> None:
    run = tmp_path / "results" / "w"
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(wandb_log, "RETRIES", 1)
    assert command("logger.mode=online") == 1
    said = capfd.readouterr().err
    assert (
        "W&B did not take the arms" in said and "127.0.0.1" in said and "logger=none leaves W&B out" in said
    )
    assert "Traceback" not in said
    assert len((run / "table.csv").read_text().splitlines()) == 3
    assert len(list(run.glob("*/metrics.json"))) == 2 and not list(run.glob("*/wandb.json"))
    # No room, and a place that cannot be a folder.
    usage = shutil.disk_usage(run)
    with monkeypatch.context() as full:
        full.setattr(wandb_log.shutil, "disk_usage", lambda place: usage._replace(free=1000))
        assert command("logger.mode=offline") == 1
    assert "no space left on the disk: 1 kB are free" in capfd.readouterr().err
    shutil.rmtree(run / "wandb", ignore_errors=True)
    (run / "wandb").write_text("")
    assert command("logger.mode=offline") == 1
    assert "W&B did not take the arms" in capfd.readouterr().err
    # Mended, the same command logs what is missing and answers nothing again.
    (run / "wandb").unlink()
    before = {path: path.read_bytes() for path in run.glob("*/answers.jsonl")}
    assert command("logger.mode=offline") == 0
    assert {path: path.read_bytes() for path in run.glob("*/answers.jsonl")} == before
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2 + 1


def test_a_missing_key_is_said_before_anything_is_answered(
    tmp_path: Path, command, monkeypatch, capfd
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert command("logger.mode=online") == 2
    assert "logger.mode=online needs a key" in capfd.readouterr().err
    assert not list(tmp_path.rglob("arm.json"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert command() == 0
    assert "W&B: off" in capfd.readouterr().out and not (tmp_path / "results" / "w" / "wandb").exists()
