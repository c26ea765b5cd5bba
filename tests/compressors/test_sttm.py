"""STTM beyond what was recorded: the quadtree by hand, budgets, small grids, newline tokens."""

import numpy as np
import pytest
import torch

from helpers.fake_engine import LAYERS, layout_for, video, with_newlines
from stsimdiff.budget import Budget
from stsimdiff.compressors import sttm
from stsimdiff.compressors.sttm import STTM, level_sizes, representatives
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Layout, Reason, VideoTokens


def select(method: STTM, features: torch.Tensor, layout: Layout, retention: float = 1.0):
    run = method.start(layout, Budget("tokens", retention))
    return run.before_layer(method.layer, VideoTokens.full(features, layout.grid), None).check(len(features))


def test_the_levels_of_a_grid():
    assert level_sizes(14, 14, 0) == [(2, 2), (4, 4), (7, 7), (14, 14)]
    assert level_sizes(14, 14, 1) == [(4, 4), (7, 7), (14, 14)]
    assert level_sizes(6, 10, 0) == [(2, 3), (3, 5), (6, 10)]
    assert level_sizes(7, 7, -1) == [(7, 7)]
    # Repaired: the nearest level where there is no such root, and an end on a single token.
    assert level_sizes(2, 5, 1) == [(2, 5)] and level_sizes(1, 1, 1) == [(1, 1)]
    with pytest.raises(ValueError, match="no level 1 on 2 x 5 tokens"):
        level_sizes(2, 5, 1, as_released=True)
    with pytest.raises(ValueError, match="never ends on a grid of 1 x 1"):
        level_sizes(1, 1, 0, as_released=True)


def test_a_square_of_equal_tokens_is_one_and_stays_so_over_time():
    """4 x 4 from 2 x 2 squares: the top left one is of one kind in both frames, the others are all different."""
    grid = Grid(2, 4, 4)
    features = torch.eye(32)
    square = [0, 1, 4, 5]
    for frame in (0, 16):
        features[[frame + place for place in square]] = torch.eye(32)[0]
    method = STTM(threshold=0.9, temporal_threshold=0.9, root_level=0)
    found = select(method, features, layout_for(grid))
    assert found.keep.tolist() == [i for i in range(32) if i not in (1, 4, 5, 16, 17, 20, 21)]
    assert torch.equal(found.features[0], features[0])
    # Without the temporal step each frame keeps its square, and without squares tokens merge one by one.
    assert len(select(STTM(0.9, 0.0, 0), features, layout_for(grid)).keep) == 26
    assert len(select(STTM(2.0, 0.9, 0), features, layout_for(grid)).keep) == 28


def test_a_merged_token_counts_its_squares_or_its_tokens():
    """A square of one frame over four tokens of the next, which stay apart: five nodes."""
    grid, features = Grid(2, 2, 4), torch.zeros(16, 2)
    features[:8] = torch.tensor([1.0, 0])
    features[8:, 0], features[8:, 1] = 1.0, 0.1
    features[[8, 12]] *= 5
    found = {}
    for weighted in (False, True):
        method = STTM(threshold=0.9999, temporal_threshold=0.9, root_level=0, weighted_avg=weighted)
        found[weighted] = select(method, features, layout_for(grid))
    assert [len(one.keep) for one in found.values()] == [8, 8]
    levels = sttm.pyramid(features, 2, [(2, 4)], STTM())
    nodes = sttm.nodes(levels, 0.5)
    result = sttm.merged(nodes, np.array([[0, 8], [0, 9]]))
    assert result.node.tolist() == [*range(8), *range(10, 16)] and result.patches[0] == 3
    rows = sttm.merged_features(levels, nodes, result, weighted_avg=False)
    assert torch.allclose(rows[0], torch.tensor([(1 + 5 + 1) / 3, (0.5 + 0.1) / 3]))


