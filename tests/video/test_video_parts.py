"""A part of a file, and a folder of pictures: the frames that are read are those that are meant, by their numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.numbered_clips import numbers, picture, write
from stsimdiff.data.benchmarks import BENCHMARKS
from stsimdiff.data.fetch import asked_videos
from stsimdiff.data.videos import VideoFolder
from stsimdiff.errors import DataError, VideoError
from stsimdiff.video import Sampling, read
from stsimdiff.video.headers import read_header
from stsimdiff.video.parts import Part

MVBENCH = BENCHMARKS["mvbench"]


def written_pictures(folder: Path, count: int = 40) -> Path:
    """Pictures 00001.png to 00040.png that show their number."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.fromarray(picture(number)).save(folder / f"{number:05}.png")
    return folder


def mvbench_indices(start: float, end: float, rate: float, last: int, first: int, count: int) -> list[int]:
    """The frames that a reader takes evenly of those between MVBench's own bounds (mvbench.ipynb, get_index)."""
    begin, stop = max(first, round(start * rate)), min(round(end * rate), last)
    return np.linspace(begin, stop, min(count, stop - begin + 1), dtype=int).tolist()


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.26, 3.5), (2.0, 99.0), (3.0, 3.0)])
def test_the_frames_of_a_cut(start: float, end: float, backend: str, tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", shown=range(60), rate=10)
    found = read(str(Part(tmp_path / "clip.mp4", start, end)), 8, backend)
    expected = mvbench_indices(start, end, 10, 59, 0, 8)
    assert numbers(found.pixels) == expected
    assert [expected[0] + index for index in found.indices] == expected
    assert found.total == min(round(end * 10), 59) - round(start * 10) + 1 and found.fps == 10
    header = read_header(str(Part(tmp_path / "clip.mp4", start, end)))
    assert (header.frames, header.seconds) == (found.total, pytest.approx(found.total / 10))


def test_frames_a_second_of_a_cut(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", shown=range(60), rate=10)
    found = read(str(Part(tmp_path / "clip.mp4", 2.0, 4.0)), Sampling(64, "fps", 2.0))
    assert numbers(found.pixels) == [20, 25, 30, 35, 40]


@pytest.mark.parametrize(("start", "end"), [(None, None), (0.0, 3.0), (2.5, 7.0), (10.0, 50.0)])
def test_the_pictures_of_a_folder(start: float | None, end: float | None, tmp_path: Path) -> None:
    folder = written_pictures(tmp_path / "frames")
    found = read(str(Part(folder, start, end, 3.0)), 6)
    bounds = (0.0, 99.0) if start is None else (start, end)
    assert numbers(found.pixels) == mvbench_indices(*bounds, 3, 40, 1, 6)
    assert found.fps == 3


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", shown=range(20), rate=10)
    with pytest.raises(
        VideoError, match=r"clip.mp4#t=5.0,9.0: of 20 frames with 10 a second none lies from 5 to 9 s"
    ):
        read(str(Part(tmp_path / "clip.mp4", 5.0, 9.0)), 4)
    folder = written_pictures(tmp_path / "frames", 4)
    (folder / "00003.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"picture .*00003.png cannot be decoded"):
        read(str(Part(folder, None, None, 3.0)), 4)
    with pytest.raises(VideoError, match="folder of pictures, and how many a second is not known"):
        read(str(folder), 4)


def test_a_name_that_looks_like_a_part_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4#t=1,2", shown=range(9), rate=10, format="mp4")
    assert len(read(tmp_path / "clip.mp4#t=1,2", 20).pixels) == 9
    part = Part(tmp_path / "a b.mp4", 1.2999999999999998, 15.4)
    assert Part.of(str(part)) == part and Part.of(str(Part(tmp_path, fps=3.0))) == Part(tmp_path, fps=3.0)


ROW = {
    "video": "ZS9XR.mp4",
    "start": 1.2999999999999998,
    "end": 4.0,
    "fps": None,
    "sub_task": "action_sequence",
}


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("video/star/Charades_v1_480/ZS9XR.mp4", "ZS9XR.mp4#t=1.2999999999999998,4.0"),
        ("star/Charades_segment/ZS9XR_1.2999999999999998_4.0.mp4", "ZS9XR_1.2999999999999998_4.0.mp4"),
        ("star/Charades_segment/ZS9XR.mp4", "ZS9XR.mp4"),
    ],
)
def test_mvbench_cuts_once(file: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    write(path, shown=range(60), rate=10)
    # Another source's video of the same name is not taken.
    other = tmp_path / "perception/videos/ZS9XR.mp4"
    other.parent.mkdir(parents=True)
    write(other, shown=range(9), rate=10)
    place = MVBENCH.place(ROW, VideoFolder(tmp_path).path)
    assert place == str(path.with_name(named))
    cut = "#" in named
    assert numbers(read(place, 3).pixels) == ([13, 26, 40] if cut else [0, 29, 59])


def test_mvbench_reads_pictures_at_three_a_second(tmp_path: Path) -> None:
    written_pictures(tmp_path / "video/tvqa/frames_fps3_hq/friends_s01")
    row = {"video": "friends_s01", "start": 2.0, "end": 6.0, "fps": 3, "sub_task": "episodic_reasoning"}
    place = MVBENCH.place(row, VideoFolder(tmp_path).path)
    assert numbers(read(place, 4).pixels) == [6, 10, 14, 18]


def test_pictures_taken_out_of_a_video_are_not_taken_for_it(tmp_path: Path) -> None:
    written_pictures(tmp_path / "frames" / "a", 2)
    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos" / "a.mp4", shown=range(9), rate=10)
    assert VideoFolder(tmp_path).path("a") == tmp_path / "videos" / "a.mp4"


def test_mvbench_needs_all_of_its_tasks(tmp_path: Path) -> None:
    rows = [{"video": "a.mp4", "question": "What?", "candidates": ["red", "blue"], "answer": "red"}]
    (tmp_path / "json").mkdir()
    for task in list(MVBENCH.folders)[1:]:
        (tmp_path / "json" / f"{task}.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="mvbench: no file with the questions of action_sequence"):
        asked_videos(MVBENCH, tmp_path)
