"""An arm's id changes with everything that can change an answer, and with nothing else."""

import dataclasses
import re
import shutil
import sys
import types
from pathlib import Path

import pytest
from omegaconf import DictConfig

from helpers.paths import MINIATURES
from stsimdiff import compressors, registry, source
from stsimdiff.budget import Budget
from stsimdiff.commands import cli
from stsimdiff.config.arms import Arm, arm_from_config, arm_record
from stsimdiff.config.settings import Settings, settings_from_config
from stsimdiff.config.sweep import expand
from stsimdiff.errors import BudgetError, ConfigError, DataError, RunFailed
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.resources import folder


def arm(cfg: DictConfig) -> Arm:
    return arm_from_config(cfg)


BASE = ("compressor=st_simdiff", "budget.retention=0.3")


@pytest.mark.parametrize(
    "change",
    [
        "compressor.tau_sim=0.7",
        "compressor.tau_diff=p95",
        "compressor.difference=false",
        "budget.retention=0.31",
        "budget=compute",
        "model.frames=8",
        "model.dtype=float32",
        "model.attn_implementation=eager",
        "seed=1",
    ],
)
def test_the_id_changes_with_what_changes_an_answer(configure, change):
    assert arm(configure(*BASE)).id != arm(configure(*BASE, change)).id


@pytest.mark.parametrize(
    "change",
    [
        "run=another",
        "results=elsewhere",
        "limit=10",
        "logger=wandb",
        "retry_failed=true",
        "max_failures=3",
        "benchmark.categories=[count]",
        "model.device=cpu",
        "compressor.tau_sim=0.80",
        "compressor.layer=1",
    ],
)
def test_the_id_stays_when_the_answers_stay(configure, change):
    assert arm(configure(*BASE)).id == arm(configure(*BASE, change)).id


def test_an_id_is_twelve_hex_digits(configure):
    assert re.fullmatch("[0-9a-f]{12}", arm(configure()).id)


def test_a_whole_number_and_its_decimal_are_one_setting(configure):
    first, second = (
        arm(configure(f"compressor.tau_sim={value}", "budget.retention=1")) for value in ("1", "1.0")
    )
    assert first == second
    assert first.id == arm(configure("compressor.tau_sim=1.0", "budget.retention=1.0")).id


def test_the_id_changes_with_the_methods_code_and_the_checkpoint(configure, checkpoint, monkeypatch):
    before = arm(configure(*BASE))
    (checkpoint / "model.safetensors").write_bytes(b"WEIGHTS")
    retrained = arm(configure(*BASE))
    monkeypatch.setattr(compressors, "code_version", lambda cls: "another")
    rewritten = arm(configure(*BASE))
    assert len({before.id, retrained.id, rewritten.id}) == 3
    assert rewritten.code == "another"


