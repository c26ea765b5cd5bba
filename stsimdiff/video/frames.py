"""Frames from video files: sampled as lmms-eval and LLaVA-NeXT do it, read exactly.

Which frames, in lmms-eval 0.7.3: its readers (``models/model_utils/load_video.py``) and the wrapper ``llava_vid`` with
``force_sample=True`` take ``numpy.linspace(0, total - 1, count, dtype=int)``: equal distances, rounded down, the first
and the last frame always among them. So does :func:`uniform_indices`. ``llava_vid`` without ``force_sample``, as
LLaVA-Video's authors ran it, takes so many frames a second where these are no more than ``count``:
:func:`fps_indices`. Differences:

- A file of at most ``count`` frames gives each of them once; lmms-eval's decord readers repeat frames to ``count``
  (its PyAV reader does not).
- ``qwen2_5_vl`` and ``qwen2_vl`` first let ``qwen_vl_utils`` take frames at its own rate, and then take ``count`` of
  those by the same ``linspace``: here they are taken from all frames of the file.

A frame's number is its place in the order in which the file's frames are shown, as decoding the whole file gives them:
what an edit list cuts away is not counted. The decoders stand in :mod:`stsimdiff.video.decoders`; how long a video may
take in :mod:`stsimdiff.video.process`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stsimdiff.errors import ConfigError, VideoError
from stsimdiff.registry import Registry
from stsimdiff.stand_ins import stand_in
from stsimdiff.video.parts import Part, picture_size, pictures, read_pictures

DECODERS = Registry(
    "benchmark.decoder",
    "stsimdiff.decoders",
    {
        "pyav": "stsimdiff.video.decoders.with_pyav",
        "torchcodec": "stsimdiff.video.decoders.with_torchcodec",
        "decord": "stsimdiff.video.decoders.with_decord",
    },
    own="my_module.my_decoder",
)
CODE = (
    "video:read",
    "video.decoders:with_pyav",
    "video.decoders:with_torchcodec",
    "video.decoders:with_decord",
)
"""What gives the frames, for :func:`stsimdiff.source.version_of`; it does not follow names through a registry."""

Choose = Callable[[int, float], tuple[int, ...]]
"""Which frames are wanted of so many, with so many a second; ascending."""


class Decoded(NamedTuple):
    """What a decoder gives of a file.

    Attributes:
        pixels: ``(T, height, width, 3)`` uint8 RGB, upright.
        indices: their frame numbers in the file, as the decoder was asked for them.
        total: frames in the file.
        fps: the file's frames per second.
        note: a remark on the file for the user; empty without one.
    """

    pixels: np.ndarray
    indices: tuple[int, ...]
    total: int
    fps: float
    note: str = ""


class VideoDecoder(Protocol):
    """A function that reads frames of a file, in a process that may be killed: ``benchmark.decoder`` names one.

    It counts the frames of the file, asks ``choose(total, fps)`` which of them are wanted, and gives these. What it
    raises is said of the video as :class:`~stsimdiff.errors.VideoError`.
    """

    def __call__(self, file: Path, choose: Choose, /) -> Decoded:
        """The frames that ``choose`` wants of the file."""
        ...


@cache
def decoder_of(name: str) -> VideoDecoder:
    """The decoder that a name stands for: built in, registered by another package, or a dotted path.

    Raises:
        ConfigError: for an unknown name, and for what cannot be imported or is no such function.
    """
    if "." not in name and name not in DECODERS.builtin:
        from stsimdiff.schema import one_of

        one_of(DECODERS.key, name, [*DECODERS.names(), DECODERS.own])
    found = DECODERS.resolve(name)
    try:
        if not inspect.isfunction(found):
            raise TypeError(f"it is {type(found).__name__} {found!r}")
        inspect.signature(found).bind(Path(), tuple)
    except TypeError as error:
        raise ConfigError(
            f"{DECODERS.key}={name} is no decoder; it must be a function (file, choose) that returns "
            f"video.Decoded (docs/benchmarks.md): {error}"
        ) from error
    return found


@dataclass(frozen=True)
class Frames:
    """Some frames of one video.

    Attributes:
        pixels: ``(T, height, width, 3)`` uint8 RGB.
        indices: their frame numbers in the file, ascending.
        total: frames in the file.
        fps: the file's frames per second.
        seconds: time it took to read them.
        note: a remark on the file for the user; empty without one.
    """

    pixels: np.ndarray
    indices: tuple[int, ...]
    total: int
    fps: float
    seconds: float = 0.0
    note: str = ""

    @property
    def duration(self) -> float:
        """Length of the file in seconds."""
        return self.total / self.fps

    @property
    def times(self) -> tuple[float, ...]:
        """When each frame is shown, in seconds from the file's beginning."""
        return tuple(index / self.fps for index in self.indices)


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


