"""Methods that misbehave: each gets a sentence that names the fix, and no other arm's answers change by a bit."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from helpers.configured import composed
from helpers.written import json_lines
from stsimdiff.config.arms import arm_from_config
from stsimdiff.config.settings import settings_from_config
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.passes import Pass
from stsimdiff.kit import rehearsal
from stsimdiff.kit.rehearsal import rehearse

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
import torch
from stsimdiff.compressors.base import Compressor, Places, Run, ScoreCompressor, generator_for, top
from stsimdiff.tokens import Reason, Selection

SEEN = []
"""


FROZEN = "@dataclass(frozen=True)\n"


def scores(*lines: str, fields: str = "") -> str:
    body = "\n".join(f"        {line}" for line in lines)
    return f"{FROZEN}class Mine(ScoreCompressor):\n{fields}    def score(self, tokens, layout):\n{body}\n"


def runs(places: str, *lines: str, act: str = "at_input(self, tokens)", start: str = "MineRun()") -> str:
    body = "\n".join(f"        {line}" for line in lines)
    return (
        f"class MineRun(Run):\n    {places}\n    def {act}:\n{body}\n\n"
        f"{FROZEN}class Mine(Compressor):\n    def start(self, layout, budget):\n        return {start}\n"
    )


KEEP = "Selection.from_mask(torch.ones(len(tokens), dtype=torch.bool), Reason.IMPORTANT)"
BEFORE = "before_layer(self, layer, tokens, attention)"
ATTENDS = "return Selection.from_mask(top(attention.mean(0), 4), Reason.IMPORTANT)"
EARLY = {
    "numpy": (scores("return np.zeros(len(tokens))"), "score returned a ndarray, expected a tensor.*torch.as_tensor"),
    "list": (scores("return [0.0] * len(tokens)"), "score returned a list, expected a tensor.*torch.as_tensor"),
    "no return": (scores("tokens.features.norm(dim=1)"), "score returned a NoneType, expected a tensor"),
    "wrong shape": (scores("return tokens.features"), r"score returned shape \(144, 64\), expected a tensor \(144,\)"),
    "NaN": (scores("return tokens.features[:, 0] / 0 * 0"), "score returned NaN"),
    "mask for a selection": (
        runs("places = Places(input=True)", "return torch.ones(len(tokens), dtype=torch.bool)"),
        r"returned a Tensor at its input place; expected a Selection, such as Selection.from_mask\(mask",
    ),
    "keep is a mask": (
        runs("places = Places(input=True)", "m = torch.ones(len(tokens), dtype=torch.bool)", "return Selection(m, m)"),
        r"keep is shape \(144,\) of torch.bool; expected a tensor \(k,\) of torch.int64",
    ),
    "not ascending": (
        runs("places = Places(input=True)", "return Selection(torch.tensor([2, 1]), torch.ones(len(tokens)))"),
        "keep must be strictly ascending",
    ),
    "attention too late": (
        runs("places = Places(before=frozenset({3}), attention=frozenset({3}))", ATTENDS, act=BEFORE),
        "reads the attention of layer 3 and acts at no place after it: its last place is at layer 3; read that of an "
        "earlier layer",
    ),
    "attention comes after": (
        runs("places = Places(before=frozenset({2, 4}), attention=frozenset({3}))", ATTENDS, act=BEFORE),
        "attention is None, since that of layer 3, the first that places names, comes later",
    ),
    "attention not asked for": (
        runs("places = Places(before=frozenset({2}))", ATTENDS, act=BEFORE),
        r"attention is None, since places names no layer .* add attention=frozenset\(\{1\}\)",
    ),
    "needs_vision forgotten": (
        scores("return layout.vision.received"),
        r"layout.vision is None, .*: write needs_vision: ClassVar\[bool\] = True",
    ),
    "start returns nothing": (
        runs("places = Places(input=True)", f"return {KEEP}", start="None"),
        "start returned None; is a return missing",
    ),
    "start returns the class": (
        runs("places = Places(input=True)", f"return {KEEP}", start="MineRun"),
        "start returned the class MineRun and not one of it; are its brackets missing",
    ),
    "places forgotten": (
        runs("", f"return {KEEP}"),
        r"has at_input, but its places are not said.*write places = Places\(input=True\)",
    ),
    "places is no Places": (
        runs("places = {'input': True}", f"return {KEEP}"),
        r"is a dict; write Places\(input=True\)",
    ),
    "a layer for a set": (
        runs("places = Places(before=3)", f"return {KEEP}", act=BEFORE),
        r"Places\(before=3\) of MineRun .* is no set of layers; write before=frozenset\(\{2\}\)",
    ),
    "announced and lacking": (
        runs("places = Places(input=True, between=frozenset({1}))", f"return {KEEP}"),
        r"announces between in its places and lacks it; write def between\(self, layer, tokens, attention\)",
    ),
    "@dataclass forgotten": (
        scores("return tokens.features[:, 0]", fields="    power: float = 2.0\n\n").replace(FROZEN, ""),
        r"lacks @dataclass\(frozen=True\), without which power is no parameter",
    ),
    "frozen forgotten": (
        scores("return tokens.features[:, 0]").replace("@dataclass(frozen=True)", "@dataclass"),
        r"cannot inherit non-frozen dataclass from a frozen one; write @dataclass\(frozen=True\) above the class",
    ),
    "wrong signature": (
        scores("return tokens.features[:, 0]").replace("(self, tokens, layout)", "(self, tokens)"),
        r"score \(.*wrong_module.py, line \d+\) takes \(self, tokens\) and is called .* def score\(self, tokens, lay",
    ),
    "misspelt method": (
        scores("return tokens.features[:, 0]").replace("def score", "def scores"),
        r"lacks score: write def score\(self, tokens, layout\); is scores meant to be it\?",
    ),
    "a place on the compressor": (
        "@dataclass(frozen=True)\nclass Mine(ScoreCompressor):\n    def at_input(self, tokens):\n        return None\n"
        "    def score(self, tokens, layout):\n        return tokens.features[:, 0]\n",
        "has at_input, which belongs to the run of one video",
    ),
    "yield": (scores("yield tokens.features[:, 0]"), "must return its result: it has yield or async"),
    "misspelt name": (
        scores("return tokens.feature.norm(dim=1)"),
        r"AttributeError: .*no attribute 'feature'.*\n  .*wrong_module.py, line \d+, in score: return tokens.feature.n",
    ),
    "syntax": (scores("return tokens.features[:, 0"), r"imported: SyntaxError: .* \(.*wrong_module.py, line \d+: "),
    "writes in place": (scores("return tokens.features.mul_(2)[:, 0]"), "wrote into tokens.features: work on a copy"),
    "global generator": (
        scores("return torch.rand(len(tokens))"),
        r"changed torch's random state; draw from generator_for\(layout.sample, self.seed\)",
    ),
    "state of a module": (
        scores("SEEN.append(1)", "return tokens.features[:, 0]"),
        "changed wrong_module.SEEN: what one video needs lies in its run",
    ),
    "default dtype": (
        scores("torch.set_default_dtype(torch.float64)", "return tokens.features[:, 0]"),
        r"changed torch's default dtype \(torch.float32 became torch.float64\)",
    ),
}  # fmt: skip
PARAMETERS = {
    "misspelt": (
        "    power: float = 2.0\n\n",
        "+compressor.powr=1",
        "compressor.powr is unknown.*did you mean power",
    ),
    "no annotation": (
        "    power = 2.0\n\n",
        "+compressor.power=1",
        "has no annotation.*write power: float = 2.0",
    ),
    "a word": ("    power: float = 2.0\n\n", "+compressor.power=big", "out of range; allowed: a number"),
    "no default": ("    power: float\n\n", "+compressor.power=null", "out of range; allowed: a number"),
    "left out": ("    power: float\n\n", "+seed_of_nothing=1", r"power.*is given as \+compressor.NAME=VALUE"),
}


