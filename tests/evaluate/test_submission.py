"""EgoSchema's full set, whose answers only a server knows: a file of predictions, no accuracy, and nothing is sent."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import socket
from pathlib import Path

import pytest
from pyarrow import Table, parquet

from helpers.paths import MINIATURES
from helpers.written import csv_rows, json_lines
from stsimdiff.commands import doctor, lmms_command, lmms_eval
from stsimdiff.data.benchmarks import BENCHMARKS, folder_in
from stsimdiff.errors import DataError, RunFailed
from stsimdiff.evaluate import session
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.evaluate.questions import all_questions, judge, load_task
from stsimdiff.evaluate.run import run_arms
from stsimdiff.launchers.base import configurations
from stsimdiff.launchers.in_process import make_report, run_configurations
from stsimdiff.report.publish import publish

MINIATURE = MINIATURES / "egoschema"
SERVER = "https://validation-server.onrender.com/api/upload/"
SAID = ("A", "(B)", "C.", "D. black", "E", "I cannot tell", "B", "RAISE")
FULL = BENCHMARKS["egoschema_full"]
ANSWER = session.Session.answer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Both sets in one folder, as the hub has them."""
    ignored = shutil.ignore_patterns("stsimdiff_index.json")
    shutil.copytree(MINIATURE, tmp_path / "data" / "egoschema", ignore=ignored)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def nothing_is_sent(monkeypatch) -> None:
    connect = socket.socket.connect

    def local(self, address):
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def words(data: Path, *more: str) -> list[str]:
    common = ["benchmark=egoschema_full", f"data={data}", f"results={data.parent}", "run=full", "overlays=2"]
    return [*common, "budget.retention=0.3", *more]


def run(data: Path, *more: str) -> int:
    """Answers given in this call."""
    (one,) = passes_of(configurations(words(data, *more)))
    return run_arms(one.settings, list(one.arms.values()), report=make_report)


def says(monkeypatch, said: tuple[str, ...]) -> None:
    """Have the model answer question ``mini-N-1`` with the text N; RAISE fails."""

    def answer(self, arm, question, asked):
        text = said[int(question.id.split("-")[1])]
        if text == "RAISE":
            raise ValueError("this sample fails")
        return dataclasses.replace(ANSWER(self, arm, question, asked), text=text)

    monkeypatch.setattr(session.Session, "answer", answer)


def test_a_run_writes_what_the_server_takes(data: Path, monkeypatch) -> None:
    says(monkeypatch, SAID)
    arms = "compressor=none,random,st_simdiff", "logger=wandb"
    with pytest.raises(RunFailed, match="3 samples have no answer"):
        run(data, *arms)
    folder = data.parent / "full"
    files = sorted(folder.glob("*/submission.json"))
    assert len(files) == 3
    for file in files:
        # The unreadable sixth and the failed eighth are left out: nothing is guessed.
        expected = {"mini-0": 0, "mini-1": 1, "mini-2": 2, "mini-3": 3, "mini-4": 4, "mini-6": 1}
        assert json.loads(file.read_text()) == expected
        metrics = json.loads((file.parent / "metrics.json").read_text())
        assert (metrics["n"], metrics["n_failed"], metrics["n_unread"]) == (7, 1, 1)
        assert (metrics["accuracy"], metrics["stock"], metrics["metrics"]) == (None, None, {})
        rows = json_lines(file.parent / "answers.jsonl")
        assert {(row["target"] if row["error"] is None else None, row["correct"]) for row in rows} == {
            (None, None)
        }
        assert all(row["stock_correct"] is None for row in rows if row["error"] is None)
    for row in csv_rows(folder / "table.csv"):
        assert row["overall"] == row["ci_low"] == row["ci_high"] == "" and "paper" not in row
        assert (row["n"], row["n_failed"], row["n_unparsed"]) == ("7", "1", "1")
        assert float(row["retention_tokens"]) > 0.29
    table = " ".join((folder / "table.md").read_text().split())
    ours = table.partition("## The paper's numbers")[0]
    assert f"curl -X POST -H 'Content-Type: application/json' -d @FILE {SERVER}" in ours
    assert "printed 57.3 for all tokens" in ours and "No accuracy, so no verdict" in ours
    assert ours.count("submission.json in the run's folder has 6 of 8 answers") == 3
    assert "1 without a readable letter, 1 that failed" in ours
    for wrong in ("gate", "nan", "| 0.0 |", "count as wrong", "Scored by", "leads"):
        assert wrong not in ours, wrong
    assert (folder / "pairs.csv").read_text().count("\n") == 1, "nothing is compared"
    assert "nan" not in (folder / "table.tex").read_text()
    page = (folder / "report.html").read_text()
    assert '"correct":null' in page
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 3 + 1
    assert not list((folder / "figures").glob("accuracy*"))

    # Resumed: what failed is asked again, the rest is not, and a lost file is made again.
    says(monkeypatch, (*SAID[:7], "C"))
    assert run(data, *arms, "retry_failed=true") == 3
    assert {json.loads(file.read_text())["mini-7"] for file in files} == {2}
    files[0].unlink()
    assert run(data, *arms) == 0 and "mini-7" in files[0].read_text()
    before = (folder / "table.md").read_text()
    publish(folder, None)
    assert (folder / "table.md").read_text() == before


