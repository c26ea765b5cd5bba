"""Which pictures a video file holds, told from its packets; nothing is decoded.

A packet is one picture as it is stored. The packets say when each picture is shown, and from which of them a decoder
can start, so that a picture is found by its number without decoding all pictures before it. Where they do not say it
beyond doubt (:attr:`Packets.plain`), only decoding the whole file tells.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stsimdiff.errors import VideoError
from stsimdiff.video.containers import cut_off

UNKNOWN = np.iinfo(np.int64).min
"""Stands for a time that the container does not say."""
TIMED = {"mov", "matroska", "mpegts", "flv"}
"""Containers that say when each picture is shown."""
STORED = {"avi", "asf"}
"""Containers that say when each picture is stored. It is shown then where the codec never changes the order."""
CODECS = {
    "h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "flv1", "mjpeg",
    "prores", "dnxhd", "ffv1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2",
}  # fmt: skip
"""Codecs of which a keyframe forgets all before it, and each packet gives one picture but for :func:`_hidden`."""
NO_PICTURE = 20
"""A packet of MPEG-4 smaller than this may say that the picture before it stays, and gives none."""
BACK = (5.0, 60.0, float("inf"))
"""Seconds before its end at which a file is looked at, one after the other until a keyframe lies behind."""
SLACK = 1.0, 0.02
"""Seconds, and part of the length, that a header may say more than the file holds: headers are rounded."""


@dataclass(frozen=True)
class Packets:
    """The packets of a video stream, in the order in which they are stored. ``P`` is how many.

    Attributes:
        pts: ``(P,)`` int64: when each picture is shown, in ticks; :data:`UNKNOWN` where the container does not say.
        keys: ``(P,)`` bool: those that a decoder can start from.
        shown: ``(P,)`` bool: those that give a picture; an edit list hides some, and some serve others only.
        first: the first keyframe; what is stored before it cannot be decoded.
        plain: whether the pictures and their order are known from the packets alone.
        tick: seconds of a tick.
        rate: frames per second as the container says it, 0 where it does not.
        span: seconds from the first picture to the last, 0 where the container does not say.
    """

    pts: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    first: int
    plain: bool
    tick: float
    rate: float
    span: float

    @property
    def order(self) -> np.ndarray:
        """``(T,)``: for each picture, in the order in which they are shown, where it is stored."""
        places = np.flatnonzero(self.shown)
        places = places[places >= self.first]
        return places[np.argsort(self.pts[places], kind="stable")]

    @property
    def times(self) -> np.ndarray:
        """``(T,)`` int64: when each picture is shown, ascending, in ticks."""
        return self.pts[self.order]

    def fps(self, total: int) -> float:
        """Frames per second: what the container says; the mean over the file where that is far from it or missing.

        Args:
            total: frames in the file.
        """
        mean = (total - 1) / self.span if self.span > 0 else 0.0
        near = self.rate > 0 and (mean == 0 or abs(self.rate / mean - 1) < 0.01)
        return self.rate if near else mean

    @property
    def note(self) -> str:
        """A remark on the file for the user; empty without one."""
        if not self.first:
            return ""
        return f"it begins without a keyframe and is read from its first one; pictures lost before it: {self.first}"


@contextmanager
def opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; what PyAV raises becomes a :class:`VideoError`."""
    import av

    try:
        with av.open(str(file)) as container:
            yield container, video_stream(container, file)
    except av.FFmpegError as error:
        raise VideoError(f"video {file} cannot be decoded: {error.strerror}") from error


def video_stream(container: Any, file: Path) -> Any:
    """The stream that a player would show: a cover picture is no video.

    Raises:
        VideoError: when there is none.
    """
    moving = moving_streams(container)
    if not moving:
        raise VideoError(f"video {file} has no video stream")
    best = container.streams.best("video")
    return best if best in moving else moving[0]


