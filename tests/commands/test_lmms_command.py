"""The model of lmms-eval's own command: every refusal is a message and exit code 2, and its data can be named."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from lmms_eval.tasks import TaskManager, get_task_dict

from helpers.paths import MINIATURES, ROOT
from stsimdiff.commands import lmms_command
from stsimdiff.commands.lmms_eval import StSimDiff
from stsimdiff.compressors.base import ScoreCompressor
from stsimdiff.models.base import Family
from stsimdiff.resources import embedded_checkpoint, folder

EXAMPLES = ROOT / "examples" / "methods"
SLIPPED = "Slip fails on a synthetic video: AttributeError: 'Layout' object has no attribute 'frame_count'"


@pytest.fixture(autouse=True)
def own_command(monkeypatch, tmp_path):
    monkeypatch.setattr(lmms_command, "_told", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))


def built(name: str):
    """The task as lmms-eval's command builds it, after the model."""
    return get_task_dict([name], TaskManager(include_path=str(folder("tasks")), include_defaults=False))[name]


@pytest.mark.parametrize(
    ("arguments", "flags", "said"),
    [
        ("compressor=rnadom", {}, "compressor=rnadom is unknown; allowed: "),
        ("retention=30", {}, "budget.retention=30 is out of range"),
        ("compressor=fastv,tau_simm=0.7", {}, "compressor.tau_simm is unknown to compressor=fastv"),
        ("frames=x", {}, "model.frames='x' is out of range"),
        ("seed=-1", {}, "seed=-1 is out of range"),
        ("run=a/b", {}, "run='a/b' is no name for a run"),
        ("batch_size=4", {}, "batch_size=4 is not supported; allowed: 1"),
        ("compressor=fastv", {"batch_size": 4}, "batch_size=4 is not supported; allowed: 1"),
        ("batch_size=1", {"batch_size": 1}, "--model_args: batch_size is given twice"),
        ("seed=1,seed=2", {}, "--model_args: seed is given twice"),
        ("compressor", {}, "--model_args: 'compressor' is no key=value"),
        ("compressor=glob(*)", {}, "--model_args names one arm"),
        (
            "compressor=scenes.Scenes,treshold=0.8",
            {},
            "compressor.treshold is unknown: Scenes has the parameters",
        ),
        ("compressor=scenes.Scene", {}, "module 'scenes' has no attribute 'Scene'"),
        ("compressor=test_lmms_command.Slip", {}, SLIPPED),
        ("compressor=chain,methods=[fastv,rnadom]", {}, "compressor='rnadom' is unknown"),
        ("benchmark.video_seconds=-1", {}, "benchmark.video_seconds=-1 is out of range"),
        ("data=$NO_SUCH_VARIABLE", {}, "the environment variable NO_SUCH_VARIABLE is not set"),
        ("benchmark.data=/nowhere", {}, "benchmark.data=/nowhere is no folder"),
    ],
)
def test_what_is_refused_ends_the_command(arguments, flags, said, capsys):
    with pytest.raises(SystemExit) as stop:
        StSimDiff.create_from_arg_string(arguments, flags)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


@dataclass(frozen=True)
class Slip(ScoreCompressor):
    """Reads what a layout has not."""

    def score(self, tokens, layout):
        return tokens.features.norm(dim=1) * layout.frame_count


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ("compressor=scenes.Scenes,threshold=0.8", {"threshold": 0.8}),
        ("compressor=scenes.Scenes,compressor.threshold=0.8,frames=8", {"threshold": 0.8}),
        ("compressor=external_scorer.ExternalScorer", {}),
        ("compressor=chain,methods=[scenes.Scenes,fastv],seed=1", {"methods": ["scenes.Scenes", "fastv"]}),
    ],
)
def test_a_method_of_the_user_s_gets_its_parameters(arguments, parameters):
    model = StSimDiff.create_from_arg_string(f"{arguments},retention=0.3")
    _, arm = model._check(model.overrides)
    assert {name: arm.compressor[name] for name in parameters} == parameters
    assert arm.budget.retention == 0.3


