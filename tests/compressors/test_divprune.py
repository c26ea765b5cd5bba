"""DivPrune beyond what was recorded: repeated tokens, zero tokens, a single one."""

import pytest
import torch

from helpers.fake_engine import at_input, layout_for, video
from stsimdiff.compressors import divprune
from stsimdiff.compressors.divprune import DivPrune, choose
from stsimdiff.tokens import Grid

CORNERS = torch.tensor([[1.0, 0, 0], [2.0, 0.1, 0], [0, 1.0, 0], [0, 0, 3.0], [0, 0.1, 3.0]])


def test_the_most_isolated_token_is_first_and_then_the_farthest():
    found = choose(CORNERS, 5)
    # Token 2 has no near neighbour; 0 and 3 are at right angles to it, and the lower index wins the tie.
    assert found.order.tolist() == [2, 0, 3, 1, 4]
    assert found.step[1].item() == pytest.approx(1) and found.first.argmax() == 2
    assert choose(CORNERS, 3).order.tolist() == [2, 0, 3], "the order does not depend on the count"


@pytest.mark.parametrize("kind", ["mixed", "different"])
def test_choices_made_ahead_are_those_made_one_by_one(kind, monkeypatch):
    """On more tokens than are looked at ahead, against distances by hand."""
    monkeypatch.setattr(divprune, "AHEAD", 20)
    features = video(kind, Grid(6, 5, 7), 24).double()
    unit = features / features.norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    want = [int((distance + 9 * torch.eye(210)).min(0).values.argmax())]
    while len(want) < 90:
        want.append(int(distance[want].min(0).values.index_fill(0, torch.tensor(want), -1).argmax()))
    found = choose(features, 90)
    assert found.order.tolist() == want
    assert torch.allclose(
        found.step[1:], torch.stack([distance[want[:i], want[i]].min() for i in range(1, 90)])
    )
    assert torch.allclose(
        found.last, distance[want[:89]].min(0).values.index_fill(0, found.order[:89], -torch.inf)
    )


def test_chosen_tokens_are_not_chosen_again():
    repeated = CORNERS[[0, 2, 0, 2]]
    assert sorted(choose(repeated, 4).order.tolist()) == [0, 1, 2, 3]
    assert len(set(choose(repeated, 4, as_released=True).order.tolist())) < 4
    grid, kept = Grid(2, 1, 2), {}
    for as_released in (False, True):
        method = DivPrune(as_released=as_released)
        kept[as_released] = len(at_input(method, repeated, layout_for(grid), 0.75).keep)
    assert kept == {False: 3, True: 2}


def test_a_zero_token_is_orthogonal_to_all():
    features = torch.cat((torch.zeros(1, 3), CORNERS))
    found = choose(features, 6)
    assert sorted(found.order.tolist()) == list(range(6)) and not found.step.isnan().any()
    # As released its distance is NaN, which wins, and then all are.
    assert choose(features, 4, as_released=True).order.tolist() == [0, 0, 0, 0]


def test_one_token():
    assert choose(CORNERS[:1], 1).order.tolist() == [0]
    with pytest.raises(ValueError, match="needs two tokens"):
        choose(CORNERS[:1], 1, as_released=True)


def test_defaults():
    assert vars(DivPrune()) == {"positions": "kept", "as_released": False}
    assert divprune.choose(CORNERS.bfloat16(), 2).order.tolist() == [2, 0]
