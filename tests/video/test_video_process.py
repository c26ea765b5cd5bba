"""Videos in a process of their own: the same frames, a time limit, and crashes that cost one video and no more."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.numbered_clips import BACKENDS, grey, write, write_pictures
from helpers.processes import gone, python
from stsimdiff import video
from stsimdiff.data.videos import Index
from stsimdiff.errors import ConfigError, VideoError
from stsimdiff.video.process import CHUNK, VideoProcess


@BACKENDS
def test_the_frames_are_those_of_the_same_process(clip: Path, process: VideoProcess, backend: str) -> None:
    ours, theirs = video.read(clip, 7, backend), process.read(clip, 7, backend)
    assert (ours.indices, ours.total, ours.fps) == (theirs.indices, theirs.total, theirs.fps)
    assert np.array_equal(ours.pixels, theirs.pixels) and theirs.seconds > 0
    assert process.probe(clip) == video.probe(clip)


def test_frames_that_are_larger_than_one_message_arrive_whole(process: VideoProcess, tmp_path: Path) -> None:
    path = write(tmp_path / "long.mp4", shown=range(150))
    ours, theirs = video.read(path, 150), process.read(path, 150)
    assert ours.pixels.nbytes > CHUNK and ours.pixels.nbytes % CHUNK
    assert np.array_equal(ours.pixels, theirs.pixels) and process.read(path, 2).indices == (0, 149)


def test_one_process_serves_all_and_imports_no_torch(clip: Path, process: VideoProcess) -> None:
    pid = [process.read(clip, 2) and process._process.pid for _ in range(3)]
    assert len(set(pid)) == 1 and pid[0] != os.getpid()
    mapped = Path(f"/proc/{pid[0]}/maps").read_text()
    assert "libavcodec" in mapped and "libtorch" not in mapped


def test_errors_come_back_as_they_are(clip: Path, process: VideoProcess, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 100)
    for path, reason in (
        (tmp_path / "gone.mp4", "does not exist"),
        (tmp_path / "text.mp4", "cannot be decoded"),
    ):
        with pytest.raises(VideoError, match=reason) as caught:
            process.read(path, 2)
        assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="benchmark.decoder=ffmpeg is unknown"):
        process.read(clip, 2, "ffmpeg")
    assert process.read(clip, 2).indices == (0, 59)


def stopped(process: VideoProcess, clip: Path) -> int:
    """Let the process hang as a decoder would: it stands still, whatever it was doing."""
    process.read(clip, 1)
    os.kill(process._process.pid, signal.SIGSTOP)
    return process._process.pid


def test_a_decoder_that_hangs_is_killed_and_the_next_video_is_read(clip: Path, process: VideoProcess) -> None:
    pid = stopped(process, clip)
    with pytest.raises(
        VideoError, match=r"a\.mp4 could not be read by pyav within 0.5 s; benchmark.video_s"
    ) as caught:
        process.read(clip, 3, seconds=0.5)
    assert caught.value.limit == 0.5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert process.read(clip, 3).indices == (0, 29, 59)


def test_a_video_that_takes_long_is_given_up(process: VideoProcess, tmp_path: Path) -> None:
    """No trick: a tenth of a millisecond is not enough to decode 2000 frames."""
    long = write_pictures(tmp_path / "long.mp4", grey(number % 250 for number in range(2000)))
    with pytest.raises(VideoError, match="could not be read by pyav within 0.0001 s"):
        process.read(long, 2, "pyav", seconds=0.0001)
    assert process.read(long, 2, "pyav", seconds=None).total == 2000


def test_a_decoder_that_crashes_costs_one_video(clip: Path, process: VideoProcess) -> None:
    pid = stopped(process, clip)

    def crash() -> None:
        time.sleep(0.2)
        os.kill(pid, signal.SIGSEGV)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(
        VideoError, match=r"a\.mp4 made its reader crash \(SIGSEGV\); benchmark.decoder=torchcodec may"
    ):
        process.read(clip, 3)
    thread.join()
    assert process.read(clip, 3).indices == (0, 29, 59)


def test_an_interruption_leaves_no_reply_for_the_next_video(
    clip: Path, process: VideoProcess, monkeypatch
) -> None:
    process.read(clip, 1)
    receive = process._receive
    monkeypatch.setattr(process, "_receive", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        process.read(clip, 5)
    monkeypatch.setattr(process, "_receive", receive)
    assert process.read(clip, 2).indices == (0, 59)


def test_the_process_ends_with_its_parent(clip: Path) -> None:
    code = (
        "import os, sys; from stsimdiff.video.process import shared\n"
        f"shared().read({str(clip)!r}, 2); print(shared()._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    assert gone(int(python("-c", code).stdout))


def test_too_slow_is_remembered_and_other_errors_are_looked_at_again(
    clip: Path, tmp_path: Path, monkeypatch
) -> None:
    calls = []

    def slow(self, path, seconds, backend):
        calls.append(path)
        error = VideoError("too slow")
        error.limit = seconds
        raise error

    copy = tmp_path / "a.mp4"
    copy.write_bytes(clip.read_bytes())
    monkeypatch.setattr(VideoProcess, "probe", slow)
    assert Index(tmp_path).check([copy], seconds=3) == {copy: "too slow"}
    assert Index(tmp_path).check([copy], seconds=2) == {copy: "too slow"} and len(calls) == 1
    monkeypatch.undo()
    assert Index(tmp_path).check([copy], seconds=60) == {}
    whole = copy.read_bytes()
    copy.write_bytes(b"x" * len(whole))
    assert "cannot be decoded" in Index(tmp_path).check([copy])[copy]
    times = copy.stat()
    copy.write_bytes(whole)
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Index(tmp_path).check([copy]) == {}
