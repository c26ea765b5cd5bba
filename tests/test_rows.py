"""Stored rows read back: what counts, what is dropped and said, what is refused."""

import json
import re
from pathlib import Path

import pytest
from synthetic_run import QUESTIONS, answers, failed, write_arm

from stsimdiff.errors import DataError
from stsimdiff.report import rows
from stsimdiff.report.__main__ import main


def test_load_gives_one_row_a_sample_and_arm_without_the_torn_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_arm(tmp_path, "none", 1.0, [failed(QUESTIONS[0]), *answers(0.9, 1.0)[1:]])
    shards = write_arm(tmp_path, "random", 0.3, None)
    write_arm(tmp_path, "no_video", 1.0, None)
    lines = [json.dumps(row) for row in answers(0.5, 0.3)[:9]]
    (shards / "answers.0-of-2.jsonl").write_text("\n".join(lines[:5]) + "\n")
    (shards / "answers.1-of-2.jsonl").write_text("\n".join(lines[5:8]) + "\n" + lines[8][:-20])
    frame = rows.load(tmp_path)
    assert f"{shards / 'answers.1-of-2.jsonl'}:4: the last line is torn" in caplog.text
    assert frame.groupby("method")["id"].nunique().to_dict() == {"none": len(QUESTIONS), "random": 8}
    assert len(frame) == len(QUESTIONS) + 8
    assert [arm.method for arm in rows.arms(tmp_path)] == ["no_video", "none", "random"]
    (broken,) = frame[frame["failed"]].to_dict("records")
    assert (broken["id"], broken["error_type"], broken["error_message"]) == (
        "v00-0",
        "ValueError",
        "no frames",
    )
    assert frame.loc[frame["failed"], ["correct", "answer", "llm_flops"]].isna().all(axis=None)
    assert frame["decode_s"].dropna().eq(0.1).all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [lines[0], lines[1][:-9], *lines[2:]], r"answers.jsonl:2: not JSON"),
        (
            lambda lines: [*lines, lines[0]],
            r"answers.jsonl:\d+: question 'v00-0' is answered in .*answers.jsonl:1",
        ),
        (lambda lines: ["[1]", *lines], r"answers.jsonl:1: a list"),
        (lambda lines: ['{"id": "x"}', *lines], r"answers.jsonl:1: a stored answer without video, family"),
        (
            lambda lines: [re.sub('"correct": (true|false)', '"correct": null', lines[0])],
            "correct=None without an error",
        ),
    ],
)
def test_damage_names_file_and_line(tmp_path: Path, damage, said: str) -> None:
    folder = write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    stored = (folder / "answers.jsonl").read_text().splitlines()
    (folder / "answers.jsonl").write_text("\n".join(damage(stored)) + "\n")
    with pytest.raises(DataError, match=said):
        rows.load(tmp_path)


def test_answer_replaces_a_failure_in_any_order(tmp_path: Path) -> None:
    good = answers(0.9, 1.0)[:3]
    write_arm(
        tmp_path,
        "none",
        1.0,
        [failed(QUESTIONS[0]), failed(QUESTIONS[0]), *good, failed(QUESTIONS[1]), failed(QUESTIONS[3])],
    )
    frame = rows.load(tmp_path).set_index("id")
    assert frame["failed"].to_dict() == {QUESTIONS[i][1]: i == 3 for i in range(4)}


def test_wrong_folders_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder, said in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "holds no arm")):
        with pytest.raises(DataError, match=said):
            rows.arms(folder)
        assert main([str(folder)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    stray = write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    assert main([str(tmp_path)]) == 0
    (stray / "arm.json").unlink()
    with pytest.raises(DataError, match=r"holds answers but no arm\.json"):
        rows.arms(tmp_path)
