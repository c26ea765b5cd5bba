"""The whole path in-process: configuration to rows, failures, resuming, and the score against independent code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from helpers.embedded_runs import ARMS, LIMIT, prepared, stored
from helpers.written import json_lines
from stsimdiff.compressors.base import ScoreCompressor
from stsimdiff.compressors.controls import RandomTokens
from stsimdiff.errors import BudgetError, DataError, RunFailed
from stsimdiff.evaluate import run, session
from stsimdiff.launchers import base, in_process


def test_rows_of_every_arm(tmp_path: Path, data: Path) -> None:
    settings, arms = prepared(tmp_path, data, *ARMS)
    assert run.run_arms(settings, arms) == LIMIT * len(ARMS)
    questions = json_lines(data / "questions.jsonl")[:LIMIT]
    targets = {q["id"]: q["answer"] for q in questions}
    for arm in arms:
        rows = stored(settings, arm)
        assert [row["id"] for row in rows] == [q["id"] for q in questions]
        for row in rows:
            assert row["target"] == targets[row["id"]]
            assert row["correct"] == (row["answer"].strip() == targets[row["id"]])
            assert row["video_tokens"] == 512 and len(row["tokens_per_layer"]) == 6
            assert sum(row["reasons"].values()) == 512
            mean = sum(row["tokens_per_layer"]) / (6 * 512)
            assert row["retention_compute"] == pytest.approx(mean)
            assert row["llm_flops"] <= row["llm_flops_all"]
            assert row["flops"]["decoder"] + row["flops"]["head"] == row["llm_flops"]
            assert row["flops"]["vision"] > row["flops"]["projector"] > 0
            assert row["flops_closed_form"] <= row["flops_closed_form_all"]
            # 6 layers, float32 keys and values of width 128.
            held = sum(row["tokens_per_layer"]) + 6 * row["text_tokens"]
            assert row["kv_bytes"] == held * 2 * 128 * 4
        metrics = json.loads((settings.folder / arm.folder / "metrics.json").read_text())
        accuracy = 100 * sum(row["correct"] for row in rows) / LIMIT
        assert metrics["metrics"] == {"clips_accuracy": pytest.approx(accuracy)}
        assert (rows[0]["flops"]["compressor"] > 0) == (arm.method in ("st_simdiff", "fastv"))
        if arm.method not in ("none", "no_video"):
            achieved = sum(row[f"retention_{arm.budget.kind}"] for row in rows) / LIMIT
            assert achieved == pytest.approx(arm.budget.retention, rel=0.02)
    record = json.loads((settings.folder / arms[0].folder / "arm.json").read_text())
    assert record["provenance"]["versions"]["lmms_eval"] and record["provenance"]["device"]


def test_a_second_run_answers_nothing_and_loads_no_model(tmp_path: Path, data: Path, monkeypatch) -> None:
    settings, arms = prepared(tmp_path, data, ARMS[2])
    run.run_arms(settings, arms)
    before = stored(settings, arms[0])
    monkeypatch.setattr(
        session, "load_model", lambda settings: pytest.fail("a finished run loaded the model")
    )
    assert run.run_arms(settings, arms) == 0
    assert stored(settings, arms[0]) == before


def test_passes_of_one_command_share_the_model_and_make_one_table(
    tmp_path: Path, data: Path, monkeypatch
) -> None:
    loaded, tables = [], []
    load, report = session.load_model, in_process.make_report
    monkeypatch.setattr(
        session, "load_model", lambda settings: loaded.append(settings.seed) or load(settings)
    )
    monkeypatch.setattr(
        in_process, "make_report", lambda settings: tables.append(settings.folder) or report(settings)
    )
    common = [f"results={tmp_path}", "logger=none", f"benchmark.data={data}", "limit=2", "overlays=0"]
    words = [*common, "model.frames=8,16", "seed=0,1", "compressor=none,random", "budget.retention=0.3"]
    in_process.run_configurations(base.configurations([*words, "run=a"]))
    assert loaded == [0, 1, 0, 1]  # 8 frames, then 16: each seed loads anew, since it seeds torch
    assert tables == [tmp_path / "a"]
    assert len(list((tmp_path / "a").glob("*/metrics.json"))) == len(
        list((tmp_path / "a").glob("*/arm.json"))
    )
    loaded.clear(), tables.clear()
    words = [word for word in words if not word.startswith("seed")]
    batch = [*base.configurations([*words, "run=b"]), *base.configurations([*words, "run=c"])]
    in_process.run_configurations(batch)
    assert loaded == [0] and tables == [tmp_path / "b", tmp_path / "c"]


def test_another_parameter_is_another_arm(tmp_path: Path, data: Path) -> None:
    settings, arms = prepared(
        tmp_path,
        data,
        "compressor=st_simdiff budget.retention=0.3",
        "compressor=st_simdiff compressor.tau_sim=0.5 budget.retention=0.3",
    )
    run.run_arms(settings, arms)
    assert len({arm.id for arm in arms}) == len({arm.folder for arm in arms}) == 2
    assert all(len(stored(settings, arm)) == LIMIT for arm in arms)


def test_arms_of_one_pass_equal_arms_alone(tmp_path: Path, data: Path) -> None:
    settings, arms = prepared(tmp_path / "together", data, *ARMS[2:5])
    run.run_arms(settings, arms)
    for line, arm in zip(ARMS[2:5], arms, strict=True):
        alone, (single,) = prepared(tmp_path / "alone", data, line)
        run.run_arms(alone, [single])
        assert single.id == arm.id
        drop = {"times": None}
        assert [row | drop for row in stored(alone, single)] == [row | drop for row in stored(settings, arm)]


class FailsOn(ScoreCompressor):
    """Raises on one question."""

    def score(self, tokens, layout):
        if "How many" in layout.question:
            raise SystemExit("a method that stops the process")
        return tokens.features.norm(dim=1)


def test_a_failed_sample_is_no_answer(tmp_path: Path, data: Path, monkeypatch) -> None:
    line = f"compressor=custom compressor._target_={__name__}.FailsOn budget.retention=0.3"
    settings, arms = prepared(tmp_path, data, line, ARMS[2])
    with pytest.raises(RunFailed, match=r"samples have no answer"):
        run.run_arms(settings, arms)
    rows = {row["id"]: row for row in stored(settings, arms[0])}
    failed = [row for row in rows.values() if row["error"]]
    assert failed and all(row["id"].endswith("-count") for row in failed)
    assert all(row["correct"] is None and row["answer"] is None for row in failed)
    assert (
        "a method that stops" in failed[0]["error"]["message"] and "score" in failed[0]["error"]["traceback"]
    )
    metrics = json.loads((settings.folder / arms[0].folder / "metrics.json").read_text())
    assert (metrics["n"], metrics["n_failed"]) == (LIMIT - len(failed), len(failed))
    assert all(row["error"] is None for row in stored(settings, arms[1]))
    # A second run leaves failures alone; retry_failed asks them again, and a mended method answers.
    with pytest.raises(RunFailed):
        run.run_arms(settings, arms)
    assert len(stored(settings, arms[0])) == LIMIT
    monkeypatch.setattr(FailsOn, "score", lambda self, tokens, layout: tokens.features.norm(dim=1))
    settings, arms = prepared(tmp_path, data, line, ARMS[2], retry_failed=True)
    assert run.run_arms(settings, arms) == len(failed)


def test_changed_data_are_other_arms(tmp_path: Path, own_data: Path) -> None:
    _, (first,) = prepared(tmp_path, own_data, ARMS[2])
    rows = (own_data / "questions.jsonl").read_text()
    (own_data / "questions.jsonl").write_text(rows.replace("What", "Which"))
    _, (second,) = prepared(tmp_path, own_data, ARMS[2])
    assert first.id != second.id


def test_too_many_failures_stop_the_run(tmp_path: Path, data: Path) -> None:
    line = f"compressor=custom compressor._target_={__name__}.FailsOn budget.retention=0.3"
    settings, arms = prepared(tmp_path, data, line, max_failures=0)
    with pytest.raises(RunFailed, match="stopped after 1 failures"):
        run.run_arms(settings, arms)
    assert stored(settings, arms[0])[-1]["error"]


@dataclass(frozen=True)
class Spoils(RandomTokens):
    """Changes weights at its first question."""

    def start(self, layout, budget):
        with torch.no_grad():
            for weight in SPOILED:
                weight.add_(1.0)
        return super().start(layout, budget)


SPOILED: list[torch.Tensor] = []


def test_no_later_pass_answers_with_changed_weights(tmp_path: Path, data: Path, monkeypatch) -> None:
    opened = session.Session.check

    def check(self, arms):
        opened(self, arms)
        monkeypatch.setitem(globals(), "SPOILED", [next(self.family.decoder.layers[0].parameters())])

    monkeypatch.setattr(session.Session, "check", check)
    common = [
        f"results={tmp_path}",
        "run=a",
        "logger=none",
        f"benchmark.data={data}",
        "limit=2",
        "overlays=0",
    ]
    own = f"'compressor=custom compressor._target_={__name__}.Spoils budget.retention=0.3'"
    words = [*common, "model.frames=8,16", f"arms=['compressor=none',{own}]"]
    with pytest.raises(RunFailed, match="which cannot be put back: the run ends here"):
        in_process.run_configurations(base.configurations(words))
    frames = {
        json.loads(path.read_text())["model"]["frames"]
        for path in (tmp_path / "a").glob("*/arm.json")
        if list(path.parent.glob("answers*.jsonl"))
    }
    assert frames == {8}, "the pass of 16 frames would have had the same model"


def test_a_missing_video_is_said_before_the_model_is_loaded(tmp_path: Path, own_data: Path, no_model) -> None:
    (own_data / "videos" / "clip000.mp4").unlink()
    settings, arms = prepared(tmp_path, own_data, ARMS[0])
    with pytest.raises(DataError, match=r"clip000\.mp4 does not exist"):
        run.run_arms(settings, arms)


def test_a_broken_video_fails_its_questions_alone(tmp_path: Path, own_data: Path) -> None:
    (own_data / "videos" / "clip000.mp4").write_bytes(b"no video" * 100)
    settings, arms = prepared(tmp_path, own_data, ARMS[2])
    with pytest.raises(RunFailed):
        run.run_arms(settings, arms)
    for row in stored(settings, arms[0]):
        assert (row["error"] is not None) == (row["video"] == "clip000.mp4")
        if row["error"]:
            assert row["error"]["type"] == "VideoError" and "cannot be decoded" in row["error"]["message"]


def test_a_budget_no_video_can_meet_is_refused_before_loading(tmp_path: Path, data: Path) -> None:
    with pytest.raises(BudgetError, match="0.1"):
        prepared(tmp_path, data, "compressor=fastv budget=compute budget.retention=0.1")
