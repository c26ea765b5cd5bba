"""Videos read ahead: in order, within a number and a memory, with the same answers, and one's trouble its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from multiprocessing.connection import Pipe
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.embedded_runs import ARMS, prepared, stored
from helpers.numbered_clips import numbers, write
from helpers.processes import gone, python
from stsimdiff import ranks, video
from stsimdiff.errors import VideoError
from stsimdiff.evaluate import run
from stsimdiff.evaluate.reading import Reader
from stsimdiff.evaluate.session import Session
from stsimdiff.video import Frames, Sampling, process
from stsimdiff.video.ahead import MOST, ReadAhead, readers
from stsimdiff.video.process import CHUNK, VideoProcess

# Memory that is shared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["there", "none", "not enough"])
def test_frames_come_in_shared_memory_or_through_the_pipe(monkeypatch, memory: str) -> None:
    def refused(name: str) -> int:
        raise OSError("no memory to share")

    pixels = np.random.default_rng(0).integers(0, 255, (3, 700, 600, 3), dtype=np.uint8)
    assert pixels.nbytes > CHUNK and pixels.nbytes % CHUNK
    if memory == "none":
        monkeypatch.setattr(os, "memfd_create", refused)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if memory == "not enough":
        resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK, before[1]))
    reader, open_files = VideoProcess(), len(os.listdir("/proc/self/fd"))
    reader._pipe, theirs = Pipe()
    try:
        sender = threading.Thread(
            target=process._send, args=(theirs, Frames(pixels, (0, 1, 2), 3, 5.0), os.getpid())
        )
        sender.start()
        reply, shape, shared = reader._receive(None)
        assert (reply.indices, shape, shared) == ((0, 1, 2), pixels.shape, memory == "there")
        found = (reader._mapped if shared else reader._piped)(None, shape)
        sender.join()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    reader._pipe.close(), theirs.close()
    assert np.array_equal(found, pixels) and found.flags.writeable
    del found
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_the_size_of_frames_is_told_from_the_header(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mp4", side=64)
    assert video.frames.size(file, Sampling(8)) == video.read(file, 8).pixels.nbytes == 8 * 64 * 64 * 3
    assert video.frames.size(tmp_path / "gone.mp4", Sampling(8)) == 0
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (48, 32)).save(folder / f"{number}.png")
    assert video.frames.size(folder, Sampling(4)) == 4 * 32 * 48 * 3
    (folder / "0.png").write_bytes(b"no picture")
    assert video.frames.size(folder, Sampling(4)) == 0


# Order and bounds ---------------------------------------------------------------------------------------------


class Watched:
    """Reads numbers: waits for leave to end, and notes what was begun and how many bytes are read and not taken."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.begun, self.held, self.most = sizes, [], 0, 0
        self.changed = threading.Condition()

    def __call__(self, reader: VideoProcess, item: int, reserve) -> int:
        reserve(self.sizes[item])
        with self.changed:
            self.begun.append(item)
            self.held += self.sizes[item]
            self.most = max(self.most, self.held)
            self.changed.notify_all()
        return item

    def taken(self, item: int) -> None:
        with self.changed:
            self.held -= self.sizes[item]

    def wait(self, begun: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.begun) >= begun, 20)


@pytest.mark.parametrize("workers", [1, 3])
def test_items_come_in_order_and_no_more_are_asked_for_than_there_is_place(workers: int) -> None:
    asked, read = [], Watched([1] * 9)
    items = (asked.append(item) or item for item in range(9))
    with ReadAhead(read, workers, 3, 100) as ahead:
        for number, (item, take) in enumerate(ahead.over(items)):
            read.wait(min(9, number + 4))
            assert (item, take()) == (number, number)
            assert asked == list(range(min(9, number + 4))) and sorted(read.begun) == asked


def test_no_more_is_asked_for_than_is_left_for_this_process() -> None:
    asked: list[int] = []
    left = iter([2, 1, 1, 0, 0, 0, 0])
    with ReadAhead(lambda process, item, reserve: item, 2, 3, 100) as ahead:
        items = (asked.append(n) or n for n in range(6))
        assert [(item, len(asked)) for item, _ in ahead.over(items, lambda: next(left))] == [
            (0, 3), (1, 3), (2, 4), (3, 4), (4, 5), (5, 6),
        ]  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_memory_is_bounded_and_what_is_larger_is_read_alone(workers: int) -> None:
    sizes = [4, 4, 4, 25, 3, 3, 3, 3, 11, 1]
    read = Watched(sizes)
    with ReadAhead(read, workers, 8, 10) as ahead:
        for item, take in ahead.over(range(10)):
            # All that can be read is: the numbers that fit behind this one, in order.
            fits, room = item, 0
            while fits < min(10, item + 9) and (room == 0 or room + sizes[fits] <= 10):
                room += sizes[fits]
                fits += 1
            read.wait(fits)
            assert sorted(read.begun) == list(range(fits))
            # What is given back is free at once, so it is no longer counted before.
            read.taken(item)
            assert take() == item
    assert read.most == 25