def fps_indices(total: int, rate: float, fps: float, most: int) -> tuple[int, ...]:
    """Every ``round(rate / fps)``-th frame from the first on; where these are more than ``most``, evenly spaced ones.

    As LLaVA-NeXT (``process_video_with_decord``) and lmms-eval (``llava_vid.load_video``) do it, Python's rounding of
    halves to the even number included.

    Args:
        total: frames in the file.
        rate: its frames per second.
        fps: frames wanted of each second.
        most: how many at most.
    """
    if not (fps > 0 and np.isfinite(rate) and rate > 0):
        raise ValueError(
            f"cannot take {fps} frames a second of a file with {rate} a second; both must be above 0"
        )
    found = tuple(range(0, total, max(1, round(rate / fps))))
    return found if len(found) <= most else uniform_indices(total, most)


def rounded_indices(total: int, count: int) -> tuple[int, ...]:
    """``numpy.round(numpy.linspace(0, total - 1, count))``: frames are repeated where there are fewer than ``count``.

    As VILA's reader (``llava/utils/media.py``) does it for NVILA.
    """
    if total < 1 or count < 1:
        raise ValueError(f"cannot choose {count} of {total} frames; both must be at least 1")
    return tuple(int(i) for i in np.round(np.linspace(0, total - 1, count)))


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are taken.

    Attributes:
        frames: how many; the most for ``fps``.
        kind: ``uniform`` (:func:`uniform_indices`), ``round`` (:func:`rounded_indices`) or ``fps``
            (:func:`fps_indices`).
        fps: frames a second, for ``fps``.
    """

    frames: int
    kind: str = "uniform"
    fps: float | None = None

    @classmethod
    def of(cls, model: Any) -> Sampling:
        """That of a model's settings."""
        return cls(model.frames, model.sampling, model.fps)

    def indices(self, total: int, rate: float) -> tuple[int, ...]:
        """Frame numbers, ascending, in a file of ``total`` frames with ``rate`` a second."""
        if self.kind == "fps":
            assert self.fps is not None, "the settings of this kind have a rate"
            return fps_indices(total, rate, self.fps, self.frames)
        return {"uniform": uniform_indices, "round": rounded_indices}[self.kind](total, self.frames)


def check_file(path: str | Path) -> Path:
    """The file as a path, or a :class:`VideoError` that names what is wrong with it, without decoding anything."""
    file = Part.of(path).file
    if not file.exists():
        raise VideoError(f"video {file} does not exist")
    if file.is_dir() and pictures(file):
        return file
    if not file.is_file():
        raise VideoError(f"video {file} is not a file")
    if file.stat().st_size == 0:
        raise VideoError(f"video {file} is empty (0 bytes)")
    if pointer := stand_in(file):
        raise VideoError(f"video {file} is {pointer}")
    return file


