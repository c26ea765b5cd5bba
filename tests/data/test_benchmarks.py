"""The public benchmarks, from parquet and mp4 to lmms-eval's own score, on miniatures in their schemas."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from helpers.configured import on_miniature
from helpers.embedded_runs import stored
from helpers.paths import MINIATURES
from helpers.processes import python
from helpers.written import csv_rows, json_lines
from stsimdiff.data.benchmarks import BENCHMARKS
from stsimdiff.errors import ConfigError, DataError, RunFailed
from stsimdiff.evaluate import run, session
from stsimdiff.evaluate.questions import all_questions, judge, load_task, replay
from stsimdiff.launchers.in_process import make_report
from stsimdiff.report.publish import files
from stsimdiff.report.rows import read
from stsimdiff.report.table import build

load_model = session.load_model
NAMES = (
    *("videomme", "mlvu", "mlvu_test", "longvideobench", "egoschema"),
    *("mvbench", "lvbench", "nextqa", "tempcompass", "motionbench", "videomme_v2"),
)
UNREADABLE = ("", " ", "A man walks", "Because", "A or B", "I cannot tell", "J", "(", "the red one")
ID = {
    "videomme": "001-1",
    "mlvu": "topic_reasoning_0.mp4-1",
    "mlvu_test": "test_anomaly_reco_1.mp4-1",
    "longvideobench": "mini0_0",
    "egoschema": "mini-0-1",
    "mvbench": "FunQA_test/test/mini3.mp4-1",
    "lvbench": "100",
    "nextqa": "4010069380-1",
    "tempcompass": "1021488277-1",
    "motionbench": "uid-0-0",
    "videomme_v2": "001-1",
}
INSTRUCTION = {
    "videomme": "\nAnswer with the option's letter from the given choices directly.",
    "mlvu": "\nOnly give the best option.\nBest option: (",
    "mlvu_test": "\nOnly give the best option.\nBest option: (",
    "longvideobench": "\nAnswer with the option's letter from the given choices directly.\n",
    "egoschema": "\nAnswer with the option's letter from the given choices directly.",
    "mvbench": "\nOnly give the best option.\n",
    "lvbench": "\nAnswer the question with the option letter",
    "nextqa": "\nAnswer with the option's letter from the given choices directly.",
    "tempcompass": "\nPlease directly give the best option:",
    "motionbench": "\nAnswer with only the option letter (A, B, C, D, E, or F).",
    "videomme_v2": " Respond with only the letter (A, B, C, D, E, F, G, or H) of the correct option.",
}  # fmt: skip


def written(name: str) -> list[dict]:
    """The rows as the script has them that made the miniatures: without parquet or lmms-eval between."""
    spec = importlib.util.spec_from_file_location("make_miniatures", MINIATURES / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.MINIATURES[name]()[0]
    # Its file has a line a video; lmms-eval's own function makes rows of questions of it.
    return list(stock_module(name).motionbench_process_docs(rows)) if name == "motionbench" else rows


def letter(row: dict) -> str:
    """The right letter of a row of any of them."""
    if "candidates" in row and row["answer"] in row["candidates"]:
        return "ABCD"[row["candidates"].index(row["answer"])]
    answer = str(row.get("answer", row.get("correct_choice")))
    return answer[0] if answer[0] in "ABCDEFGH" else "ABCDE"[int(answer)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Copies of all four, that a test may harm."""
    shutil.copytree(MINIATURES, tmp_path / "data")
    return tmp_path / "data"


def prepared(name: str, data: Path, *words: str):
    """Settings and the arm."""
    return on_miniature(name, data.parent, *words, data=data)


def task_of(name: str, data: Path, *words: str):
    settings, _ = prepared(name, data, *words)
    task = load_task(settings.benchmark)
    return task, all_questions(task, None, settings.benchmark.categories)