def test_parts_of_a_method_are_not_attributed_without_answers(data: Path, monkeypatch) -> None:
    says(monkeypatch, ("A",) * 8)
    run(data, "logger=none", "limit=2", "compressor=none")
    run(data, "logger=none", "limit=2", "compressor=st_simdiff")
    run(data, "logger=none", "limit=2", "compressor=st_simdiff", "compressor.similarity=false")
    assert "attribution" not in (data.parent / "full" / "table.md").read_text().lower()
    assert not (data.parent / "full" / "attribution.md").exists()


def test_the_task_neither_scores_nor_posts(data: Path) -> None:
    (one,) = passes_of(configurations(words(data, "logger=none", "compressor=none")))
    assert one.settings.benchmark.server == SERVER
    task = load_task(one.settings.benchmark)
    question = all_questions(task, 1, None)[0]
    assert question.text.endswith("Answer with the option's letter from the given choices directly.")
    found = judge(task, question, "The answer is (B).")
    assert (found.parsed, found.target, found.correct) == ("B", None, None)
    assert (found.stock_parsed, found.stock_correct, found.stock_error) == ("B", None, None)
    (metric,) = task.aggregation()
    records = [task.process_results(question.document, ["B"])[metric]]
    assert math.isnan(task.aggregation()[metric](records))


def test_the_questions_are_those_of_the_full_set(data: Path) -> None:
    root = data / "egoschema"
    name = "test-00000-of-00001.parquet"
    assert FULL.question_files(root) == [root / "GENERATION" / name]
    assert BENCHMARKS["egoschema"].question_files(root) == [root / "Subset" / name]
    # lmms-eval asks GENERATION; the others hold the same questions.
    shutil.copytree(root / "GENERATION", root / "MC_PPL")
    rows = parquet.read_table(root / "GENERATION" / name).to_pylist()
    (root / "MC").mkdir()
    parquet.write_table(Table.from_pylist(rows[:4]), root / "MC" / name)
    assert FULL.question_files(root) == [root / "GENERATION" / name]
    shutil.rmtree(root / "GENERATION")
    assert FULL.question_files(root) == [root / "MC" / name]
    # In no folder, the answers tell.
    for path in ("MC", "MC_PPL"):
        shutil.rmtree(root / path)
    shutil.move(root / "Subset" / name, root / name)
    with pytest.raises(DataError, match=r"questions of egoschema_full \(the full set\); needed"):
        FULL.question_files(root)
    bare = [{key: row[key] for key in ("video_idx", "question", "option")} for row in rows]
    parquet.write_table(Table.from_pylist(bare), root / "full.parquet")
    assert FULL.question_files(root) == [root / "full.parquet"]


def test_both_sets_lie_in_one_folder(data: Path) -> None:
    assert folder_in(data, "egoschema_full") == data / "egoschema"
    (data / "EgoSchema-full").mkdir()
    assert folder_in(data, "egoschema_full") == data / "EgoSchema-full"
    assert folder_in(data, "egoschema") == data / "egoschema"


def test_plan_and_doctor_need_no_answers(data: Path, capsys) -> None:
    asked = ["benchmark=egoschema_full", "compressor=random", "logger=none"]
    run_configurations(
        configurations([*asked, f"data={data.parent / 'nowhere'}", "plan=true", "plan_tflops=1"])
    )
    assert "5031 about 5031 videos" in capsys.readouterr().out
    run_configurations(configurations([*asked, f"data={data}", "plan=true", "plan_tflops=1"]))
    assert "8 about 8 videos" in capsys.readouterr().out
    assert doctor.main([*asked, f"data={data}", "model.frames=4"]) == 0
    said = capsys.readouterr().out
    assert "8 questions about 8 videos" in said and "FAILED" not in said


def test_lmms_evals_own_command_is_refused(data: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(lmms_command, "_told", None)  # put back: other tests run no command of lmms-eval's
    (one,) = passes_of(configurations(words(data, "logger=none", "compressor=none")))
    task = load_task(one.settings.benchmark)
    model = lmms_eval.StSimDiff(data=str(data), results=str(data.parent))
    with pytest.raises(SystemExit) as caught, lmms_eval.ending():
        model._answer(
            "stsimdiff_egoschema_full", task, all_questions(task, 1, None), task.config.generation_kwargs
        )
    assert caught.value.code == 2
    assert re.search("has no public answers to score here; python -m stsimdiff", capsys.readouterr().err)