@pytest.fixture(scope="module")
def settings():
    return settings_from_config(composed("logger=none"))


@pytest.fixture
def attempt(settings, own_module):
    """What a run does with a method before it loads a model."""

    def attempt(source: str, *words: str) -> None:
        own_module("wrong_module", HEAD + source)
        given = ["compressor=custom", "compressor._target_=wrong_module.Mine", "budget.retention=0.5", *words]
        arm = arm_from_config(composed(*given), settings)
        rehearse([Pass(settings, {arm.id: arm}, 0)])

    return attempt


def test_a_method_that_does_not_end_is_warned_of_and_keeps_nothing_waiting(
    attempt, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(rehearsal, "LONGEST", 0.3)
    handler = signal.getsignal(signal.SIGALRM)
    attempt(scores("import time", "while True:", "    time.sleep(0.01)"))
    assert "Mine fails on a synthetic video: TimeoutError: no selection within 0.3 s" in caplog.text
    assert signal.getsignal(signal.SIGALRM) is handler and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("way", EARLY)
def test_each_way_of_misbehaving_has_its_sentence_before_a_model_is_loaded(attempt, way) -> None:
    source, message = EARLY[way]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        attempt(source)


@pytest.mark.parametrize("way", PARAMETERS)
def test_so_has_each_wrong_parameter(attempt, way) -> None:
    fields, word, message = PARAMETERS[way]
    words = [] if way == "left out" else [word]
    with pytest.raises(ConfigError, match=message):
        attempt(scores("return tokens.features[:, 0]", fields=fields), *words)


def test_a_sound_method_is_tried_in_silence(attempt, caplog) -> None:
    attempt(scores("return tokens.features.norm(dim=1)"))
    attempt(runs("places = Places(before=frozenset({3}), attention=frozenset({2}))", ATTENDS, act=BEFORE))
    assert not caplog.records


def test_what_may_depend_on_the_model_only_warns(attempt, caplog) -> None:
    attempt(scores("return tokens.features @ torch.ones(63)"))
    (warned,) = caplog.messages
    assert "Mine fails on a synthetic video: RuntimeError" in warned
    assert re.search(
        r"wrong_module.py, line \d+, in score: return tokens.features @ torch.ones\(63\)", warned
    )


# In a run ------------------------------------------------------------------------------------------------------

LATE = {
    "Raises": (
        "raise ValueError('mine')",
        r"2 times ValueError: mine\n    late_module.py, line \d+, in score: raise ValueError\('mine'\)",
    ),
    "Exits": ("raise SystemExit(0)", "times SystemExit: 0\n    late_module.py, line"),
    "Writes": ("tokens.features.zero_()", "Writes, at its input place, wrote into tokens.features"),
    "Layout": ("layout.video.zero_()", "Layout, at its input place, wrote into layout.video"),
    "Draws": ("torch.rand(3)", "Draws changed torch's random state; draw from generator_for"),
    "Remembers": ("SEEN.append(1)", "Remembers changed late_module.SEEN"),
    "Dtype": ("torch.set_default_dtype(torch.float64)", "Dtype, at its input place, changed torch's default dtype"),
    "Short": ("tokens = torch.zeros(3)\n            return tokens", r"Short.score returned shape \(3,\)"),
}  # fmt: skip
"""Only on real questions, so that no rehearsal sees it."""


def test_in_a_run_no_other_arm_s_answers_change_by_a_bit(tmp_path, data, forks) -> None:
    source = HEAD
    for name, (line, _) in LATE.items():
        body = f"if layout.sample.startswith('clip'):\n            {line}"
        source += scores(body, "return torch.arange(len(tokens)) * 1.0").replace(
            "class Mine", f"class {name}"
        )
    (tmp_path / "late_module.py").write_text(source)
    others = ["compressor=random,st_simdiff budget.retention=0.3"]
    wrong = [f"compressor._target_=late_module.{name} budget.retention=0.3" for name in LATE]
    said = []
    for run, lines, code in (("alone", others, 0), ("beside", [*wrong, *others], 1)):
        words = [f"benchmark.data={data}", "logger=none", "limit=2", f"run={run}", "max_failures=1000"]
        assert forks.at(tmp_path).run([f"arms={json.dumps(lines)}", *words], tmp_path / "log") == code
        said.append((tmp_path / "log").read_text())
    alone, beside = (_answers(tmp_path / "results" / run) for run in ("alone", "beside"))
    assert len(alone) == 2 and alone.items() <= beside.items()
    failed = {arm.partition("_tokens")[0]: rows for arm, rows in beside.items() if arm not in alone}
    assert set(failed) == set(LATE)
    for name, (_, message) in LATE.items():
        for row in failed[name]:
            error = row["error"]
            shown = f"2 times {error['type']}: {error['message']}" + (
                f"\n    {error['where']}" if error["where"] else ""
            )
            assert re.search(message, shown), shown
    # The terminal shows the most frequent three.
    assert re.search(LATE["Raises"][1], said[1]) and "Traceback" not in said[1]


def _answers(run: Path) -> dict[str, list[dict]]:
    """Stored lines by arm, without times."""
    found = {}
    for file in sorted(run.glob("*/answers*.jsonl")):
        rows = json_lines(file)
        found[file.parent.name] = [{k: v for k, v in row.items() if k != "times"} for row in rows]
    return found
