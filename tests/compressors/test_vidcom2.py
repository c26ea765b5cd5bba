"""VidCom2 beyond what was recorded: exact budgets, newline tokens, frames that must not vanish."""

import pytest
import torch

from helpers.fake_engine import layout_for, video
from stsimdiff.budget import Budget
from stsimdiff.compressors.vidcom2 import VidCom2, exact, frame_counts, least_typical, scores
from stsimdiff.tokens import Grid, Layout, Picture, Reason, VideoTokens

GRID = Grid(6, 5, 6)
NEWLINE = torch.arange(GRID.tokens).view(6, 5, 6)[:, :, -1].flatten()


def select(method: VidCom2, retention: float, layout: Layout, features: torch.Tensor):
    run = method.start(layout, Budget("tokens", retention))
    return run.at_input(VideoTokens.full(features, layout.grid)).check(layout.grid.tokens)


@pytest.fixture
def with_newlines() -> tuple[Layout, torch.Tensor]:
    """A grid whose last column is newline tokens; they hold what would upset every statistic."""
    features = video("mixed", GRID)
    features[NEWLINE] = 1e4
    plain = layout_for(GRID)
    return Layout(GRID, plain.video, plain.length, 28, "q", picture=Picture(1, 5, 5, 6)), features


def test_newline_tokens_stay_whole_and_count_in_the_budget(with_newlines):
    layout, features = with_newlines
    found = select(VidCom2(), 0.5, layout, features)
    assert len(found.keep) == 90
    assert set(NEWLINE.tolist()) <= set(found.keep.tolist())
    assert found.reason[NEWLINE].tolist() == [Reason.UNIFORM] * 30
    pictures = torch.arange(GRID.tokens).view(6, 5, 6)[:, :, :-1].flatten()
    alone = select(VidCom2(), 60 / 150, layout_for(Grid(6, 5, 5)), features[pictures])
    assert sorted({*pictures[alone.keep].tolist(), *NEWLINE.tolist()}) == found.keep.tolist()


def test_as_released_newline_tokens_come_on_top(with_newlines):
    layout, features = with_newlines
    found = select(VidCom2(as_released=True), 0.2, layout, features)
    # 0.2 of 25 picture tokens, and one frame that is farther from the video than the others by more than rounding.
    picture = [i for i in found.keep.tolist() if i not in NEWLINE.tolist()]
    assert len(found.keep) - len(picture) == 30 and 28 <= len(picture) <= 32


def test_a_budget_too_small_for_newline_tokens_goes_to_the_picture(with_newlines):
    layout, features = with_newlines
    assert len(NEWLINE) + GRID.frames == 36
    kept = select(VidCom2(), 36 / 180, layout, features).keep.tolist()
    assert set(NEWLINE.tolist()) <= set(kept) and {i // 30 for i in kept} == set(range(6))
    kept = select(VidCom2(), 35 / 180, layout, features).keep.tolist()
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
