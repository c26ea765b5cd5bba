"""Frames far apart in a file: PyAV jumps to their keyframes, and gives what decoding the whole file gives."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from helpers.numbered_clips import numbers, remuxed, with_edits, write
from helpers.paths import ROOT
from stsimdiff import video
from stsimdiff.video import decoders
from stsimdiff.video.index import packets_of

FRAMES, GOP = 250, 10


@pytest.fixture
def demuxed(monkeypatch) -> list[int]:
    """How many packets are given of each reading, once the list of packets is made; jumps from the first one on."""
    counts: list[int] = []
    original = decoders._Stored._demuxed

    def counted(stored):
        for packet in original(stored):
            counts[-1] += 1
            yield packet

    def begin(stored, *given):
        counts.append(0)
        initialise(stored, *given)

    initialise = decoders._Stored.__init__
    monkeypatch.setattr(decoders._Stored, "__init__", begin)
    monkeypatch.setattr(decoders._Stored, "_demuxed", counted)
    monkeypatch.setattr(decoders, "NEAR", GOP)
    return counts


CLIPS = [
    ("a.mp4", "libx264", {}),
    ("b.mp4", "libx264", {"bframes": 3}),
    ("open.mp4", "libx264", {"bframes": 3, "x264-params": "open-gop=1"}),
    ("sound.mp4", "libx264", {"sound": 25}),
    ("fragments.mp4", "libx264", {"bframes": 2, "muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    ("a.mkv", "libx264", {"bframes": 3}),
    ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("hevc.mp4", "libx265", {"bframes": 3}),
    ("av1.mp4", "libsvtav1", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "options"), CLIPS, ids=[name for name, *_ in CLIPS])
def test_frames_are_those_of_the_whole_file(tmp_path: Path, demuxed, name: str, codec: str, options) -> None:
    file = write(tmp_path / name, codec, range(FRAMES), gop=GOP, **options)
    packets, choose = packets_of(file), lambda total, rate: (3, 111, 112, 178, total - 1)
    jumped, whole = decoders.with_pyav(file, choose), decoders._in_order(file, packets, choose)
    assert len(demuxed) == 1, "no jump led astray"
    assert np.array_equal(jumped[0], whole[0]) and jumped[1:] == whole[1:]
    assert numbers(jumped[0]) == [3, 111, 112, 178, FRAMES - 1]
    assert demuxed[0] < FRAMES / 2, "what lies between is not read"


def test_frames_of_an_edited_file_are_those_of_the_whole_file(tmp_path: Path, demuxed) -> None:
    file = with_edits(write(tmp_path / "a.mp4", shown=range(FRAMES), gop=GOP, bframes=2), [(2.5, 20)])
    frames = video.read(file, 4)
    choose = partial(video.uniform_indices, count=4)
    whole = decoders._in_order(file, packets_of(file), lambda total, rate: choose(total))
    assert np.array_equal(frames.pixels, whole[0]) and frames.indices == whole[1] == (0, 66, 132, 199)
    assert numbers(frames.pixels) == [25, 91, 157, 224] and demuxed[0] < FRAMES / 2


def test_a_container_without_an_index_is_read_in_turn(tmp_path: Path, demuxed) -> None:
    file = remuxed(write(tmp_path / "a.mp4", shown=range(FRAMES), gop=GOP), tmp_path / "a.ts")
    frames = video.read(file, 4)
    assert numbers(frames.pixels) == list(frames.indices) == [0, 83, 166, FRAMES - 1]
    assert all(count >= FRAMES - 1 for count in demuxed)


@pytest.mark.parametrize("shift", [-4 * GOP, -1, 4 * GOP])
def test_jumps_that_lead_astray_cost_time_alone(tmp_path: Path, demuxed, monkeypatch, shift: int) -> None:
    file = write(tmp_path / "a.mp4", shown=range(FRAMES), gop=GOP)
    whole = video.read(file, 4)
    jump = decoders._Stored._jump

    class Astray:
        """A container whose seeks land elsewhere."""

        def __init__(self, container) -> None:
            self.container = container

        def seek(self, time: int, stream) -> None:
            self.container.seek(max(0, time + round(shift / 10 / stream.time_base)), stream=stream)

        def demux(self, stream):
            return self.container.demux(stream)

    def astray(stored, place):
        if not isinstance(stored._container, Astray):
            stored._container = Astray(stored._container)
        jump(stored, place)

    monkeypatch.setattr(decoders._Stored, "_jump", astray)
    demuxed.clear()
    frames = video.read(file, 4)
    assert np.array_equal(frames.pixels, whole.pixels) and frames.indices == whole.indices
    assert len(demuxed) == (2 if shift > 0 else 1), (
        "too far: all packets in turn; too early: read on from there"
    )


def test_the_benchmark_makes_long_files_and_reads_them_in_every_way(tmp_path: Path) -> None:
    words = ["--minutes", "2", "--size", "96", "64", "--rate", "2", "--frames", "5", "--repeats", "1"]
    words += ["--codecs", "h264", "--ways", "pyav", "all", "--out", str(tmp_path / "found.json")]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.decoding", *words], check=True, capture_output=True, cwd=ROOT
    )
    files = json.loads((tmp_path / "found.json").read_text())["files"]
    assert [(file["codec"], file["gap"]) for file in files] == [("h264", 2), ("h264", 10)]
    for file in files:
        assert all(file["ways"][way]["s"] > 0 for way in ("pyav", "all"))
