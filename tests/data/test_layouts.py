"""Data sets laid out in other plausible ways than ours: each works, or says what is wrong with which row or file."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from pyarrow import parquet

from helpers.configured import public_task
from helpers.paths import MINIATURES
from stsimdiff.commands import data as command
from stsimdiff.data.benchmarks import BENCHMARKS, folder_in
from stsimdiff.data.rows import place_of, read_rows
from stsimdiff.errors import DataError
from stsimdiff.evaluate.questions import judge, replay

Rows = list[dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def rows_of(name: str) -> Rows:
    files = [file for file in (MINIATURES / name).rglob("*.parquet") if "GENERATION" not in file.parts]
    return parquet.read_table(files[0]).to_pylist()


def put(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def videos(name: str, root: Path, folder: str = "deep/er/videos") -> list[Path]:
    (root / folder).mkdir(parents=True, exist_ok=True)
    found = sorted((MINIATURES / name).rglob("*.mp4"))
    return [Path(shutil.copy(file, root / folder / file.name)) for file in found]


def check(name: str, root: Path, expected: Rows | None = None) -> None:
    """Every video is found and sound, and the right letters are those of the miniature's own rows."""
    assert command.main([name, "--data", str(root)]) == 0
    task, questions = public_task(name, root)
    own, theirs = (
        sorted(str(row[BENCHMARKS[name].columns[-1]]) for row in rows)
        for rows in (expected or rows_of(name), [question.document for question in questions])
    )
    assert own == theirs
    for question in questions:
        target = judge(task, question, "").target
        assert judge(task, question, f"({target})").correct
        assert Path(question.video).is_file()
    full = replay(task, [(question, judge(task, question, "").target) for question in questions])
    assert set(full.values()) in ({100.0}, {1.0})


@pytest.mark.parametrize("form", [str.lower, "({})".format, "{}.".format, " {} ".format])
@pytest.mark.parametrize("name", ["videomme", "mlvu", "mlvu_test"])
def test_letters_in_other_forms(root: Path, name: str, form) -> None:
    videos(name, root)
    put(
        root / "test-00000-of-00001.parquet", [row | {"answer": form(row["answer"])} for row in rows_of(name)]
    )
    check(name, root)


def test_a_right_answer_said_as_its_text(root: Path) -> None:
    videos("mlvu", root)
    rows = [row | {"answer": row["candidates"]["ABCD".index(row["answer"])]} for row in rows_of("mlvu")]
    put(root / "json/test.parquet", rows)
    check("mlvu", root)


def test_shards_with_other_types_and_more_columns(root: Path) -> None:
    videos("longvideobench", root)
    rows = rows_of("longvideobench")
    put(
        root / "data/validation-00000-of-00002.parquet", [row | {"path": "x", "extra": 1} for row in rows[:3]]
    )
    second = pyarrow.Table.from_pylist([row | {"family": "y"} for row in rows[3:]])
    place = second.column_names.index("correct_choice")
    second = second.set_column(place, "correct_choice", second["correct_choice"].cast("int32"))
    parquet.write_table(second, root / "data/validation-00001-of-00002.parquet")
    # The test split has the same columns and no answers.
    put(root / "data/test-00000-of-00001.parquet", [row | {"correct_choice": -1} for row in rows])
    check("longvideobench", root)


@pytest.mark.parametrize("pad", ["N/A", "n/a", "", None])
def test_pads_of_options_that_a_question_does_not_have(root: Path, pad: str | None) -> None:
    videos("longvideobench", root)
    rows = [
        row | {"option4": pad if row["option4"] == "N/A" else row["option4"]}
        for row in rows_of("longvideobench")
    ]
    put(root / "validation.parquet", rows)
    check("longvideobench", root)
    _, questions = public_task("longvideobench", root)
    assert not any("N/A" in question.text or "None" in question.text for question in questions)


@pytest.mark.parametrize("form", [int, float, str])
def test_places_in_other_types(root: Path, form) -> None:
    for name, column in (("longvideobench", "correct_choice"), ("egoschema", "answer")):
        videos(name, root / name)
        put(root / name / "x.parquet", [row | {column: form(row[column])} for row in rows_of(name)])
        check(name, root / name)


def test_options_as_numpy_arrays(root: Path) -> None:
    videos("videomme", root)
    frame = pandas.DataFrame(rows_of("videomme"))
    frame["options"] = frame["options"].map(lambda options: pandas.Series(options).to_numpy())
    root.mkdir(exist_ok=True)
    frame.to_parquet(root / "test-0.parquet")
    check("videomme", root)


def test_other_containers_and_suffixes(root: Path) -> None:
    for file, suffix in zip(videos("egoschema", root), [".MP4", ".mkv", ".mov", ".m4v"] * 2, strict=True):
        file.rename(file.with_suffix(suffix))
    put(root / "Subset/test.parquet", rows_of("egoschema"))
    check("egoschema", root)
    for file, suffix in zip(videos("mlvu", root / "mlvu"), [".MP4", ".mkv", ".mov"] * 3, strict=False):
        file.rename(file.with_suffix(suffix))
    put(root / "mlvu/test.parquet", rows_of("mlvu"))
    check("mlvu", root / "mlvu")


