"""What a video file's header says of its frames, length and size; nothing is decoded and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stsimdiff.video.frames import check_file
from stsimdiff.video.index import opened
from stsimdiff.video.parts import Part, picture_size, pictures


@dataclass(frozen=True)
class Header:
    """What the header says.

    Attributes:
        frames: of the first video stream, 0 where the header does not say.
        seconds: length, 0 where the header does not say.
        height, width: of a frame in pixels.
    """

    frames: int
    seconds: float
    height: int
    width: int


def read_header(path: str | Path) -> Header:
    """Open a file and read its header.

    Raises:
        VideoError: naming the file and the reason, when it is missing, empty or no video.
    """
    file, part = check_file(path), Part.of(path)
    if file.is_dir():
        rate = part.fps or 1.0
        frames = part.frames(len(pictures(file)), rate)[1]
        return Header(frames, frames / rate, *picture_size(file))
    with opened(file) as (container, stream):
        rate = float(stream.average_rate or 0)
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1e6
        frames = stream.frames or round(seconds * rate)
        if frames and part.start is not None:
            frames = part.frames(frames, rate)[1]
            seconds = frames / (rate or 1)
        return Header(frames, seconds or frames / (rate or 1), stream.height, stream.width)
