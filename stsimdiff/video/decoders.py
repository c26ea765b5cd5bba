"""The decoders: PyAV, which gives every frame exactly, and two that are checked against what the file holds.

PyAV decodes only the groups of pictures that hold a frame asked for, each from its keyframe on, and compares the time
of every picture that comes out with the file's own list. Where one differs, or the list is in doubt
(:attr:`~stsimdiff.video.index.Packets.plain`), it decodes the file from its start and counts: slower, and exact too.
torchcodec and decord count for themselves; what they counted otherwise is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stsimdiff.errors import ConfigError, VideoError
from stsimdiff.video.index import UNKNOWN, Packets, moving_streams, opened, packets_of

BEHIND = 0.002
"""Seconds that two clocks may differ by: containers round to a millisecond."""
REORDERED = {"h264", "hevc", "av1", "vp8", "vp9"}
"""Codecs of which decord counts pictures rightly that are stored in another order than shown."""

Choose = Callable[[int, float], tuple[int, ...]]
"""Which frames are wanted of so many, with so many a second; ascending."""
Decoded = tuple[np.ndarray, tuple[int, ...], int, float, str]
"""Pixels, frame numbers, frames in the file, frames per second, what has to be said of the file."""


class _DoubtError(Exception):
    """The pictures that came out are not those that the packets promised."""


def with_pyav(file: Path, choose: Choose) -> Decoded:
    """Frames by PyAV; raises :class:`VideoError`."""
    packets = packets_of(file)
    if packets.plain:
        try:
            return _by_groups(file, packets, choose)
        except _DoubtError:
            pass
    return _in_order(file, packets, choose)


def _by_groups(file: Path, packets: Packets, choose: Choose) -> Decoded:
    """Decode from the keyframe before each frame asked for, and nothing between.

    Raises:
        _DoubtError: when another picture comes out than the packets say.
    """
    import av

    times, pts = packets.times, packets.pts
    indices = choose(len(times), packets.fps(len(times)))
    wanted = deque(zip(indices, _keys(packets, indices), strict=True))
    taken, start, expected = _Taken(file), None, 0
    with opened(file) as (container, stream):
        split = container.format.name == "mpegts" and stream.codec.canonical_name == "h264"

        def take(frames: Iterable[Any]) -> None:
            nonlocal expected
            for frame in frames:
                if frame.pts is None or (split and frame.interlaced_frame):
                    # Two packets of a transport stream may be the fields of one picture.
                    raise _DoubtError
                if frame.pts < start:
                    # Stored behind the keyframe and shown before it: its other half is not decoded.
                    continue
                if expected == len(times) or frame.pts != times[expected]:
                    raise _DoubtError
                if wanted and wanted[0][0] == expected:
                    taken.add(wanted.popleft()[0], frame)
                expected += 1

        stored = (packet for packet in container.demux(stream) if packet.size)
        try:
            for place, packet in enumerate(stored):
                if start is None:
                    if place < wanted[0][1]:
                        continue
                    start = int(pts[place])
                    expected = int(np.searchsorted(times, start))
                take(stream.codec_context.decode(packet))
                if not wanted:
                    break
                if wanted[0][1] > place:
                    stream.codec_context.flush_buffers()
                    start = None
            if wanted and start is not None:
                take(stream.codec_context.decode(None))
        except av.FFmpegError as error:
            raise _DoubtError from error
    if wanted:
        raise _DoubtError
    return taken.pixels(), indices, len(times), packets.fps(len(times)), packets.note


def _keys(packets: Packets, indices: tuple[int, ...]) -> list[int]:
    """For each frame, where the keyframe is stored that it is decoded from: before it, and shown no later."""
    places, keys, found = packets.order, np.flatnonzero(packets.keys), []
    for number in indices:
        before = keys[: np.searchsorted(keys, places[number], "right")]
        fitting = before[packets.pts[before] <= packets.pts[places[number]]]
        if not len(fitting):
            raise _DoubtError
        found.append(int(fitting[-1]))
    return found


def _in_order(file: Path, packets: Packets, choose: Choose) -> Decoded:
    """Decode the whole file and count; once more where it held another number of pictures than expected."""
    total = max(1, int(packets.shown[packets.first :].sum()))
    while True:
        indices, taken, found = choose(total, packets.fps(total)), _Taken(file), 0
        wanted = set(indices)
        for number, frame in enumerate(_decoded(file, packets)):
            if number in wanted:
                taken.add(number, frame)
            found = number + 1
        if not found:
            raise VideoError(f"video {file} holds no frames that can be decoded")
        if found == total:
            return taken.pixels(), indices, total, packets.fps(total), packets.note
        total = found


def _decoded(file: Path, packets: Packets) -> Iterator[Any]:
    """Every picture from the first keyframe on."""
    with opened(file) as (container, stream):
        start = packets.pts[packets.first] if packets.first and packets.plain else UNKNOWN
        begun = bool(packets.keys.any())

        def frames() -> Iterator[Any]:
            stored = (packet for packet in container.demux(stream) if packet.size)
            for place, packet in enumerate(stored):
                if place >= packets.first:
                    yield from stream.codec_context.decode(packet)
            yield from stream.codec_context.decode(None)

        for frame in frames():
            begun = begun or frame.key_frame
            if begun and (frame.pts is None or frame.pts >= start):
                yield frame


class _Taken:
    """Pictures as they come out of the decoder, upright, all of one size."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept: dict[int, np.ndarray] = {}

    def add(self, number: int, frame: Any) -> None:
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0) // 90)
        first = next(iter(self._kept.values()), pixels)
        if pixels.shape != first.shape:
            sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in (first, pixels)]
            raise VideoError(
                f"video {self._file} changes its size from {sizes[0]} to {sizes[1]} before frame {number}; "
                f"`ffmpeg -i OLD -vf scale={first.shape[1]}:{first.shape[0]} NEW` gives all its frames one"
            )
        self._kept[number] = pixels

    def pixels(self) -> np.ndarray:
        return np.stack([self._kept[number] for number in sorted(self._kept)])


