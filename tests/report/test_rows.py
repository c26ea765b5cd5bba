"""Stored rows read back: what counts, what is dropped and said, what is refused."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.synthetic_run import QUESTIONS, answers, failed, write_arm
from stsimdiff.commands.report import main
from stsimdiff.errors import DataError
from stsimdiff.evaluate.run import _reasons
from stsimdiff.evaluate.store import ArmStore, read_answers
from stsimdiff.report import rows


def test_load_gives_one_row_a_sample_and_arm_without_the_torn_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_arm(tmp_path, "none", 1.0, [failed(QUESTIONS[0]), *answers(0.9, 1.0)[1:]])
    shards = write_arm(tmp_path, "random", 0.3, None)
    write_arm(tmp_path, "no_video", 1.0, None)
    lines = [json.dumps(row) for row in answers(0.5, 0.3)[:9]]
    (shards / "answers.0-of-2.jsonl").write_text("\n".join(lines[:5]) + "\n")
    (shards / "answers.1-of-2.jsonl").write_text("\n".join(lines[5:8]) + "\n" + lines[8][:-20])
    frame = rows.read_samples(tmp_path)
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
        (lambda lines: ["[1]", *lines], r"answers.jsonl:1: a list"),
        (lambda lines: ['{"id": "x"}', *lines], r"answers.jsonl:1: holds no video"),
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
        rows.read_samples(tmp_path)


LINE = answers(0.9, 1.0)[0]
DEEP = 100_000


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("llm_flops", "NaN", "NaN is no number of JSON"),
        ("llm_flops", "-Infinity", "-Infinity is no number of JSON"),
        ("features", "[NaN]", "NaN is no number of JSON"),
        ("features", "-Infinity", "-Infinity is no number of JSON"),
        ("features", '"a", "features": "a"', "the key 'features' is there twice"),
        ("reasons", '{"a": 1, "a": 1}', "the key 'a' is there twice"),
        ("llm_flops", "1e999", "llm_flops=inf: should be a finite number"),
        ("llm_flops", "1" + 400 * "0", "llm_flops=1000"),
        ("llm_flops", "1" + 5000 * "0", "not JSON"),
        ("retention_tokens", '"0.3"', "retention_tokens='0.3': should be a valid number"),
        ("retention_tokens", "true", "retention_tokens=True: should be a valid number"),
        ("retention_tokens", "-0.1", "retention_tokens=-0.1: should be greater than or equal to 0"),
        ("times", '{"prefill": "fast"}', "times.prefill='fast': should be a valid number"),
        ("times", "[1]", "times=[1]: should be a valid dictionary"),
        ("tokens_per_layer", "[[1, 2]]", "tokens_per_layer.0=[1, 2]"),
        ("tokens_per_layer", "[1, 2]", "tokens_per_layer has 2 layers, the lines before it 4"),
        ("correct", "1", "correct=1: should be a valid boolean"),
        ("correct", "null", "correct=None without an error"),
        ("id", "7", "id=7; allowed: a text"),
        ("id", '["a"]', "id=['a']; allowed: a text"),
        ("id", '"a", "id": "b"', "the key 'id' is there twice"),
        ("video", "3", "video=3: should be a valid string"),
        ("category", '["a"]', "category=['a']: should be a valid string"),
        ("error", '"late"', "error='late'"),
        ("error", "false", "error=False"),
        ("overlay", "[]", "overlay=[]: should be a valid dictionary"),
        ("reasons", DEEP * "[" + DEEP * "]", "nested too deep"),
    ],
)
def test_odd_but_valid_json_is_one_message_with_file_line_and_value(
    tmp_path: Path, capsys: pytest.CaptureFixture, key: str, value: str, said: str
) -> None:
    folder = write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    rest = {name: kept for name, kept in LINE.items() if name != key} | ({"id": "new"} if key != "id" else {})
    line = json.dumps(rest)[:-1] + f', "{key}": {value}}}'
    with (folder / "answers.jsonl").open("a") as stream:
        stream.write(line + "\n")
    assert main([str(tmp_path)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"answers.jsonl:{len(QUESTIONS) + 1}: " in told and said in told
    assert len(told) < 600


@pytest.mark.parametrize("value", ["null", "{}", '{"prefill": null, "answer": 1}'])
def test_times_that_were_not_taken_are_empty_cells(tmp_path: Path, value: str) -> None:
    folder = write_arm(tmp_path, "none", 1.0, None)
    line = (
        json.dumps({name: kept for name, kept in LINE.items() if name != "times"})[:-1]
        + f', "times": {value}}}'
    )
    (folder / "answers.jsonl").write_text(line + "\n")
    assert rows.read_samples(tmp_path)["prefill_s"].isna().all()
    assert main([str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": {"kind": "tokens", "retention": "0.3"}}, "budget.retention='0.3'"),
        ({"budget": {"kind": "tokens", "retention": True}}, "budget.retention=True"),
        ({"budget": {"kind": "tokens", "retention": float("nan")}}, "NaN is no number of JSON"),
        ({"budget": {"kind": "both", "retention": 0.3}}, "budget.kind='both'"),
        ({"budget": [0.3]}, "budget=[0.3]"),
        ({"budget": None}, "budget=None"),
        ({"label": 3}, "label=3"),
        ({"method": " "}, "method=' '"),
        ({"arm": 7}, "arm=7"),
        ({"model": "embedded"}, "model='embedded'"),
        ({"benchmark": {"name": "clips", "families": "order"}}, "benchmark.families='order'"),
        ({"benchmark": {"name": "clips", "chance": "25"}}, "benchmark.chance='25'"),
        ({"compressor": ["x"]}, "compressor=['x']"),
        ({"resumed": {}}, "resumed={}"),
    ],
)
def test_odd_records_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, said: str
) -> None:
    folder = write_arm(tmp_path, "random", 0.3, answers(0.5, 0.3))
    record = json.loads((folder / "arm.json").read_text()) | change
    (folder / "arm.json").write_text(json.dumps(record))
    assert main([str(tmp_path)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "arm.json" in told and said in told


def test_a_second_answer_does_not_count_here_as_in_the_store(tmp_path: Path) -> None:
    first = answers(0.0, 1.0)[0]
    second = first | {"correct": True, "parsed": "B"}
    folder = write_arm(tmp_path, "none", 1.0, [first, second])
    assert (
        rows.read_samples(tmp_path)["correct"].tolist()
        == [False]
        == [row["correct"] for row in read_answers(folder)]
    )
    (note,) = rows.read(tmp_path).notes
    assert f"answers.jsonl:2: question {first['id']!r} is answered in" in note


def test_only_the_stores_own_files_are_read(tmp_path: Path) -> None:
    folder = write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0)[:5])
    for name in ("answers_old.jsonl", "answers.1-of-2.jsonl.bak", "answers (copy).jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in answers(0.1, 1.0)))
    assert len(rows.read_samples(tmp_path)) == 5 == len(read_answers(folder))


def test_a_whole_line_without_its_end_is_torn_here_as_in_the_store(tmp_path: Path) -> None:
    folder = write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0)[:2])
    with (folder / "answers.jsonl").open("a") as stream:
        stream.write(json.dumps(answers(0.9, 1.0)[2]))  # its newline is still to be written
    stored = rows.read(tmp_path)
    assert len(stored.samples) == 2 == len(read_answers(folder))
    assert "answers.jsonl:3: the last line is torn" in stored.notes[0] and "still writing" in stored.notes[0]


def test_what_a_terminal_would_act_on_is_read_as_an_escape(tmp_path: Path) -> None:
    row = answers(0.9, 1.0)[0] | {"category": "a\x1b[31m", "answer": "B\u202e", "video": "\ud800.mp4"}
    write_arm(tmp_path, "none", 1.0, [row], label="none\n\x1b]0;x\x07 a")
    stored = rows.read(tmp_path)
    assert stored.arms[0].label == "none \\u001b]0;x\\u0007 a"
    (read,) = stored.samples.to_dict("records")
    assert (read["category"], read["answer"], read["video"]) == ("a\\u001b[31m", "B\\u202e", "\\ud800.mp4")
    assert main([str(tmp_path)]) == 0


def test_answer_replaces_a_failure_in_any_order(tmp_path: Path) -> None:
    good = answers(0.9, 1.0)[:3]
    write_arm(
        tmp_path,
        "none",
        1.0,
        [failed(QUESTIONS[0]), failed(QUESTIONS[0]), *good, failed(QUESTIONS[1]), failed(QUESTIONS[3])],
    )
    frame = rows.read_samples(tmp_path).set_index("id")
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


def test_what_does_not_count_is_said_once_by_whoever_reads_it_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = answers(0.0, 1.0)[0]
    folder = write_arm(tmp_path, "none", 1.0, [first, first | {"correct": True}])
    record = json.loads((folder / "arm.json").read_text())
    with ArmStore(folder, record) as store:
        assert store.done() == {first["id"]}
    assert len(read_answers(folder)) == len(rows.read(tmp_path).samples) == 1
    (said,) = [line for line in caplog.messages if "is answered in" in line]
    assert rows.read(tmp_path).notes == [said]


def test_a_damaged_line_is_the_same_message_to_score_and_table(tmp_path: Path) -> None:
    folder = write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    with (folder / "answers.jsonl").open("a") as stream:
        stream.write('{"id": "new", "video": "v", "category": "f", "correct": true}\n')
    said = rf"answers.jsonl:{len(QUESTIONS) + 1}: holds no error"
    for read in (
        lambda: rows.read_samples(tmp_path),
        lambda: _reasons(SimpleNamespace(folder=tmp_path), [SimpleNamespace(folder=folder.name)]),
    ):
        with pytest.raises(DataError, match=said):
            read()
