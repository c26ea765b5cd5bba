"""The latency protocol: what it writes, that it goes on where it was, and that its tables are its measurements."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.written import csv_rows, json_lines
from stsimdiff.commands import profile
from stsimdiff.compressors.base import ScoreCompressor
from stsimdiff.data import clips
from stsimdiff.errors import DataError, RunFailed, UserError
from stsimdiff.latency import protocol, summary
from stsimdiff.latency import table as efficiency_table
from stsimdiff.latency.measure import TIMES, Clock, PeakMemory
from stsimdiff.latency.measurements import read_measurements
from stsimdiff.latency.summary import Spread


def words(tmp_path: Path, data: Path, *more: str) -> list[str]:
    common = ["--repeats=3", "--new-tokens=3", f"results={tmp_path}", "run=t", "logger=none"]
    frames = [] if any(word.startswith("model.frames=") for word in more) else ["model.frames=4"]
    return [*common, f"benchmark.data={data}", *frames, "budget.retention=0.3", *more]


def stored(tmp_path: Path) -> list[dict]:
    return json_lines(tmp_path / "t" / "efficiency.jsonl")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, data) -> Path:
    tmp_path = tmp_path_factory.mktemp("measured")
    more = ["compressor=none,st_simdiff,fastervlm", "model.frames=4,8"]
    assert profile.main([*words(tmp_path, data, *more)]) == 0
    return tmp_path


def test_the_arms_take_turns(measured) -> None:
    rows = stored(measured)
    assert len(rows) == 2 * 3 * 2 * 3
    methods = [row["method"] for row in rows]
    assert methods == ["none", "st_simdiff", "fastervlm"] * 12
    turns = [(row["frames"], row["repeat"], row["question"]) for row in rows[::3]]
    assert len(set(turns)) == 12 and turns == sorted(turns)
    assert len({row["question"].split("-")[0] for row in rows}) == 2, "each question is about another video"


def test_what_is_measured_hangs_together(measured) -> None:
    for row in stored(measured):
        times = row["times"]
        assert set(times) == set(TIMES) and all(value >= 0 for value in times.values())
        assert times["end_to_end"] > times["decode"] + times["inference"] * 0.99
        assert times["inference"] > times["first_token"] > times["prefill"] + times["vision"]
        assert len(row["token_seconds"]) == 2
        assert times["inference"] >= times["first_token"] + sum(row["token_seconds"])
        assert row["peak_of"] == "resident set" and row["peak_bytes"] > 1e8
        assert row["video_frames"] == row["frames"]
        assert None not in row["flops"].values()
        assert row["provenance"]["device"] == "cpu" and row["error"] is None


def test_the_tables_are_the_measurements(measured) -> None:
    rows = stored(measured)
    table = csv_rows(measured / "t" / "efficiency.csv")
    assert [(r["frames"], r["method"]) for r in table] == [
        (frames, method) for frames in ("4", "8") for method in ("none", "st_simdiff", "fastervlm")
    ]
    for line in table:
        own = [r for r in rows if str(r["frames"]) == line["frames"] and r["method"] == line["method"]]
        full = {
            (r["question"], r["repeat"]): r
            for r in rows
            if r["method"] == "none" and r["frames"] == own[0]["frames"]
        }
        for name in TIMES:
            values = sorted(r["times"][name] for r in own)
            assert float(line[f"{name}_seconds"]) == pytest.approx(statistics.median(values))
            assert float(line[f"{name}_seconds_q1"]) == pytest.approx(np.percentile(values, 25))
            assert float(line[f"{name}_seconds_q3"]) == pytest.approx(np.percentile(values, 75))
        ratios = [r["times"]["prefill"] / full[r["question"], r["repeat"]]["times"]["prefill"] for r in own]
        assert float(line["prefill_ratio"]) == pytest.approx(statistics.median(ratios))
        assert (
            min(ratios)
            <= float(line["prefill_ratio_low"])
            <= float(line["prefill_ratio_high"])
            <= max(ratios)
        )
        total = sum(sum(r["flops"].values()) for r in own)
        assert float(line["flops_ratio"]) == pytest.approx(
            total / sum(sum(r["flops"].values()) for r in full.values())
        )
        assert line["method"] != "none" or float(line["prefill_ratio"]) == 1
    said = (measured / "t" / "efficiency.md").read_text()
    assert "## embedded on clips, 8 frames" in said and "another model: for reference only" in said
    assert json.loads((measured / "t" / "efficiency.json").read_text())["measurements"] == len(rows)


def test_an_interrupted_run_keeps_what_was_measured_and_goes_on(tmp_path, data, monkeypatch) -> None:
    calls, measure = [], protocol.measure

    def interrupted(subject, question):
        calls.append(question.id)
        if len(calls) == 4 + 7:  # a warm-up of four, three whole rounds, and one arm of the fourth
            raise KeyboardInterrupt
        return measure(subject, question)

    monkeypatch.setattr(protocol, "measure", interrupted)
    given = words(tmp_path, data, "compressor=none,random")
    with pytest.raises(KeyboardInterrupt):
        profile.main(given)
    before = stored(tmp_path)
    assert len(before) == 6
    assert (tmp_path / "t" / "efficiency.csv").is_file()
    assert not (tmp_path / "t" / ".lock.efficiency").exists()
    with (tmp_path / "t" / "efficiency.jsonl").open("a") as stream:
        stream.write('{"pass": "torn')
    calls.clear()
    monkeypatch.setattr(protocol, "measure", lambda s, q: calls.append(q.id) or measure(s, q))
    assert profile.main(given) == 0
    assert stored(tmp_path)[:6] == before and len(stored(tmp_path)) == 12
    assert len(calls) == 4 + 6
    calls.clear()
    assert profile.main(given) == 0
    assert not calls and len(stored(tmp_path)) == 12


@dataclass(frozen=True)
class Mine(ScoreCompressor):
    """Counted as it runs, as it has no formula."""

    def score(self, tokens, layout):
        return tokens.features @ torch.ones(tokens.features.shape[1])


@dataclass(frozen=True)
class Runs(ScoreCompressor):
    """Runs out of memory, or says so."""

    def score(self, tokens, layout):
        raise MemoryError("no room for it")


def test_a_method_of_one_s_own_and_one_that_fails(tmp_path, data, capsys) -> None:
    arms = [f"compressor=custom compressor._target_={__name__}.{name}" for name in ("Mine", "Runs")]
    lines = json.dumps(["compressor=none", *arms])
    given = words(tmp_path, data, f"arms={lines}", "--questions=1")
    given.remove("budget.retention=0.3")
    with pytest.raises(RunFailed, match="Runs with 4 frames failed: MemoryError: no room for it"):
        profile.main(given)
    rows = stored(tmp_path)
    assert [row["label"] for row in rows if row["error"]] == ["Runs"], "a failed arm is tried once"
    # 128 tokens of width 128, a product with a vector; sums for the check of NaN come on top.
    mine = [row["flops"]["compressor"] for row in rows if row["label"] == "Mine"]
    assert len(mine) == 3 and 2 * 128 * 128 <= mine[0] < 3.1 * 128 * 128
    assert "Runs failed: MemoryError: no room for it" in capsys.readouterr().out
    with pytest.raises(RunFailed):
        profile.main(given)
    assert len(stored(tmp_path)) == len(rows)
    with pytest.raises(RunFailed):
        profile.main([*given, "retry_failed=true"])
    # A round counts only with all its arms, so each is measured again beside the one that is tried again.
    assert len(stored(tmp_path)) == 2 * len(rows) and len(read_measurements(tmp_path / "t")) == len(rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["plan=true"], "plan=true does not go with profile"),
        (["run=a,b"], "run and results name one folder here"),
        (["--questions=3"], "--questions 3 needs as many videos; clips has 2"),
        (["compressor=fastv", "budget=compute", "budget.retention=0.1"], "cannot be met"),
        (["model.frames=0"], r"model\.frames=0 is out of range"),
    ],
)
def test_wrong_input_before_a_model_is_loaded(tmp_path, data, no_model, more, message) -> None:
    given = [
        word for word in words(tmp_path, data) if word.split("=")[0] not in {m.split("=")[0] for m in more}
    ]
    with pytest.raises(UserError, match=message):
        profile.main([*given, *more])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag", ["--repeats=2", "--warmup=0", "--new-tokens=1", "--questions=-1", "--repeats=x"]
)
def test_flags_out_of_range(tmp_path, data, flag, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        profile.main([*words(tmp_path, data), flag])
    assert stop.value.code == 2 and "is out of range; allowed: a whole number from" in capsys.readouterr().err


def test_a_missing_video_is_said_before_a_model_is_loaded(tmp_path, own_data, no_model) -> None:
    (own_data / "videos" / "clip001.mp4").unlink()
    with pytest.raises(DataError, match=r"clip001\.mp4 does not exist"):
        profile.main(words(tmp_path, own_data, "benchmark.allow_missing=true"))


def test_a_broken_line_is_named(measured, tmp_path) -> None:
    (tmp_path / "efficiency.jsonl").write_text('{"pass": 1}\n')
    with pytest.raises(DataError, match="line 1 is no measurement"):
        efficiency_table.make(tmp_path, None)
    assert efficiency_table.make(tmp_path / "nowhere", None) == []


def test_beside_the_paper(measured) -> None:
    """The paper's own model at its numbers of frames: the saving beside the printed one."""
    rows = []
    for row in stored(measured):
        assert 1.6e6 < row["parameters"] < 1.65e6
        same = {"family": "llava_video", "parameters": 8_030_000_000}
        rows.append(row | same | {"frames": 128 if row["frames"] == 8 else 64})
    lines = summary.summarise(rows)
    found = {beside.frames: beside for beside in summary.beside_the_paper(lines)}
    assert found[128].paper["relative_saving"] == 0.302 and found[64].paper == {}
    assert found[128].saving.median == pytest.approx(1 - found[128].line.ratios["inference"].median)
    assert "reference only" not in efficiency_table.markdown(lines, rows)


