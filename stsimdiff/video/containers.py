"""Whether a video file was cut off: its container says how long each part is, the file where it really ends.

A download that stopped leaves a file whose header still speaks of the whole. Only parts that hold pictures count; an
index or tags that are cut off behind them cost no frame. Nothing is decoded. Formats that say no lengths (MPEG program
streams, raw streams) cannot be judged so; :mod:`stsimdiff.video.index` compares their times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BOXES = {b"mdat", b"moof", b"moov"}
"""Parts of an MP4 or MOV file that hold pictures or say where they are."""
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
SYNC, STRIDES = 0x47, ((188, 0), (192, 4), (204, 0))
"""A transport stream's packets begin with this byte; their lengths, and where in them it stands."""


def cut_off(file: Path) -> bool:
    """Whether a part that holds pictures would end beyond the end of the file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(1024)
        if head[4:8] in BOXES | {b"ftyp", b"styp", b"free", b"skip", b"wide"}:
            return any(end > size for end in _boxes(stream, size))
        if head[:4] == b"RIFF":
            return any(end > size for end in _chunks(stream, size))
        if int.from_bytes(head[:4], "big") == EBML:
            return any(end > size for end in _clusters(stream, size))
        if head[:16] == ASF_HEADER:
            return any(end > size for end in _objects(stream, size))
    for stride, place in STRIDES:
        if len(head) > 3 * stride and all(head[place + stride * n] == SYNC for n in range(4)):
            return size % stride != 0
    return False


def _boxes(stream: BinaryIO, size: int) -> Iterator[int]:
    """Where the boxes of an MP4 or MOV file end that matter."""
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            # 0: the box goes on to the end of the file.
            return
        at += length
        if head[4:8] in BOXES:
            yield at


def _chunks(stream: BinaryIO, size: int) -> Iterator[int]:
    """Where the lists of pictures in an AVI file end; a long file has several."""
    at = 0
    while at + 12 <= size:
        stream.seek(at)
        name, length, kind = stream.read(4), int.from_bytes(stream.read(4), "little"), stream.read(4)
        if name == b"LIST" and kind == b"movi":
            yield at + 8 + length
        inside = name == b"RIFF" and kind in (b"AVI ", b"AVIX")
        at += 12 if inside else 8 + length + length % 2


def _clusters(stream: BinaryIO, size: int) -> Iterator[int]:
    """Where the clusters of a Matroska or WebM file end."""
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        name, length = _vint(stream, marked=True), _vint(stream)
        inner = stream.tell()
        if name is None or length is None:
            # The length is not known: the file was written as it came.
            if name == SEGMENT:
                at = inner
                continue
            return
        if name == CLUSTER:
            yield inner + length
        at = inner if name == SEGMENT else inner + length


def _vint(stream: BinaryIO, marked: bool = False) -> int | None:
    """A number of EBML; ``None`` for the one that means unknown, and at the end of the file."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(extra), "big")
    if marked:
        return value
    value -= 1 << 7 * (extra + 1)
    return None if value == (1 << 7 * (extra + 1)) - 1 else value


def _objects(stream: BinaryIO, size: int) -> Iterator[int]:
    """Where the data of an ASF (WMV) file ends."""
    at = 0
    while at + 24 <= size:
        stream.seek(at)
        name, length = stream.read(16), int.from_bytes(stream.read(8), "little")
        if length < 24:
            return
        at += length
        if name == ASF_DATA:
            yield at
