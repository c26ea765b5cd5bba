"""Frames from video files: uniform sampling as lmms-eval does it, read with decord or PyAV.

Which frames, in lmms-eval 0.7.3: its readers (``models/model_utils/load_video.py``) and the wrapper ``llava_vid`` with
``force_sample=True``, as LLaVA-Video's authors ran it, take ``numpy.linspace(0, total - 1, count, dtype=int)``: equal
distances, rounded down, the first and the last frame always among them. So does :func:`uniform_indices`. Differences:

- A file of at most ``count`` frames gives each of them once; lmms-eval's decord readers repeat frames to ``count``
  (its PyAV reader does not).
- ``llava_vid`` without ``force_sample`` takes a frame each second where these are no more than ``count``.
- ``qwen2_5_vl`` and ``qwen2_vl`` first let ``qwen_vl_utils`` take frames at its own rate, and then take ``count`` of
  those by the same ``linspace``: here they are taken from all frames of the file.

How long a video may take stands in :mod:`stsimdiff.video_process`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stsimdiff.data.stand_ins import stand_in
from stsimdiff.errors import ConfigError, VideoError

BACKENDS = ("decord", "pyav")


@dataclass(frozen=True)
class Frames:
    """Some frames of one video.

    Attributes:
        pixels: ``(T, height, width, 3)`` uint8 RGB.
        indices: their frame numbers in the file, ascending.
        total: frames in the file.
        fps: the file's frames per second.
        seconds: time it took to read them.
    """

    pixels: np.ndarray
    indices: tuple[int, ...]
    total: int
    fps: float
    seconds: float = 0.0

    @property
    def duration(self) -> float:
        """Length of the file in seconds."""
        return self.total / self.fps


def uniform_indices(total: int, count: int) -> tuple[int, ...]:
    """``count`` frame numbers from 0 to ``total - 1`` at equal distance, truncated to integers, ends included.

    This is ``numpy.linspace(0, total - 1, count, dtype=int)``, as in lmms-eval's model wrappers; a file with no more
    than ``count`` frames gives each of its frames once.
    """
    if total < 1 or count < 1:
        raise ValueError(f"cannot choose {count} of {total} frames; both must be at least 1")
    if total <= count:
        return tuple(range(total))
    return tuple(int(i) for i in np.linspace(0, total - 1, count, dtype=int))


def check_file(path: str | Path) -> Path:
    """The file as a path, or a :class:`VideoError` that names what is wrong with it, without decoding anything."""
    file = Path(path)
    if not file.exists():
        raise VideoError(f"video {file} does not exist")
    if not file.is_file():
        raise VideoError(f"video {file} is not a file")
    if file.stat().st_size == 0:
        raise VideoError(f"video {file} is empty (0 bytes)")
    if said := stand_in(file):
        raise VideoError(f"video {file} is {said}")
    return file


def read(path: str | Path, count: int, backend: str = "decord") -> Frames:
    """Read ``count`` uniformly sampled frames, upright as the file's rotation says.

    Frames are counted as the file stores them, also where their rate varies. Memory is that of the frames asked for.

    Args:
        path: the file.
        count: how many frames.
        backend: ``decord``, or ``pyav``, which decodes every frame up to the last one asked for and so is slower.

    Raises:
        VideoError: naming the file and the reason, when it is missing, empty, no video, or cannot be decoded.
        ConfigError: for another backend, or when decord is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"decoder {backend!r} is unknown; allowed: {', '.join(BACKENDS)}")
    file = check_file(path)
    started = time.perf_counter()
    pixels, indices, total, fps = (_with_decord if backend == "decord" else _with_pyav)(file, count)
    if not np.isfinite(fps) or fps <= 0:
        raise VideoError(f"video {file} has no frame rate (got {fps})")
    return Frames(pixels, indices, total, fps, time.perf_counter() - started)


@dataclass(frozen=True)
class Probe:
    """What a file says of itself.

    Attributes:
        frames: frames of its first video stream, as its header says where it does.
        seconds: its length.
    """

    frames: int
    seconds: float


def probe(path: str | Path) -> Probe:
    """Open a file, take the number of its frames, and decode the first one and one near the end.

    Raises:
        VideoError: naming the file and the reason, when any of that fails.
    """
    file = check_file(path)
    with _opened(file) as (container, stream):
        # Counting would read the whole file; the header's number is enough to know that there are frames.
        total, rate = stream.frames or _count(container, stream), stream.average_rate
        if total < 1:
            raise VideoError(f"video {file} holds no frames")
        for at in (0, stream.duration or 0):
            container.seek(at, stream=stream)
            if next(container.decode(stream), None) is None:
                raise VideoError(
                    f"video {file} cannot be decoded: no frame at {'its end' if at else 'its start'}"
                )
        seconds = float(stream.duration * stream.time_base) if stream.duration else total / (rate or 1)
        return Probe(total, float(seconds))


Decoded = tuple[np.ndarray, tuple[int, ...], int, float]
"""Pixels, frame numbers, frames in the file, frames per second."""


def _with_decord(file: Path, count: int) -> Decoded:
    try:
        import decord
    except ImportError as error:
        raise ConfigError(
            "decord is not installed (it has no wheel for this platform); use benchmark.decoder=pyav"
        ) from error
    try:
        reader = decord.VideoReader(str(file), num_threads=1)
        total = len(reader)
        if total < 1:
            raise VideoError(f"video {file} holds no frames")
        indices = uniform_indices(total, count)
        return reader.get_batch(list(indices)).asnumpy(), indices, total, float(reader.get_avg_fps())
    except (decord.DECORDError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise VideoError(
            f"video {file} cannot be decoded by decord: {reason}; benchmark.decoder=pyav may read it"
        ) from error


def _with_pyav(file: Path, count: int) -> Decoded:
    with _opened(file) as (container, stream):
        total, fps = _count(container, stream), float(stream.average_rate or 0)
        if total < 1:
            raise VideoError(f"video {file} holds no frames")
        indices = uniform_indices(total, count)
        container.seek(0, stream=stream)
        wanted, kept = set(indices), []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pixels = frame.to_ndarray(format="rgb24")
                kept.append(np.rot90(pixels, getattr(frame, "rotation", 0) // 90))
            if number == indices[-1]:
                break
    if len(kept) < len(indices):
        raise VideoError(f"video {file} cannot be decoded: it ends after {number + 1} of its {total} frames")
    return np.stack(kept), indices, total, fps


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; what PyAV raises becomes a :class:`VideoError`."""
    import av

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise VideoError(f"video {file} has no video stream")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise VideoError(f"video {file} cannot be decoded: {error.strerror}") from error


def _count(container: Any, stream: Any) -> int:
    # The header's number is absent in some containers and wrong in others.
    return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
