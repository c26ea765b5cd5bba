"""Clips whose frames carry their number, as sixteen blocks of black and white that survive any codec."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stsimdiff import video

SIDE, BLOCK = 64, 16
LOSSLESS = {
    "libx264": {"crf": "18"},
    # The slower presets spoil a group of pictures of this size now and then, most often on a busy machine.
    "libx265": {"crf": "18", "preset": "ultrafast", "x265-params": "log-level=none"},
    "libsvtav1": {"crf": "1", "preset": "8"},
}


def picture(number: int, side: int = SIDE) -> np.ndarray:
    """``(side, side, 3)``: eight bits, each with its opposite two blocks below, so that grey is no number."""
    bits = [(number >> place) & 1 for place in range(8)]
    blocks = np.array(bits + [1 - bit for bit in bits], np.uint8).reshape(4, 4)
    levels = 30 + 200 * blocks.repeat(side // 4, 0).repeat(side // 4, 1)
    return np.repeat(levels[:, :, None], 3, 2).astype(np.uint8)


def number_of(pixels: np.ndarray) -> int:
    """The number in a picture; -1 where it shows none clearly."""
    height, width = (size // 4 for size in pixels.shape[:2])
    means = pixels.mean(2)[: 4 * height, : 4 * width].reshape(4, height, 4, width)
    inner = means[:, height // 4 : -height // 4, :, width // 4 : -width // 4].mean((1, 3)).reshape(16)
    if np.abs(inner[:8] - inner[8:]).min() < 100:
        return -1
    return int(sum(1 << place for place in range(8) if inner[place] > inner[place + 8]))


def numbers(frames: np.ndarray) -> list[int]:
    """The number in each of some pictures."""
    return [number_of(pixels) for pixels in frames]


def write(
    path: Path,
    codec: str = "libx264",
    shown: Iterable[int] = range(60),
    *,
    bframes: int = 0,
    gop: int = 12,
    rate: int = 10,
    format: str | None = None,
    pixels: str = "yuv420p",
    side: int = SIDE,
    start: int = 0,
    times: list[int] | None = None,
    sound: float = 0,
    muxer: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write a clip.

    Args:
        path: the file; its suffix chooses the container unless ``format`` does.
        codec: PyAV's name of an encoder.
        shown: the frames' numbers.
        bframes: frames between two anchors.
        gop: frames from one keyframe to the next.
        rate: frames a second.
        format: the container.
        pixels: format of a pixel.
        side: height and width.
        start: time of the first frame, in frames.
        times: time of each frame, in frames; one after the other if not given.
        sound: seconds of silence beside the pictures.
        muxer: options of the container.
        options: of the encoder.
    """
    with av.open(str(path), "w", format=format, options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt, stream.gop_size = pixels, gop
        if codec.startswith("libx26") or codec in ("mpeg4", "mpeg2video", "mpeg1video"):
            stream.max_b_frames = bframes
        stream.codec_context.time_base = Fraction(1, rate)
        stream.options = LOSSLESS.get(codec, {}) | options
        if sound:
            audio: Any = container.add_stream("mp2" if path.suffix in (".mpg", ".ts") else "aac", rate=44100)
            _silence(container, audio, sound)
        for place, number in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture(number, side), format="rgb24")
            frame.pts, frame.time_base = start + (times[place] if times else place), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # SVT-AV1 gives the thread that encodes, and so all that it starts later, precedence over every other process.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def write_pictures(
    path: Path,
    pictures: Iterable[np.ndarray],
    codec: str = "libx264",
    *,
    pixels: str = "yuv420p",
    rate: int = 5,
    times: list[int] | None = None,
    **options: str,
) -> Path:
    """Write a clip of any pictures, ``(H, W, 3)``; ``times`` of each are in ticks of 1/30 s."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.options, stream.pix_fmt = options, pixels
        for number, shown in enumerate(pictures):
            stream.height, stream.width = shown.shape[:2]
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            if times:
                stream.time_base = stream.codec_context.time_base = frame.time_base = Fraction(1, 30)
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(levels: Iterable[int], height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A picture of each level."""
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def importable(backend: str) -> bool:
    """Whether a decoder is installed, with the libraries that it needs."""
    try:
        __import__({"pyav": "av", "torchcodec": "torchcodec.decoders", "decord": "decord"}[backend])
    except (ImportError, RuntimeError, OSError):
        return False
    return True


BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(not importable(name), reason=f"no {name} here"))
        for name in video.DECODERS.builtin
    ],
)


def _silence(container: Any, stream: Any, seconds: float) -> None:
    size = 1152
    for place in range(round(seconds * 44100 / size)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * size), np.int16), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 44100, place * size, Fraction(1, 44100)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def with_edits(path: Path, parts: list[tuple[float, float]]) -> Path:
    """Give an MP4 file whose table of contents stands at its end another edit list, and return it.

    Args:
        path: the file.
        parts: start and length in seconds of each part of the stored pictures that is shown.
    """
    data = bytearray(path.read_bytes())

    def scale(box: bytes) -> int:
        return struct.unpack_from(">I", data, data.index(box) + 16)[0]

    movie, media, at = scale(b"mvhd"), scale(b"mdhd"), data.index(b"elst")
    # In a file with frames stored in another order than shown, the first one is not at time 0.
    first = max(0, struct.unpack_from(">i", data, at + 16)[0])
    entries = [struct.pack(">IiI", round(n * movie), first + round(s * media), 1 << 16) for s, n in parts]
    box = b"elst" + struct.pack(">II", 0, len(entries)) + b"".join(entries)
    old = struct.unpack_from(">I", data, at - 4)[0]
    for name in (b"moov", b"trak", b"edts", b"elst"):
        place = data.index(name) - 4
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + 4 + len(box) - old)
    data[at : at + old - 4] = box
    path.write_bytes(data)
    return path


def remuxed(
    path: Path, target: Path, start: float = 0, keep=lambda place, packet: True, **options: str
) -> Path:
    """The packets of a clip in another file, not encoded again.

    Args:
        path: the clip.
        target: the other file.
        start: seconds that lie before its time 0; an MP4 file leaves them out by an edit list.
        keep: which packets, by their place and what they are.
        options: of the container.
    """
    with av.open(str(path)) as source, av.open(str(target), "w", options=options) as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        shift = int(start / stream.time_base)
        for place, packet in enumerate(source.demux(stream)):
            if packet.size and keep(place, packet):
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                container.mux(packet)
    return target
