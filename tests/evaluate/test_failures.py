"""One sample's trouble: memory that runs out, time that runs out, and how often a run puts up with it."""

from __future__ import annotations

import json
import logging
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_models
from helpers.embedded_runs import prepared, stored
from stsimdiff.compressors.base import ScoreCompressor
from stsimdiff.config.checks import failure_limit
from stsimdiff.data.videos import failures_allowed
from stsimdiff.errors import ConfigError, RunFailed, Terminated
from stsimdiff.evaluate import answering, features, limits, progress, run
from stsimdiff.evaluate.failures import is_out_of_memory, once_more
from stsimdiff.evaluate.limits import SampleTimeout, TimeLimit, sigterm_raises
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.progress import Board, Progress
from stsimdiff.video.process import VideoProcess


class Clock:
    """Stands in for the module ``time``: time passes only when told to, or a little at each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


class Troubled(ScoreCompressor):
    """Does what the test asks for on the questions that end in ``-count``."""

    trouble = staticmethod(lambda: None)

    def score(self, tokens, layout):
        if "How many" in layout.question:
            type(self).trouble()
        return tokens.features.norm(dim=1)


def troubled(tmp_path: Path, data: Path, trouble, monkeypatch, **overrides):
    monkeypatch.setattr(Troubled, "trouble", staticmethod(trouble))
    own = f"compressor=custom compressor._target_={__name__}.Troubled budget.retention=0.3"
    return prepared(tmp_path, data, own, "compressor=random budget.retention=0.3", **overrides)


# Memory -----------------------------------------------------------------------------------------------------


def test_a_real_allocator_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("this method is out of memory words"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) == expected


def test_the_second_attempt_begins_with_the_tensors_of_the_first_gone():
    held, events = [], []

    def attempt() -> str:
        if held:
            events.append("gone" if held[0]() is None else "still there")
            return "answer"
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("out of memory")

    assert once_more(attempt, lambda: events.append("freed")) == "answer"
    assert events == ["freed", "gone"]


def test_a_sample_that_runs_out_of_memory_once_is_answered(tmp_path, data, monkeypatch, caplog):
    calls = []

    def trouble() -> None:
        calls.append(1)
        if len(calls) % 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    settings, arms = troubled(tmp_path, data, trouble, monkeypatch)
    freed = []
    monkeypatch.setattr(features.FeatureCache, "forget", lambda self: freed.append(1))
    run.run_arms(settings, arms)
    assert all(row["error"] is None for arm in arms for row in stored(settings, arm))
    counted = [row for row in stored(settings, arms[0]) if row["id"].endswith("-count")]
    assert len(calls) == 2 * len(counted) and len(freed) == len(counted) > 0
    assert "out of memory (CUDA out of memory)" in caplog.text


def test_a_sample_that_runs_out_of_memory_twice_has_failed(tmp_path, data, monkeypatch):
    calls = []

    def trouble() -> None:
        calls.append(1)
        raise MemoryError("no room")

    settings, arms = troubled(tmp_path, data, trouble, monkeypatch)
    with pytest.raises(RunFailed, match="MemoryError: no room"):
        run.run_arms(settings, arms)
    failed = [row for row in stored(settings, arms[0]) if row["error"]]
    assert len(calls) == 2 * len(failed) > 0
    assert all(row["error"]["type"] == "MemoryError" for row in failed)
    assert all(row["error"] is None for row in stored(settings, arms[1]))


def test_a_video_that_runs_out_of_memory_once_is_encoded_again(tmp_path, data, monkeypatch):
    read, calls = VideoProcess.read, []

    def starved(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return read(*arguments)

    settings, arms = prepared(tmp_path, data, "compressor=none")
    monkeypatch.setattr(VideoProcess, "read", starved)
    run.run_arms(settings, arms)
    assert all(row["error"] is None for row in stored(settings, arms[0]))
    assert len(calls) == 3, "two videos, the first of them twice"


# Time -------------------------------------------------------------------------------------------------------


def test_a_sample_beyond_its_limit_has_failed_and_the_next_is_answered(tmp_path, data, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)

    def trouble() -> None:
        clock.now += 61

    settings, arms = troubled(tmp_path, data, trouble, monkeypatch, sample_seconds=60)
    with pytest.raises(RunFailed):
        run.run_arms(settings, arms)
    for row in stored(settings, arms[0]):
        assert (row["error"] is not None) == row["id"].endswith("-count")
        if row["error"]:
            assert row["error"]["type"] == "SampleTimeout" and row["correct"] is None
            assert (
                row["error"]["message"] == "no answer within sample_seconds=60: ended in the prefill, 61.0 s"
            )
    assert all(row["error"] is None for row in stored(settings, arms[1]))


def test_decoding_ends_between_tokens_and_nothing_stays_hooked(monkeypatch):
    case = tiny_models.qwen2_5_vl(0)
    generate = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    expected = case.model.generate(**case.inputs, **generate)
    # A look a layer: four in the prefill, four for each token, and one at the start.
    monkeypatch.setattr(limits, "time", Clock(step=1.0))
    with pytest.raises(SampleTimeout, match="ended after 5 tokens, 21.0 s"), TimeLimit(case.decoder, 20):
        case.model.generate(**case.inputs, **generate)
    assert not case.decoder.module._forward_pre_hooks
    assert not any(layer._forward_pre_hooks for layer in case.decoder.layers)
    assert torch.equal(case.model.generate(**case.inputs, **generate), expected)


def test_an_answer_that_comes_too_late_has_failed_too(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    with pytest.raises(SampleTimeout), TimeLimit(tiny_models.qwen2_5_vl(0).decoder, 5):
        clock.now += 6


def test_without_a_limit_nothing_is_hooked():
    decoder = tiny_models.qwen2_5_vl(0).decoder
    with TimeLimit(decoder, None):
        assert not decoder.module._forward_pre_hooks


# Giving up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1])
def test_a_broken_video_counts_once_whatever_the_number_of_arms(tmp_path, data, most, monkeypatch):
    read = VideoProcess.read

    def broken(reader, path, *arguments):
        if path.endswith("clip000.mp4"):
            raise ValueError("cannot be read")
        return read(reader, path, *arguments)

    arms = ["compressor=none", "compressor=random budget.retention=0.3"]
    settings, arms = prepared(tmp_path, data, *arms, max_failures=most)
    monkeypatch.setattr(VideoProcess, "read", broken)
    with pytest.raises(
        RunFailed, match="stopped after 1 failures" if most == 0 else "samples have no answer"
    ):
        run.run_arms(settings, arms)
    for arm in arms:
        rows = stored(settings, arm)
        assert {row["video"] for row in rows if row["error"]} == {"clip000.mp4"}
        assert len({row["video"] for row in rows}) == (1 if most == 0 else 2)


@pytest.mark.parametrize(
    ("limit", "videos", "allowed", "while_answering"),
    [(0, 900, 0, 0), (3, 1, 3, 3), ("2%", 900, 18, 18), ("2%", 752, 15, 15), ("2%", 8, 0, 10), ("0%", 900, 0, 0),
     ("0.1%", 1000, 1, 10), ("33.3%", 3, 0, 10), ("100%", 12, 12, 12), ("29%", 100, 29, 29)],
)  # fmt: skip
def test_a_share_of_the_videos_is_exact(limit, videos: int, allowed: int, while_answering: int) -> None:
    assert failures_allowed(failure_limit(limit), videos) == allowed
    assert answering._allowed(failure_limit(limit), videos) == while_answering


def test_a_setting_that_the_model_forbids_ends_the_run(tmp_path, data, monkeypatch):
    def forbidden(*arguments):
        raise ConfigError("this decoder is not installed")

    settings, arms = prepared(tmp_path, data, "compressor=none")
    monkeypatch.setattr(VideoProcess, "read", forbidden)
    with pytest.raises(ConfigError, match="not installed"):
        run.run_arms(settings, arms)
    assert stored(settings, arms[0]) == []


def test_an_interrupt_is_no_failed_sample_and_gives_the_locks_back(tmp_path, data, monkeypatch):
    def trouble() -> None:
        raise KeyboardInterrupt

    settings, arms = troubled(tmp_path, data, trouble, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run.run_arms(settings, arms)
    assert not list(settings.folder.glob("*/.lock*"))
    assert all(row["error"] is None for row in stored(settings, arms[0]))
    monkeypatch.setattr(Troubled, "trouble", staticmethod(lambda: None))
    run.run_arms(settings, arms)
    ids = [row["id"] for row in stored(settings, arms[0])]
    assert len(ids) == len(set(ids)) == 10


@pytest.fixture
def default_sigterm():
    """The default handler: another test of this process, Ray's for one, may have left one of its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    if before is not None:  # what was not put by Python cannot be put back
        signal.signal(signal.SIGTERM, before)


