"""A class of the user's own under its dotted path: in sweeps, in the arms of an experiment, in ``make compare``."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT, code_blocks
from stsimdiff.config.words import options
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.launchers.base import configurations


@pytest.fixture
def own(tmp_path, own_module) -> Path:
    """A folder with the first method of docs/your-method.md."""
    own_module("my_module", code_blocks("your-method.md")[0])
    return tmp_path


def arms(*words: str) -> list[tuple[str, float]]:
    passes = passes_of(configurations([*words, "logger=none"]))
    return [(arm.label, arm.budget.retention) for one in passes for arm in one.arms.values()]


def test_a_dotted_path_is_a_compressor_s_name(own) -> None:
    found = arms("compressor=none,random,my_module.Mine", "budget.retention=0.3,0.5")
    assert found == [
        ("none", 1.0),
        ("random", 0.3),
        ("random", 0.5),
        ("Mine", 0.3),
        ("Mine", 0.5),
    ]
    # With or without the plus that a parameter of ``compressor._target_`` needs.
    for plus in ("", "+"):
        assert arms("compressor=my_module.Mine", f"{plus}compressor.power=1,2") == [
            ("Mine power=1", 0.3),
            ("Mine", 0.3),
        ]
    line = "arms=['compressor=fastv','compressor=\"my_module.Mine\" compressor.power=3']"
    assert arms(line) == [("fastv", 0.3), ("Mine power=3", 0.3)]
    assert "my_module.Mine" not in options("compressor")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compressor=my_module.Mine", "compressor.powr=1"], "powr is unknown: Mine has the parameters power; did you"),
        (["compressor=my_module.Nine"], "my_module.Nine cannot be imported: AttributeError"),
        (["compressor=none,my_modul.Mine"], "my_modul.Mine cannot be imported: ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_wrong_paths_and_parameters_say_what_is_right(own, words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        arms(*words)


def test_the_command_line_takes_both_a_path_and_a_folder_of_configs(own, forks) -> None:
    (own / "my_configs" / "compressor").mkdir(parents=True)
    (own / "my_configs" / "compressor" / "mine.yaml").write_text("_target_: my_module.Mine\npower: 3.0\n")
    more = ["logger=none", "plan=true", "limit=1"]
    forks = forks.at(own)
    assert forks.run(["-m", "compressor=none,my_module.Mine", *more], own / "log") == 0
    assert re.search(r"\bMine\b", (own / "log").read_text())
    assert forks.run(["--config-dir", "my_configs", "compressor=mine", *more], own / "log") == 0
    assert "Mine power=3" in (own / "log").read_text()
    assert forks.run(["compressor=st_simdif", *more], own / "log") == 2
    assert "compressor=st_simdif is unknown; allowed: " in (own / "log").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_compare_writes_the_sweep() -> None:
    words = ["make", "-n", "compare", "METHODS=fastv  my_module.Mine", "RETENTION=0.3 0.5", "LIMIT=4"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    said = " ".join(done.stdout.replace("\\\n", " ").split())
    arms = '["compressor=none,no_video","compressor=fastv,my_module.Mine budget.retention=0.3,0.5"]'
    assert f"stsimdiff 'arms={arms}' run=compare limit=4" in said
