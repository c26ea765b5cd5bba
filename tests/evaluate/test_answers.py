"""What becomes of answers: two scores, arms that cannot be read, logits that are no numbers, the answer's length."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.configured import configured, public_task
from helpers.embedded_runs import stored
from helpers.paths import MINIATURES
from helpers.written import json_lines
from stsimdiff.data.clips import rows as questions_file
from stsimdiff.errors import ConfigError, DataError, RunFailed
from stsimdiff.evaluate import run, session
from stsimdiff.evaluate.questions import all_questions, judge, load_task
from stsimdiff.files import write_whole
from stsimdiff.launchers.in_process import make_report
from stsimdiff.models import base
from stsimdiff.models.base import Family


def prepared(tmp_path: Path, *lines: str):
    """Settings and an arm for each line of words."""
    made = [configured(f"results={tmp_path}", "run=test", "logger=none", *line.split()) for line in lines]
    return made[-1][0], [arm for _, arm in made]


def says(monkeypatch, texts: Sequence[str]) -> None:
    """Has the model run, and then say these texts in turn."""
    runs, said = Family.answer, iter(list(texts) * 100)
    monkeypatch.setattr(Family, "answer", lambda *given: (runs(*given), next(said))[1])


def test_an_arm_that_cannot_be_read_is_a_failure(tmp_path: Path, data: Path, monkeypatch) -> None:
    words = f"benchmark.data={data} limit=5"
    settings, arms = prepared(tmp_path, f"compressor=none {words}", f"compressor=no_video {words}")
    says(
        monkeypatch,
        2 * ["", "The ring is red", "!!!!!!", "A or B", "A"],  # one arm's answers after the other's
    )
    with pytest.raises(RunFailed) as caught:
        run.run_arms(settings, arms, report=make_report)
    said = str(caught.value)
    assert "4 of 5 answers of none at 100 % give no letter, such as '', 'The ring is red', '!!!!!!'" in said
    # The question alone may well be refused an answer: that is said in the table only.
    assert "no_video" not in said and "benchmark.max_new_tokens=1" in said
    metrics = json.loads((settings.folder / arms[1].folder / "metrics.json").read_text())
    assert (metrics["n"], metrics["n_unread"], metrics["n_failed"]) == (5, 4, 0)
    table = (settings.folder / "table.md").read_text()
    assert "MOSTLY UNREAD: none, no_video" in table
    # Nothing is asked again, and it is a failure again.
    with pytest.raises(RunFailed, match="4 of 5 answers of none"):
        run.run_arms(settings, arms, report=make_report)


@pytest.mark.parametrize(("texts", "limit"), [(["", "A"], 10), (["", "", "A"], 3), ([""], 2)])
def test_a_few_unread_answers_are_wrong_and_no_failure(
    tmp_path: Path, data: Path, monkeypatch, texts: list[str], limit: int
) -> None:
    settings, arms = prepared(tmp_path, f"compressor=none benchmark.data={data} limit={limit}")
    says(monkeypatch, texts)
    assert run.run_arms(settings, arms, report=make_report) == limit
    assert "MOSTLY UNREAD" not in (settings.folder / "table.md").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_failures(
    tmp_path: Path, data: Path, monkeypatch, value: float
) -> None:
    settings, arms = prepared(
        tmp_path, f"compressor=random budget.retention=0.3 benchmark.data={data} limit=3"
    )
    load = session.load_model

    def broken(settings) -> Family:
        family = load(settings)
        head = family.model.get_output_embeddings()
        head.register_forward_hook(lambda module, given, logits: torch.full_like(logits, value))
        return family

    monkeypatch.setattr(session, "load_model", broken)
    with pytest.raises(RunFailed) as caught:
        run.run_arms(settings, arms)
    expected = "FloatingPointError: the model's logits are NaN or Inf at new token 1 (model.dtype=float32)"
    assert "3 samples have no answer" in str(caught.value) and expected in str(caught.value)
    metrics = json.loads((settings.folder / arms[0].folder / "metrics.json").read_text())
    assert (metrics["n"], metrics["n_failed"], metrics["accuracy"]) == (0, 3, None)


@pytest.mark.parametrize(
    ("value", "place", "refused"),
    [(float("nan"), 0, True), (float("nan"), 3, True), (float("inf"), 7, True), (float("-inf"), 3, False)],
)
def test_one_logit_that_is_no_number_is_found_wherever_it_stands(value, place, refused) -> None:
    """-Inf beside finite logits is a token that is not chosen, as masks make it, and no other choice depends on it."""
    scores = torch.linspace(-2, 2, 8)[None]
    right = int(scores.argmax())
    scores[0, place] = value
    watch = base._FiniteLogits()
    assert watch(torch.zeros(1, 1), scores) is scores
    if refused:
        with pytest.raises(FloatingPointError, match="at new token 1"):
            Family._check_finite(SimpleNamespace(dtype_name="float32"), watch)
    else:
        Family._check_finite(SimpleNamespace(dtype_name="float32"), watch)
        assert int(scores.argmax()) == right


def test_float16_is_named_as_the_likely_cause() -> None:
    family = SimpleNamespace(dtype_name="float16")
    watch = SimpleNamespace(tops=[torch.tensor(1.0), torch.tensor(float("nan"))])
    with pytest.raises(
        FloatingPointError, match=r"at new token 2 .*float16 overflows.*try model.dtype=bfloat16"
    ):
        Family._check_finite(family, watch)


@pytest.mark.parametrize(
    ("name", "text", "parsed", "stock", "error"),
    [
        ("videomme", "B - green", "B", "B", None),
        ("videomme", "A man walks", None, "A", None),
        ("videomme", "", None, None, None),
        ("mlvu", "C because", "C", "C", None),
        ("mlvu", "Between A and C", None, "C", None),
        ("mlvu_test", "E", "E", None, None),
        ("longvideobench", "D", "D", "D", None),
        ("longvideobench", "the red one", None, None, "drew lots"),
        ("longvideobench", "Ｂ．", "B", None, "drew lots"),
        ("egoschema", "(C)", "C", "C", None),
        ("egoschema", "**C**", "C", None, "drew lots"),
        ("egoschema", "", None, None, "drew lots"),
    ],
)
def test_the_stock_reading_stands_beside_ours(
    name: str, text: str, parsed: str | None, stock: str | None, error: str | None
) -> None:
    task, questions = public_task(name, MINIATURES / name)
    state = random.getstate()
    for question in questions:
        judgement = judge(task, question, text)
        assert (judgement.parsed, judgement.correct) == (parsed, parsed == judgement.target)
        assert (judgement.stock_parsed, judgement.stock_error) == (stock, error)
        assert judgement.stock_correct == (None if error else stock == judgement.target)
    assert random.getstate() == state


def test_a_stock_function_that_raises_is_recorded() -> None:
    task, (question, *_) = public_task("videomme", MINIATURES / "videomme")
    process = task.config.process_results

    def fails(document: dict, results: list[str]) -> dict:
        if len(results[0]) > 1:
            raise KeyError("no such place")
        return process(document, results)

    task.config.process_results = fails
    judgement = judge(task, question, "(B)")
    assert (judgement.parsed, judgement.stock_parsed, judgement.stock_correct) == ("B", None, None)
    assert judgement.stock_error == "KeyError: 'no such place'"


def test_the_table_says_where_the_stock_reading_differs(tmp_path: Path, monkeypatch) -> None:
    settings, arms = prepared(
        tmp_path, f"compressor=random benchmark=videomme benchmark.data={MINIATURES / 'videomme'}"
    )
    says(monkeypatch, ["A", "A man walks", "(A)"])
    run.run_arms(settings, arms, report=make_report)
    rows = stored(settings, arms[0])
    ours = sum(row["correct"] for row in rows)
    stock = sum(row["target"] == "A" for row in rows)
    assert stock > ours and {row["stock_parsed"] for row in rows} == {"A"}
    metrics = json.loads((settings.folder / arms[0].folder / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(100 * ours / 9)
    assert metrics["stock"] == {"accuracy": pytest.approx(100 * stock / 9), "n_differing": 3, "errors": {}}
    expected = f"{stock - ours} of 9 ({100 * stock / 9:.1f} % instead of {100 * ours / 9:.1f} %)"
    assert expected in (settings.folder / "table.md").read_text()


def test_rows_of_an_earlier_version_have_no_stock_score(tmp_path: Path, data: Path) -> None:
    settings, arms = prepared(tmp_path, f"compressor=none benchmark.data={data} limit=3")
    run.run_arms(settings, arms)
    file = settings.folder / arms[0].folder / "answers.jsonl"
    rows = json_lines(file)
    assert all((row["stock_parsed"], row["stock_correct"]) == (row["parsed"], row["correct"]) for row in rows)
    old = [{key: value for key, value in row.items() if not key.startswith("stock")} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in old))
    run.run_arms(settings, arms)
    metrics = json.loads((file.parent / "metrics.json").read_text())
    assert metrics["stock"] is None and metrics["accuracy"] == pytest.approx(
        100 * sum(row["correct"] for row in rows) / 3
    )


def test_more_new_tokens_are_another_arm(tmp_path: Path) -> None:
    words = f"compressor=random benchmark=videomme benchmark.data={MINIATURES / 'videomme'}"
    _, (usual,) = prepared(tmp_path, words)
    settings, (more,) = prepared(tmp_path, f"{words} benchmark.max_new_tokens=40")
    assert usual.id != more.id and settings.benchmark.max_new_tokens == 40
    questions = all_questions(load_task(settings.benchmark), None, None)
    assert {question.max_new_tokens for question in questions} == {40}


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "many", "32769"])
def test_a_length_that_cannot_be_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"benchmark.max_new_tokens=.* is out of range; allowed: a whole number from 1"
    ):
        prepared(tmp_path, f"compressor=none benchmark.max_new_tokens={value}")


ROW = {
    "id": "q",
    "video": "a.mp4",
    "family": "x",
    "question": "What?",
    "options": ["red", "blue"],
    "answer": "A",
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(ROW)[:-1] + ', "answer": "B"}', "line 1: not JSON: the key 'answer' stands there twice"),
        ("[" * 100_000, "line 1: not JSON"),
        (json.dumps(ROW | {"question": "\ud800"}), "holds half a character"),
        (json.dumps(ROW | {"video": "a\0.mp4"}), "holds half a character or a null"),
        (json.dumps(ROW | {"id": 1}), "id=1; expected a text"),
        (json.dumps(ROW | {"id": float("nan")}), "id=nan; expected a text"),
        (json.dumps([ROW]), "a list where an object was expected"),
        (json.dumps(ROW | {"options": ["red", 2]}), "expected a list of 2 to 10 different texts"),
    ],
)
def test_odd_rows_of_a_users_folder_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "questions.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        questions_file.read(tmp_path)


def test_rows_with_odd_line_ends_are_read(tmp_path: Path) -> None:
    row = ROW | {"question": "one\u2028two\x85three", "options": ["red", "blue\u2029"]}
    text = "\ufeff\r\n" + json.dumps(row, ensure_ascii=False) + "\r\n\r\n"
    (tmp_path / "questions.jsonl").write_text(text, encoding="utf-8", newline="")
    assert questions_file.read(tmp_path) == [row]


def rows_task(rows: list[dict], generation: dict | None = None):
    """A user's task with these rows."""
    message: Callable = lambda row: [  # noqa: E731
        {"content": [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": row.get("question", "?")}]}
    ]
    config = SimpleNamespace(task="mine", generation_kwargs=generation)
    return SimpleNamespace(config=config, eval_docs=rows, doc_to_messages=message)


def test_ids_categories_and_length_of_a_users_task() -> None:
    rows = [
        {"id": "a"},
        {"id": None, "question_id": 7, "category": None},
        {"id": None, "category": "x"},
        {"id": 0},
    ]
    found = all_questions(rows_task(rows), None, None)
    assert [question.id for question in found] == ["a", "7", "2", "0"]
    assert [question.category for question in found] == ["all", "all", "x", "all"]
    assert {question.max_new_tokens for question in found} == {16}
    assert [one.id for one in all_questions(rows_task(rows), 2, None)] == ["a", "7"]
    assert [one.id for one in all_questions(rows_task(rows), 2, ["x"])] == ["2"]


def test_rows_under_the_former_name_of_a_category_are_read() -> None:
    rows = [
        {"family": "x"},
        {"family": "x", "category": "a column of its own"},
        {"family": None, "category": "y"},
    ]
    found = all_questions(rows_task([row | {"kind": "z"} for row in rows]), None, None)
    assert [question.category for question in found] == ["x", "x", "y"]
    assert [question.columns for question in found] == [{"kind": "z"}] * 3


def test_two_questions_with_one_id_are_refused() -> None:
    with pytest.raises(DataError, match="mine: two questions have the id '1'"):
        all_questions(rows_task([{"id": 1}, {"id": "2"}, {"id": "1"}]), None, None)
    with pytest.raises(DataError, match=r"mine: no question is left; categories: \['nothing'\]"):
        all_questions(rows_task([{"id": 1}]), None, ["nothing"])


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "null", '"text"', '{"of": "other"}'])
def test_metrics_that_are_damaged_or_of_other_rows_are_made_again(
    tmp_path: Path, data: Path, content: str | None
) -> None:
    settings, arms = prepared(tmp_path, f"compressor=none benchmark.data={data} limit=2")
    run.run_arms(settings, arms)
    file = settings.folder / arms[0].folder / "metrics.json"
    right = file.read_text()
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    run.run_arms(settings, arms)
    assert file.read_text() == right
    assert not list(file.parent.glob(".metrics*"))


def test_metrics_are_kept_whole_where_they_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("{}")
    with pytest.raises(TypeError):
        write_whole(path, object())
    assert path.read_text() == "{}"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        write_whole(path, "{}")
    assert list(tmp_path.iterdir()) == [path]
