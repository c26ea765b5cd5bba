"""What is stored says whose it is, and no secret; what a command asks for is in an arm's id, or is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.configured import configured
from stsimdiff.compressors.controls import RandomTokens
from stsimdiff.config.arms import arm_record
from stsimdiff.config.task_files import asked_generation, read_task
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.provenance import provenance
from stsimdiff.evaluate.store import arm_folders
from stsimdiff.report import rows
from stsimdiff.resources import folder


@pytest.fixture
def made(checkpoint, monkeypatch):
    """Settings and the arm of a line of overrides, with a checkpoint that the environment names."""
    monkeypatch.setenv("THE_MODEL", str(checkpoint))
    return lambda *words: configured("model.path=${oc.env:THE_MODEL}", "logger=none", *words)


@dataclass(frozen=True)
class Keyed(RandomTokens):
    """A method with a parameter of every plain kind."""

    key: str = ""
    sizes: tuple = (1, 2)
    weights: dict = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Odd(RandomTokens):
    """A parameter that cannot be stored."""

    thing: object = dataclasses.field(default_factory=lambda: print)


class Undecorated(Keyed):
    """Without fields of its own it needs no decorator."""


class OwnInit(Keyed):
    """Its arguments would be no fields."""

    def __init__(self, other: int = 1) -> None:
        pass


@pytest.fixture(autouse=True)
def here(monkeypatch) -> None:
    module = types.ModuleType("own_methods")
    module.__file__ = __file__
    for cls in (Keyed, Odd, Undecorated, OwnInit):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "own_methods", module)


def own(name: str, *words: str) -> tuple[str, ...]:
    return ("compressor=custom", f"compressor._target_=own_methods.{name}", "budget.retention=0.5", *words)


def test_parameters_are_stored_as_plain_values(made):
    _, arm = made(*own("Keyed", "+compressor.sizes=[3,4]", "+compressor.weights={a: [1, 2]}"))
    assert arm.compressor["sizes"] == [3, 4] and arm.compressor["weights"] == {"a": [1, 2]}
    _, arm = made(*own("Keyed"))
    assert arm.compressor["sizes"] == [1, 2] and json.dumps(arm.compressor)
    with pytest.raises(ConfigError, match="must be a plain value, not (builtin_function_or_method|function)"):
        made(*own("Odd"))


def test_a_class_that_adds_nothing_needs_no_decorator_and_an_init_of_its_own_is_refused(made):
    assert made(*own("Undecorated"))[1].method == "Undecorated"
    with pytest.raises(ConfigError, match="own_methods.OwnInit is not a compressor"):
        made(*own("OwnInit"))


def test_what_comes_from_the_environment_is_not_stored(made, monkeypatch):
    monkeypatch.setenv("THE_KEY", "hunter2-secret")
    words = own(
        "Keyed", "+compressor.key=Bearer ${oc.env:THE_KEY} for ${run}", "benchmark.note=${compressor.key}"
    )
    settings, arm = made(*words)
    record = arm_record(arm, settings, {})
    assert "hunter2" not in json.dumps(record) and "hunter2" not in arm.label
    assert record["compressor"]["key"] == "Bearer ${oc.env:THE_KEY} for embedded"
    assert "key=Bearer ${oc.env:THE_KEY} for embedded" in arm.label
    assert arm.build().key == "Bearer hunter2-secret for embedded"
    # The folder of the weights is told: whoever reads the table wants to know.
    assert record["model"]["path"].endswith("/checkpoint")
    monkeypatch.setenv("THE_KEY", "another")
    assert made(*words)[1].id != arm.id


def test_a_record_says_its_format_and_what_lies_under_the_method(made):
    settings, arm = made("compressor=random")
    record = arm_record(arm, settings, {})
    assert record["format"] == 2 and len(record["beneath"]) == 12
    assert record["benchmark"]["generation"] == {"max_new_tokens": 1, "until": []}
    assert record["model"]["generation"] == {}


def test_the_decoder_is_in_the_id(made):
    assert made("benchmark.decoder=pyav")[1].id != made("benchmark.decoder=decord")[1].id


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"max_new_tokens": 16, "until": []}),
        ({"max_new_tokens": 5, "temperature": 0.0, "do_sample": False}, {"max_new_tokens": 5, "until": []}),
        ({"until": "Q:", "top_p": 1.0, "num_beams": 1}, {"max_new_tokens": 16, "until": ["Q:"]}),
        ({"until": ["Q:", ""]}, {"max_new_tokens": 16, "until": ["Q:"]}),
    ],
)
def test_generation_settings_that_are_honoured(given, asked):
    assert asked_generation(given, "--gen_kwargs") == asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"do_sample": True},
            "--gen_kwargs: do_sample=True is not supported, as answers are greedy; allowed: do_sample=F",
        ),
        ({"num_beams": 4}, "num_beams=4 .* allowed: num_beams=1"),
        ({"temperature": 0.7}, "temperature=0.7 .* allowed: temperature=0"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 .* allowed: max_new_tokens, until"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is out of range"),
        ({"max_new_tokens": "many"}, "max_new_tokens='many' is out of range"),
        ({"until": 3}, "until=3 is out of range"),
    ],
)
def test_generation_settings_that_would_be_ignored_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        asked_generation(given, "--gen_kwargs")


def test_what_lmms_evals_command_asks_for_is_in_the_id(made, monkeypatch):
    from stsimdiff.commands import lmms_command
    from stsimdiff.commands.lmms_eval import StSimDiff

    monkeypatch.setattr(lmms_command, "_told", None)  # put back: other tests run no command of lmms-eval's
    model = StSimDiff(compressor="random", retention=0.3)
    task = SimpleNamespace(config=SimpleNamespace(fewshot_delimiter="\n\n"))
    stock = {"max_new_tokens": 1, "temperature": 0.0, "do_sample": False, "until": ["\n\n"]}

    def arm(**changes):
        return model._check([*model.overrides, "benchmark=clips"], task, {**stock, **changes})

    plain = model._check([*model.overrides, "benchmark=clips"])[1]
    assert arm()[1].id == plain.id
    longer, ended = arm(max_new_tokens=2), arm(until="B")
    assert len({plain.id, longer[1].id, ended[1].id}) == 3
    assert longer[0].benchmark.generation == {"max_new_tokens": 2, "until": []}
    assert ended[0].benchmark.generation == {"max_new_tokens": 1, "until": ["B"]}
    with pytest.raises(SystemExit) as stopped:
        arm(do_sample=True)
    assert stopped.value.code == 2


def test_the_table_s_line_names_what_decides_answers():
    from stsimdiff.report.provenance import provenance as line

    described = {"device": "cpu", "dtype": "float32", "attention": "sdpa"}
    told = provenance(described, 0, None, {"repetition_penalty": 1.05, "max_new_tokens": 16, "until": []})
    assert told["generation"] == "repetition_penalty=1.05, max_new_tokens=16"
    other = provenance(described, 0, None, {"max_new_tokens": 16})
    assert "generation repetition_penalty=1.05, max_new_tokens=16" in line([{"provenance": told}])
    assert "ROWS DIFFER in generation" in line([{"provenance": told}, {"provenance": other}])


def test_a_task_s_file_is_read_with_what_it_includes():
    config, sources = read_task(folder("tasks") / "long_clips" / "long_clips.yaml")
    assert config["task"] == "long_clips" and config["generation_kwargs"]["max_new_tokens"] == 1
    assert {file.resolve() for file in sources} == {(folder("tasks") / "clips" / "task.py").resolve()}


OLD = {
    "arm": "00112233aabb",
    "method": "random",
    "label": "random",
    "compressor": {"_target_": "stsimdiff.compressors.controls.RandomTokens", "seed": None},
    "budget": {"kind": "tokens", "retention": 0.5},
    "model": {"name": "embedded", "path": "/models/embedded", "checkpoint": "0123456789ab", "frames": 16},
    "benchmark": {
        "name": "clips",
        "task": "clips",
        "revision": "1",
        "code": "c",
        "chance": 25.0,
        "note": "toy",
    },
    "seed": 0,
    "code": "abc",
    "provenance": {"versions": {}, "device": "cpu"},
}


def test_a_folder_of_an_earlier_version_is_read_and_left_as_it_is(tmp_path, made):
    run = tmp_path / "run"
    (run / "random_tokens0.5_00112233").mkdir(parents=True)
    (run / "random_tokens0.5_00112233" / "arm.json").write_text(json.dumps(OLD))
    line = {"id": "q1", "video": "1.mp4", "family": "order", "answer": "A", "parsed": "A", "target": "A"}
    line |= {"correct": True, "error": None}
    (run / "random_tokens0.5_00112233" / "answers.jsonl").write_text(json.dumps(line) + "\n")
    _, arm = made("compressor=random", "budget.retention=0.5", f"results={tmp_path}", "run=run")
    assert arm.folder not in {path.name for path in arm_folders(run)}
    stored = rows.read(run)
    assert [one.id for one in stored.arms] == ["00112233aabb"] and stored.arms[0].by_name
    assert list(stored.samples["video"]) == ["1.mp4"] and list(stored.samples["correct"]) == [True]


def test_two_folders_of_one_name_are_two_in_wandb(tmp_path):
    pytest.importorskip("wandb")
    from stsimdiff.report.wandb_log import UID, _uid

    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    for run in (first, second):
        run.mkdir(parents=True)
    uid = _uid(first)
    assert _uid(first) == uid != _uid(second)
    shutil.copytree(first, tmp_path / "copy" / "run")
    assert _uid(tmp_path / "copy" / "run") != uid and _uid(first) == uid
    moved = Path(shutil.move(first, tmp_path / "moved"))
    assert _uid(moved) == uid == _uid(moved)
    (moved / UID).write_text("{")
    assert _uid(moved) == _uid(moved) != uid