def test_sigterm_raises_within_its_block_alone_and_leaves_other_handlers(default_sigterm):
    with pytest.raises(Terminated), sigterm_raises():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sigterm_raises():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# What a person sees -----------------------------------------------------------------------------------------


def test_a_folder_that_vanishes_during_a_run_is_said(tmp_path, data, monkeypatch):
    import shutil

    from stsimdiff.errors import DataError

    settings, arms = troubled(tmp_path, data, lambda: shutil.rmtree(settings.folder), monkeypatch)
    with pytest.raises(DataError, match="it was removed while the run was going on"):
        run.run_arms(settings, arms)


def test_a_line_a_minute_goes_to_the_log_and_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    for shown in (True, False):
        file = tmp_path / f"progress.{shown}.log"
        with Progress(4, 1, 2, file, show=shown) as bar:
            bar.video()
            for number in range(4):
                if number % 2 == 0:
                    bar.question(number // 2 + 1)
                bar.arm("random", 0.3)
                with bar.working():
                    clock.now += 15
                clock.now += 15
                bar.step(failed=number == 3)
        said = [line.split(" ", 2)[2] for line in file.read_text().splitlines()]
        assert said == [
            "2 of 4 answered, video 1 of 1, question 1 of 2, 0 failed, 0.033 a second, model busy 50 %, 60 s, about "
            "60 s left (now: random at 30 %)",
            "4 of 4 answered, video 1 of 1, question 2 of 2, 1 failed, 0.033 a second, model busy 50 %, 120 s, about "
            "0 s left (now: random at 30 %)",
        ]
        assert capsys.readouterr().err.splitlines() == (said if shown else [])


@pytest.mark.parametrize("launch", [None, "a1b2"])
def test_one_process_shows_what_all_have_done(tmp_path, monkeypatch, capsys, launch):
    """Two of a launch; a file of an earlier one, of another pass, and one that is torn, count for nothing."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    (tmp_path / Board.NAME).mkdir()
    for name in ("ranks.0.1-of-2.json", "older.0.1-of-2.json"):
        (tmp_path / Board.NAME / name).write_text(json.dumps({"total": 500, "done": 400}))
    Board.clear(tmp_path)
    ranks = [Processes(rank, 2, launch) for rank in range(2)]
    with (
        Progress(10, 4, 8, show=False, board=Board(tmp_path, ranks[1])) as other,
        Progress(10, 4, 8, tmp_path / "log", board=Board(tmp_path, ranks[0])) as shown,
    ):
        torn = Board(tmp_path, replace(ranks[0], rank=7))._own
        (tmp_path / Board.NAME / torn).write_text('{"total": 3')
        Board(tmp_path, replace(ranks[0], rank=7), "another pass").tell(progress.Counts(500, done=400))
        other.video(), other.question(1), shown.video(), shown.question(1)
        with other.working():
            clock.now += 30
        for _ in range(3):
            other.step(failed=True)
            clock.now += 2
        clock.now = 60
        shown.arm("random", 0.3)
        shown.step(failed=False)
    line = (tmp_path / "log").read_text().splitlines()[0].split(" ", 2)[2]
    assert line == (
        "4 of 10 answered, video 2 of 4, question 2 of 8, 3 failed, 0.067 a second, model busy 32 %, 60 s, about 90 s "
        "left (now: random at 30 %)"
    )
    assert capsys.readouterr().err.startswith(line)


def test_a_process_that_is_alone_writes_for_no_other(tmp_path):
    with Progress(1, 1, 1, board=Board(tmp_path, Processes()), show=False) as bar:
        bar.step(failed=False)
    assert not (tmp_path / Board.NAME).exists()


def test_time_that_frames_are_waited_for_is_no_work(monkeypatch, tmp_path):
    clock, waited = Clock(), [0.0]
    monkeypatch.setattr(progress, "time", clock)
    with Progress(1, 1, 1, tmp_path / "log", show=False, waited=lambda: waited[0]) as bar:
        with bar.working():
            clock.now, waited[0] = 60, 45.0
        bar.step(failed=False)
    assert "model busy 25 %" in (tmp_path / "log").read_text()


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), Progress(1, 1, 1, tmp_path / "gone" / "progress.log") as bar:
        bar.step(failed=False)
    assert "progress.log is no longer written: No such file or directory" in caplog.text


def test_a_failed_row_keeps_its_traceback(tmp_path, data, monkeypatch):
    def trouble() -> None:
        raise SystemExit("stop")

    settings, arms = troubled(tmp_path, data, trouble, monkeypatch)
    with pytest.raises(RunFailed):
        run.run_arms(settings, arms)
    errors = [row["error"] for row in stored(settings, arms[0]) if row["error"]]
    assert errors and all("in trouble" in json.dumps(error["traceback"]) for error in errors)
