"""The command line: every wrong input is one message and exit code 2, and nothing is loaded or written for it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from helpers.paths import ROOT
from helpers.processes import python
from stsimdiff import compressors
from stsimdiff.commands import cli
from stsimdiff.config.words import settled
from stsimdiff.errors import ConfigError
from stsimdiff.launchers.base import configurations
from stsimdiff.resources import IN_REPOSITORY, folder

CONFIGS = folder("configs")
GROUPS = ("model", "compressor", "benchmark", "protocol", "budget", "logger", "experiment")


def run(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``python -m stsimdiff`` in a folder of its own, with its time noted in the test's output."""
    since = time.perf_counter()
    done = python("-m", "stsimdiff", *arguments, cwd=cwd, **environment)
    print(f"{time.perf_counter() - since:.1f} s: {shlex.join(arguments)}\n{done.stderr}")
    return done


# Each in a process of its own, as a user meets it: one for each kind of mistake.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compressor=st_simdif", r"compressor=st_simdif is unknown; allowed: .*fastv.*; did you mean st_simdiff\?"),
        ("compressor=temporal_difference", r"compressor=temporal_difference is now called compressor=evs"),
        ("-m compressor=random,st_simdif", r"compressor=st_simdif is unknown; .*did you mean st_simdiff\?"),
        ("compressor.tau_simm=0.7", r"compressor\.tau_simm is unknown to compressor=st_simdiff: .*mean tau_sim\?"),
        ("budget.retention=1.2", r"budget\.retention=1\.2 is out of range; allowed: a number in \(0, 1\]"),
        ("-m budget.retention=0.3,30", r"budget\.retention=30 is out of range"),
        ("compressor.tau_sim=7", r"compressor\.tau_sim=7.* is out of range; allowed: .*\[-1, 1\]"),
        ("compressor.tau_sim=[0.7", r"cannot read 'compressor\.tau_sim=\[0\.7': .*; write key=value"),
        ("run=a/b", r"run='a/b' is no name for a run"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message_before_anything_is_loaded(tmp_path, checkpoint, arguments, message):
    done = run(tmp_path, f"model.path={checkpoint}", *shlex.split(arguments))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not list(tmp_path.rglob("arm.json"))


# The rest in this process, for speed.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=embeded", r"model=embeded is unknown; allowed: .*embedded, .*; did you mean embedded\?"),
        ("benchmark=clip", r"benchmark=clip is unknown; .*did you mean clips\?"),
        ("budget=token", r"budget=token is unknown; allowed: compute, tokens; did you mean tokens\?"),
        ("logger=tensorboard", r"logger=tensorboard is unknown; allowed: none, wandb"),
        ("experiment=table", r"experiment=table is unknown; allowed: .*embedded_table"),
        ("+experiment=embedded_table", r"experiment is given twice; write it once, without a plus"),
        ("compressro=random", r"compressro is unknown; allowed: .*; did you mean compressor\?"),
        ("limits=3", r"limits is unknown; allowed: .*; did you mean limit\?"),
        ("budget.retension=0.3", r"budget\.retension is unknown: it has kind, retention; did you mean retention\?"),
        ("benchmark.families=[attr]", r"^benchmark\.families is now called benchmark\.categories$"),
        ("+benchmark.families=[attr]", r"^benchmark\.families is now called benchmark\.categories$"),
        ("'arms=[\"compressor=none benchmark.families=[attr]\"]'", r"benchmark\.families is now called benchmark\.cat"),
        ("compressor=none compressor.seed=1", r"unknown to compressor=none: it has no parameters"),
        ("compressor=random,fastv", r"compressor=random,fastv: several values need -m"),
        ("budget.retention=range(0.1,0.5,0.1)", r"0\.1,0\.2,0\.3,0\.4: several values need -m"),
        ("budget.retention", r"cannot read 'budget\.retention': it has no value"),
        ("compressor=[none,random]", r"a list is no choice, compressor takes one; .*: -m compressor=none,random$"),
        ("-m compressor=[none,random]", r"a list is no choice, .*: -m compressor=none,random$"),
        ("budget=0.3", r"budget=0\.3 is unknown; allowed: compute, tokens; .* is budget\.retention=0\.3"),
        ("budget.retention=30", r"budget\.retention=30 is out of range; .*; 30 % is 0\.3"),
        ("budget.retention=30%", r"budget\.retention='30%' is out of range; .*; 30 % is 0\.3"),
        ("budget.retention=0.3,,", r"cannot read 'budget\.retention=0\.3,,': a value is missing beside a comma"),
        ("compressor=null", r"compressor=null chooses nothing"),
        ("~compressor=fastv", r"~compressor=fastv takes out what is not there"),
        ("++compressor=fastv", r"compressor is chosen without a plus: compressor=fastv"),
        ("+seed=1", r"seed is there already; write it without a plus"),
        ("seed=1 seed=2", r"seed is given twice, as seed=1 and seed=2; write it once"),
        ("=1", r"=1 names no key"),
        ("-m compressor=glob(zz*)", r"compressor=glob\(zz\*\) fits none of .*fastervlm, "),
        ("-m seed=glob(*)", r"seed=glob\(\*\): glob fits names of files"),
        ("-m seed=range(3,3)", r"seed=range\(3,3\) is an empty range"),
        ("-m limit=interval(1,5)", r"only lists of values can be swept"),

        ("'arms=[\"compressor=fastv seed=1 seed=2\"]'", r"seed is given twice"),
        ("'arms=[\"-m compressor=fastv,none\"]'", r"holds the flag -m; settings alone belong there"),
        ("'arms=[\" \"]'", r"a line of arms is empty"),
        ("'arms=[\"experiment=table1\"]'", r"sets experiment, which belongs on the command line"),
        ("~model", r"model is missing from the configuration; leave out ~model"),
        ("~budget.kind", r"budget\.kind is missing; leave out ~budget\.kind"),
        ("run=${name}", r"run: interpolation key 'name' not found"),
        ("compressor=custom", r"compressor\._target_ must be given"),
        ("experiment=embedded_table compressor=random", r"compressor is set by the arms of this experiment"),
        ("experiment=embedded_table budget.retention=0.2", r"budget\.retention is set by the arms"),
        ("arms=[random]", r"cannot read 'random'"),
        ("'arms=[\"\\\"\"]'", r"the line .* of arms cannot be read: no closing quotation"),
        ("arms=random", r"arms must be a list of command lines"),
        ("--shell-completion install=csh", r"No completion plugin for 'csh' found"),
        ("-m results=/proc/nowhere", r"No such file or directory: '/proc/nowhere"),
    ],
)  # fmt: skip
def test_more_wrong_input(command_line, checkpoint, capsys, arguments, message):
    assert command_line(f"model.path={checkpoint}", *shlex.split(arguments)) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err)
    assert "Traceback" not in said.err
    assert said.out == ""
    assert cli.TRACEBACK not in os.environ