def test_tasks_that_it_cannot_answer_end_the_command(monkeypatch, capsys):
    model = StSimDiff()
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(SystemExit) as stop:
            refused([])
        assert stop.value.code == 2 and "generate_until tasks only" in capsys.readouterr().err
    monkeypatch.setattr(model, "_generated", lambda requests: model._answer("mmmu_val", None, [], {}))
    with pytest.raises(SystemExit) as stop:
        model.generate_until([])
    assert stop.value.code == 2
    assert "no file of configs/benchmark has task: mmmu_val" in capsys.readouterr().err


def test_an_error_of_ours_is_exit_code_1_and_not_0(monkeypatch, capsys):
    model = StSimDiff()
    monkeypatch.setattr(model, "_generated", lambda requests: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        model.generate_until([])
    assert stop.value.code == 1 and "ZeroDivisionError" in capsys.readouterr().err


def test_the_folder_of_all_benchmarks_can_be_named(tmp_path, monkeypatch):
    shutil.copytree(MINIATURES / "videomme", tmp_path / "data" / "Video-MME")
    shutil.copytree(MINIATURES / "egoschema", tmp_path / "data" / "egoschema")
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    StSimDiff.create_from_arg_string("data=$DATA,run=named")
    for name, place, questions in (("videomme", "Video-MME", 9), ("egoschema", "egoschema", 8)):
        rows = built(f"stsimdiff_{name}").dataset["test"]
        assert len(rows) == questions
        assert all(row["path"].startswith(f"{tmp_path}/data/{place}/") for row in rows)


def test_the_folder_of_one_benchmark_can_be_named(data):
    StSimDiff.create_from_arg_string(f"benchmark.data={data}")
    rows = built("clips").dataset["test"]
    assert len(rows) == 14 and rows[0]["path"].startswith(str(data))


def test_data_that_is_not_there_is_a_message_and_exit_code_2(tmp_path, capsys):
    StSimDiff.create_from_arg_string(f"data={tmp_path}/nowhere")
    with pytest.raises(SystemExit) as stop:
        built("stsimdiff_mlvu")
    assert stop.value.code == 2
    assert f"mlvu: benchmark.data={tmp_path}/nowhere/mlvu is no folder" in capsys.readouterr().err


def test_weights_that_are_cut_off_end_the_command_before_any_task_is_built(tmp_path, capsys):
    place = shutil.copytree(embedded_checkpoint(), tmp_path / "model")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (place / "chat_template.jinja").unlink()
    with pytest.raises(SystemExit) as stop:
        StSimDiff.create_from_arg_string(f"path={place}")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "it is cut off or damaged" in said and "has no chat template" in said


@pytest.mark.parametrize(
    ("method", "texts", "code"),
    [("none", ["B", "??", "", "??"], 1), ("none", ["B", "??", "B", "??"], 0), ("no_video", ["??"], 0)],
)
def test_answers_without_a_letter_are_stored_and_end_the_command(
    tmp_path, data, monkeypatch, capsys, method, texts, code
):
    said = iter(texts * 4)
    monkeypatch.setattr(Family, "answer", lambda self, prompt, tokens: _run(self, prompt) or next(said))
    model = StSimDiff.create_from_arg_string(f"compressor={method},benchmark.data={data},results={tmp_path}")
    task = built("clips")
    model.task_dict = {"clips": {"test": task.dataset["test"]}}
    requests = [
        SimpleNamespace(args=("", task.doc_to_messages, {"max_new_tokens": 16}, number, "clips", "test"))
        for number in range(4)
    ]
    if code == 0:
        assert model.generate_until(requests) == (texts * 4)[:4]
        return
    with pytest.raises(SystemExit) as stop:
        model.generate_until(requests)
    assert stop.value.code == code
    assert "3 of 4 answers of none at 100 % give no letter, such as '??', ''" in capsys.readouterr().err
    (stored,) = (tmp_path / "lmms_eval").glob("*/answers.jsonl")
    assert len(stored.read_text().splitlines()) == 4


def _run(family, prompt):
    """The prefill, of which the engine keeps count."""
    family.generate(prompt, 1)
