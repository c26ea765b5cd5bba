"""VidCom2 beyond what was recorded: exact budgets, newline tokens, frames that must not vanish."""

import pytest
import torch

from helpers.fake_engine import at_input, layout_for, video, with_newlines
from stsimdiff.compressors.vidcom2 import VidCom2, exact, frame_counts, least_typical, scores
from stsimdiff.tokens import Grid, Reason

GRID = Grid(6, 5, 6)
NEWLINE = torch.arange(GRID.tokens).view(6, 5, 6)[:, :, -1].flatten()


@pytest.fixture
def upset() -> torch.Tensor:
    """Features of a grid whose last column is newline tokens; they hold what would upset every statistic."""
    features = video("mixed", GRID)
    features[NEWLINE] = 1e4
    return features


def test_newline_tokens_stay_whole_and_count_in_the_budget(upset):
    found = at_input(VidCom2(), upset, with_newlines(GRID), 0.5)
    assert len(found.keep) == 90
    assert set(NEWLINE.tolist()) <= set(found.keep.tolist())
    assert found.reason[NEWLINE].tolist() == [Reason.UNIFORM] * 30
    pictures = torch.arange(GRID.tokens).view(6, 5, 6)[:, :, :-1].flatten()
    alone = at_input(VidCom2(), upset[pictures], layout_for(Grid(6, 5, 5)), 60 / 150)
    assert sorted({*pictures[alone.keep].tolist(), *NEWLINE.tolist()}) == found.keep.tolist()


def test_as_released_newline_tokens_come_on_top(upset):
    found = at_input(VidCom2(as_released=True), upset, with_newlines(GRID), 0.2)
    # 0.2 of 25 picture tokens, and one frame that is farther from the video than the others by more than rounding.
    picture = [i for i in found.keep.tolist() if i not in NEWLINE.tolist()]
    assert len(found.keep) - len(picture) == 30 and 28 <= len(picture) <= 32


def test_a_budget_too_small_for_newline_tokens_goes_to_the_picture(upset):
    assert len(NEWLINE) + GRID.frames == 36
    kept = at_input(VidCom2(), upset, with_newlines(GRID), 36 / 180).keep.tolist()
    assert set(NEWLINE.tolist()) <= set(kept) and {i // 30 for i in kept} == set(range(6))
    kept = at_input(VidCom2(), upset, with_newlines(GRID), 35 / 180).keep.tolist()
    assert len(kept) == 35 and not set(NEWLINE.tolist()) & set(kept)


def test_the_total_is_exact_and_no_frame_vanishes():
    # Frame 1 is typical throughout: its two tokens score highest, and the exact total would take both.
    score = torch.tensor([[1.0, 2, 3, 4], [8.0, 9, 9, 9], [1.0, 1, 1, 1]])
    kept = least_typical(score, torch.tensor([2, 2, 2]))
    assert kept.tolist() == [[True, True, False, False]] * 3
    assert exact(score, kept, 4).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
    assert exact(score, kept, 3).nonzero().tolist() == [[0, 0], [1, 0], [2, 0]]
    # Below a token a frame the least typical go on.
    assert exact(score, kept, 2).nonzero().tolist() == [[0, 0], [2, 0]]
    assert exact(score, kept, 8).nonzero()[6:].tolist() == [[2, 2], [2, 3]]


def test_shares_are_rounded_half_to_even():
    assert frame_counts(torch.tensor([0.25, 0.75, 0.001, 1.0]), 50).tolist() == [12, 38, 1, 50]
    assert frame_counts(torch.tensor([0.25]), 10).tolist() == [2]


def test_one_channel_is_enough():
    found = scores(torch.rand(2, 3, 1))
    assert found.channels.tolist() == [0] and torch.allclose(found.video, torch.full((2, 3), 5.0))
