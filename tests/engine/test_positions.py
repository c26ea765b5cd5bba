"""Positions of the tokens that stay: kept, or renumbered as several authors' codes do it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_models import qwen2_5_vl
from stsimdiff import models
from stsimdiff.compressors.fastv import FastV
from stsimdiff.config.arms import _check_positions
from stsimdiff.cost.counting import CountedRun
from stsimdiff.engine import Compression, lent
from stsimdiff.errors import ConfigError
from stsimdiff.models.kit import checks, running

PLAIN = [name for name in sorted(models.FAMILIES) if not models.resolve(name).mrope]
of_plain_families = pytest.mark.parametrize("case", PLAIN, indirect=True)


class Renumbered(running.ScriptedRun):
    positions = "renumbered"


def test_families_with_positions_of_one_number() -> None:
    assert PLAIN == ["internvl", "llava_onevision", "llava_video", "nvila"]


@pytest.mark.parametrize("name", ["input", "before layer 2", "at four places"])
@of_plain_families
def test_dropping_and_renumbering_equal_a_masked_model_with_these_positions(case, name) -> None:
    drops = checks.drops_of(case, name)
    logits, tokens, trace = running.generate(case, Renumbered(drops))
    scale = float(logits.abs().max())
    expected = running.masked(case, drops, tokens, renumbered=True)
    assert float((logits - expected).abs().max()) / scale < case.tolerance
    kept = running.masked(case, drops, tokens)
    assert float((logits - kept).abs().max()) / scale > 10 * case.tolerance, "blind: positions change nothing"
    assert trace.final == case.video.grid.tokens - len(set().union(*drops.values()))


@of_plain_families
def test_renumbering_without_a_drop_changes_no_bit(case) -> None:
    stock = running.generate(case)[0]
    assert torch.equal(running.generate(case, Renumbered({("before", 1): set()}))[0], stock)


@dataclass(frozen=True)
class Own(FastV):
    positions: str = "renumbered"


@dataclass(frozen=True)
class Wrong(FastV):
    positions: str = "shifted"


@of_plain_families
def test_a_compressors_positions_reach_the_engine_through_wrapped_runs(case) -> None:
    budget = SimpleNamespace(keep=lambda *given: 3)
    run = CountedRun(lent.start(Own(), case.prompt.layout, budget))
    assert Compression(case.family.decoder, run, case.prompt.layout)._renumbered
    kept = lent.start(FastV(), case.prompt.layout, budget)
    assert not Compression(case.family.decoder, kept, case.prompt.layout)._renumbered


def test_refusals_before_a_model_is_loaded_and_in_the_engine() -> None:
    _check_positions(Own(), "llava_video")
    _check_positions(FastV(), "qwen2_5_vl")
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        with pytest.raises(ConfigError, match=f"Own with positions=renumbered cannot run on model={family}"):
            _check_positions(Own(), family)
    with pytest.raises(
        ConfigError, match="compressor.positions='shifted' is unknown; allowed: kept, renumbered"
    ):
        _check_positions(Wrong(), "llava_video")
    case = qwen2_5_vl(0)
    with pytest.raises(ValueError, match="Renumbered renumbers positions.*M-RoPE"):
        Compression(replace(case.decoder, mrope=True), Renumbered({}), case.layout)
