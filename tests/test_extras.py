"""What a plain installation lacks is named before a run starts, with the extra that brings it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.processes import python
from helpers.synthetic_run import answers, write_arm
from stsimdiff import extras
from stsimdiff.budget import Budget
from stsimdiff.commands.report import main
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.errors import ConfigError
from stsimdiff.report import series

LEFT_OUT = (
    "figures and report.html are left out, the tables are not: matplotlib and plotly are not installed; "
)
OPTIONAL = ("matplotlib", "plotly", "statsmodels", "igraph", "torchcodec", "submitit", "hydra_plugins")
"""Packages of which a plain installation has none; `None` in `sys.modules` makes Python say that they are not there."""


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A path with which Python finds none of the optional packages."""
    (tmp_path / "plain").mkdir()
    lines = ["import sys", f"sys.modules.update(dict.fromkeys({OPTIONAL}))"]
    (tmp_path / "plain/sitecustomize.py").write_text("\n".join(lines))
    return os.pathsep.join([str(tmp_path / "plain"), str(ROOT)])


def test_a_plain_installation_does_the_main_job_without_figures(tmp_path, plain):
    words = ("-m", "compressor=none,st_simdiff", "budget.retention=0.3", "limit=4", "run=r", "logger=none")
    done = python("-m", "stsimdiff", *words, cwd=tmp_path, PYTHONPATH=plain)
    assert done.returncode == 0, done.stderr
    # Said before the first question is answered, and again below the table.
    assert LEFT_OUT in done.stdout and done.stderr.index(LEFT_OUT) < done.stderr.index(" answered")
    made = {path.name for path in (tmp_path / "results/r").iterdir() if path.is_file()}
    assert {"table.csv", "table.md", "table.tex", "pairs.csv"} <= made and "report.html" not in made


@pytest.mark.parametrize(
    ("word", "extra"),
    [("hydra/launcher=submitit_slurm", "cluster"), ("benchmark.decoder=torchcodec", "torchcodec")],
)
def test_the_extra_that_a_setting_needs_is_named_before_anything_is_loaded(tmp_path, plain, word, extra):
    done = python("-m", "stsimdiff", "-m", word, "limit=4", cwd=tmp_path, PYTHONPATH=plain)
    assert (done.returncode, done.stdout) == (2, "") and f"pip install 'stsimdiff[{extra}]'" in done.stderr
    assert not list(tmp_path.rglob("answers*.jsonl"))


def test_files_of_an_earlier_report_do_not_pass_for_this_ones(tmp_path, monkeypatch, capsys):
    run = tmp_path / "results/r"
    write_arm(run, "fastv", 0.3, answers(0.6, 0.3))
    (run / "figures").mkdir()
    for name in ("figures/accuracy_flops.svg", "figures/mine.svg", "report.html"):
        (run / name).write_text("old")
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main([str(run)]) == 0
    assert "plotly is not installed" in capsys.readouterr().out
    assert [path.name for path in (run / "figures").iterdir()] == ["mine.svg"]
    assert not (run / "report.html").exists() and (run / "table.md").exists()


def test_the_drawings_packages_are_those_of_the_extra():
    settings = (ROOT / "pyproject.toml").read_text()
    (brought,) = re.findall(r"^report = \[(.*?)\]", settings, re.MULTILINE)
    assert tuple(re.findall(r'"(\w+)', brought)) == extras.DRAWING
    needed = re.search(r"^dependencies = \[(.*?)^\]", settings, re.MULTILINE | re.DOTALL)[1]
    assert not {*OPTIONAL, "tokenizers"} & set(re.findall(r'"([\w-]+)', needed))
    assert set(series.FORMATS) == {"svg", "png", "pdf"}


def test_communities_without_igraph_are_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ConfigError, match=r"community='leiden' needs .*'stsimdiff\[communities\]'"):
        STSimDiff(community="leiden").check(Budget())
    STSimDiff().check(Budget())
