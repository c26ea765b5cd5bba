"""Frames from video files: uniform sampling as lmms-eval does it, read with decord."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stsimdiff.errors import DataError


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
    """The file as a path, or a :class:`DataError` that names what is wrong with it, without decoding anything."""
    file = Path(path)
    if not file.exists():
        raise DataError(f"video {file} does not exist")
    if not file.is_file():
        raise DataError(f"video {file} is not a file")
    if file.stat().st_size == 0:
        raise DataError(f"video {file} is empty (0 bytes)")
    return file


def read(path: str | Path, count: int) -> Frames:
    """Read ``count`` uniformly sampled frames.

    Raises:
        DataError: naming the file and the reason, when it is missing, empty, no video, or cannot be decoded.
    """
    import time

    import decord

    file = check_file(path)
    started = time.perf_counter()
    try:
        reader = decord.VideoReader(str(file), num_threads=1)
        total = len(reader)
        if total < 1:
            raise DataError(f"video {file} holds no frames")
        indices = uniform_indices(total, count)
        pixels = reader.get_batch(list(indices)).asnumpy()
        fps = float(reader.get_avg_fps())
    except (decord.DECORDError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DataError(f"video {file} cannot be decoded: {reason}") from error
    if not np.isfinite(fps) or fps <= 0:
        raise DataError(f"video {file} has no frame rate (got {fps})")
    return Frames(pixels, indices, total, fps, time.perf_counter() - started)