def test_the_loop_leaves_pairs_apart_as_released():
    # 0 and 1 both claim 2: it joins 0, and 1 stays alone as all represent themselves by then.
    assert representatives(3, np.array([[0, 2], [1, 2]]))[0].tolist() == [0, 1, 0]
    # A chain elsewhere needs a second round, in which 1 joins too.
    joined, rounds = representatives(7, np.array([[0, 2], [1, 2], [3, 4], [4, 5], [5, 6]]))
    assert rounds == 2 and joined.tolist() == [0, 0, 0, 3, 3, 3, 3]


@pytest.mark.parametrize("kind", ["mixed", "static", "different"])
@pytest.mark.parametrize("retention", [0.04, 0.2, 0.6, 0.9])
def test_both_kinds_of_budget_are_met(kind, retention):
    grid = Grid(6, 7, 8)
    features, layout = video(kind, grid), layout_for(grid)
    found = select(STTM(), features, layout, retention)
    assert len(found.keep) == int(retention * grid.tokens + 0.5)
    assert set(found.reason[found.keep].tolist()) == {int(Reason.REPRESENTATIVE)}
    run = STTM(layer=1).start(layout, Budget("compute", max(retention, 0.1)))
    kept = run.before_layer(1, VideoTokens.full(features, grid), None).keep
    left = (max(retention, 0.1) * LAYERS - 1) / (LAYERS - 1)
    assert len(kept) == int(left * grid.tokens + 0.5)


def test_newline_tokens_go_unless_there_is_room_for_them():
    grid = Grid(3, 4, 5)
    layout, features = with_newlines(grid), video("mixed", grid)
    newline = {i for i in range(60) if i % 5 == 4}
    pictures = torch.tensor([i for i in range(60) if i not in newline])
    found = select(STTM(), features, layout, 24 / 60)
    alone = select(STTM(), features[pictures], layout_for(Grid(3, 4, 4)), 24 / 48)
    assert found.keep.tolist() == pictures[alone.keep].tolist()
    assert torch.equal(found.features, alone.features)
    kept = select(STTM(), features, layout, 50 / 60).keep.tolist()
    assert len(kept) == 50 and sorted(set(kept) & newline) == [4, 9]


def test_similarities_by_slices_of_channels():
    features = torch.tensor([[1.0, 0, 1, 0], [1.0, 0, 0, 1]])
    whole, sliced = (sttm.pyramid(features, 1, [(1, 2)], STTM(head_dim=size)) for size in (0, 2))
    one, two = np.array([0]), np.array([1])
    assert whole.compare(one, two) == pytest.approx(0.5) and sliced.compare(one, two) == pytest.approx(0.5)
    features[0] *= torch.tensor([1.0, 1, 3, 3])
    whole, sliced = (sttm.pyramid(features, 1, [(1, 2)], STTM(head_dim=size)) for size in (0, 2))
    assert whole.compare(one, two) == pytest.approx(1 / (10 * 2) ** 0.5)
    assert sliced.compare(one, two) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="head_dim=3 does not divide 4 channels"):
        sttm.pyramid(features, 1, [(1, 2)], STTM(head_dim=3))


def test_sums_over_one_odd_and_one_even_side():
    features = video("mixed", Grid(2, 5, 6))
    method = STTM(weighted_avg=True, as_released=True)
    with pytest.raises(ValueError, match="5 x 6 tokens up: one side is odd"):
        sttm.pyramid(features, 2, level_sizes(5, 6, 0), method)
    sums = sttm.pyramid(features, 2, level_sizes(5, 6, 0), STTM(weighted_avg=True))
    root, total = sums.levels[0], features.view(2, 30, -1).sum(1)
    cells = sums.pooled[: 2 * len(root.box)].view(2, len(root.box), -1)
    assert torch.allclose(cells.sum(1), total, atol=1e-5)


def test_budgets_and_layers_that_do_not_fit_are_refused_before_loading():
    with pytest.raises(BudgetError, match=r"first 2 of 4 layers, which alone costs 0\.500.*above 0\.500"):
        STTM().check(Budget("compute", 0.5), 4)
    STTM().check(Budget("compute", 0.51), 4)
    STTM().check(Budget("compute", 0.01), None)
    with pytest.raises(ConfigError, match="layer=4 does not exist in a model of 4 layers"):
        STTM(layer=4).check(Budget("tokens", 0.5), 4)