def with_torchcodec(file: Path, choose: Choose) -> Decoded:
    """Frames by torchcodec, whose times are those of the file's list, or :class:`VideoError`.

    Raises:
        ConfigError: when torchcodec cannot be imported.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        # It is imported without FFmpeg's libraries too, and then says so at length.
        package = __name__.partition(".")[0]
        raise ConfigError(
            f"torchcodec cannot be imported; it needs `pip install {package}[torchcodec]` and FFmpeg's shared "
            "libraries (`apt install ffmpeg` or `conda install ffmpeg`); benchmark.decoder=pyav needs neither: "
            f"{_last(error)}"
        ) from error
    packets = packets_of(file)
    stream, *_ = _checkable(file, packets, "torchcodec")
    indices = choose(len(packets.order), packets.fps(len(packets.order)))
    try:
        decoder = VideoDecoder(str(file), stream_index=stream, dimension_order="NHWC", seek_mode="exact")
        found = len(decoder)
        if found != len(packets.order):
            raise _refused(file, "torchcodec", f"it counts {found} frames of {len(packets.order)}")
        batch = decoder.get_frames_at(list(indices))
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(
            f"video {file} cannot be decoded by torchcodec: {_last(error)}; benchmark.decoder=pyav may read it"
        ) from error
    _same_times(file, "torchcodec", batch.pts_seconds.numpy(), packets.times[list(indices)] * packets.tick)
    return batch.data.numpy(), indices, found, packets.fps(found), packets.note


def with_decord(file: Path, choose: Choose) -> Decoded:
    """Frames by decord where it counts them as the file does, or :class:`VideoError`.

    Raises:
        ConfigError: when decord is not installed.
    """
    try:
        import decord
    except ImportError as error:
        raise ConfigError(
            "decord is not installed (it has no wheel for this platform); use benchmark.decoder=pyav"
        ) from error
    packets = packets_of(file)
    _, codec, split = _checkable(file, packets, "decord")
    times, pts, keys = packets.times, packets.pts, np.flatnonzero(packets.keys)
    indices = choose(len(times), packets.fps(len(times)))
    if split:
        raise _refused(file, "decord", "it loses the first frames of some transport streams")
    if packets.first or not packets.shown.all():
        raise _refused(file, "decord", "it counts pictures that are not shown")
    if codec not in REORDERED and (np.diff(pts) < 0).any():
        raise _refused(file, "decord", f"{codec} with frames stored in another order than shown")
    # Pictures behind a keyframe that are shown before it are left out by a jump to it, and counted all the same.
    if (np.minimum.accumulate(pts[::-1])[::-1][keys] < pts[keys]).any():
        raise _refused(file, "decord", "groups of pictures overlap")
    try:
        # Whether a decoder that jumps to a keyframe really shows it first.
        used = np.unique(np.searchsorted(times, pts[_keys(packets, indices)]))
        _by_groups(file, packets, lambda total, rate: tuple(used.tolist()))
    except _DoubtError:
        raise _refused(file, "decord", "its keyframes cannot be decoded alone") from None
    try:
        reader = decord.VideoReader(str(file), num_threads=1)
        found = len(reader)
        if found != len(times):
            raise _refused(file, "decord", f"it counts {found} frames of {len(times)}")
        starts = reader.get_frame_timestamp(list(range(found)))[:, 0]
        # It counts from the first frame in some containers, and from 0 in others.
        _same_times(file, "decord", starts - starts[0], (times - times[0]) * packets.tick)
        if sorted(reader.get_key_indices()) != np.searchsorted(times, pts[keys]).tolist():
            raise _refused(file, "decord", "its keyframes are others")
        pixels = reader.get_batch(list(indices)).asnumpy()
        return pixels, indices, found, packets.fps(found), packets.note
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(
            f"video {file} cannot be decoded by decord: {_last(error)}; benchmark.decoder=pyav may read it"
        ) from error


READERS = {"pyav": with_pyav, "torchcodec": with_torchcodec, "decord": with_decord}


def _checkable(file: Path, packets: Packets, decoder: str) -> tuple[int, str, bool]:
    """Number and codec of the stream, and whether it is a transport stream.

    Raises:
        VideoError: where what a decoder counts cannot be compared with the packets.
    """
    with opened(file) as (container, stream):
        if not packets.plain:
            raise _refused(file, decoder, "its packets do not say beyond doubt when each frame is shown")
        if decoder == "decord" and len(moving_streams(container)) > 1:
            raise _refused(file, decoder, "it has several video streams")
        return stream.index, stream.codec.canonical_name, container.format.name == "mpegts"


def _same_times(file: Path, decoder: str, found: np.ndarray, expected: np.ndarray) -> None:
    wrong = np.flatnonzero(np.abs(found - expected) > BEHIND)
    if len(wrong):
        at = int(wrong[0])
        raise _refused(
            file, decoder, f"it shows one at {found[at]:.3f} s that is shown at {expected[at]:.3f} s"
        )


def _refused(file: Path, decoder: str, reason: str) -> VideoError:
    return VideoError(
        f"video {file}: {decoder} may give other frames than those asked for ({reason}); benchmark.decoder=pyav reads "
        "them exactly"
    )


def _last(error: Exception) -> str:
    """The last line of an error, which says what happened."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