def test_the_id_changes_with_the_task_that_makes_the_prompt(configure, monkeypatch, tmp_path):
    before = arm(configure(*BASE))
    shutil.copytree(folder("tasks"), tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("stsimdiff.config.task_files.folder", lambda name: tmp_path / name)
    copied = tmp_path.resolve() / "tasks" / "clips" / "task.py"
    monkeypatch.setattr(source, "SPELLED_IN", (*source.SPELLED_IN, copied))
    assert arm(configure(*BASE)).id == before.id
    task = tmp_path / "tasks" / "clips" / "clips.yaml"
    task.write_text(task.read_text() + "# a comment")
    code = tmp_path / "tasks" / "clips" / "task.py"
    code.write_text(code.read_text().replace("    return prompt(", "    # a comment\n    return  prompt(\n"))
    assert arm(configure(*BASE)).id == before.id
    task.write_text(task.read_text().replace("cluster_key: video", "cluster_key: id"))
    another = arm(configure(*BASE)).id
    code.write_text(code.read_text().replace('doc["question"]', 'doc["question"] + " "'))
    assert len({before.id, another, arm(configure(*BASE)).id}) == 3


def test_names_say_the_method_and_what_differs_from_its_defaults(configure):
    plain = arm(configure(*BASE))
    assert (plain.method, plain.label) == ("st_simdiff", "st_simdiff")
    assert plain.folder == f"st_simdiff_tokens0.3_{plain.id[:8]}"
    assert len(plain.id) == 12
    changed = arm(configure("compressor.tau_sim=0.7", "compressor.rule=paper", "budget=compute"))
    assert changed.label == "st_simdiff rule=paper tau_sim=0.7"
    assert changed.folder.startswith("st_simdiff_compute0.3_")
    assert arm(configure("compressor=random", "seed=2")).label == "random seed=2"
    assert arm(configure("compressor=fastv", "seed=2")).label == "fastv seed=2"


def test_an_arm_builds_the_compressor_it_describes(configure):
    built = arm(configure("compressor.tau_diff=p95", "compressor.layer=2"))
    compressor = built.build()
    assert dataclasses.asdict(compressor) == {k: v for k, v in built.compressor.items() if k != "_target_"}
    assert (compressor.tau_diff, compressor.layer) == ("p95", 2)


@pytest.mark.parametrize("name", ["none", "no_video"])
def test_both_ends_are_one_arm_whatever_the_budget(configure, name):
    arms = [
        arm(configure(f"compressor={name}", *more))
        for more in ([], ["budget.retention=0.1"], ["budget=compute"])
    ]
    assert len({found.id for found in arms}) == 1
    assert arms[0].budget == Budget("tokens", 1.0)


@pytest.mark.parametrize("name", compressors.BUILTIN)
def test_the_file_of_a_method_shows_all_its_parameters_at_their_defaults(configure, name):
    cfg = configure(f"compressor={name}", "budget.retention=1")
    cls = compressors.resolve(name)
    assert set(cfg.compressor) - {"_target_"} == {field.name for field in dataclasses.fields(cls)}
    assert arm(cfg).label == name


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["+compressor.tau_simm=1"], ConfigError, r"compressor\.tau_simm is unknown.*tau_diff.*mean tau_sim\?"),
        (["compressor.tau_sim=high"], ConfigError, r"compressor\.tau_sim='high' is out of range; allowed: a number"),
        (["compressor.layer=1.5"], ConfigError, r"compressor\.layer=1\.5 .*allowed: a whole number"),
        (["compressor.similarity=1"], ConfigError, r"compressor\.similarity=1 .*allowed: true, false"),
        (["compressor.tau_sim=3"], ConfigError, r"compressor\.tau_sim=3.* \[-1, 1\]"),
        (["compressor.layer=6"], ConfigError, r"compressor\.layer=6 does not exist in a model of 6 layers"),
        (["budget.retention=0"], ConfigError, r"budget\.retention=0 .*\(0, 1\]"),
        (["budget.retention=lots"], ConfigError, r"budget\.retention='lots' .*\(0, 1\]"),
        (["+budget.share=1"], ConfigError, r"budget\.share is unknown; allowed: kind, retention"),
        (["compressor=fastv", "budget=compute", "budget.retention=0.2"], BudgetError, "use a lower compressor.layer"),
        (["compressor._target_=nowhere.Method"], ConfigError, "cannot be imported: ModuleNotFoundError"),
        (["compressor._target_=stsimdiff.budget.Nope"], ConfigError, "has no attribute 'Nope'"),
        (["compressor._target_=stsimdiff.budget.Budget"], ConfigError, "is not a compressor"),
        (["compressor._target_=random"], ConfigError, "is no class; write compressor=NAME with one of .*fastervlm"),
    ],
)  # fmt: skip
def test_wrong_methods_and_budgets_say_what_is_right(configure, overrides, error, message):
    with pytest.raises(error, match=message):
        arm_from_config(configure(*overrides))


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("run=a/b", ConfigError, "run='a/b' is no name for a run"),
        ("limit=0", ConfigError, "limit=0 is out of range; allowed: a whole number from 1 or null"),
        ("seed=-1", ConfigError, "seed=-1 .*from 0"),
        ("max_failures=many", ConfigError, "max_failures='many'"),
        ("max_failures=101%", ConfigError, "max_failures='101%' .*number from 0, or a share .*0% to 100%"),
        ("max_failures=-1", ConfigError, "max_failures=-1 is out of range"),
        ("max_failures=0.02", ConfigError, "max_failures=0.02 is out of range"),
        ("retry_failed=1", ConfigError, "retry_failed=1 .*true, false"),
        ("model.family=qwen", ConfigError, r"model\.family=qwen is unknown; allowed: .*qwen2_5_vl"),
        ("model.dtype=fp16", ConfigError, r"model\.dtype=fp16 .*float16"),
        ("model.attn_implementation=flash_attention", ConfigError, "did you mean flash_attention_2"),
        ("model.device=gpu 0", ConfigError, "model.device='gpu 0'"),
        ("model.frames=0", ConfigError, "model.frames=0 .*from 1"),
        ("+model.batch=1", ConfigError, r"model\.batch is unknown; allowed: name"),
        ("benchmark.categories=[counting]", ConfigError, r"benchmark\.categories=counting .*count"),
        ("benchmark.data=/nowhere", DataError, "benchmark.data=/nowhere is no folder"),
        ("model.path=/nowhere", DataError, "no checkpoint at model.path=/nowhere"),
    ],
)
def test_wrong_settings_say_the_range(configure, override, error, message):
    with pytest.raises(error, match=message):
        settings_from_config(configure(override))


