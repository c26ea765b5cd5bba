"""What each control promises of its own."""

import numpy as np
import pytest
import torch

from helpers.fake_engine import at_input, drive, layout_for, video
from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.controls import spread
from stsimdiff.compressors.spatial_pool import frame_cells
from stsimdiff.tokens import Grid, Reason, VideoTokens

# --------------------------------------------------------------------------------------------------


def test_random_depends_on_question_and_seed_alone():
    grid, budget = Grid(6, 5, 5), Budget("tokens", 0.3)
    method = compressors.resolve("random")

    def kept(sample: str, seed: int, kind: str = "mixed") -> list[int]:
        layout = layout_for(grid, sample=sample)
        return drive(method(seed=seed).start(layout, budget), video(kind, grid), layout)[1]

    assert kept("a", 0) == kept("a", 0, "static")
    assert kept("a", 0) != kept("b", 0)
    assert kept("a", 0) != kept("a", 1)


def test_uniform_frames_are_whole_but_one():
    grid, layout = Grid(10, 3, 4), layout_for(Grid(10, 3, 4))
    run = compressors.resolve("uniform_frames")().start(layout, Budget("tokens", 0.35))
    _, kept = drive(run, video("mixed", grid), layout)
    frames, counts = np.unique(np.array(kept) // grid.per_frame, return_counts=True)
    assert frames.tolist() == [1, 3, 6, 8]
    assert counts.tolist() == [12, 12, 12, 6]
    assert (np.array(kept)[-6:] % 12).tolist() == [1, 3, 5, 7, 9, 11]


def test_spread_is_even_and_within_range():
    for total in range(1, 30):
        for count in range(1, total + 1):
            index = spread(total, count)
            steps = np.diff(np.concatenate(([index[0] - total], index)))
            assert index[0] >= 0 and index[-1] < total
            assert count == 1 or steps[1:].max(initial=0) - steps[1:].min(initial=total) <= 1
    assert spread(5, 5).tolist() == [0, 1, 2, 3, 4]


def test_spatial_pool_means_its_cells():
    grid, layout = Grid(4, 6, 8), layout_for(Grid(4, 6, 8))
    features = video("mixed", grid)
    selection = at_input(compressors.resolve("spatial_pool")(), features, layout, 0.25)
    pooled = torch.nn.functional.avg_pool2d(features.view(4, 6, 8, -1).permute(0, 3, 1, 2), 2)
    assert torch.allclose(selection.features, pooled.permute(0, 2, 3, 1).reshape(48, -1), atol=1e-6)
    assert selection.keep[:5].tolist() == [0, 2, 4, 6, 16]


@pytest.mark.parametrize("shape", [(13, 14), (1, 9), (7, 1), (3, 5)])
def test_every_cell_is_a_rectangle_with_its_middle_inside(shape):
    height, width = shape
    for count in range(1, height * width + 1):
        cell, middle = frame_cells(height, width, count)
        assert cell[middle].tolist() == list(range(count)) and (np.diff(middle) > 0).all()
        rows, columns = np.divmod(np.arange(height * width), width)
        for number in range(count):
            inside = cell == number
            sides = np.ptp(rows[inside]) + 1, np.ptp(columns[inside]) + 1
            assert sides[0] * sides[1] == inside.sum()
    assert frame_cells(6, 6, 4)[1].tolist() == [7, 10, 25, 28]
    assert frame_cells(height, width, height * width)[0].tolist() == list(range(height * width))


def test_spatial_pool_below_a_token_a_frame_leaves_frames_out():
    grid, layout = Grid(10, 2, 2), layout_for(Grid(10, 2, 2))
    features = video("mixed", grid)
    selection = at_input(compressors.resolve("spatial_pool")(), features, layout, 0.1)
    assert (selection.keep // 4).tolist() == [1, 3, 6, 8]
    assert torch.allclose(selection.features, features.view(10, 4, -1)[[1, 3, 6, 8]].mean(1), atol=1e-6)


def test_evs_keeps_the_first_frame_and_what_changed():
    grid, layout = Grid(4, 2, 3), layout_for(Grid(4, 2, 3))
    features = video("static", grid)
    features[[8, 21]] = -features[[8, 21]]
    selection = at_input(compressors.resolve("evs")(), features, layout, 9 / 24)
    # Token 8 turns away from its past, token 14 turns back, and 21 turns away.
    assert selection.keep.tolist() == [0, 1, 2, 3, 4, 5, 8, 14, 21]
    assert selection.reason[[0, 8, 9]].tolist() == [Reason.UNIFORM, Reason.EVENT, Reason.DROPPED]


def test_a_full_budget_pools_nothing():
    grid, layout = Grid(3, 2, 2), layout_for(Grid(3, 2, 2))
    selection = at_input(compressors.resolve("spatial_pool")(), video("mixed", grid), layout, 1.0)
    assert selection.keep.tolist() == list(range(12)) and selection.features is None
    assert selection.reason.tolist() == [Reason.UNIFORM] * 12


def test_pooled_tokens_are_merged_ones():
    grid, layout = Grid(2, 2, 2), layout_for(Grid(2, 2, 2))
    selection = at_input(compressors.resolve("spatial_pool")(), video("mixed", grid), layout, 0.5)
    assert selection.reason[selection.keep].tolist() == [Reason.MERGED] * 4


def test_evs_names_the_frames_apart():
    """The token behind the first frame is the first that can be an event; a tie goes to the earlier token."""
    layout = layout_for(Grid(2, 1, 3))
    features = torch.eye(3).repeat(2, 1)
    features[3] = -features[3]
    selection = at_input(compressors.resolve("evs")(), features, layout, 5 / 6)
    assert selection.keep.tolist() == [0, 1, 2, 3, 4]
    assert selection.reason.tolist() == [Reason.UNIFORM] * 3 + [Reason.EVENT] * 2 + [Reason.DROPPED]
    # Within the first frame its tokens are spread: of three the middles of two parts.
    assert at_input(compressors.resolve("evs")(), features, layout, 2 / 6).keep.tolist() == [0, 2]


def test_random_tokens_and_no_video_say_so():
    grid, layout = Grid(2, 2, 2), layout_for(Grid(2, 2, 2))
    tokens = VideoTokens.full(video("mixed", grid), grid)
    drawn = compressors.resolve("random")().start(layout, Budget("tokens", 0.5)).at_input(tokens)
    assert sorted(drawn.reason.tolist()) == [Reason.DROPPED] * 4 + [Reason.RANDOM] * 4
    nothing = compressors.resolve("no_video")().start(layout, Budget("tokens", 0.5))
    assert nothing.may_be_empty and nothing.at_input(tokens).reason.tolist() == [Reason.DROPPED] * 8