def test_a_parameter_that_only_one_method_of_a_sweep_has(command_line, capsys):
    assert command_line("-m", "compressor=random,st_simdiff", "compressor.tau_sim=0.7,0.8") == 2
    said = capsys.readouterr().err
    assert "compressor.tau_sim is unknown to compressor=random: it has seed" in said
    assert (
        'arms=["compressor=METHODS_WITHOUT_IT","compressor=METHOD_WITH_IT compressor.tau_sim=0.7,0.8"]'
        in said
    )


def test_an_unknown_flag_is_a_usage_message(tmp_path):
    done = run(tmp_path, "--cofg", "job")
    assert done.returncode == 2
    assert "usage: stsimdiff" in done.stderr
    assert "unrecognized arguments: --cofg" in done.stderr


def test_the_traceback_is_there_for_those_who_ask(tmp_path):
    done = run(tmp_path, "compressor=st_simdif", HYDRA_FULL_ERROR="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "did you mean st_simdiff?" in done.stderr


HEAVY = {"hydra", "lmms_eval", "matplotlib", "pandas", "scipy", "torch", "transformers"}


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("report --help", ""),
        ("conformance --help", ""),
        ("forget --help", ""),
        ("inspect --help", ""),
        ("inspect none.mp4", ""),
        ("check --help", ""),
        ("reprot", ""),
        ("report none", ""),
        ("compressor=nonsense", "hydra"),
        ("--help", "hydra"),
        ("profile --help", "hydra"),
        ("doctor budget.retention=2", "hydra"),
        ("forget run=none older", "hydra"),
    ],
)
def test_what_only_reads_or_checks_imports_no_more_than_it_needs(tmp_path, line, needed):
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(*({HEAVY!r} & sys.modules.keys()), file=open('imported', 'w')))\n"
        "from stsimdiff.commands.cli import main\n"
        "main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert set((tmp_path / "imported").read_text().split()) == set(needed.split())