def stock_module(name: str):
    """lmms-eval's code of a benchmark, imported by another way than ours."""
    os.environ.setdefault("HF_HOME", os.devnull)
    # NExT-QA's would fetch word lists that its multiple choice does not need.
    sys.modules.setdefault("nltk", None)
    return importlib.import_module(f"lmms_eval.tasks.{name.removesuffix('_test')}.utils")


def mean(values: list) -> float:
    return sum(values) / len(values)


def stock(name: str):
    """Process and aggregate functions as lmms-eval has them."""
    utils = stock_module(name)
    return {
        "videomme": lambda: (utils.videomme_process_results, utils.videomme_aggregate_results),
        "mlvu": lambda: (utils.mlvu_process_results, utils.mlvu_aggregate_results_dev),
        # The stock parser reads A to D: the record of E or F is what it gives for A, with the letter in A's place.
        "mlvu_test": lambda: (
            lambda row, said: {
                name: record | {"pred_answer": said[0]}
                for name, record in utils.mlvu_process_results(row, ["A"]).items()
            },
            utils.mlvu_aggregate_results_test,
        ),
        "longvideobench": lambda: (
            utils.longvideobench_process_results,
            utils.longvideobench_aggregate_results,
        ),
        "egoschema": lambda: (
            utils.egoschema_process_results_generation,
            lambda records: utils.egoschema_aggregate_score(records, None),
        ),
        "mvbench": lambda: (utils.mvbench_process_results, utils.mvbench_aggregate_results),
        "lvbench": lambda: (utils.lvbench_process_results, mean),
        "nextqa": lambda: (utils.nextqa_mc_process_results, mean),
        "tempcompass": lambda: (
            utils.tempcompass_process_results_multi_choice,
            lambda records: utils.tempcompass_aggregate_rating(records, None),
        ),
        "motionbench": lambda: (utils.motionbench_process_results, utils.motionbench_aggregate_acc),
        "videomme_v2": lambda: (
            utils.videomme_v2_process_results,
            utils.videomme_v2_aggregate_overall_score,
        ),
    }[name]()


METRIC = {
    "videomme": "videomme_perception_score",
    "mlvu": "mlvu_percetion_score",
    "mlvu_test": "mlvu_percetion_score",
    "longvideobench": "lvb_acc",
    "egoschema": "score",
    "mvbench": "mvbench_accuracy",
    "lvbench": "lvbench_score",
    "nextqa": "exact_match",
    "tempcompass": "avg_accuracy",
    "motionbench": "motionbench_acc",
    "videomme_v2": "videomme_v2_overall_score",
}


