"""The kit on methods that are broken on purpose, and as its user meets it: the command, the plug-in, the page."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from helpers.paths import code_blocks
from helpers.processes import python
from stsimdiff.commands import check
from stsimdiff.compressors.base import Compressor, Places, Run, ScoreCompressor, top
from stsimdiff.errors import ConfigError
from stsimdiff.kit import checks
from stsimdiff.kit.running import CompressorCase
from stsimdiff.tokens import Reason, Selection

SEEN: list[int] = []


@dataclass(frozen=True)
class Sound(ScoreCompressor):
    def score(self, tokens, layout):
        return tokens.features.norm(dim=1)


@dataclass(frozen=True)
class Draws(ScoreCompressor):
    def score(self, tokens, layout):
        return torch.rand(len(tokens))


@dataclass(frozen=True)
class Remembers(ScoreCompressor):
    def score(self, tokens, layout):
        SEEN.append(len(tokens))
        return tokens.features.norm(dim=1) * (-1) ** len(SEEN)


@dataclass(frozen=True)
class Writes(ScoreCompressor):
    def score(self, tokens, layout):
        return tokens.features.mul_(2).norm(dim=1)


@dataclass(frozen=True)
class AllPairs(ScoreCompressor):
    def score(self, tokens, layout):
        return (tokens.features @ tokens.features.T).mean(1)


@dataclass(frozen=True)
class SingleFrames(ScoreCompressor):
    def score(self, tokens, layout):
        return (
            tokens.features.view(layout.grid.frames, -1)
            .diff(dim=0)
            .norm(dim=1)[:, None]
            .expand(-1, layout.grid.per_frame)
            .flatten()[: len(tokens)]
        )


@dataclass(frozen=True)
class OnlyFloat32(ScoreCompressor):
    def score(self, tokens, layout):
        return tokens.features @ torch.ones(tokens.features.shape[1])


@dataclass(frozen=True)
class Keeps(Compressor):
    """Keeps a fixed share whatever the budget says, and asks no feature whether it is a number."""

    place: str = "input"

    def start(self, layout, budget):
        return KeepsRun(self.place)


class KeepsRun(Run):
    def __init__(self, place):
        self.places = Places(input=True) if place == "input" else Places(before=frozenset({9}))

    def at_input(self, tokens):
        norms = tokens.features.norm(dim=1)
        return Selection.from_mask(top(norms, max(1, len(tokens) // 3)), Reason.IMPORTANT)

    def before_layer(self, layer, tokens, attention):
        return self.at_input(tokens)


@dataclass(frozen=True)
class OneRun(Compressor):
    """Hands out the same run again and again."""

    def start(self, layout, budget):
        return shared_run()


@functools.cache
def shared_run():
    return CountsRun()


class CountsRun(Run):
    places = Places(input=True)
    count = 0

    def at_input(self, tokens):
        self.count += 1
        mask = torch.arange(len(tokens)) % 3 != self.count % 3
        return Selection.from_mask(mask, Reason.IMPORTANT)


BROKEN = [
    (Draws(), "deterministic", "another selection the second time; draw from generator_for"),
    (Draws(), "nothing left behind", "changed torch's random state; draw from generator_for"),
    (Remembers(), "no state carried", "what one video needs lies in its run"),
    (OneRun(), "no state carried", "another video before it changes a selection"),
    (Writes(), "nothing left behind", r"Writes, .*wrote into tokens.features: work on a copy"),
    (AllPairs(), "time and memory", r"memory \d.* copies .* at most 18 in memory: make no matrix of all pairs"),
    (SingleFrames(), "one frame", r"score returned shape \(0,\), expected a tensor \(20,\)"),
    (OnlyFloat32(), "bfloat16", "dtype"),
    (Keeps(), "budget of tokens", r"a mixed video at budget=tokens, retention 0.02: 448 of 1344 tokens are left"),
    (Keeps(), "budget of compute", r"retention 0.3: 448 of 1344 tokens a layer are left where 403.2 are allowed"),
    (Keeps(), "bad features refused", "a feature that is nan raises nothing; begin with tokens.check_finite"),
    (Keeps("before"), "places announced and used", "on a model of 2 layers: layer 9 does not exist.*raise ConfigError"),
    (Keeps("before"), "dropping equals masking: nvila", "layer 9 does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "name", "message"), BROKEN)
def test_broken_methods_are_seen(method, name, message) -> None:
    with pytest.raises(Exception, match=message) as caught:
        checks.CHECKS[name](CompressorCase(method))
    assert not isinstance(caught.value, checks.CheckSkipped)


def test_a_budget_that_every_video_refuses_by_name_is_no_fault() -> None:
    from stsimdiff.compressors.fastv import FastV

    with pytest.raises(checks.CheckSkipped, match="refuses every budget of kind compute: "):
        checks.CHECKS["budget of compute"](CompressorCase(replace(FastV(), layer=27)))


def test_dropping_is_compared_with_masks_that_matter(monkeypatch) -> None:
    """An engine that dropped one token more than it says would be seen."""
    generate = checks.running.generate

    def more(model, run=None, forced=None):
        logits, tokens, trace = generate(model, run, forced)
        trace.stages[-1].kept = torch.cat([trace.stages[-1].kept[1:]])
        return logits, tokens, trace

    monkeypatch.setattr(checks.running, "generate", more)
    monkeypatch.setattr(checks.running, "masked", functools.partial(_masked, checks.running.masked, generate))
    with pytest.raises(AssertionError, match="dropping differs from masking by"):
        checks.CHECKS["dropping equals masking: qwen2_vl"](CompressorCase(Sound()))


def _masked(masked, generate, model, drops, tokens):
    checks.running.generate = generate
    return masked(model, drops, tokens)


# As its user meets it ------------------------------------------------------------------------------------------

BAD = """
from dataclasses import dataclass
from stsimdiff.compressors.base import ScoreCompressor
import torch

