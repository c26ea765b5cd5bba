"""A benchmark of a user's own: a folder with a task and its settings, as docs/benchmarks.md shows it."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.config_store import ConfigStore

from helpers.paths import MINIATURES, code_blocks
from helpers.written import json_lines
from stsimdiff.config.words import options
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.evaluate.questions import all_questions, judge, load_task
from stsimdiff.launchers import base

VIDEOS = MINIATURES / "egoschema" / "videos"
ROWS = [
    {
        "id": f"q{n}",
        "video": f"mini-{n % 2}",
        "category": ("who", "when")[n % 2],
        "question": f"What is it, {n}?",
    }
    | {"options": ["a ring", "a disc"], "answer": "AB"[n // 2]}
    for n in range(4)
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of docs/benchmarks.md, with the data in a folder of its own."""
    task, settings = code_blocks("benchmarks.md", "yaml", after="## A benchmark of your own")
    code = code_blocks("benchmarks.md", after="## A benchmark of your own")[0]
    (tmp_path / "my_tasks" / "benchmark").mkdir(parents=True)
    (tmp_path / "my_tasks" / "mine.yaml").write_text(task)
    (tmp_path / "my_tasks" / "utils.py").write_text(code)
    (tmp_path / "my_tasks" / "benchmark" / "mine.yaml").write_text(settings)
    (tmp_path / "my_tasks" / "questions.json").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "my_tasks" / "videos").mkdir()
    for number in range(2):
        shutil.copy(VIDEOS / f"mini-{number}.mp4", tmp_path / "my_tasks" / "videos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield tmp_path / "my_tasks"
    ConfigStore.instance().repo.get("benchmark", {}).pop("mine.yaml", None)


def arms(*words: str):
    (one,) = passes_of(base.configurations(["compressor=none", "logger=none", *words]))
    return one.settings, next(iter(one.arms.values()))


def table(folder: Path) -> dict[str, float]:
    rows = pd.read_csv(folder / "table.csv").set_index("method")
    return rows.loc["none"].to_dict()


def test_a_folder_is_a_benchmark(own, forks) -> None:
    words = ["benchmark=mine", "benchmark.tasks=my_tasks", "logger=none", "run=mine", "overlays=0"]
    log = own.parent / "log"
    forks = forks.at(own.parent)
    assert forks.run([*words, "compressor=none"], log) == 0, log.read_text()
    (folder,) = (own.parent / "results" / "mine").glob("none_*")
    lines = json_lines(folder / "answers.jsonl")
    record = json.loads((folder / "arm.json").read_text())
    # A video that changes is asked again; the arm stays what it was.
    shutil.copy(VIDEOS / "mini-2.mp4", own / "videos" / "mini-0.mp4")
    assert forks.run([*words, "compressor=none"], log) == 0, log.read_text()
    assert "2 stored questions have changed" in log.read_text()
    assert [path.name for path in folder.parent.glob("none_*")] == [folder.name]
    truth = {row["id"]: row["answer"] for row in ROWS}
    assert {line["id"]: line["target"] for line in lines} == truth
    assert {line["video"] for line in lines} == {"videos/mini-0.mp4", "videos/mini-1.mp4"}
    assert all(line["correct"] == (line["answer"][:1] == truth[line["id"]]) for line in lines)
    metrics = json.loads((folder / "metrics.json").read_text())
    said = json_lines(folder / "answers.jsonl")[-2:] + [line for line in lines if line["id"] in ("q1", "q3")]
    right = sum(line["answer"][:1] == truth[line["id"]] for line in said)
    assert metrics["n"] == 4 and metrics["metrics"] == {"accuracy": right / 4}
    assert metrics["accuracy"] == 25 * right
    assert record["benchmark"]["tasks"].endswith("my_tasks") and record["benchmark"]["revision"] is None
    found = table(folder.parent)
    assert found["overall"] == 25 * right
    assert found["acc_when"] == 50 * sum(line["correct"] for line in lines if line["category"] == "when")


def test_scores_and_places(own, tmp_path) -> None:
    settings, arm = arms("benchmark=mine", "benchmark.tasks=my_tasks")
    task = load_task(settings.benchmark)
    questions = all_questions(task, None, settings.benchmark.categories)
    assert [question.id for question in questions] == ["q0", "q1", "q2", "q3"]
    assert questions[0].video == str(own / "videos" / "mini-0.mp4") and questions[0].max_new_tokens == 16
    found = [judge(task, questions[2], text) for text in ("B. a disc", "A", " ")]
    assert [one.correct for one in found] == [True, False, False]
    assert [one.parsed for one in found] == ["B. a disc", "A", None] and found[0].target == "B"
    # The data may lie elsewhere, as parquet too; it is the same arm.
    other = tmp_path / "data"
    shutil.copytree(own / "videos", other / "videos")
    pd.DataFrame(ROWS).to_parquet(other / "questions.parquet")
    text = (own / "mine.yaml").read_text()
    moved, same = arms("benchmark=mine", "benchmark.tasks=my_tasks", f"benchmark.data={other}")
    assert same.id == arm.id
    with pytest.raises(DataError, match="questions.json is not there; benchmark.data=DIR"):
        load_task(moved.benchmark)
    (own / "mine.yaml").write_text(text.replace("json ", "parquet ").replace(".json", ".parquet"))
    questions = all_questions(load_task(moved.benchmark), None, None)
    assert [(one.id, one.video_name) for one in questions][3] == ("q3", "videos/mini-1.mp4")
    # The task's files are part of what an arm is.
    assert arms("benchmark=mine", "benchmark.tasks=my_tasks")[1].id != arm.id
    (own / "utils.py").write_text((own / "utils.py").read_text() + "\n# nothing\n")
    (own / "mine.yaml").write_text(text)
    assert arms("benchmark=mine", "benchmark.tasks=my_tasks")[1].id == arm.id
    (own / "utils.py").write_text((own / "utils.py").read_text().replace("[:1]", "[:2]"))
    assert arms("benchmark=mine", "benchmark.tasks=my_tasks")[1].id != arm.id


@pytest.mark.parametrize("name", ["videomme", "clips"])
def test_a_name_of_lmms_eval_s_or_ours_is_refused(own, name) -> None:
    (own / "mine.yaml").write_text((own / "mine.yaml").read_text().replace("task: mine", f"task: {name}"))
    with pytest.raises(ConfigError, match=rf"task: {name} is also the name of a task .* such as my_{name}"):
        arms("benchmark=mine", "benchmark.tasks=my_tasks", f"benchmark.task={name}")
    with pytest.raises(ConfigError, match=rf"my_tasks has no task 'mine'; allowed: {name}"):
        arms("benchmark=mine", "benchmark.tasks=my_tasks")


def test_what_is_wrong_is_said_before_a_model_is_loaded(own) -> None:
    with pytest.raises(ConfigError, match="benchmark.tasks=nowhere is no folder"):
        arms("benchmark.tasks=nowhere")
    (own / "benchmark" / "clips.yaml").write_text("chance: 1\n")
    with pytest.raises(
        ConfigError, match="benchmark=clips is one of stsimdiff's; give the file another name"
    ):
        arms("benchmark=mine", "benchmark.tasks=my_tasks")
    (own / "benchmark" / "clips.yaml").unlink()
    (own / "utils.py").write_text("raise ValueError('half done')\n")
    with pytest.raises(ConfigError, match="lmms-eval cannot build the task mine: ValueError: half done"):
        load_task(arms("benchmark=mine", "benchmark.tasks=my_tasks")[0].benchmark)


def test_former_names_are_told(own, monkeypatch) -> None:
    settings, task = own / "benchmark" / "mine.yaml", own / "mine.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("categories:", "families:"))
    with pytest.raises(ConfigError, match=r"^benchmark\.families is now called benchmark\.categories$"):
        arms("benchmark=mine", "benchmark.tasks=my_tasks")
    settings.write_text(text)
    task.write_text(task.read_text() + "metadata: {data: my_data}\n")
    monkeypatch.syspath_prepend(str(own))
    (own / "my_data.py").write_text("FAMILIES = ('who', 'when')\n")
    with pytest.raises(ConfigError, match="data=my_data of the task mine: FAMILIES is now called CATEGORIES"):
        arms("benchmark=mine", "benchmark.tasks=my_tasks")
    monkeypatch.delitem(sys.modules, "my_data")
    (own / "my_data.py").write_text(
        "CATEGORIES = ('who', 'when')\n\ndef revision(data):\n    return '0' * 12\n"
    )
    assert arms("benchmark=mine", "benchmark.tasks=my_tasks")[0].benchmark.revision == "0" * 12
    monkeypatch.delitem(sys.modules, "my_data")


def test_a_package_s_benchmark_needs_its_name_alone(own, monkeypatch) -> None:
    (own / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(own.parent))
    monkeypatch.setattr(
        base,
        "entry_points",
        lambda group: [
            EntryPoint("mine", "my_tasks", group),
            EntryPoint("gone", "no_such_package", group),
        ],
    )
    settings, _ = arms("benchmark=mine")
    assert settings.benchmark.tasks == str(own) and settings.benchmark.chance == 50
    assert "mine" in options("benchmark") and "gone" not in options("benchmark")
    assert len(all_questions(load_task(settings.benchmark), None, None)) == 4
    assert "my_tasks" not in sys.modules