def test_videos_in_archives(root: Path, capsys: pytest.CaptureFixture) -> None:
    files = videos("videomme", root)
    with zipfile.ZipFile(root / "videos_chunked_01.zip", "w") as archive:
        archive.write(files[0], f"data/{files[0].name}")
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for file in files[1:]:
            archive.add(file, f"./deep/{file.name}")
    data = memory.getvalue()
    for number, part in enumerate((data[:5000], data[5000:])):
        (root / f"rest.tar.part.{number:03}").write_bytes(part)
    shutil.rmtree(root / "deep")
    put(root / "videomme/test-00000-of-00001.parquet", rows_of("videomme"))
    check("videomme", root)
    assert command.main(["videomme", "--data", str(root)]) == 0
    assert capsys.readouterr().out.count("unpacking") == 2


def test_a_copy_of_the_questions_asks_nothing_twice(root: Path) -> None:
    videos("mlvu", root)
    put(root / "a/test-00000-of-00001.parquet", rows_of("mlvu"))
    shutil.copytree(root / "a", root / "b")
    check("mlvu", root)


def test_both_splits_of_mlvu_below_one_folder(root: Path) -> None:
    for name in ("mlvu", "mlvu_test"):
        videos(name, root, f"{name}/video")
        put(root / name / "test-00000-of-00001.parquet", rows_of(name))
    for name in ("mlvu", "mlvu_test"):
        check(name, root)


def test_a_list_of_candidates_in_the_test_split_too(root: Path) -> None:
    videos("mlvu_test", root)
    plain = BENCHMARKS["mlvu_test"]
    rows = [row | {"candidates": plain.options(row)} for row in rows_of("mlvu_test")]
    assert {len(row["candidates"]) for row in rows} == {6}
    put(root / "test.parquet", rows)
    check("mlvu_test", root)


@pytest.mark.parametrize("folder", ["MC", "GENERATION", "data/mc_ppl"])
def test_egoschemas_full_set_is_refused_with_answers_too(root: Path, folder: str) -> None:
    put(root / folder / "test-00000-of-00001.parquet", rows_of("egoschema"))
    with pytest.raises(DataError, match="its public subset"):
        BENCHMARKS["egoschema"].question_files(root)
    put(root / "Subset" / "test-00000-of-00001.parquet", rows_of("egoschema"))
    assert len(BENCHMARKS["egoschema"].question_files(root)) == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("videomme", {"answer": "E"}, r"question 1 of .*answer='E' is none of its 4 options"),
        (
            "videomme",
            {"answer": "2"},
            r"answer='2' is none of its 4 options; the stock form is 'A' for the first",
        ),
        ("videomme", {"options": None}, "has nothing in the column options|no list of 2 to 10 options"),
        ("videomme", {"duration": None}, "question 1 of .* has nothing in the column duration"),
        ("mlvu", {"candidates": ["red"]}, "no list of 2 to 10 options"),
        ("mlvu", {"candidates": ["x", "y"]}, "shows none of its options in the column question"),
        ("mlvu", {"answer": "purple"}, "answer='purple' is none of its 4 options"),
        ("longvideobench", {"option1": "N/A"}, "has an empty option before its last one"),
        ("longvideobench", {"correct_choice": 9}, "correct_choice=9 is none of its"),
        ("egoschema", {"answer": "7"}, "answer='7' is none of its 5 options"),
        ("mlvu_test", {"question": "What?"}, r"no list of 2 to 10 options, but \[\]"),
        ("mlvu_test", {"question": "What?\n(B) red\n(A) blue"}, r"no list of 2 to 10 options, but \[\]"),
        ("mlvu", {"question": "red\ngreen\nblue\nwhite"}, "shows no letter A, B, C, D before an option"),
        ("mlvu", {"question": "(A) red\n(B) green\nblue\nwhite"}, "shows no letter C, D before an option"),
        ("mlvu", {"candidates": ["red", "green"]}, r"has 2 options and shows \(C\) too"),
        ("mlvu", {"answer": "2", "candidates": ["4", "3", "2", "1"]}, "shows none of its options"),
        (
            "videomme",
            {"options": ["A. a", "b", "C. c", "D. d"]},
            "not each begins with its own letter, such as 'A. a'",
        ),
        (
            "videomme",
            {"options": ["B. a", "A. b", "D. c", "C. d"]},
            "put A., B., C., D. before all of them or before",
        ),
        (
            "longvideobench",
            {f"option{i}": f"{'BADCE'[i]}. x{i}" for i in range(5)},
            "not each begins with its own",
        ),
        ("egoschema", {"option": ["a", "b", "C. c", "d", "e"]}, "not each begins with its own letter"),
    ],
)
def test_a_row_that_would_be_scored_wrongly_is_an_error(
    root: Path, name: str, change: dict, message: str
) -> None:
    rows = rows_of(name)
    rows[1] |= change
    put(root / f"{BENCHMARKS[name].split}.parquet", rows)
    with pytest.raises(DataError, match=message):
        read_rows(BENCHMARKS[name], root)


