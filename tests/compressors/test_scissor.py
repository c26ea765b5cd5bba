"""LLaVA-Scissor beyond what was recorded: exact components, budgets, zero tokens, sampling."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from helpers.fake_engine import at_input, layout_for, video
from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors import scissor
from stsimdiff.compressors.scissor import Scissor, components, reassigned, steps
from stsimdiff.tokens import Grid, Reason, VideoTokens


@pytest.mark.parametrize("tau", [-0.5, 0.0, 0.4, 0.8, 0.99, 1.5])
def test_components_are_those_of_the_whole_matrix(tau):
    """On more tokens than a block holds, against SciPy on all pairs."""
    unit = graph.unit(video("mixed", Grid(9, 5, 7), 4).double())
    cosine = unit @ unit.T
    assert ((cosine - tau).abs() > 1e-9).all(), "no pair may lie at the threshold"
    adjacent = (cosine > tau).numpy()
    number, label = connected_components(adjacent)
    found = components(unit, tau)
    whole = scissor.components_by_frame(unit, tau, 1)
    assert all(torch.equal(getattr(found, name), getattr(whole, name)) for name in vars(found))
    assert len(found.key) == number and found.degree.tolist() == adjacent.sum(1).tolist()
    for component in range(number):
        members = np.flatnonzero(label == component)
        key = members[np.argmax(adjacent.sum(1)[members])]
        assert found.key[found.member[members]].tolist() == [key] * len(members)
    assert (found.key.diff() > 0).all()


def test_frames_at_once_have_the_components_of_each():
    unit = graph.unit(video("mixed", Grid(9, 5, 7), 64))
    alone = [components(frame, 0.2) for frame in unit.split(35)]
    found = scissor.components_by_frame(unit, 0.2, 9)
    assert found.degree.tolist() == [d for part in alone for d in part.degree.tolist()]
    assert found.key.tolist() == [35 * t + k for t, part in enumerate(alone) for k in part.key.tolist()]
    assert found.key[found.member].tolist() == [
        35 * t + k for t, part in enumerate(alone) for k in part.key[part.member].tolist()
    ]
    assert len(found.key) < 300


def test_a_chain_is_one_component_and_its_rows_take_what_is_near():
    # 0, 1, 2 form a chain of 40 degrees each, 3 and 4 are equal; at cos(45) the chain holds.
    angle = torch.tensor([0.0, 40, 80, 190, 190]).deg2rad()
    features = torch.stack((angle.cos(), angle.sin()), 1)
    found = steps(features, Grid(1, 1, 5), 0.7071)
    assert found.spatial.member.tolist() == [0, 0, 0, 1, 1] and found.spatial.key.tolist() == [1, 3]
    assert found.keep.tolist() == [1, 3]
    owner, rows = reassigned(features, found.rows)
    assert owner.tolist() == [0, 0, 0, 1, 1]
    assert torch.allclose(rows[0], (features[:3].mean(0) + features[:3].sum(0)) / 4)


def test_a_given_tau_decides_alone():
    grid, layout = Grid(4, 3, 3), layout_for(Grid(4, 3, 3))
    tokens = VideoTokens.full(video("static", grid), grid)
    run = Scissor(tau=0.999).start(layout, Budget("tokens", 0.9))
    found = run.at_input(tokens).check(36)
    assert len(found.keep) == 9, "each place of a static video is one row"
    assert found.reason[found.keep].tolist() == [Reason.REPRESENTATIVE] * 9
    assert torch.allclose(found.features, tokens.features[:9], atol=1e-6)


def test_what_stands_for_the_most_tokens_stays():
    """Three alike, two alike and one alone: of three rows two may stay, and the third's token goes to one of them."""
    features = torch.tensor([[1.0, 0, 0], [0, 0, 2.0], [1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    grid = Grid(1, 2, 3)
    found = at_input(Scissor(), features, layout_for(grid), 2 / 6)
    assert found.keep.tolist() == [0, 3]
    # Both are at right angles to token 1, and the lower row wins: (3 + 1 row, and the token) / 5.
    assert torch.allclose(found.features, torch.tensor([[0.8, 0, 0.4], [0, 1.0, 0]]))


def test_a_zero_token_is_alone():
    features = torch.cat((torch.zeros(1, 4), torch.eye(4)))
    found = steps(features, Grid(1, 1, 5), 0.5)
    assert found.keep.tolist() == [0, 1, 2, 3, 4]
    assert reassigned(features, found.rows)[0].tolist() == [0, 1, 2, 3, 4]
    assert reassigned(features, found.rows, guarded=False)[0].tolist() == [0, 0, 0, 0, 0]


def test_the_sample_grows_with_the_logarithm():
    assert [scissor.sample_size(n, 0.05) for n in (1, 2, 196, 3233, 3234)] == [0, 2, 196, 3233, 3233]


def test_the_released_sample_is_the_questions_own():
    grid = Grid(2, 6, 7)
    tokens = VideoTokens.full(video("mixed", grid), grid)
    method = Scissor(tau=0.6, epsilon=0.5, as_released=True)
    found = [
        method.start(layout_for(grid, sample=name), Budget()).at_input(tokens).check(84).keep.tolist()
        for name in ("a", "a", "b")
    ]
    assert found[0] == found[1] != found[2]