def test_intervals_by_hand() -> None:
    values = [float(n) for n in range(1, 11)]
    assert Spread.quartiles(values) == Spread(5.5, 3.25, 7.75)
    # Of ten values the second and the ninth: 97.9 % by the binomial distribution.
    assert Spread.interval(values) == Spread(5.5, 2.0, 9.0)
    assert np.isnan(Spread.interval(values[:5]).low)


def test_the_clock_and_the_memory_of_a_cpu(monkeypatch) -> None:
    clock, ticks = Clock(torch.device("cpu")), iter((1.0, 3.5))
    with monkeypatch.context() as fixed:
        fixed.setattr("stsimdiff.latency.measure.time.perf_counter", lambda: next(ticks))
        assert clock.between(clock.mark(), clock.mark()) == 2.5
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as after:
        torch.ones(2**26).sum()
    assert after.peak - before.peak > 0.8 * 2**28


def test_long_clips_are_clips_joined(tmp_path) -> None:
    root = clips.build_long(tmp_path, joined=3, videos=2)
    questions = json_lines(root / "questions.jsonl")
    assert {row["video"] for row in questions} == {"long000.mp4", "long001.mp4"}
    from stsimdiff.video.headers import read_header

    assert read_header(root / "videos" / "long001.mp4").frames == 48
