"""The decoders: PyAV, which gives every frame exactly, and two that are checked against what the file holds.

PyAV decodes only the groups of pictures that hold a frame asked for, each from its keyframe on, which it jumps to where
the container has an index, and compares the time of every picture that comes out with the file's own list. Where a jump
leads astray it reads all packets in turn. Where a picture differs still, or the list is in doubt
(:attr:`~stsimdiff.video.index.Packets.plain`), it decodes the file from its start and counts: slower, and exact too.
torchcodec and decord count for themselves; what they counted otherwise is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from stsimdiff.errors import ConfigError, VideoError
from stsimdiff.video.frames import Choose, Decoded
from stsimdiff.video.index import UNKNOWN, Packets, moving_streams, opened, packets_of

BEHIND = 0.002
"""Seconds that two clocks may differ by: containers round to a millisecond."""
INDEXED = {"mov", "matroska"}
"""Containers that find a keyframe by its time without reading what lies before it."""
NEAR = 100
"""Packets that are rather read than jumped over."""
REORDERED = {"h264", "hevc", "av1", "vp8", "vp9"}
"""Codecs of which decord counts pictures rightly that are stored in another order than shown."""


class _DoubtError(Exception):
    """The pictures that came out are not those that the packets promised."""


def with_pyav(file: Path, choose: Choose) -> Decoded:
    """Frames by PyAV; raises :class:`VideoError`."""
    packets = packets_of(file)
    if packets.plain:
        with suppress(_DoubtError):
            return _by_groups(file, packets, choose)
    return _in_order(file, packets, choose)


def _by_groups(file: Path, packets: Packets, choose: Choose) -> Decoded:
    """Decode from the keyframe before each frame asked for, and nothing between.

    Raises:
        _DoubtError: when another picture comes out than the packets say.
    """
    with suppress(_DoubtError):
        return _groups(file, packets, choose, jumps=True)
    return _groups(file, packets, choose, jumps=False)


def _groups(file: Path, packets: Packets, choose: Choose, *, jumps: bool) -> Decoded:
    """As :func:`_by_groups`, with jumps to keyframes where the container has an index, or without any."""
    import av

    times, pts = packets.times, packets.pts
    indices = choose(len(times), packets.fps(len(times)))
    wanted = deque(zip(indices, _keys(packets, indices), strict=True))
    taken, start, expected = _Taken(file, len(indices)), 0, 0
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

        jumps = jumps and bool(INDEXED & set(container.format.name.split(",")))
        stored = _Stored(container, stream, pts, jumps)
        try:
            while wanted:
                stream.codec_context.flush_buffers()
                start = int(pts[wanted[0][1]])
                expected = int(np.searchsorted(times, start))
                for packet in stored.since(wanted[0][1]):
                    take(stream.codec_context.decode(packet))
                    if not wanted or wanted[0][1] > stored.place:
                        break
                else:
                    take(stream.codec_context.decode(None))
                    break
        except av.FFmpegError as error:
            raise _DoubtError from error
    if wanted:
        raise _DoubtError
    return Decoded(taken.pixels(), indices, len(times), packets.fps(len(times)), packets.note)


class _Stored:
    """The packets of a stream in the order in which they are stored.

    Args:
        container, stream: opened.
        pts: ``(P,)``: their times.
        jumps: whether to jump over packets that are not asked for.

    Attributes:
        place: of the packet that was given last, or passed over.
    """

    def __init__(self, container: Any, stream: Any, pts: np.ndarray, jumps: bool) -> None:
        self._container, self._stream, self._pts, self._jumps = container, stream, pts, jumps
        self._left = self._demuxed()
        self.place = -1

    def since(self, place: int) -> Iterator[Any]:
        """Packets from a keyframe on.

        Raises:
            _DoubtError: when a jump does not lead to it.
        """
        if self._jumps and place > self.place + NEAR:
            self._jump(place)
        for packet in self._left:
            self.place += 1
            if self.place >= place:
                yield packet

    def _jump(self, place: int) -> None:
        time = int(self._pts[place])
        self._container.seek(time, stream=self._stream)
        self._left = self._demuxed()
        for packet in self._left:
            if packet.is_keyframe and packet.pts >= time:
                if packet.pts > time:
                    break
                self._left, self.place = chain([packet], self._left), place - 1
                return
        raise _DoubtError

    def _demuxed(self) -> Iterator[Any]:
        return (packet for packet in self._container.demux(self._stream) if packet.size)


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
        indices, found = choose(total, packets.fps(total)), 0
        taken = _Taken(file, len(indices))
        wanted = set(indices)
        for number, frame in enumerate(_decoded(file, packets)):
            if number in wanted:
                taken.add(number, frame)
            found = number + 1
        if not found:
            raise VideoError(f"video {file} holds no frames that can be decoded")
        if found == total:
            return Decoded(taken.pixels(), indices, total, packets.fps(total), packets.note)
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
    """Pictures as they come out of the decoder, in ascending order, upright, all of one size.

    Args:
        file: theirs.
        count: how many they will be.
    """

    def __init__(self, file: Path, count: int) -> None:
        self._file, self._count, self._kept = file, count, 0
        self._pixels = np.empty((0, 0, 0, 3), np.uint8)

    def add(self, number: int, frame: Any) -> None:
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0) // 90)
        if not self._kept:
            self._pixels = np.empty((self._count, *pixels.shape), np.uint8)
        if pixels.shape != self._pixels.shape[1:]:
            (height, width), now = self._pixels.shape[1:3], f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise VideoError(
                f"video {self._file} changes its size from {width} x {height} to {now} before frame {number}; "
                f"`ffmpeg -i OLD -vf scale={width}:{height} NEW` gives all its frames one"
            )
        self._pixels[self._kept] = pixels
        self._kept += 1

    def pixels(self) -> np.ndarray:
        return self._pixels[: self._kept]


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
    return Decoded(batch.data.numpy(), indices, found, packets.fps(found), packets.note)


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
        return Decoded(pixels, indices, found, packets.fps(found), packets.note)
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(
            f"video {file} cannot be decoded by decord: {_last(error)}; benchmark.decoder=pyav may read it"
        ) from error


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
