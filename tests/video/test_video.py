"""Frames from files: which ones, and what is said of files that cannot be read."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from collections.abc import Iterable

import av
import numpy as np
import pytest

from helpers.numbered_clips import BACKENDS, grey, write_pictures
from stsimdiff import video
from stsimdiff.errors import ConfigError, DataError


def write(path, levels: Iterable[int], **more) -> None:
    """A clip whose frame ``i`` is a grey of ``levels[i]``."""
    write_pictures(path, grey(levels, 64, 64), crf="0", **more)


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (10, 4, (0, 3, 6, 9)),
        (10, 1, (0,)),
        (3, 8, (0, 1, 2)),
        (1, 1, (0,)),
        (100, 5, (0, 24, 49, 74, 99)),
    ],
)
def test_uniform_indices(total: int, count: int, expected: tuple[int, ...]) -> None:
    assert video.uniform_indices(total, count) == expected


@pytest.mark.parametrize(("total", "count"), [(0, 4), (4, 0)])
def test_uniform_indices_refuses(total: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        video.uniform_indices(total, count)


@BACKENDS
def test_the_frames_are_those_asked_for(tmp_path, backend: str) -> None:
    write(tmp_path / "a.mp4", [8 * i for i in range(30)])
    frames = video.read(tmp_path / "a.mp4", 6, backend)
    assert frames.indices == (0, 5, 11, 17, 23, 29)
    assert (frames.total, frames.fps, frames.duration) == (30, 5.0, 6.0)
    assert frames.pixels.shape == (6, 64, 64, 3)
    levels = frames.pixels.mean((1, 2, 3))
    assert np.abs(levels - [8 * i for i in frames.indices]).max() < 3
    assert video.probe(tmp_path / "a.mp4") == video.Probe(30, 6.0)


@BACKENDS
@pytest.mark.parametrize("count", [1, 2, 7, 30, 99])
def test_every_frame_carries_its_number(tmp_path, backend: str, count: int) -> None:
    """Over several groups of pictures, with frames that are stored in another order than shown."""
    write(tmp_path / "a.mp4", [(5 * i) % 250 for i in range(300)])
    frames = video.read(tmp_path / "a.mp4", count, backend)
    expected = [(5 * i) % 250 for i in np.linspace(0, 299, count, dtype=int)]
    assert np.abs(frames.pixels.mean((1, 2, 3)) - expected).max() < 2


@BACKENDS
def test_a_rate_that_varies(tmp_path, backend: str) -> None:
    """Frames are counted as they are stored, so one that is shown long is no more likely to be taken."""
    times = [0, 1, 2, 3, 40, 41, 42, 100, 160, 161]
    write(tmp_path / "a.mp4", [25 * i for i in range(10)], rate=30, times=times)
    frames = video.read(tmp_path / "a.mp4", 4, backend)
    assert (frames.indices, frames.total) == ((0, 3, 6, 9), 10)
    assert np.abs(frames.pixels.mean((1, 2, 3)) - [0, 75, 150, 225]).max() < 3


@BACKENDS
def test_a_rotated_file_is_upright(tmp_path, backend: str) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:16, :16] = 255
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    pixels = video.read(tmp_path / "a.mp4", 2, backend).pixels
    assert pixels.shape == (2, 96, 64, 3)
    # A quarter turn clockwise takes the corner from the upper left to the upper right.
    assert pixels[:, 4, -4].min() > 200 and pixels[:, 4, 4].max() < 50


@BACKENDS
def test_memory_is_that_of_the_frames_asked_for(tmp_path, backend: str) -> None:
    write(tmp_path / "a.mp4", [i % 250 for i in range(2000)])
    video.read(tmp_path / "a.mp4", 2, backend)
    tracemalloc.start()
    pixels = video.read(tmp_path / "a.mp4", 8, backend).pixels
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.nbytes == 8 * 64 * 64 * 3
    # Eight frames, their stack, the packets of the file's table; all 2000 frames would be 24 MB.
    assert peak < 2 * 2**20


def test_another_decoder_is_refused(tmp_path) -> None:
    with pytest.raises(
        ConfigError, match="decoder=ffmpeg is unknown; allowed: pyav, torchcodec, decord, my_"
    ):
        video.read(tmp_path / "a.mp4", 4, "ffmpeg")


def test_a_machine_without_decord(tmp_path, monkeypatch) -> None:
    write(tmp_path / "a.mp4", [0] * 8)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ConfigError, match="decord is not installed .* benchmark.decoder=pyav"):
        video.read(tmp_path / "a.mp4", 4, "decord")
    assert video.read(tmp_path / "a.mp4", 4).total == 8


def test_a_machine_without_torchcodec(tmp_path, monkeypatch) -> None:
    write(tmp_path / "a.mp4", [0] * 8)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(
        ConfigError, match=r"pip install stsimdiff\[torchcodec\].*shared libraries.*decoder=pyav"
    ):
        video.read(tmp_path / "a.mp4", 4, "torchcodec")


def write_sound(path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_headers(path) -> None:
    """A file with a video stream and no frame in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder of files that are no whole video."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video at all" * 100)
    write_sound(folder / "sound.mp4")
    write_headers(folder / "headers.mp4")
    rng = np.random.default_rng(0)
    with av.open(str(folder / "whole.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = {"g": "10"}
        for _ in range(60):
            picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data = (folder / "whole.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(data[: len(data) // 2])
    # With its table of contents at the start, half a file still opens; with the table at the end it does not.
    write(folder / "late.mp4", list(range(0, 200, 4)))
    data = (folder / "late.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    return folder


BROKEN = [
    ("missing.mp4", "does not exist"),
    ("empty.mp4", "is empty"),
    ("text.mp4", "cannot be decoded"),
    ("cut.mp4", "cannot be decoded"),
    ("half.mp4", "cannot be decoded"),
    ("sound.mp4", "has no video stream|cannot be decoded"),
    ("headers.mp4", "holds no frames|cannot be decoded|has no video stream"),
    (".", "is not a file"),
]


@BACKENDS
@pytest.mark.parametrize(("name", "reason"), BROKEN)
def test_files_that_are_no_video(broken, name: str, reason: str, backend: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        video.read(broken / name, 4, backend)
    assert str(broken / name) in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), BROKEN)
def test_they_are_found_by_a_look(broken, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        video.probe(broken / name)
    assert str(broken / name) in str(caught.value)
    assert video.probe(broken / "whole.mp4").frames == 60


def of_the_public_reader(total: int, rate: float, fps: float, most: int) -> list[int]:
    """The rule of LLaVA-NeXT's and lmms-eval's readers, written out once more as they compute it."""
    step = round(rate / fps)
    taken, place = [], 0
    while place < total:
        taken.append(place)
        place += step
    return taken if len(taken) <= most else np.linspace(0, total - 1, most, dtype=int).tolist()


@pytest.mark.parametrize("rate", [24.0, 25.0, 30000 / 1001, 60.0])
@pytest.mark.parametrize("seconds", [8, 63, 64, 600])
def test_frames_by_the_second_are_those_of_the_public_readers(seconds: int, rate: float) -> None:
    total = round(seconds * rate)
    found = video.fps_indices(total, rate, 1, 64)
    assert list(found) == of_the_public_reader(total, rate, 1, 64)
    assert len(found) == min(seconds, 64)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 5.0, 2, 64), (0, 2, 4, 6, 8)),  # round(2.5) is 2 in Python
        ((10, 7.0, 2, 64), (0, 4, 8)),  # and round(3.5) is 4
        ((4, 1.0, 2, 64), (0, 1, 2, 3)),  # more a second than there are: every frame
        ((60, 10.0, 1, 6), (0, 10, 20, 30, 40, 50)),
        ((61, 10.0, 1, 6), (0, 12, 24, 36, 48, 60)),  # a seventh frame: evenly spaced
    ],
)
def test_frames_by_the_second(arguments, expected) -> None:
    assert video.fps_indices(*arguments) == expected


@pytest.mark.parametrize(("rate", "fps"), [(0.0, 1), (float("nan"), 1), (5.0, 0)])
def test_frames_by_the_second_need_a_rate(rate: float, fps: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        video.fps_indices(10, rate, fps, 4)


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(10, 4, (0, 3, 6, 9)), (100, 5, (0, 25, 50, 74, 99)), (2, 4, (0, 0, 1, 1)), (1, 3, (0, 0, 0))],
)
def test_rounded_indices(total: int, count: int, expected: tuple[int, ...]) -> None:
    assert video.rounded_indices(total, count) == expected


def test_rounded_indices_refuses() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        video.rounded_indices(4, 0)


def test_a_stream_that_says_no_length_has_that_of_its_frames(tmp_path):
    path = tmp_path / "a.h264"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for shade in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8))))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.duration is None and container.streams.video[0].duration is None
    assert video.probe(path) == video.Probe(50, 2.0)
