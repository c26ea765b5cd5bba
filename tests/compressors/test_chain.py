"""One method after another: shares of the budget, places, and what a chain cannot have."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from helpers.fake_engine import LAYERS, drive, layout_for, video
from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.compressors.chain import Chain, ChainRun
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Reason, Selection

GRID = Grid(8, 6, 7)


def test_equal_shares_leave_the_same_part_each() -> None:
    layout, features = layout_for(GRID), video("mixed", GRID)
    entering, kept = drive(Chain().start(layout, Budget("tokens", 0.25)), features, layout)
    # A half of 336 at the input, a half of that before FastV's layer 2.
    assert entering == [168, 168] + [84] * (LAYERS - 2) and len(kept) == 84


@pytest.mark.parametrize("shares", ["equal", [0.2, 0.8], [0.9, 0.1]])
@pytest.mark.parametrize("kind", ["tokens", "compute"])
@pytest.mark.parametrize("retention", [0.1, 0.5, 0.9, 1.0])
def test_both_budgets_are_met(kind: str, retention: float, shares) -> None:
    method = Chain([{"name": "evs"}, {"name": "fastv", "layer": 5}], shares)
    layout, budget = layout_for(GRID), Budget(kind, retention)
    method.check(budget, LAYERS)
    entering, kept = drive(method.start(layout, budget), video("mixed", GRID), layout)
    achieved = len(kept) / GRID.tokens if kind == "tokens" else sum(entering) / (LAYERS * GRID.tokens)
    assert achieved == pytest.approx(retention, rel=0.02)
    first, last = entering[0] / GRID.tokens, len(kept) / GRID.tokens
    part = {"equal": 0.5}.get(str(shares), shares[0] if shares != "equal" else 0.5)
    assert first == pytest.approx(last**part, abs=0.01)


def test_three_methods_and_the_tower() -> None:
    method = Chain(["visionzip", {"name": "fastv", "layer": 1}, {"name": "dart", "layer": 4}])
    assert method.needs_vision and not Chain().needs_vision and not Chain.needs_vision
    layout = layout_for(GRID)
    entering, kept = drive(method.start(layout, Budget("tokens", 0.125)), video("mixed", GRID), layout)
    assert entering[:5] == [168, 84, 84, 84, 42] and len(kept) == 42


def test_a_renumbering_part_renumbers_the_chain() -> None:
    parts = ["evs", {"name": "pyramiddrop", "positions": "renumbered"}]
    assert Chain(parts).positions == "renumbered" and Chain().positions == "kept"


def test_what_a_chain_cannot_have() -> None:
    for methods, message in (
        (["evs"], "at least 2 methods"),
        ("evs", "is no chain"),
        (["evs", "fastw"], "'fastw' is unknown; allowed: .*; did you mean fastv"),
        (["evs", "chain"], "names chain, which is no method that a chain can have"),
        (["evs", "nowhere.Mine"], "nowhere.Mine cannot be imported: ModuleNotFoundError"),
        (["evs", {"name": "fastv", "depth": 3}], "fastv has no parameter 'depth'; it has layer, queries"),
        (["evs", {"name": "fastv", "layer": 0}], "layer=0 is out of range"),
    ):
        with pytest.raises(ConfigError, match=message):
            Chain(methods)
    for shares in ([0.5], [0.5, 0.6], [1.5, -0.5], [True, 0]):
        with pytest.raises(ConfigError, match="2 positive numbers that sum up to 1"):
            Chain(shares=shares)
    for methods, message in (
        (["evs", "vidcom2"], "two methods of the chain act at the input"),
        (["fastv", "evs"], r"not in the order in which they act \(layers \[2, 0\]\)"),
        (["fastv", {"name": "dart", "layer": 2}], "act before one layer"),
        (["fastv", {"name": "fastv", "layer": 5, "queries": "all"}], "different queries"),
    ):
        with pytest.raises(ConfigError, match=message):
            Chain(methods).check(Budget("tokens", 0.5), LAYERS)
    with pytest.raises(BudgetError, match="PyramidDrop, which acts at 3 places"):
        Chain(["evs", "pyramiddrop"]).check(Budget("compute", 0.5), LAYERS)
    Chain(["evs", "pyramiddrop"]).check(Budget("tokens", 0.5), LAYERS)
    with pytest.raises(BudgetError, match="first 3 of 28 layers"):
        Chain([{"name": "fastv", "layer": 3}, {"name": "dart", "layer": 9}]).check(
            Budget("compute", 0.1), LAYERS
        )


def test_attention_of_an_earlier_layer_is_not_taken_for_anothers() -> None:
    def run(attention: int, before: int) -> Run:
        class Reading(Run):
            places = Places(before=frozenset({before}), attention=frozenset({attention}))

        return Reading()

    ChainRun([run(1, 2), run(4, 5)])
    with pytest.raises(
        ConfigError, match="reads attention of layer 1 at layer 7, after another has read a later"
    ):
        ChainRun([run(4, 5), run(1, 7)])


@dataclass(frozen=True)
class Last(Compressor):
    """Keeps the last tokens before a late layer."""

    def start(self, layout, budget):
        count = budget.keep(layout.grid.tokens, layout.layers)

        class Keeping(Run):
            places = Places(before=frozenset({20}))

            def before_layer(self, layer, tokens, attention):
                return Selection.from_mask(torch.arange(len(tokens)) >= len(tokens) - count, Reason.UNIFORM)

        return Keeping()


def test_a_class_of_a_users_own_is_a_part_and_its_code_counts() -> None:
    method = Chain(["evs", {"name": f"{__name__}.Last"}])
    layout = layout_for(GRID)
    entering, _ = drive(method.start(layout, Budget("tokens", 0.25)), video("mixed", GRID), layout)
    assert (entering[19], entering[20]) == (168, 84)
    assert [type(part).__name__ for part in method.parts] == ["EVS", "Last"]
    own, with_parts = (
        compressors.code_version(Chain),
        compressors.code_version(Chain, *map(type, method.parts)),
    )
    assert own != with_parts and compressors.code_version(Chain, *map(type, Chain().parts)) != with_parts