def test_options_as_text_are_refused(root: Path) -> None:
    put(root / "test.parquet", [row | {"options": str(row["options"])} for row in rows_of("videomme")])
    with pytest.raises(DataError, match="no list of 2 to 10 options, but"):
        read_rows(BENCHMARKS["videomme"], root)


def test_shards_that_do_not_fit_together(root: Path) -> None:
    rows = rows_of("videomme")
    put(root / "test-0.parquet", rows[:4])
    put(root / "test-1.parquet", [row | {"question_id": [1, 2]} for row in rows[4:]])
    with pytest.raises(DataError, match="cannot be read together"):
        read_rows(BENCHMARKS["videomme"], root)


@pytest.mark.parametrize(
    ("value", "counted", "place"),
    [
        ("A", False, 0), ("(d)", False, 3), ("b)", False, 1), ("C:", False, 2), ("E", False, None),
        ("red", False, 0), ("twice", False, None), ("1", False, None), ("", False, None), (None, False, None),
        (2, True, 2), ("3", True, 3), (1.0, True, 1), ("1.5", True, None), (-1, True, None), (4, True, None),
        ("A", True, 0),
    ],
)  # fmt: skip
def test_place_of(value: Any, counted: bool, place: int | None) -> None:
    assert place_of(value, ["red", "twice", "twice", "blue"], counted=counted) == place


@pytest.mark.parametrize(
    ("value", "options", "texts", "place"),
    [
        # A letter that is the text of another option, and a number that may be a place or a text.
        ("A", ["B", "A", "C"], None, None), ("A", ["B", "A", "C"], False, 0), ("A", ["B", "A", "C"], True, 1),
        ("A", ["A", "B", "C"], None, 0), ("C", ["B", "A", "x"], None, 2), ("C", ["B", "A", "x"], True, 2),
        ("2", ["3", "2", "1"], None, None), ("2", ["3", "2", "1"], False, None), ("2", ["3", "2", "1"], True, 1),
        ("blue", ["A. red", "B. blue"], None, 1), ("B. blue", ["A. red", "B. blue"], None, 1),
    ],
)  # fmt: skip
def test_what_may_be_two_options_is_none(
    value: str, options: list[str], texts: bool | None, place: int | None
) -> None:
    assert place_of(value, options, counted=False, texts=texts) == place


def test_numbers_are_texts_where_the_column_holds_texts(root: Path) -> None:
    rows = rows_of("mlvu")
    counts = {"candidates": ["4", "3", "2", "1"], "question": "How many?\n(A) 4\n(B) 3\n(C) 2\n(D) 1"}
    put(root / "x/test.parquet", [row | counts | {"answer": "2"} for row in rows])
    with pytest.raises(DataError, match="answer='2' is none of its 4 options"):
        read_rows(BENCHMARKS["mlvu"], root / "x")
    by_text = [row | {"answer": row["candidates"]["ABCD".index(row["answer"])]} for row in rows]
    put(root / "y/test.parquet", [*by_text[:5], by_text[5] | counts | {"answer": "2"}])
    assert [row["answer"] for row in read_rows(BENCHMARKS["mlvu"], root / "y")][5] == "C"


@pytest.mark.parametrize(("name", "column"), [("videomme", "options"), ("egoschema", "option")])
def test_options_without_letters_get_them(root: Path, name: str, column: str) -> None:
    rows = rows_of(name)
    bare = [row | {column: [text.split(". ", 1)[1] for text in row[column]]} for row in rows]
    put(root / f"{BENCHMARKS[name].split}.parquet", bare)
    assert read_rows(BENCHMARKS[name], root) == rows


def test_options_that_the_stock_prompt_letters_lose_their_own(root: Path) -> None:
    rows = rows_of("longvideobench")
    lettered = [
        row
        | {f"option{i}": f"{'ABCDE'[i]}. {row[f'option{i}']}" for i in range(5) if row[f"option{i}"] != "N/A"}
        for row in rows
    ]
    put(root / "validation.parquet", lettered)
    assert read_rows(BENCHMARKS["longvideobench"], root) == rows


def test_the_folder_of_a_benchmark_in_that_of_all(tmp_path: Path) -> None:
    for name in ("Video-MME", "MLVU_Test", "mlvu", "LongVideoBench", "Video-MME-v2", "NExTQA"):
        (tmp_path / name).mkdir()
    found = {name: folder_in(tmp_path, name).name for name in BENCHMARKS}
    assert found == {
        "videomme": "Video-MME",
        "mlvu": "mlvu",
        "mlvu_test": "MLVU_Test",
        "longvideobench": "LongVideoBench",
        "egoschema": "egoschema",
        "egoschema_full": "egoschema_full",
        "mvbench": "mvbench",
        "lvbench": "lvbench",
        "nextqa": "NExTQA",
        "tempcompass": "tempcompass",
        "motionbench": "motionbench",
        "videomme_v2": "Video-MME-v2",
    }
