"""What changed since it was answered is named, no longer counts, and is asked again; nothing else is."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from helpers.configured import configured
from helpers.embedded_runs import prepared, stored
from helpers.paths import MINIATURES
from helpers.written import json_lines
from stsimdiff.evaluate import changed, run
from stsimdiff.evaluate.changed import withdraw_changed
from stsimdiff.evaluate.questions import Question
from stsimdiff.evaluate.run import run_arms
from stsimdiff.evaluate.store import ArmStore, counted_lines, done_ids, read_answers, read_record

RECORD = {"arm": "0123456789ab", "provenance": {}}


pytestmark = pytest.mark.usefixtures("digest_memory")


def question(folder: Path, id_: str = "q1", text: str = "What?", video: str = "a.mp4", **content) -> Question:
    return Question(id_, str(folder / video), "all", text, 16, {}, content=content)


def line(of: Question, answer: str = "A", **more) -> dict:
    row = {"id": of.id, "video": of.video_name, "category": "all", "answer": answer, "error": None}
    return {**row, "of": f"{of.digest}-{changed.video_digest(of.video)}", **more}


@pytest.fixture
def videos(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "data" / name).write_bytes(name.encode())
    return tmp_path / "data"


def reopened(folder: Path, questions, others=lambda: [], first=0) -> set[str]:
    """Ids that are done after a look at what has changed."""
    with ArmStore(folder, RECORD, first=first) as store:
        withdraw_changed({"arm": store}, questions, others)
        return store.done()


def test_only_what_has_changed_is_withdrawn_and_it_is_named(tmp_path, videos, caplog):
    asked = [
        question(videos, f"q{i}", video=name) for i, name in enumerate(("a.mp4", "a.mp4", "b.mp4", "b.mp4"))
    ]
    with ArmStore(tmp_path / "arm", RECORD) as store:
        for one in asked:
            store.append(line(one))
    assert reopened(tmp_path / "arm", asked) == {"q0", "q1", "q2", "q3"}
    assert not caplog.records
    (videos / "b.mp4").write_bytes(b"replaced")
    asked[0] = question(videos, "q0", "What else?")
    assert reopened(tmp_path / "arm", asked) == {"q1"}
    assert "3 stored questions have changed" in caplog.text
    assert "q0 (the question), q2 (the video), q3 (the video)" in caplog.text
    assert [row["id"] for row in read_answers(tmp_path / "arm")] == ["q1"]
    assert done_ids(tmp_path / "arm") == {"q1"}
    with ArmStore(tmp_path / "arm", RECORD) as store:
        for one in (asked[0], *asked[2:]):
            store.append(line(one, "B"))
    caplog.clear()
    assert reopened(tmp_path / "arm", asked) == {"q0", "q1", "q2", "q3"} and not caplog.records
    assert [
        row["answer"] for row in sorted(read_answers(tmp_path / "arm"), key=lambda row: row["id"])
    ] == list("BABB")


def test_data_that_changes_back_is_asked_once_more(tmp_path, videos):
    first, second = question(videos), question(videos, text="What else?")
    for number, one in enumerate((first, second, first)):
        assert reopened(tmp_path / "arm", [one]) == set()
        with ArmStore(tmp_path / "arm", RECORD) as store:
            store.append(line(one, "ABC"[number]))
    assert reopened(tmp_path / "arm", [first]) == {"q1"}
    (row,) = read_answers(tmp_path / "arm")
    assert (row["answer"], row["asking"]) == ("C", 2)


def test_a_withdrawal_holds_in_whichever_file_the_answer_is(tmp_path, videos):
    # answers.2.jsonl is read before answers.jsonl.
    with ArmStore(tmp_path / "arm", RECORD) as store:
        store.append(line(question(videos)))
    other = question(videos, text="What else?")
    assert reopened(tmp_path / "arm", [other], first=2) == set()
    assert read_answers(tmp_path / "arm") == []
    with ArmStore(tmp_path / "arm", RECORD, first=2) as store:
        store.append(line(other, "B"))
    assert [row["answer"] for _, row in counted_lines(tmp_path / "arm").values()] == ["B"]
    assert reopened(tmp_path / "arm", [other]) == {"q1"}


def test_copies_and_touched_files_are_the_same(tmp_path, videos, caplog):
    with ArmStore(tmp_path / "arm", RECORD) as store:
        store.append(line(question(videos)))
    (videos / "a.mp4").touch()
    shutil.copytree(videos, tmp_path / "elsewhere")
    assert reopened(tmp_path / "arm", [question(tmp_path / "elsewhere")]) == {"q1"}
    assert not caplog.records


def test_a_lost_video_keeps_its_answers(tmp_path, videos):
    with ArmStore(tmp_path / "arm", RECORD) as store:
        store.append(line(question(videos)))
    (videos / "a.mp4").unlink()
    assert reopened(tmp_path / "arm", [question(videos)]) == {"q1"}


def test_a_question_outside_the_limit_is_looked_at_and_one_that_is_gone_is_named(tmp_path, videos, caplog):
    asked = [question(videos, f"q{i}") for i in range(3)]
    with ArmStore(tmp_path / "arm", RECORD) as store:
        for one in asked:
            store.append(line(one))
    others = [question(videos, "q1", "What else?")]
    assert reopened(tmp_path / "arm", asked[:1], lambda: others) == {"q0", "q2"}
    assert "1 stored questions have changed since they were answered: q1" in caplog.text
    assert "1 stored questions are not in the data any more: q2" in caplog.text


def test_lines_of_an_earlier_version_are_not_compared(tmp_path, videos, caplog):
    with ArmStore(tmp_path / "arm", RECORD) as store:
        store.append({key: value for key, value in line(question(videos)).items() if key != "of"})
    assert reopened(tmp_path / "arm", [question(videos, text="What else?")]) == {"q1"} and not caplog.records


def test_the_fast_way_and_the_slow_way_of_reading_agree(tmp_path, videos):
    texts = ['", "of": "0123456789ab-0123456789ab", "error": null}', "plain", 'x", "asking": 5', "\\"]
    with ArmStore(tmp_path / "arm", RECORD) as store:
        for number, text in enumerate(texts):
            store.append(line(question(videos, f"q{number}"), text))
        store.withdraw("q1", "why")
        store.append(line(question(videos, "q1"), "again"))
        before = dict(store.states)
    with ArmStore(tmp_path / "arm", RECORD) as store:
        assert store.states == before and store.states["q1"].asking == 1
    lines = (tmp_path / "arm" / "answers.jsonl").read_text().splitlines()
    spaced = "".join(json.dumps(json.loads(text), separators=(",", ":")) + "\n" for text in lines)
    (tmp_path / "arm" / "answers.jsonl").write_text(spaced)
    with ArmStore(tmp_path / "arm", RECORD) as store:
        assert store.states == before


def test_a_resumed_arm_names_the_data_as_it_is_now(tmp_path):
    def record(revision: str, **provenance) -> dict:
        return {**RECORD, "benchmark": {"name": "b", "revision": revision}, "provenance": provenance}

    with ArmStore(tmp_path, record("old", git="1")):
        pass
    with ArmStore(tmp_path, record("new")):
        assert read_record(tmp_path)["benchmark"]["revision"] == "new"
        assert read_record(tmp_path)["provenance"] == {"git": "1"}


def test_a_user_s_folder_is_known_by_its_contents(tmp_path, data, own_data):
    first, _ = prepared(tmp_path, data, "compressor=none")
    (own_data / "videos" / "notes.txt").write_text("no question asks for it")
    lines = (data / "questions.jsonl").read_text().splitlines()
    (own_data / "questions.jsonl").write_text("\n".join(reversed(lines)))
    copy, _ = prepared(tmp_path, own_data, "compressor=none")
    assert copy.benchmark.revision == first.benchmark.revision
    shutil.copy(data / "videos" / "clip001.mp4", own_data / "videos" / "clip000.mp4")
    replaced, _ = prepared(tmp_path, own_data, "compressor=none")
    assert replaced.benchmark.revision != first.benchmark.revision


def test_videos_of_one_name_in_two_folders_are_two(tmp_path, own_data, caplog):
    rows = json_lines(own_data / "questions.jsonl")
    for row in rows:
        folder = "a" if row["video"] == "clip000.mp4" else "b"
        (own_data / "videos" / folder).mkdir(exist_ok=True)
        shutil.copy(own_data / "videos" / row["video"], own_data / "videos" / folder / "1.mp4")
        row["video"] = f"{folder}/1.mp4"
    (own_data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings, arms = prepared(tmp_path, own_data, "compressor=none", overlays=4)
    run_arms(settings, arms)
    answers = stored(settings, arms[0])
    assert {row["video"] for row in answers} == {"a/1.mp4", "b/1.mp4"}
    frames = {
        json.loads(file.read_text())["video"] for file in (settings.folder / "frames").glob("*/frames.json")
    }
    assert frames == {"a/1.mp4", "b/1.mp4"}
    assert all(len(row["of"]) == 25 and not row["of"].endswith(changed.UNKNOWN) for row in answers)
    assert read_record(settings.folder / arms[0].folder)["format"] == 2
    caplog.set_level(logging.WARNING)
    (own_data / "videos" / "a" / "1.mp4").touch()
    assert run_arms(settings, arms) == 0


def test_of_a_public_benchmark_only_what_changed_is_asked_again(tmp_path, caplog, monkeypatch):
    import pyarrow.parquet

    root = tmp_path / "videomme"
    shutil.copytree(MINIATURES / "videomme", root)

    def run(place: Path):
        words = ["benchmark=videomme", f"benchmark.data={place}", f"results={tmp_path}", "run=test"]
        settings, arm = configured(*words, "compressor=none", "overlays=0", "logger=none")
        return run_arms(settings, [arm]), settings, arm

    asked, settings, arm = run(root)
    rows = stored(settings, arm)
    assert asked == len(rows) > 3 and {row["video"] for row in rows} == {
        "mini0.mp4",
        "mini1.mp4",
        "mini2.mp4",
    }
    shutil.copytree(root, tmp_path / "copy")
    assert run(tmp_path / "copy")[0] == 0 and run(tmp_path / "copy")[2].id == arm.id
    assert not [record for record in caplog.records if "changed" in record.message]
    shutil.copy(root / "data" / "mini1.mp4", root / "data" / "mini0.mp4")
    again, settings, arm = run(root)
    assert again == sum(row["video"] == "mini0.mp4" for row in rows)
    assert f"{again} stored questions have changed since they were answered" in caplog.text
    file = root / "videomme" / "test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(file)
    texts = table.column("question").to_pylist()
    texts[2] += " Say so."
    place = table.schema.get_field_index("question")
    pyarrow.parquet.write_table(table.set_column(place, "question", [texts]), file)
    before = read_record(settings.folder / arm.folder)["benchmark"]["revision"]
    assert run(root)[0] == 1
    assert read_record(settings.folder / arm.folder)["benchmark"]["revision"] != before
    assert len(read_answers(settings.folder / arm.folder)) == len(rows)


def test_a_launcher_of_jobs_counts_as_open_what_has_changed(tmp_path, own_data, caplog) -> None:
    settings, arms = prepared(tmp_path, own_data, "compressor=none", "compressor=random budget.retention=0.3")
    run_arms(settings, arms[:1])
    task, questions, _ = run.prepare(settings)[1:]
    first = settings.folder / arms[0].folder
    assert len(done_ids(first)) == len(questions)
    clip = own_data / "videos" / Path(questions[0].video).name
    clip.write_bytes(clip.read_bytes() + b"more")
    run.withdraw_stored(settings, task, arms, questions)
    left = {question.id for question in questions if question.video != questions[0].video}
    assert done_ids(first) == left and "have changed since they were answered" in caplog.text
    assert not (settings.folder / arms[1].folder).exists()