@dataclass(frozen=True)
class Bad(ScoreCompressor):
    noise: float = 1.0

    def score(self, tokens, layout):
        return tokens.features.norm(dim=1) + torch.rand(len(tokens), dtype=self.missing)
"""


@pytest.fixture
def own(tmp_path, own_module) -> Path:
    """A folder with the methods of docs/your-method.md, and a broken one."""
    for block in code_blocks("your-method.md"):
        own_module(block.partition(".py\n")[0].removeprefix("# "), block)
    own_module("bad_module", BAD)
    return tmp_path


@pytest.mark.parametrize(
    "words", [["my_module.Mine", "power=1.0"], ["my_pruner.Pruner"], ["random", "seed=3"]]
)
def test_the_methods_of_the_documentation_pass(own, capsys, words) -> None:
    assert check.main(words) == 0
    out = capsys.readouterr().out
    # A method that does not say it reads no question is not asked to prove it.
    assert f"{len(checks.CHECKS) - 1} pass, 0 fail, 1 skipped" in out or "random" in words
    assert ("passes   reads no question" in out) == ("random" in words)
    assert "passes   time and memory: memory" in out and "copies of the token matrix (6272 tokens)" in out
    assert out.startswith({"my_module.Mine": "Mine(power=1.0), my_module.py, line 13"}.get(words[0], ""))


def test_a_failure_names_file_line_and_code(own, capsys) -> None:
    assert check.main(["bad_module.Bad"]) == 1
    out = capsys.readouterr().out
    assert (
        "fails    one token: AttributeError: 'Bad' object has no attribute 'missing'\n"
        "         bad_module.py, line 11, in score: "
        "return tokens.features.norm(dim=1) + torch.rand(len(tokens), dtype=self.missing)\n"
    ) in out
    # Of NaN the base class takes care.
    assert out.endswith(f"1 pass, {len(checks.CHECKS) - 2} fail, 1 skipped\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.Mine"], "cannot be imported: ModuleNotFoundError"),
        (["fastvv"], "'fastvv' is unknown; allowed: .*did you mean fastv"),
        (["my_module.Mine", "powr=1"], "compressor.powr is unknown: Mine has the parameters power; did you mean power"),
        (["my_module.Mine", "power=big"], "compressor.power='big' is out of range; allowed: a number"),
        (["power=1"], "one method is checked at a time, got no method"),
        (["fastv", "random"], r"got 2 methods \(fastv, random\)"),
        (["fastv", "--quick"], "--quick is no flag of check"),
        (["fastv", "layer=[1"], "cannot read 'layer=.1'"),
    ],
)  # fmt: skip
def test_wrong_input_of_the_check(own, words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check.main(words)


def test_the_plug_in_runs_the_same_checks(own) -> None:
    (own / "test_of_the_user.py").write_text("def test_other():\n    assert False\n")
    words = ["pytest", "-q", "-p", "stsimdiff.kit", "-p", "no:cacheprovider", "-k", "one or time"]
    done = python("-m", *words, "--compressor", "my_module.Mine power=3", cwd=own)
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout


def test_declared_class_variables_are_no_parameters() -> None:
    @dataclass(frozen=True)
    class Declares(Sound):
        needs_vision: ClassVar[bool] = True

    checks.CHECKS["one token"](CompressorCase(Declares()))
