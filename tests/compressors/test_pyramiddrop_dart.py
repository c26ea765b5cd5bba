"""PyramidDrop's stages and DART's pivots, by hand."""

from __future__ import annotations

import pytest
import torch

from helpers.fake_engine import drive, layout_for, video
from stsimdiff.budget import Budget
from stsimdiff.compressors.dart import DART, cosines, largest, released_order, take
from stsimdiff.compressors.pyramiddrop import PyramidDrop, counts
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid


def test_the_published_ratios_are_a_budget_of_an_eighth() -> None:
    layout = layout_for(Grid(8, 7, 8), layers=32)
    method = PyramidDrop()
    assert method.at(32) == (8, 16, 24) and method.at(28) == (7, 14, 21)
    assert counts(layout, Budget("tokens", 0.125), (8, 16, 24)) == [224, 112, 56]
    # Eight layers each of 1, 1/2, 1/4 and 1/8.
    assert counts(layout, Budget("compute", 15 / 32), (8, 16, 24)) == pytest.approx([224, 112, 56], abs=0)


@pytest.mark.parametrize("kind", ["tokens", "compute"])
@pytest.mark.parametrize("retention", [0.27, 0.5, 0.9])
def test_both_budgets_are_met_and_every_stage_drops(kind: str, retention: float) -> None:
    grid = Grid(8, 7, 8)
    layout = layout_for(grid)
    run = PyramidDrop().start(layout, Budget(kind, retention))
    entering, kept = drive(run, video("mixed", grid), layout)
    achieved = len(kept) / grid.tokens if kind == "tokens" else sum(entering) / (28 * grid.tokens)
    assert achieved == pytest.approx(retention, rel=0.005)
    assert sorted(set(entering), reverse=True) == [entering[k] for k in (0, 7, 14, 21)]


def test_what_a_model_or_budget_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="at layers 0, 1, 1 do not fit a model of 2 layers"):
        PyramidDrop().check(Budget(), 2)
    with pytest.raises(ConfigError, match="at layers 8, 16, 30 do not fit a model of 28"):
        PyramidDrop(layers=[8, 16, 30]).check(Budget(), 28)
    with pytest.raises(BudgetError, match="retention=0.25 of kind compute.*first 7 of 28 layers.*0.250"):
        PyramidDrop().check(Budget("compute", 0.25), 28)
    with pytest.raises(ConfigError, match="layer=28 does not exist in a model of 28"):
        DART(layer=28).check(Budget(), 28)
    with pytest.raises(BudgetError, match="first 2 of 28 layers"):
        DART().check(Budget("compute", 0.05), 28)


def test_each_pivot_takes_what_is_least_like_it_of_what_is_left() -> None:
    states = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0.6, 0.8], [0, -1]])
    similarity = cosines(states, torch.tensor([[2.0, 0], [0, 3]]))
    expected = torch.tensor([[1.0, 0, -1, 0.6, 0], [0, 1, 0, 0.8, -1]])
    assert torch.allclose(similarity, expected, atol=1e-6)
    free = torch.tensor([False, True, True, True, True])
    # The first takes the opposite and, of two at right angles, the lower row; the second what is left.
    assert [rows.tolist() for rows in take(similarity, [2, 1], free)] == [[2, 1], [4]]
    assert free.tolist() == [False, True, True, True, True]
    assert largest(torch.tensor([1.0, 3, 3, 2]), 3).tolist() == [1, 2, 3]


def test_the_authors_order_is_that_of_a_set_of_places() -> None:
    # In a table of 32 places they lie at 8, 9, 3, 6 and 4.
    assert released_order([40, 9, 35, 70, 100]) == [2, 4, 3, 0, 1]


def test_the_remainder_goes_to_the_first_pivots() -> None:
    grid = Grid(4, 5, 5)
    layout = layout_for(grid)
    for released, kept in ((False, 50), (True, 4 + 8 * 5)):
        run = DART(as_released=released).start(layout, Budget("tokens", 0.5))
        assert len(drive(run, video("mixed", grid), layout)[1]) == kept