def test_the_record_holds_what_the_rows_need(configure):
    cfg = configure(*BASE)
    settings = settings_from_config(cfg)
    record = arm_record(arm(cfg), settings, {"git": "abc"})
    assert record["arm"] == arm(cfg).id
    assert record["budget"] == {"kind": "tokens", "retention": 0.3}
    assert record["benchmark"].keys() >= {"name", "task", "families", "chance", "note"}
    assert record["provenance"] == {"git": "abc"}
    assert record.keys() >= {"method", "label", "compressor", "model", "code"}


def composed_by_command_line(monkeypatch, *arguments: str, failure=None) -> list[tuple[Settings, list[Arm]]]:
    """The passes that a command line would run, without running them; each raises ``failure`` if there is one."""
    passes: list[tuple[Settings, list[Arm]]] = []

    def run_arms(
        settings: Settings, arms: list[Arm], shared: object, *, report: bool, processes: object
    ) -> None:
        passes.append((settings, arms))
        if failure is not None:
            raise failure

    session = types.ModuleType("stsimdiff.evaluate.run")
    session.run_arms = run_arms
    monkeypatch.setitem(sys.modules, session.__name__, session)
    # The checkpoint of these tests has a fingerprint, and no weights.
    monkeypatch.setattr("stsimdiff.launchers.in_process.check_presence", lambda *rest: None)
    monkeypatch.setattr(sys, "argv", ["stsimdiff", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    cli.main()
    return passes


def test_a_sweep_an_experiment_and_single_runs_give_the_same_arms(monkeypatch, tmp_path, checkpoint):
    monkeypatch.chdir(tmp_path)
    model = f"model.path={checkpoint}"
    ((settings, listed),) = composed_by_command_line(monkeypatch, "experiment=embedded_table", model)
    listed = {one.id: one for one in listed}
    ((_, swept),) = composed_by_command_line(
        monkeypatch, "-m", model, "compressor=none,st_simdiff,fastv", "budget.retention=0.3,0.1"
    )
    assert [one.method for one in swept] == ["none", "st_simdiff", "st_simdiff", "fastv", "fastv"]
    assert {one.id: one for one in swept}.items() <= listed.items()
    ((_, (single,)),) = composed_by_command_line(
        monkeypatch, "compressor=fastv", "budget.retention=0.1", model, "run=else"
    )
    assert listed[single.id] == single
    assert settings.folder == Path("results/embedded")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "results"]
    assert sorted(path.name for path in (tmp_path / "results" / "embedded").rglob("*")) == [
        ".hydra",
        "multirun.yaml",
    ]


def test_a_sweep_over_settings_is_a_pass_for_each(monkeypatch, tmp_path, checkpoint):
    monkeypatch.chdir(tmp_path)
    passes = composed_by_command_line(
        monkeypatch, f"model.path={checkpoint}", "-m", "model.frames=8,16", "compressor=none,random"
    )
    assert [(settings.model.frames, len(arms)) for settings, arms in passes] == [(8, 2), (16, 2)]


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (RunFailed("3 samples have no answer"), 1, "3 samples have no answer\n"),
        (DataError("clip.mp4 is empty"), 2, "clip.mp4 is empty\n"),
        (KeyboardInterrupt(), 130, "interrupted; start the same command again to go on\n"),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_how_a_run_ends(monkeypatch, tmp_path, checkpoint, capsys, failure, code, message, sweep):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        composed_by_command_line(monkeypatch, f"model.path={checkpoint}", *sweep, failure=failure)
    assert (stop.value.code, capsys.readouterr().err) == (code, message)


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_a_defect_keeps_its_traceback(monkeypatch, tmp_path, checkpoint, sweep):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a defect of ours"):
        composed_by_command_line(
            monkeypatch, f"model.path={checkpoint}", *sweep, failure=ValueError("a defect of ours")
        )


def test_a_pass_that_failed_does_not_stop_the_next(monkeypatch, tmp_path, checkpoint, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        composed_by_command_line(
            monkeypatch, f"model.path={checkpoint}", "-m", "model.frames=8,16", failure=RunFailed("2 failed")
        )
    assert stop.value.code == 1
    assert capsys.readouterr().err.endswith("2 failed\n2 failed\n")


def test_lines_of_arms_can_be_given_on_the_command_line(monkeypatch, tmp_path, checkpoint):
    monkeypatch.chdir(tmp_path)
    lines = 'arms=["compressor=random","compressor=st_simdiff compressor.tau_sim=0.7,0.8"]'
    ((_, arms),) = composed_by_command_line(monkeypatch, f"model.path={checkpoint}", lines)
    assert [one.label for one in arms] == ["random", "st_simdiff tau_sim=0.7", "st_simdiff"]


OWN = """
from dataclasses import dataclass

from stsimdiff.compressors.base import ScoreCompressor


@dataclass(frozen=True)
class Loudest(ScoreCompressor):
    power: float = 2.0
    skip: int | None = None

    def __post_init__(self):
        if self.power <= 0:
            raise ValueError("power must be positive")

    def score(self, tokens, layout):
        return tokens.features.norm(dim=1, p=self.power)

@dataclass(frozen=True)
class Needy(ScoreCompressor):
    power: int

    def score(self, tokens, layout):
        return tokens.features.norm(dim=1, p=self.power)
"""


@pytest.fixture
def own_method(own_module, monkeypatch) -> None:
    own_module("my_method", OWN)
    monkeypatch.setattr(sys, "path", sys.path[1:])  # the command itself looks into the current folder


def test_a_class_of_ones_own_runs_beside_ours(monkeypatch, checkpoint, own_method):
    model, target = f"model.path={checkpoint}", "compressor._target_=my_method.Loudest"
    ((_, (found,)),) = composed_by_command_line(monkeypatch, target, "+compressor.power=3", model)
    assert (found.method, found.label) == ("Loudest", "Loudest power=3")
    assert found.compressor == {"_target_": "my_method.Loudest", "power": 3.0, "skip": None}
    ((_, swept),) = composed_by_command_line(monkeypatch, "-m", target, "+compressor.power=2,3", model)
    assert [one.label for one in swept] == ["Loudest", "Loudest power=3"]
    assert swept[1].id == found.id
    lines = 'arms=["compressor=random","compressor._target_=my_method.Loudest +compressor.power=3"]'
    ((_, listed),) = composed_by_command_line(monkeypatch, lines, model)
    assert listed[1] == found


def test_errors_of_ones_own_class_are_said(monkeypatch, checkpoint, own_method, capsys):
    loudest, needy = (f"compressor._target_=my_method.{name}" for name in ("Loudest", "Needy"))
    for words, message in (
        (
            [loudest, "+compressor.power=-1"],
            "compressor my_method.Loudest: ValueError: power must be positive",
        ),
        (
            [loudest, "+compressor.pwer=1"],
            "compressor.pwer is unknown: Loudest has the parameters power, skip; did you mean",
        ),
        (
            [loudest, "compressor.power=3"],
            "parameters of your own class are written with a plus: +compressor.power=3",
        ),
        (
            [needy],
            "a parameter without a default is given as +compressor.NAME=VALUE",
        ),
        (
            [needy, f"+compressor.power={-(2**63)}"],
            f"compressor.power={-(2**63)} is out of range; allowed: at most {2**63 - 1}",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            composed_by_command_line(monkeypatch, f"model.path={checkpoint}", *words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_a_method_of_another_package_is_an_option_by_name(monkeypatch, checkpoint, own_method):
    from importlib.metadata import EntryPoint

    from hydra.core.config_store import ConfigStore

    points = [
        EntryPoint("loudest", "my_method:Loudest", compressors.REGISTRY.group),
        EntryPoint("broken", "no_such_package:Method", compressors.REGISTRY.group),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.syspath_prepend(".")
    try:
        ((_, arms),) = composed_by_command_line(
            monkeypatch, "-m", f"model.path={checkpoint}", "compressor=loudest", "compressor.power=2,4"
        )
    finally:
        ConfigStore.instance().repo["compressor"].pop("loudest.yaml")
    assert [one.label for one in arms] == ["loudest", "loudest power=4"]


def test_every_line_of_every_experiment_is_a_sweep(configure, tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 28}')
    for path in sorted((folder("configs") / "experiment").glob("*.yaml")):
        overrides = [f"experiment={path.stem}"]
        if "videomme" in path.read_text():
            overrides += [f"data={MINIATURES}", f"model.path={tmp_path}"]
        cfg = configure(*overrides)
        found = expand(cfg, overrides, lambda words: configure(*words))
        arms = {id_ for one in passes_of(found) for id_ in one.arms}
        assert len(found) == len(arms) > 1, f"{path.name} lists an arm twice"