def test_help_shows_examples_choices_and_the_form(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for name in compressors.BUILTIN:
        assert name in done.stdout
    assert "python -m stsimdiff -m compressor=random,st_simdiff budget.retention=0.3,0.5" in done.stdout
    assert "max_failures: 2%" in done.stdout
    assert '"$(stsimdiff --shell-completion install=bash)"' in done.stdout
    assert not list(tmp_path.iterdir())


def test_cfg_job_shows_what_would_run(tmp_path):
    done = run(tmp_path, "a=1", "--cfg", "job")
    assert done.returncode == 2
    done = run(tmp_path, "compressor.tau_sim=0.7", "--cfg", "job", "budget=compute", "run=mine")
    assert done.returncode == 0
    shown = OmegaConf.create(done.stdout)
    assert (shown.run, shown.budget.kind, shown.compressor.tau_sim) == ("mine", "compute", 0.7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(tmp_path, shell):
    done = run(tmp_path, "--shell-completion", f"install={shell}")
    assert done.returncode == 0
    assert "stsimdiff" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("stsimdiff comp", {"compressor=", "compressor."}),
        ("stsimdiff compressor=", {f"compressor={name}" for name in compressors.BUILTIN}),
        ("stsimdiff compressor.tau", {"compressor.tau_sim=", "compressor.tau_diff="}),
        ("stsimdiff budget=", {"budget=tokens", "budget=compute"}),
    ],
)
def test_tab_completion_offers_groups_options_and_keys(tmp_path, line, offered):
    done = run(tmp_path, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0
    assert offered <= set(done.stdout.split())


def options() -> list[str]:
    """Every file of every group, as one would choose it."""
    found = [
        f"{group}={path.stem}"
        for group in GROUPS
        for path in sorted((CONFIGS / group).glob("[!_]*.yaml"))
        if path.stem != "custom"
    ]
    assert len(found) > 12
    return found


@pytest.mark.parametrize("option", options())
def test_every_file_composes_and_resolves(option):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("config", overrides=[option])
    form = OmegaConf.load(CONFIGS / "config.yaml")
    assert set(cfg) == (set(form) | set(GROUPS)) - {"defaults", "hydra", "experiment"}
    OmegaConf.resolve(cfg)
    assert OmegaConf.missing_keys(cfg) == set()


def test_every_line_of_the_form_says_what_it_is_for():
    for path in [CONFIGS / "config.yaml", *CONFIGS.glob("*/*.yaml")]:
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), f"{path} does not open with what it is"
    form = (CONFIGS / "config.yaml").read_text().partition("\nrun:")[2].partition("\nhydra:")[0]
    for line in form.splitlines():
        assert not line or "#" in line, f"config.yaml: {line!r} has no comment"