def read(path: str | Path, sampling: Sampling | int, decoder: str = "pyav") -> Frames:
    """Read some frames, upright as the file's rotation says.

    Of a part of a file (:mod:`~stsimdiff.video.parts`), frames count as if it were the file.

    Frames are counted as they are shown, also where their rate varies. Memory is that of the frames asked for. A file
    that begins without a keyframe is read from its first one; a line of the log says so.

    Args:
        path: the file.
        sampling: which frames; a number: so many at equal distance.
        decoder: ``pyav``; ``torchcodec`` and ``decord`` are checked, and refuse a file that they count otherwise; or
            one of the user's own (:class:`VideoDecoder`).

    Raises:
        VideoError: naming the file and the reason, when it is missing, empty, no video, cut off, changes its size, or
            cannot be decoded.
        ConfigError: for an unknown decoder, or one that is not installed.
    """
    decode = decoder_of(decoder)
    sampling = Sampling(sampling) if isinstance(sampling, int) else sampling
    file, part = check_file(path), Part.of(path)
    started = time.perf_counter()

    def choose(total: int, rate: float) -> tuple[int, ...]:
        first, count = part.frames(total, rate)
        return tuple(first + number for number in sorted(set(sampling.indices(count, rate))))

    if file.is_dir():
        pixels, indices, total, fps, note = read_pictures(part, choose)
    else:
        pixels, indices, total, fps, note = _checked(file, decoder, decode(file, choose))
    first, total = part.frames(total, fps)
    indices = tuple(number - first for number in indices)
    wanted = sampling.indices(total, fps)
    if wanted != indices:
        # A short video repeats some: each was decoded once.
        pixels, indices = pixels[np.searchsorted(indices, wanted)], wanted
    if not np.isfinite(fps) or fps <= 0:
        raise VideoError(f"video {file} has no frame rate (got {fps})")
    frames = Frames(pixels, indices, total, fps, time.perf_counter() - started, note)
    say_note(file, frames)
    return frames


def _checked(file: Path, decoder: str, found: Any) -> Decoded:
    """What a decoder gave, or a :class:`VideoError`: one of the user's own may give anything."""
    if not isinstance(found, Decoded):
        raise VideoError(f"video {file}: {decoder} gave {type(found).__name__}, not video.Decoded")
    pixels, wanted = found.pixels, (len(found.indices), "height", "width", 3)
    shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", type(pixels).__name__)
    if dtype != np.uint8 or shape is None or (len(shape), shape[0], shape[-1]) != (4, wanted[0], 3):
        said = f"({', '.join(map(str, wanted))}) of uint8"
        raise VideoError(f"video {file}: {decoder} gave pixels {shape} of {dtype}, not {said}")
    return found


def size(path: str | Path, sampling: Sampling) -> int:
    """Bytes of the frames that :func:`read` gives at most, by the file's header; 0 for a file that it refuses."""
    from stsimdiff.video.index import opened

    try:
        file = check_file(path)
        if file.is_dir():
            height, width = picture_size(file)
        else:
            with opened(file) as (_, stream):
                height, width = stream.height, stream.width
    except (VideoError, OSError):
        return 0
    return sampling.frames * height * width * 3


def say_note(path: str | Path, frames: Frames) -> None:
    """Log the remark on a file."""
    if frames.note:
        from loguru import logger

        logger.warning("video {}: {}", path, frames.note)


@dataclass(frozen=True)
class Probe:
    """What a file says of itself.

    Attributes:
        frames: frames of its video stream, as its header says where it does.
        seconds: its length.
    """

    frames: int
    seconds: float


def probe(path: str | Path, decoder: str = "pyav") -> Probe:
    """Open a file, see that it is whole, and decode its first frame and one near its end.

    Args:
        path: the file.
        decoder: what will read it; another than ``pyav`` reads its first and last frame itself.

    Raises:
        VideoError: naming the file and the reason, when any of that fails.
        ConfigError: as :func:`read` does.
    """
    from stsimdiff.video.index import check_ends, opened

    decoder_of(decoder)
    file = check_file(path)
    if file.is_dir():
        # How many pictures there are a second, the folder does not say.
        return Probe(read_pictures(Part(file, fps=1.0), lambda total, rate: (0, total - 1))[2], 0.0)
    with opened(file) as (container, stream):
        # Counting would read the whole file; the header's number is enough to know that there are frames.
        total, length = stream.frames or _count(container, stream), stream.duration
        if length:
            seconds = float(length * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1e6 or total / float(stream.average_rate or 1)
    if total < 1:
        raise VideoError(f"video {file} holds no frames")
    check_ends(file)
    if decoder != "pyav":
        read(file, 2, decoder)
    return Probe(total, float(seconds))


def _count(container: Any, stream: Any) -> int:
    return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