def moving_streams(container: Any) -> list[Any]:
    """The video streams of a container but for cover pictures and thumbnails."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


def packets_of(file: Path) -> Packets:
    """Read the packets of a file's video stream.

    Raises:
        VideoError: when the file cannot be opened, holds no picture, or was cut off.
    """
    if cut_off(file):
        raise _cut(file, *lengths(file))
    pts, dts, marks = array("q"), array("q"), bytearray()
    broken = False
    with opened(file) as (container, stream):
        codec, formats = stream.codec.canonical_name, set(container.format.name.split(","))
        end = UNKNOWN
        for packet in container.demux(stream):
            if not packet.size:
                continue
            pts.append(UNKNOWN if packet.pts is None else packet.pts)
            dts.append(UNKNOWN if packet.dts is None else packet.dts)
            end = max(end, max(pts[-1], dts[-1]) + (packet.duration or 0))
            hidden = packet.is_discard or _hidden(codec, packet)
            marks.append(packet.is_keyframe | hidden << 1 | packet.is_discard << 2)
            broken = packet.is_corrupt
            if codec == "mpeg4" and packet.size < NO_PICTURE:
                formats.clear()
        if broken:
            raise VideoError(
                f"video {file} cannot be decoded whole: it ends within a picture, as files cut off do"
            )
        expected, tick = _expected(container, stream), float(stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not pts:
        raise VideoError(f"video {file} holds no frames")
    if end != UNKNOWN and end * tick < expected - _slack(expected):
        # Only where all streams end early: sound may go on after the pictures.
        reached, said = lengths(file)
        if reached < said - _slack(said):
            raise _cut(file, reached, said)
    times, stored, flags = np.array(pts), np.array(dts), np.frombuffer(marks, np.uint8)
    keys, shown, discarded = (flags & 1) > 0, (flags & 2) == 0, (flags & 4) > 0
    first = int(np.argmax(keys))
    timed = bool(formats & TIMED) or (bool(formats & STORED) and bool((times == stored).all()))
    plain = timed and codec in CODECS and bool(keys.any()) and _plain(times, stored, shown, discarded, first)
    if plain:
        # Pictures shown before the first keyframe but stored behind it need those that are lost.
        shown &= times >= times[first] if first else True
        span = times[shown].max() - times[shown].min()
    else:
        ascending = stored[0] != UNKNOWN and (np.diff(stored) >= 0).all()
        span = stored[-1] - stored[first] if ascending else 0
    return Packets(times, keys, shown, first, plain, tick, rate, float(span) * tick)


def lengths(file: Path) -> tuple[float, float]:
    """Seconds at which the packets of all streams end, and at which they should by the header; 0: it does not say."""
    import av

    reached = 0.0
    with opened(file) as (container, stream):
        expected = _expected(container, stream)
        # The end of what can be read is what was asked for.
        with suppress(av.FFmpegError):
            for packet in container.demux():
                reached = max(reached, _end(packet))
    return reached, expected


def check_ends(file: Path) -> None:
    """Decode a picture at the start and one near the end, and see that the end is where the header says.

    Raises:
        VideoError: naming what is wrong.
    """
    if cut_off(file):
        raise _cut(file, *lengths(file))
    seen, reached, stated = _look(file, None)
    if not seen:
        raise VideoError(f"video {file} cannot be decoded: no frame at its start")
    for back in BACK:
        seen, reached, stated = _look(file, back + 2 * _slack(stated))
        if seen:
            break
    else:
        raise VideoError(f"video {file} cannot be decoded: no frame at its end")
    if reached < stated - _slack(stated):
        # A jump may have led astray; reading from the start does not.
        reached, stated = lengths(file)
        if reached < stated - _slack(stated):
            raise _cut(file, reached, stated)


def _look(file: Path, back: float | None) -> tuple[bool, float, float]:
    """Whether a picture can be decoded, when the last packet ends, and when it should.

    Args:
        file: the file.
        back: seconds before its end at which to begin, and then read to the end; ``None``: its start, and only that.
    """
    import av

    for any_packet in (False, True):
        seen, begun, reached = False, any_packet, 0.0
        with opened(file) as (container, stream):
            expected = _expected(container, stream)
            end = (
                expected
                or float((stream.start_time or 0) * stream.time_base) + (container.duration or 0) / 1e6
            )
            if back is not None and back < end:
                # Where no jump can be made, it is read from its start.
                with suppress(av.FFmpegError):
                    container.seek(int((end - back) / stream.time_base), stream=stream)
            for packet in container.demux():
                if packet.size:
                    reached = max(reached, _end(packet))
                if packet.size and packet.stream_index == stream.index and not seen:
                    begun = begun or packet.is_keyframe
                    seen = begun and bool(stream.codec_context.decode(packet))
                if seen and back is None:
                    break
            seen = seen or (begun and bool(stream.codec_context.decode(None)))
        if seen:
            break
    return seen, reached, expected


def _end(packet: Any) -> float:
    """Seconds at which a packet ends; 0 where it does not say."""
    at = packet.dts if packet.pts is None else packet.pts
    return float((at + (packet.duration or 0)) * packet.time_base) if packet.size and at is not None else 0.0


def _cut(file: Path, reached: float, said: float) -> VideoError:
    of = f" of its {said:.1f} s" if said > reached else ""
    return VideoError(
        f"video {file} cannot be decoded whole: it ends after {reached:.1f}{of if of else ' s'}; fetch it again, or "
        "keep what there is with `ffmpeg -i OLD -c copy NEW`"
    )


def _slack(seconds: float) -> float:
    return max(SLACK[0], SLACK[1] * seconds)


def _expected(container: Any, stream: Any) -> float:
    """Seconds at which the pictures end by the header; 0 where no header says it."""
    formats = set(container.format.name.split(","))
    if "avi" in formats:
        # PyAV's duration is that of what the file holds; the header counts its pictures.
        return float(stream.frames * stream.time_base)
    if not formats & {"mov", "matroska", "flv", "asf"}:
        # Of the others the length is guessed from what the file holds.
        return 0.0
    tag = stream.metadata.get("DURATION", "")
    if tag.count(":") == 2:
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if "mov" in formats and stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    return (container.duration or 0) / 1e6


def _hidden(codec: str, packet: Any) -> bool:
    """Whether a picture serves others only and is never shown, as VP8 and VP9 have them."""
    if codec not in ("vp8", "vp9"):
        return False
    data = memoryview(packet)
    head, tail = data[0], data[-1]
    if codec == "vp8":
        return not head >> 4 & 1
    index = 2 + ((tail >> 3 & 3) + 1) * ((tail & 7) + 1)
    if tail >> 5 == 0b110 and len(data) >= index and data[-index] == tail:
        # Several pictures in one packet, one of which is shown.
        return False
    # Profile 3 has one bit more before: show_existing_frame, frame_type, show_frame.
    bits = head >> (0 if head >> 4 & 3 == 3 else 1)
    return not bits & 0b101


def _plain(pts: np.ndarray, dts: np.ndarray, shown: np.ndarray, discarded: np.ndarray, first: int) -> bool:
    """Whether all times are known and differ, and pictures that an edit list cuts lie before or behind all others."""
    known, kept = dts[dts != UNKNOWN], pts[first:][shown[first:]]
    if (
        not len(kept)
        or (pts == UNKNOWN).any()
        or len(np.unique(kept)) < len(kept)
        or (np.diff(known) < 0).any()
    ):
        return False
    if ((pts > kept.min()) & (pts < kept.max()) & discarded).any():
        return False
    # A file may begin with pictures that need those before the file: only a decoder knows.
    return first > 0 or discarded[0] or not (kept < pts[0]).any()
