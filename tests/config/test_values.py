"""Every setting with values of every wrong kind: a message, never a traceback; nothing that means nothing is taken."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from helpers.configured import composed
from helpers.paths import ROOT
from stsimdiff.commands.messages import HYDRA_ERRORS
from stsimdiff.config import model
from stsimdiff.config.settings import budget_from_config, settings_from_config
from stsimdiff.config.sweep import expand
from stsimdiff.errors import ConfigError, UserError
from stsimdiff.launchers.base import configurations

VALUES = {
    **{"null": None, "list": [], "list of one": ["a"], "lists": [[]], "nothing": {}, "keys": {"a": 1}},
    **{"word": "x", "empty": "", "blank": " ", "escape": "\x1b[31m", "half": "\udcff", "nul": "a\0b"},
    **{"minus": -1, "zero": 0, "three": 3, "huge": 10**400, "broken": 1.5, "true": True},
    **{"nan": math.nan, "inf": math.inf},
}
WHOLE, POSITIVE = {"zero", "three"}, {"three", "broken"}
MEANT = {
    "run": {"word", "zero", "three"},
    "results": {"word"},
    "data": {"null", "word"},
    "limit": {"null", "three"},
    "seed": WHOLE,
    "retry_failed": {"true"},
    "reuse_prefix": {"true"},
    "max_failures": WHOLE,
    "sample_seconds": {"null", *POSITIVE},
    "cache.max_gb": {"zero", *POSITIVE},
    "video.workers": {"null", *WHOLE},
    "video.ahead": {"three"},
    "video.ahead_gb": POSITIVE,
    "cache.folder": {"null", "word"},
    "cache.disk_gb": POSITIVE,
    "overlays": WHOLE,
    "jobs": {"three"},
    "plan": {"true"},
    "plan_tflops": {"null", *POSITIVE},
    "arms": {"null"},
    "model.path": {"null"},
    "protocol.source": {"null"},
    "protocol.family": {"null"},
    "protocol.all_tokens": {"nothing"},
    "protocol.tolerance": {"broken"},
    "protocol.remeasured": {"nothing"},
    "protocol.unknown": {"null"},
    "model.frames": {"three"},
    "model.fps": POSITIVE,
    "model.device_map": {"null", "keys"},
    "model.threads": {"null", "three"},
    "model.trust_remote_code": {"true"},
    "model.prompts": {"null", "nothing"},
    "benchmark.name": {"word"},
    "benchmark.task": set(),
    "benchmark.categories": {"null"},
    "benchmark.chance": {"null", "zero", *POSITIVE},
    "benchmark.macro": {"true"},
    "benchmark.note": {"null", "word", "empty", "blank", "escape", "half", "nul"},
    "benchmark.data": {"null"},
    "benchmark.prompt": {"null"},
    "benchmark.video_seconds": {"null", *POSITIVE},
    "benchmark.allow_missing": {"true"},
    "logger.project": {"word"},
    "logger.mode": {"null"},
}


@pytest.fixture(scope="module")
def form() -> DictConfig:
    (cfg,) = configurations(["logger=wandb", "limit=2"])
    return cfg


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        yield f"{prefix}{key}"
        inner = node._get_node(key)
        if isinstance(inner, DictConfig) and key not in ("compressor", "prompts"):
            yield from keys(inner, f"{prefix}{key}.")


def test_every_setting_with_every_kind_of_value(form, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model, "checkpoint_version", lambda *given: "0")
    wrong = []
    for key in keys(form):
        taken = set()
        for name, value in VALUES.items():
            cfg = form.copy()
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
            try:
                (one,) = expand(cfg, [], lambda words, cfg=cfg: cfg)
                budget_from_config(one)
                settings_from_config(one)
                taken.add(name)
            except (UserError, *HYDRA_ERRORS) as error:
                assert len(str(error)) < 900, f"{key}={name}: {error}"
        # A key that is not listed ends in a message or has a meaning; of these it is known which.
        if key in MEANT and taken != MEANT[key]:
            wrong.append(f"{key}: took {sorted(taken - MEANT[key])}, refused {sorted(MEANT[key] - taken)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "benchmark.categories=attr",
            r"categories='attr' is out of range; .* is written benchmark\.categories=\[attr\]",
        ),
        ("benchmark.categories=[attr,attr]", r"a list of categories, each once, or null"),
        ("benchmark.categories=[]", r"a list of categories"),
        ("logger.project=team/runs", r"logger\.project='team/runs' is out of range; .* none of / "),
        (f"logger.project={'p' * 129}", r"1 to 128 letters"),
        (f"run={'r' * 129}", r"is too long for a name; allowed: 128"),
        (f"results={'r' * 300}", r"the path is too long; allowed: .* 255"),
        ("results=$NO_SUCH_VARIABLE/x", r"results=.*: the environment variable NO_SUCH_VARIABLE is not set"),
        ("cache.folder=~nobody-here/x", r"cache\.folder=.*: there is no user nobody-here"),
        ("data=$EMPTY/x", r"data=.*: the environment variable EMPTY is not set, or empty"),
        ("model.path=$NO_SUCH_VARIABLE", r"model\.path=.* NO_SUCH_VARIABLE is not set"),
        ("benchmark.data=$NO_SUCH_VARIABLE", r"benchmark\.data=.* NO_SUCH_VARIABLE is not set"),
    ],
)
def test_values_that_mean_nothing(words, said, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigError, match=said):
        settings_from_config(configurations(["logger=wandb", words])[0])


def test_home_and_variables_are_filled_in_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "data" / "videomme").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    words = ["results=$SCRATCH/r", "cache.folder=~/c", "data=~/data", "benchmark.data=$SCRATCH", "run=a"]
    settings = settings_from_config(configurations(words)[0])
    assert settings.folder == tmp_path / "scratch" / "r" / "a"
    assert settings.cache.folder == str(tmp_path / "c")
    assert settings.benchmark.data == str(tmp_path / "scratch")
    for given in ("~/nothing", "$HOME/nothing", "$SCRATCH/../nothing"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            settings_from_config(configurations([f"model.path={given}"])[0])


def test_the_other_commands_fill_them_in_too(monkeypatch, tmp_path, capsys):
    from stsimdiff.commands import conformance, data, report
    from stsimdiff.commands.inspect import read_words

    monkeypatch.setenv("PLACE", str(tmp_path))
    for main, words in ((report.main, ["$PLACE/none"]), (conformance.main, ["$PLACE/none"])):
        assert main(words) == 2
        assert str(tmp_path / "none") in capsys.readouterr().err
    assert data.main(["videomme", "--data", "$PLACE/none"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert report.main(["$NO_SUCH_VARIABLE/run"]) == 2
    assert "NO_SUCH_VARIABLE is not set" in capsys.readouterr().err
    (tmp_path / "v.mp4").write_bytes(b"x" * 100)
    asked = read_words(["$PLACE/v.mp4", "output=$PLACE/o"])
    assert (asked.file, asked.output) == (tmp_path / "v.mp4", tmp_path / "o")


def test_hydras_own_folder_of_a_sweep_is_below_the_same_results(monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    configurations(["run=a"])  # registers what the form refers to
    cfg = composed("results=$SCRATCH/r", "run=a", return_hydra_config=True)
    assert cfg.hydra.sweep.dir == f"{tmp_path}/r/a/.hydra"


def commands(text: str) -> list[str]:
    """Command lines of ours in a text, joined where they are continued, comments behind them left out."""
    text = re.sub(r"\\\n", " ", text)
    found = re.findall(r"python -m stsimdiff ([^`#\n]*)", text)
    return [re.sub(r"\s*(\(docs/.*|  .*)$", "", line.strip()) for line in found]


def documents() -> list[Path]:
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    return sorted(found)


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_the_documents_compose(document, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("SCRATCH", "DATA", "MODEL"):
        monkeypatch.setenv(name, str(tmp_path))
    text = document.read_text(encoding="utf-8")
    for line in commands(text):
        words = shlex.split(line)
        if not words or set(line) & set("<|;") or "..." in line or words[0].isupper():
            continue
        if "benchmark=mine" in words:
            continue  # the reader's own, whose files a test of their own takes from the page
        if words[0] in ("report", "conformance", "data", "check", "COMMAND") or any(
            word.startswith("--") for word in words
        ):
            continue
        settings = [word for word in words if re.match(r"[+\w./@]+=", word)]
        assert configurations([word for word in settings if not word.startswith(("question=", "output="))]), (
            line
        )


def test_examples_in_comments_of_the_configs_are_settings():
    checked = 0
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        base = path.with_name("_base.yaml")
        own = {*OmegaConf.load(path), *(OmegaConf.load(base) if base.is_file() else ())}
        for comment in re.findall(r"#(.*)", path.read_text(encoding="utf-8")):
            words = re.findall(r"(?<![\w/.`-])\+?[a-z][\w./]*=[\w.\[\],/-]*\w\]?", comment)
            for word in words:
                key = word.lstrip("+").partition("=")[0]
                if key in own and path.parent.name in ("model", "benchmark", "compressor"):
                    key, word = f"{path.parent.name}.{key}", f"{path.parent.name}.{word}"
                group, dot, _ = key.partition(".")
                # What only one of a group's files has is read with that file: the line's, or the one it stands in.
                chosen = [other for other in words if dot and other.startswith(f"{group}=")]
                if dot and path.parent.name == group and not path.stem.startswith("_"):
                    chosen.append(f"{group}={path.stem}")
                owned = word.startswith("+") or key in ("compressor._target_", "model.family", "model.path")
                if not owned and not key.startswith("hydra") and "/" not in word and word.count("=") == 1:
                    assert configurations([*chosen[:1], word]), f"{path}: {word}"
                    checked += 1
    assert checked > 3


def test_an_undefined_variable_in_a_sweep_is_one_message(command_line, tmp_path, capsys):
    assert command_line("-m", "results=$NO_SUCH_VARIABLE/x", "run=a,b") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "the environment variable NO_SUCH_VARIABLE is not set" in said
    assert not os.listdir(tmp_path)