@pytest.mark.parametrize("name", NAMES)
def test_from_files_to_the_score(name: str, data: Path, monkeypatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.chdir(data)
    settings, arm = prepared(name, data)
    assert run.run_arms(settings, [arm]) == len(written(name))
    rows, source = stored(settings, arm), written(name)
    assert ID[name] in {row["id"] for row in rows} and len(rows) == len(source) >= 8
    assert len({row["id"] for row in rows}) == len(rows)
    categories = BENCHMARKS[name].categories
    assert {row["category"] for row in rows} == set(categories)
    by_id = {question.id: question for question in task_of(name, data)[1]}
    process, aggregate = stock(name)
    records = []
    for row in rows:
        document = dict(by_id[row["id"]].document)
        (origin,) = [row for row in source if row.items() <= document.items()]
        assert row["target"] == letter(origin)
        assert row["correct"] == (row["parsed"] == row["target"])
        assert row["answer"] and row["error"] is None
        # Where a letter was read, the stock functions score it; elsewhere any letter but the right one is as wrong.
        wrong = "A" if row["target"] != "A" else "B"
        records.append(process(origin, [row["parsed"] or wrong])[METRIC[name]])
    metrics = json.loads((settings.folder / arm.folder / "metrics.json").read_text())
    scores = metrics["metrics"]
    assert scores.pop(METRIC[name]) == pytest.approx(aggregate(records))
    # Video-MME-v2 scores groups and questions, MotionBench how many it could read, TempCompass each of its aspects.
    also = {"videomme_v2": 11, "motionbench": 2, "tempcompass": 5}
    assert len(scores) == also.get(name, 0)
    if name == "tempcompass":
        for aspect in categories:
            right = [row["correct"] for row in rows if row["category"] == aspect]
            assert scores[f"{aspect}_accuracy"] == pytest.approx(100 * mean(right))
    if name == "videomme_v2":
        assert scores["videomme_v2_overall_acc"] == pytest.approx(metrics["accuracy"])
    assert metrics["accuracy"] == pytest.approx(100 * sum(row["correct"] for row in rows) / len(rows))
    (cells,) = csv.DictReader(io.StringIO(files(build(read(settings.folder)))["table.csv"]))
    assert [head for head in cells if head.startswith("acc_")] == [
        f"acc_{category}" for category in categories if category != "all"
    ]
    assert not (data / "~").exists() and not list(data.glob("*/*.lock"))


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_gives_no_letter_is_wrong_and_never_drawn(name: str, data: Path) -> None:
    task, questions = task_of(name, data)
    for question in questions:
        for answer in UNREADABLE * 4:
            judgement = judge(task, question, answer)
            assert (judgement.parsed, judgement.correct) == (None, False)
    for answer in UNREADABLE:
        nothing = replay(task, [(question, answer) for question in questions])
        assert METRIC[name] in nothing and set(nothing.values()) == {0}
    # Beside answers that are read, they stay in the denominator.
    twice = questions * (1 if BENCHMARKS[name].grouped else 2)  # a group is asked once
    half = [(q, judge(task, q, "").target if i % 2 else "A man") for i, q in enumerate(twice)]
    expected = sum(i % 2 for i in range(len(half))) / len(half)
    if not name.startswith("mlvu"):
        scale = 100 if name in ("videomme", "tempcompass", "videomme_v2", "mvbench") else 1
        metric = METRIC[name].replace("overall_score", "overall_acc")
        assert replay(task, half)[metric] == pytest.approx(scale * expected, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_judged_without_a_look_at_the_other_rows(name: str, data: Path) -> None:
    task, questions = task_of(name, data)
    task.dataset = {}
    judgement = judge(task, questions[0], judge(task, questions[0], "").target)
    assert judgement.correct and judgement.stock_error is None


@pytest.mark.parametrize("name", NAMES)
def test_every_letter_is_scored_by_the_stock_functions(name: str, data: Path) -> None:
    task, questions = task_of(name, data)
    process, aggregate = stock(name)
    for question in questions[:4]:
        target, options = judge(task, question, "").target, len(BENCHMARKS[name].options(question.document))
        for given in "ABCDEFGH"[:options]:
            record = process(question.document, [given])[METRIC[name]]
            alone = record["score"] if name == "videomme_v2" else aggregate([record])
            for form in ("{}", " ({}) ", "{}. red", "The best answer is {}."):
                judgement = judge(task, question, form.format(given))
                assert (judgement.parsed, judgement.correct) == (given, given == target) == (given, alone > 0)
        for beyond in "ABCDEFGHI"[options:]:
            assert judge(task, question, beyond).parsed is None


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_the_stock_one(name: str, data: Path) -> None:
    task, questions = task_of(name, data)
    text = questions[0].text
    letters = [letter for letter in "ABCDEFGH" if f"({letter})" in text or f"{letter}. " in text]
    assert len(letters) == len(BENCHMARKS[name].options(questions[0].document))
    assert text.endswith(INSTRUCTION[name])
    for option in BENCHMARKS[name].options(questions[0].document):
        assert option in text
    assert "N/A" not in text
    assert questions[0].max_new_tokens == {"longvideobench": 32, "motionbench": 64, "videomme_v2": 64}.get(
        name, 16
    )


@pytest.mark.parametrize(
    ("name", "prompt", "ending"),
    [
        ("videomme", "llava_vid", "\nThe best answer is:"),
        ("videomme", "qwen3_vl", "\nAnswer with the option letter only."),
        ("mlvu", "plm", "\nOnly give the best option."),
        ("mlvu_test", "plm", "\nOnly give the best option."),
        ("mlvu_test", "stock", "(F) white\n"),
        ("nextqa", "stock", "E. black"),
        ("tempcompass", "plm", "\nOnly give the best option."),
        ("videomme_v2", "qwen3_vl", "Answer with the option letter only."),
    ],
)
def test_another_prompt_is_another_arm(name: str, prompt: str, ending: str, data: Path) -> None:
    _, usual = prepared(name, data)
    settings, other = prepared(name, data, f"benchmark.prompt={prompt}")
    assert usual.id != other.id and usual.folder != other.folder
    assert settings.benchmark.prompt == prompt
    assert task_of(name, data, f"benchmark.prompt={prompt}")[1][0].text.endswith(ending)


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("videomme", "benchmark.prompt=llava_video", r"llava_video is unknown; allowed: default, gpt4v"),
        ("longvideobench", "benchmark.prompt=llava_vid", r"allowed: default$"),
        ("clips", "benchmark.prompt=llava_vid benchmark.data=null", r"allowed: default$"),
        ("mlvu", "benchmark.categories=[needel]", r"benchmark.categories=needel is unknown; .*did you mean needle\?"),
        ("mlvu", "benchmark.decoder=ffmpeg", r"benchmark.decoder=ffmpeg is unknown; allowed: pyav, torchcodec, decord"),
        ("mlvu", "benchmark.allow_missing=yes_please", r"benchmark.allow_missing='yes_please' is out of range"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(name: str, word: str, message: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(name, data, *word.split())


def test_data_that_is_absent_or_of_another_kind(data: Path, monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"is no folder; `make data BENCHMARK=mlvu` fetches it, benchmark.data=/path"
    ):
        prepared("mlvu", tmp_path / "nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"no data of videomme at .*cache.*make data BENCHMARK=videomme"):
        prepared("videomme", data, "benchmark.data=null")
    with pytest.raises(
        DataError, match=r"no parquet file with the questions of mlvu .*needed columns: video_name"
    ):
        prepared("mlvu", data, f"benchmark.data={data / 'videomme'}")
    (data / "mlvu" / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"is no readable parquet file"):
        prepared("mlvu", data)


def test_egoschemas_full_set_is_refused(data: Path) -> None:
    shutil.rmtree(data / "egoschema" / "Subset")
    with pytest.raises(DataError, match=r"questions of egoschema \(its public subset\) and their answers"):
        prepared("egoschema", data)


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("longvideobench", "correct_choice", -1, "no parquet file with the questions of longvideobench"),
        ("mlvu", "task_type", "sportsQA", "questions of the kinds sportsQA, which are not in mlvu's split"),
    ],
)
def test_another_split_is_refused(name: str, column: str, value, message: str, data: Path) -> None:
    (file,) = (data / name).rglob("*.parquet")
    rows = [row | {column: value} for row in parquet.read_table(file).to_pylist()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    with pytest.raises(DataError, match=message):
        task_of(name, data)


def test_no_task_of_ours_has_a_built_in_name() -> None:
    built_in = Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0]) / "tasks"
    for benchmark in BENCHMARKS.values():
        assert not [
            f for f in built_in.rglob("*.yaml") if f"task: {benchmark.task}\n" in f.read_text(errors="ignore")
        ]


def harm(data: Path, name: str) -> list[str]:
    """Break one video and remove another; returns their names."""
    videos = sorted((data / name).rglob("*.mp4"))
    videos[0].unlink()
    content = videos[1].read_bytes()
    videos[1].write_bytes(content[: len(content) // 2])
    return [video.name for video in videos[:2]]


@pytest.mark.parametrize("name", NAMES)
def test_unusable_videos_are_listed_before_the_model_loads(name: str, data: Path, no_model) -> None:
    gone, broken = harm(data, name)
    settings, arms = prepared(name, data)
    with pytest.raises(DataError) as caught:
        run.run_arms(settings, arms)
    lines = str(caught.value).splitlines()
    stem = Path(gone).stem
    assert any(stem in line and "does not exist" in line for line in lines)
    assert any(broken in line and "cannot be decoded" in line for line in lines)
    assert lines[-1].startswith("2 of ") and "benchmark.allow_missing=true" in lines[-1]


def test_missing_videos_that_are_allowed_count_as_failed(data: Path) -> None:
    harm(data, "videomme")
    settings, arm = prepared("videomme", data, "benchmark.allow_missing=true", "max_failures=0")
    with pytest.raises(RunFailed, match="6 samples have no answer"):
        run.run_arms(settings, [arm], report=make_report)
    rows = stored(settings, arm)
    assert [row["error"] is None for row in sorted(rows, key=lambda row: row["id"])] == [False] * 6 + [
        True
    ] * 3
    note = "6 of 9 questions FAILED for lack of a usable video"
    record = json.loads((settings.folder / arm.folder / "arm.json").read_text())
    assert record["benchmark"]["missing_questions"] == 6 and note in record["benchmark"]["note"]
    assert note in (settings.folder / "table.md").read_text()
    metrics = json.loads((settings.folder / arm.folder / "metrics.json").read_text())
    assert (metrics["n"], metrics["n_failed"]) == (3, 6)


@pytest.mark.parametrize(
    ("name", "answer", "parsed", "stock_parsed", "said"),
    [
        ("lvbench", "The answer is B", "B", "B", None),
        ("lvbench", "green", None, None, None),
        ("nextqa", "(C) blue", "C", "C", None),
        ("nextqa", "no idea", None, None, "drew lots"),
        ("tempcompass", "B. green", "B", "B", None),
        ("tempcompass", "I would say (B)", "B", None, "asks a model on the network"),
        ("motionbench", "a man", None, "A", None),
        ("videomme_v2", "Final Answer: H", "H", "H", None),
        ("videomme_v2", "it is green", None, "F", None),
        ("videomme_v2", "no idea", None, None, None),
    ],
)
def test_lmms_evals_own_reading_is_stored_beside_ours(
    name: str, answer: str, parsed: str | None, stock_parsed: str | None, said: str | None, data: Path
) -> None:
    task, (question, *_) = task_of(name, data)
    found = judge(task, question, answer)
    assert (found.parsed, found.stock_parsed, found.stock_error) == (parsed, stock_parsed, said)
    assert found.stock_correct == (None if said else stock_parsed == found.target)


def test_video_mme_v2_scores_groups_that_were_answered_whole(data: Path) -> None:
    task, questions = task_of("videomme_v2", data)
    # The second group's chain breaks at its second question, the third group lacks one.
    answers = [judge(task, question, "").target for question in questions[:11]]
    answers[5] = "A" if answers[5] != "A" else "B"
    scores = replay(task, list(zip(questions, answers, strict=False)))
    # Of [1, [2, 3], 4], the first and the third right give 4 of 12.
    assert scores["videomme_v2_overall_score"] == pytest.approx((100 + 100 * 4 / 12) / 2)
    assert scores["videomme_v2_overall_acc"] == pytest.approx(100 * 7 / 8)
    assert replay(task, [(questions[0], "A")]) == {}


def test_motionbench_asks_what_lmms_evals_own_function_makes_of_its_file(data: Path) -> None:
    documents = [question.document for question in task_of("motionbench", data)[1]]
    for row, document in zip(written("motionbench"), documents, strict=True):
        assert row.items() <= document.items()
    assert len(documents) == 11 and {document["duration"] for document in documents} == {4.0}


def test_tempcompass_takes_the_multiple_choice_of_its_four_kinds(data: Path) -> None:
    rows = parquet.read_table(data / "tempcompass/multi-choice").to_pylist()
    for kind in ("yes_no", "caption_matching"):
        (data / "tempcompass" / kind).mkdir()
        other = [row | {"question": "Is the square red?", "answer": "yes"} for row in rows]
        parquet.write_table(
            pyarrow.Table.from_pylist(other), data / f"tempcompass/{kind}/test-00000-of-00001.parquet"
        )
    assert len(task_of("tempcompass", data)[1]) == 10
    shutil.rmtree(data / "tempcompass/multi-choice")
    with pytest.raises(DataError, match="questions of tempcompass"):
        task_of("tempcompass", data)


@pytest.mark.parametrize(
    ("limit", "goes_on"), [("2%", False), (1, False), ("66.6%", False), ("66.7%", True), (2, True)]
)
def test_unusable_videos_block_the_others_only_above_the_limit(
    limit, goes_on: bool, data: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(
        session, "load_model", lambda settings: pytest.fail("loaded") if not goes_on else load_model(settings)
    )
    harm(data, "videomme")  # two of three videos, with three questions each
    settings, arm = prepared("videomme", data, f"max_failures={limit}")
    with pytest.raises(RunFailed if goes_on else DataError) as caught:
        run.run_arms(settings, [arm])
    said = str(caught.value)
    if goes_on:
        assert "6 samples have no answer" in said
        assert (
            "2 of 3 videos cannot be used; the questions about them count as failed"
            in capsys.readouterr().err
        )
        assert sum(row["error"] is None for row in stored(settings, arm)) == 3
    else:
        allowed = {"2%": 0, 1: 1, "66.6%": 1}[limit]
        assert (
            f"max_failures={limit} allows {allowed} of 3" in said and "2 of 3 videos cannot be used" in said
        )


def test_decord_reads_the_same_frames(data: Path) -> None:
    answers = []
    for words in ((), ("benchmark.decoder=decord", "run=decord")):
        settings, arm = prepared("videomme", data, *words)
        run.run_arms(settings, [arm])
        answers.append({row["id"]: row["answer"] for row in stored(settings, arm)})
    assert answers[0] == answers[1]


def test_all_in_one_sweep(data: Path, forks) -> None:
    words = [
        "-m",
        f"benchmark={','.join(NAMES)}",
        f"benchmark.data={data}/${{benchmark.name}}",
        "compressor=random",
    ]
    words += ["budget.retention=0.3", "limit=4", f"results={data}", "run=four", "logger=none"]
    assert forks.run(words, data / "log") == 0, (data / "log").read_text()
    found = {row["benchmark"]: row for row in csv_rows(data / "four" / "table.csv")}
    assert set(found) == set(NAMES) and {row["n"] for row in found.values()} == {"4"}


def test_lmms_evals_own_command(data: Path) -> None:
    cache = data / "cache"
    shutil.copytree(data / "egoschema", cache / "stsimdiff" / "benchmarks" / "egoschema")
    arguments = f"compressor=random,retention=0.3,results={data},run=lmms"
    words = ["--model", "stsimdiff", "--model_args", arguments, "--tasks", "stsimdiff_egoschema"]
    words += ["--include_path", "tasks", "--output_path", str(data / "out")]
    done = python("-m", "lmms_eval", *words, XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (data / "out").rglob("*_results.json")
    score = json.loads(file.read_text())["results"]["stsimdiff_egoschema"]["score,none"]
    (answers,) = (data / "lmms").glob("*/answers.jsonl")
    rows = json_lines(answers)
    # lmms-eval builds the task before it knows the model, so it asks the default prompt, and the record says so.
    record = json.loads((answers.parent / "arm.json").read_text())
    assert record["benchmark"]["prompt"] == "default"
    assert len(rows) == 8 and score == pytest.approx(sum(row["correct"] for row in rows) / 8)
