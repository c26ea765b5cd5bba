"""What a budget allows, by hand: counts, where a budget is used up, and when a cell missed its budget."""

from __future__ import annotations

import pytest

from stsimdiff import budget
from stsimdiff.budget import Budget, achieved, missed, share_for
from stsimdiff.errors import BudgetError, ConfigError


def test_a_budget_of_tokens_is_a_count_rounded_half_up():
    assert [Budget("tokens", 0.3).keep(n, 28) for n in (1, 4, 5, 10, 100)] == [1, 1, 2, 3, 30]
    # What entered the layers before does not matter to it.
    assert Budget("tokens", 0.3).keep(10, 4, [10, 10, 10, 10]) == 3


def test_a_budget_of_compute_is_what_the_layers_before_have_left():
    # 0.3 * 10 * 8 = 24 tokens over all layers; 8 are used, and 16 remain for 8 layers.
    assert Budget("compute", 0.3).keep(8, 10, [4, 4]) == 2
    assert Budget("compute", 0.3).keep(8, 10) == 2  # 2.4 a layer
    assert Budget("compute", 1.0).keep(8, 10, [1]) == 8  # never more than there are


def test_a_budget_of_compute_ends_where_less_than_half_a_token_a_layer_is_left():
    # 0.5 * 8 * 4 = 16 tokens. Of them 15 are used, and 2 layers may share the last: half a token rounds up to one.
    assert Budget("compute", 0.5).keep(8, 4, [8, 7]) == 1
    with pytest.raises(BudgetError, match=r"2 of 4 layers have already used 0\.500"):
        Budget("compute", 0.5).keep(8, 4, [8, 8])
    with pytest.raises(BudgetError, match=r"4 of 4 layers have already used 0\.125"):
        Budget("compute", 0.5).keep(8, 4, [1, 1, 1, 1])


@pytest.mark.parametrize("retention", [0, -0.1, 1.01, True, "0.3", float("nan")])
def test_retentions_out_of_range_are_refused(retention):
    with pytest.raises(ConfigError, match=r"out of range; allowed: a number in \(0, 1\]"):
        Budget("tokens", retention)


def test_both_kinds_that_a_trace_achieved():
    assert achieved(8, [8, 4, 2, 2], 1) == {"tokens": 1 / 8, "compute": 16 / 32}


def test_a_cell_misses_its_budget_by_more_than_two_percent_of_it(monkeypatch):
    # Two percent of 0.3 are 0.006.
    for mean, said in ((0.3059, False), (0.3061, True), (0.2941, False), (0.2939, True), (0.3, False)):
        assert missed(Budget("tokens", 0.3), mean) is said
    monkeypatch.setattr(budget, "TOLERANCE", 0.25)
    # Numbers without a rounding error: a quarter of a half is no miss yet.
    assert not missed(Budget("tokens", 0.5), 0.625) and not missed(Budget("tokens", 0.5), 0.375)


@pytest.mark.parametrize(
    ("given", "hint"), [(30, "; 30 % is 0.3"), ("30%", "; 30 % is 0.3"), ("0.5", ""), ("-1", ""), (200, "")]
)
def test_a_percentage_is_told_apart_from_a_share(given, hint):
    with pytest.raises(ConfigError) as caught:
        Budget("tokens", given)
    assert str(caught.value).endswith(hint) and ("% is" in str(caught.value)) == bool(hint)


def test_the_share_at_which_a_use_is_reached() -> None:
    assert share_for(lambda share: share**2, 0.09) == pytest.approx(0.3)
    assert share_for(lambda share: share, 1.0) == pytest.approx(1.0)
    # Where the use leaps over what is wanted: at the leap.
    assert share_for(lambda share: 0.0 if share < 0.7 else 1.0, 0.4) == pytest.approx(0.7)