def test_no_package_is_forgotten():
    listed = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    listed = set(re.findall(r'"([\w.]+)"', listed))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "stsimdiff").rglob("__init__.py")
    }
    assert listed == found | {f"stsimdiff.{name}" for name in IN_REPOSITORY}


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    phony = re.search(r"^\.PHONY: (help .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert named == set(phony.split())


@pytest.mark.parametrize("target", ["reproduce-table", "sweep", "efficiency", "doctor"])
@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        ("run=mine limit=8", {"run": "run=mine", "limit": "limit=8"}),
        ("'run=a b' compressor=none", {"run": "run=a b"}),
        ('run="a b" experiment=x', {"run": "run=a b", "experiment": "experiment=x"}),
        ("benchmark.data=/run=1", {}),
    ],
)
def test_what_args_says_is_not_said_twice_by_make(target, arguments, own):
    """A word that is given twice is refused."""
    command = ["make", "-n", target, "STAMP=", "LIMIT=3", f"ARGS={arguments}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout.replace("\\\n", " "))
    for key in ("run", "limit", "experiment"):
        said = [word for word in words if word.startswith(f"{key}=")]
        assert said == [own[key]] if key in own else len(said) <= 1, said
    if target == "sweep":
        assert "-m" in words and any(word.startswith("run=") for word in words)


def test_a_word_that_is_no_setting_is_a_command_or_is_refused(tmp_path):
    done = run(tmp_path, "reprot", "results/x")
    assert done.returncode == 2
    assert re.search(r"reprot is no command; allowed: .*report.*; did you mean report\?", done.stderr)
    assert all(f"{name} " in (CONFIGS / "hydra/help/stsimdiff.yaml").read_text() for name in cli.COMMANDS)
    done = run(tmp_path, "report", "nowhere")
    assert (done.returncode, done.stdout) == (2, "") and "nowhere: no such folder" in done.stderr


def test_a_command_line_can_be_composed_without_hydras_entry_point():
    found = configurations(["compressor=none,fastv", "budget.retention=0.3,0.5"])
    said = [(cfg.compressor._target_.rpartition(".")[2], cfg.budget.retention) for cfg in found]
    assert said == [("NoCompression", 0.3), ("NoCompression", 0.5), ("FastV", 0.3), ("FastV", 0.5)]
    with pytest.raises(ConfigError, match="only lists of values"):
        configurations(["budget.retention=interval(0.1,0.5)"])
    with pytest.raises(ConfigError, match="a list is no choice, .*: compressor=none,fastv$"):
        configurations(["compressor=[none,fastv]"])


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("compressor=glob(no*)", "compressor=no_video,none"),
        ("compressor=glob([n*,u*],exclude=[no_*])", "compressor=none,uniform_frames"),
        ("model=glob(qwen*)", "model=qwen2_5_vl,qwen2_vl,qwen3_vl"),
        ("budget.retention=range(0.1,0.5,0.1)", "budget.retention=0.1,0.2,0.3,0.4"),
        ("seed=range(0,3)", "seed=0,1,2"),
        ("compressor=choice(none,random)", "compressor=choice(none,random)"),
        ("run=2024_11_25", 'run="2024_11_25"'),
        ("run=1_0,2_0", 'run="1_0","2_0"'),
        ("run=1e5", 'run="1e5"'),
        ("data=null", "data=null"),
        ("results=~/x", 'results="~/x"'),
        ("model.path=/a,~b/c", 'model.path=/a,"~b/c"'),
    ],
)
def test_a_word_is_read_as_it_is_written(word, read):
    assert settled([word]) == [read]


def test_globs_leave_out_what_needs_a_class_of_the_users_own():
    (word,) = settled(["compressor=glob(*)"])
    assert set(word.partition("=")[2].split(",")) == set(compressors.BUILTIN)
    assert [cfg.run for cfg in configurations(["run=2024_11_25"])] == ["2024_11_25"]


def test_the_lock_fits_the_ranges_and_names_no_place():
    from packaging.requirements import Requirement

    lock = (ROOT / "scripts" / "constraints-py311.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lock if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.+!-]+", version) for version in pins.values())
    pinned = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    text = (ROOT / "pyproject.toml").read_text()
    asked = "".join(
        re.search(rf'\n{name} = \[((?:"[^"]*"|[^"\]])*)\]', text)[1]
        for name in ("dependencies", "report", "train", "communities", "cluster", "docs", "dev")
    )
    for line in re.findall(r'"([^"]+)"', asked):
        if line.startswith("stsimdiff["):
            continue
        requirement = Requirement(line)
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"{name} is not in the lock"
        assert requirement.specifier.contains(pinned[name]), f"{line} does not admit {pinned[name]}"


@pytest.mark.skipif("CI" not in os.environ, reason="builds a wheel; runs in CI")
def test_the_wheel_carries_configs_tasks_and_published_numbers(tmp_path):
    # From a copy: setuptools leaves build/ behind, and takes stale files from it the next time.
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=unwanted)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = tmp_path.glob("stsimdiff-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    for name, place in IN_REPOSITORY.items():
        assert files_in(unpacked / "stsimdiff" / name) == files_in(source / place)
    for inner in ("data/clips/model", "report/web"):
        found = files_in(source / "stsimdiff" / inner)
        assert found and files_in(unpacked / "stsimdiff" / inner) == found
    done = run(tmp_path, "--cfg", "job", PYTHONPATH=str(unpacked))
    assert done.returncode == 0


def files_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
