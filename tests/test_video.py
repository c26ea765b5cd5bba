"""Frames from files: which ones, and what is said of files that cannot be read."""

from __future__ import annotations

import av
import numpy as np
import pytest

from stsimdiff import video
from stsimdiff.errors import DataError


def write(path, levels: list[int], fps: int = 5) -> None:
    """A clip whose frame ``i`` is a grey of ``levels[i]``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "0"}
        for level in levels:
            frame = np.full((64, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


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


def test_the_frames_are_those_asked_for(tmp_path) -> None:
    write(tmp_path / "a.mp4", [8 * i for i in range(30)])
    frames = video.read(tmp_path / "a.mp4", 6)
    assert frames.indices == (0, 5, 11, 17, 23, 29)
    assert (frames.total, frames.fps, frames.duration) == (30, 5.0, 6.0)
    assert frames.pixels.shape == (6, 64, 64, 3)
    levels = frames.pixels.mean((1, 2, 3))
    assert np.abs(levels - [8 * i for i in frames.indices]).max() < 3


def test_files_that_are_no_video(tmp_path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all" * 100)
    write(tmp_path / "whole.mp4", list(range(0, 200, 4)))
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    for name, reason in [
        ("missing.mp4", "does not exist"),
        ("empty.mp4", "is empty"),
        ("text.mp4", "cannot be decoded"),
        ("cut.mp4", "cannot be decoded"),
        (".", "is not a file"),
    ]:
        with pytest.raises(DataError, match=reason) as caught:
            video.read(tmp_path / name, 4)
        assert str(tmp_path) in str(caught.value)