def test_what_is_not_taken_gives_its_place_back() -> None:
    read = Watched([10] * 6)
    with ReadAhead(read, 2, 1, 10) as ahead:
        assert [item for item, _ in ahead.over(range(6))] == list(range(6))


def test_what_reading_raises_is_raised_where_it_is_taken() -> None:
    def read(reader: VideoProcess, item: int, reserve) -> int:
        if item == 1:
            raise MemoryError("no room")
        return item

    found = []
    with ReadAhead(read, 2, 2, 10) as ahead:
        for item, take in ahead.over(range(4)):
            if item == 1:
                with pytest.raises(MemoryError, match="no room"):
                    take()
            else:
                found.append(take())
    assert found == [0, 2, 3]


@pytest.mark.parametrize(
    ("cores", "variables", "world", "expected"),
    [
        (1, {}, 1, 0),
        (2, {}, 1, 1),
        (16, {}, 1, MOST),
        (16, {"LOCAL_WORLD_SIZE": "4"}, 8, 3),
        (2, {"LOCAL_WORLD_SIZE": "2"}, 2, 0),
        (16, {}, 4, 3),
        (4, {"SLURM_JOB_ID": "7"}, 8, 3),
    ],
)
def test_the_processes_of_a_run_divide_the_cores(monkeypatch, cores, variables, world, expected) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    for name in ("LOCAL_WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert readers(ranks.sharing(world)) == expected


# Trouble ------------------------------------------------------------------------------------------------------


def stopped(reader: VideoProcess, path: Path) -> None:
    """Let the process hang as a decoder would: it stands still, whatever it was doing."""
    reader.read(path, 1)
    os.kill(reader._process.pid, signal.SIGSTOP)


def test_hanging_crashing_and_broken_videos_cost_themselves_alone(tmp_path: Path) -> None:
    good = [write(tmp_path / f"{number}.mp4", shown=range(number, number + 20)) for number in range(5)]
    (tmp_path / "text.mp4").write_text("no video " * 100)

    def read(reader: VideoProcess, path: Path, reserve) -> Frames:
        reserve(1)
        receive = reader._receive

        def crash(*given):
            reader._receive = receive
            os.kill(reader._process.pid, signal.SIGKILL)
            return receive(*given)

        if path == good[1]:
            stopped(reader, path)
        if path == good[3]:
            reader.read(path, 1)
            reader._receive = crash
        return reader.read(path, 3, seconds=0.5 if path == good[1] else None)

    found = {}
    with ReadAhead(read, 2, 4, 100) as ahead:
        for path, take in ahead.over([*good, tmp_path / "text.mp4", good[0]]):
            try:
                found[path.name] = numbers(take().pixels)
            except VideoError as error:
                found[path.name] = str(error)
    assert [found[f"{n}.mp4"] for n in (0, 2, 4)] == [[n, n + 9, n + 19] for n in (0, 2, 4)]
    assert "within 0.5 s" in found["1.mp4"] and "SIGKILL" in found["3.mp4"]
    assert "cannot be decoded" in found["text.mp4"]


def test_an_end_in_between_waits_for_nothing_that_is_read(tmp_path: Path) -> None:
    good, ready = write(tmp_path / "v.mp4"), threading.Barrier(3)

    def read(reader: VideoProcess, path: Path, reserve) -> Frames:
        stopped(reader, path)
        ready.wait(60)
        return reader.read(path, 1, seconds=None)

    with pytest.raises(KeyboardInterrupt), ReadAhead(read, 2, 3, 1) as ahead:
        for _ in ahead.over([good] * 4):
            ready.wait(60)
            pids = [reader._process.pid for reader in ahead._processes]
            raise KeyboardInterrupt
    assert not any(thread.is_alive() for thread in ahead._threads)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


KILLED = """
import os, sys, threading
from stsimdiff.video.ahead import ReadAhead
begun = threading.Barrier(3)
def read(reader, path, reserve):
    reader.read(path, 1)
    begun.wait()
    while True:
        reader.read(path, 60)
with ReadAhead(read, 2, 2, 1) as ahead:
    for _ in ahead.over([sys.argv[1]] * 3):
        begun.wait()
        print(*(reader._process.pid for reader in ahead._processes), flush=True)
        os.kill(os.getpid(), 9)
"""


def test_readers_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    done = python("-c", KILLED, str(write(tmp_path / "v.mp4")))
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [int(pid) for pid in done.stdout.split()]
    assert len(left) == 2
    assert all(map(gone, left))


# A run --------------------------------------------------------------------------------------------------------


def test_answers_and_arms_are_the_same_however_videos_are_read(
    tmp_path: Path, four_clips: Path, monkeypatch
) -> None:
    rows, ids, read = {}, set(), []
    original = VideoProcess.read
    monkeypatch.setattr(
        VideoProcess, "read", lambda *given: read.append(threading.current_thread().name) or original(*given)
    )
    for workers in (0, 2):
        settings, arms = prepared(
            tmp_path / str(workers), four_clips, ARMS[4], **{"video.workers": workers, "limit": 15}
        )
        assert run.run_arms(settings, arms) == 15
        rows[workers] = [{**row, "times": None} for arm in arms for row in stored(settings, arm)]
        ids.add(tuple(arm.id for arm in arms))
    assert rows[0] == rows[2] and len({row["video"] for row in rows[0]}) == 3
    assert len(ids) == 1, "how videos are read is no part of an arm"
    assert sorted(read) == ["MainThread"] * 3 + ["reads ahead"] * 3


def test_videos_whose_features_are_kept_are_not_read(tmp_path: Path, four_clips: Path, monkeypatch) -> None:
    kept = {"video.workers": 2, "limit": 15, "overlays": 0, "cache.folder": tmp_path / "kept"}
    settings, arms = prepared(tmp_path / "first", four_clips, ARMS[2], **kept)
    run.run_arms(settings, arms)
    read = []
    monkeypatch.setattr(VideoProcess, "read", lambda *given: read.append(given))
    settings, again = prepared(tmp_path / "second", four_clips, ARMS[2], **kept)
    assert run.run_arms(settings, again) == 15 and read == []
    assert {row["features"] for row in stored(settings, again[0])} == {"disk"}


def test_a_file_that_changed_since_it_was_read_is_read_again(tmp_path: Path, data: Path) -> None:
    settings, _ = prepared(
        tmp_path, data, ARMS[0], **{"video.workers": 1, "video.ahead": 1, "model.frames": 1}
    )
    paths = [str(write(tmp_path / f"{number}.mp4", shown=[number] * 4)) for number in (1, 2)]
    reader = Reader(settings)
    seen = {}
    for path, number in reader.over([(path, number) for number, path in enumerate(paths)], lambda path: True):
        if number == 1:
            take = reader._ready[path]
            old = take()
            reader._ready[path] = lambda old=old: old
            write(Path(path), shown=[9] * 4)
        seen[number] = numbers(reader.frames(path).pixels)
    assert seen == {0: [1], 1: [9]}


def test_processes_start_before_they_have_something_to_read(tmp_path: Path, data: Path, monkeypatch) -> None:
    settings, arms = prepared(tmp_path / "run", data, ARMS[0], **{"video.workers": 1, "limit": 10})
    begun: list[int] = []
    loaded: list[int] = []
    read: list[int] = []
    popen, original = subprocess.Popen, VideoProcess.read

    def started(*given, **more):
        process = popen(*given, **more)
        begun.append(process.pid)
        return process

    def opened(given) -> Session:
        loaded.extend(begun)
        return Session(given)

    def by(reader: VideoProcess, *given, **more) -> Frames:
        frames = original(reader, *given, **more)
        read.append(reader._process.pid)
        return frames

    monkeypatch.setattr(process.subprocess, "Popen", started)
    monkeypatch.setattr(VideoProcess, "read", by)
    task, questions = run.prepare(settings)[1:3]
    assert run.answer_missing(settings, task, arms, questions, open_session=opened) == 10
    assert len(loaded) == 1 and set(read) == set(loaded)


def test_processes_that_read_nothing_end(tmp_path: Path, data: Path) -> None:
    settings, _ = prepared(tmp_path / "run", data, ARMS[0], **{"video.workers": 2})
    reader = Reader(settings)
    reader.start()
    pids = [one._process.pid for one in reader._started]
    assert len(pids) == 2
    reader.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    kept, _ = prepared(tmp_path / "kept", data, ARMS[0], **{"video.workers": 2, "cache.max_gb": 1})
    reader = Reader(kept)
    reader.start()
    assert not reader._started, "features may be kept of all videos"
