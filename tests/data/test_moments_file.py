"""A file of moments for a real benchmark: read, held to its videos and questions, and counted by."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from helpers.configured import on_miniature
from helpers.written import json_lines
from stsimdiff.data.moments import WHOLE, Moment, read_moments
from stsimdiff.errors import DataError
from stsimdiff.evaluate import run as running

ROWS = [
    {"video": "mini0", "start": 0.0, "end": 0.5, "question": "001-1", "x0": 0, "y0": 0, "x1": 0.5, "y1": 1},
    {"video": "mini0.mp4", "start": 1, "end": 1.5},
]


def settings_of(tmp_path: Path, file: Path | None, *words: str):
    moments = [f"benchmark.moments={file}"] if file else []
    return on_miniature("videomme", tmp_path, *moments, *words)


def write(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".csv":
        with open(file, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = file.suffix == ".jsonl"
        file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return file


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "json"])
def test_a_file_gives_its_questions_their_moments(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"moments.{suffix}", ROWS)
    box, whole = Moment(0.0, 0.5, (0.0, 0.0, 0.5, 1.0)), Moment(1.0, 1.5, WHOLE)
    assert [row.moment for row in read_moments(file)] == [box, whole]
    settings, arm = settings_of(tmp_path, file)
    # No answer depends on it.
    assert arm.id == settings_of(tmp_path, None)[1].id
    questions = {question.id: question for question in running.prepare(settings)[2]}
    assert questions["001-1"].moments == (box, whole) and questions["001-1"].events == (box, whole)
    assert questions["001-2"].moments == (whole,) and questions["001-2"].events == (box, whole)
    others = [q for q in questions.values() if Path(q.video).stem != "mini0"]
    assert others and all(question.moments == question.events == () for question in others)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"video": "mini00", "start": 0, "end": 1},
            r"row 1: video=mini00 is no video of .*did you mean mini0",
        ),
        ({"video": "mini0", "start": 1, "end": 1}, r"row 1: start=1, end=1; expected seconds"),
        ({"video": "mini0", "start": -1, "end": 1}, r"row 1: start=-1, end=1; expected seconds"),
        ({"video": "mini0", "start": "soon", "end": 1}, r"row 1: start='soon'; expected a number"),
        ({"video": "mini0", "start": 0}, r"row 1: end=None; expected a number"),
        ({"start": 0, "end": 1}, r"row 1: video=None; expected the name of a video"),
        (
            {"video": "mini0", "start": 0, "end": 9000},
            r"row 1: end=9000 lies beyond the [\d.]+ seconds of mini0",
        ),
        (
            {"video": "mini0", "start": 0, "end": 1, "question": "002-1"},
            r"row 1: question=002-1 is no question about",
        ),
        ({"video": "mini0", "start": 0, "end": 1, "x0": 0.5}, r"row 1: y0=None; expected a number"),
        (
            {"video": "mini0", "start": 0, "end": 1, "x0": 0.5, "y0": 0, "x1": 0.5, "y1": 1},
            r"row 1: the box \(0.5, 0.0, 0.5, 1.0\); expected fractions",
        ),
    ],
)
def test_a_wrong_row_is_named_before_a_model_loads(tmp_path: Path, no_model, row: dict, said: str) -> None:
    settings, arm = settings_of(tmp_path, write(tmp_path / "moments.jsonl", [row]))
    with pytest.raises(DataError, match=said):
        running.run_arms(settings, [arm])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("moments.txt", "video", r"allowed: a file \.csv, \.parquet, \.json or \.jsonl"),
        ("moments.csv", "video,start,end\n", "holds no moment"),
        ("moments.jsonl", "{", "is no readable jsonl file"),
        ("none.csv", None, r"benchmark\.moments=.*none\.csv is no file that is there"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_moments(tmp_path / name)


def test_a_run_counts_by_the_file(tmp_path: Path) -> None:
    settings, arm = settings_of(tmp_path, write(tmp_path / "moments.csv", [ROWS[1]]), "limit=4")
    running.run_arms(settings, [arm])
    (file,) = settings.folder.glob("*/answers.jsonl")
    lines = {line["id"]: line for line in json_lines(file)}
    asked = lines["001-1"]["moment"]["question"]
    assert 0 < asked["tokens"] < lines["001-1"]["video_tokens"] and asked == lines["001-1"]["moment"]["video"]
    assert 0 <= asked["kept"]["in_place"] == asked["kept"]["in_time"] < asked["tokens"]
    assert {id_ for id_, line in lines.items() if "moment" in line} == {
        i for i in lines if i.startswith("001")
    }
