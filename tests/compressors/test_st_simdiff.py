"""ST-SimDiff: the released rule against a dense reference, the paper's rule, the ablations and the budgets."""

import itertools

import numpy as np
import pytest
import torch

from helpers.fake_engine import drive, layout_for, video
from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors import st_simdiff
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Reason, VideoTokens

# ------------------------------------------------------------------------------------------------


def reference_stage_one(x: torch.Tensor, grid: Grid, tau_sim: float, tau_diff: float, retention: float):
    """The released rule on dense float64 matrices: what stays, and how narrow its closest decision was."""
    x = x.double().numpy()
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    n, narrow = grid.tokens, []
    position = [np.unravel_index(i, (grid.frames, grid.height, grid.width)) for i in range(n)]
    neighbours = {i: set() for i in range(n)}
    event = set()
    for a in range(n):
        for b in range(n):
            (fa, ya, xa), (fb, yb, xb) = position[a], position[b]
            spatial = fa == fb and abs(ya - yb) + abs(xa - xb) == 1
            temporal = fb == fa + 1 and (ya, xa) == (yb, xb)
            if spatial or temporal:
                narrow += [abs(cosine[a, b] - tau_sim)]
            if (spatial and cosine[a, b] > tau_sim) or (temporal and cosine[a, b] >= tau_sim):
                neighbours[a].add(b)
                neighbours[b].add(a)
            if temporal:
                narrow += [abs(cosine[a, b] - tau_diff)]
                if cosine[a, b] < tau_diff:
                    event.add(b)
    groups, seen = [], set()
    for a in range(n):
        group, stack = [], [a]
        while stack:
            b = stack.pop()
            if b not in seen:
                seen.add(b)
                group.append(b)
                stack += neighbours[b]
        if len(group) > 1:
            groups.append(sorted(group))

    def weight(group):
        pairs = [cosine[a, b] for a in group for b in group if a != b]
        return sum(pairs) / len(pairs)

    dropped: set[int] = set()
    groups.sort(key=weight, reverse=True)
    narrow += [weight(a) - weight(b) for a, b in itertools.pairwise(groups)]
    for group in groups:
        score = {a: sum(cosine[a, b] for b in group) / len(group) for a in group}
        order = sorted(group, key=lambda a: (round(score[a], 9), -a))
        quota = int(np.ceil(len(group) * (1 - retention)))
        if len(group) > 2 and quota < len(group):
            narrow.append(score[order[quota]] - score[order[quota - 1]])
        named = [a for a in order[:quota] if a not in event]
        # The released loop counts events too when it asks whether the budget allows this community.
        if (len(dropped) + quota) / n > 1 - retention:
            break
        dropped |= set(named)
    return sorted(set(range(n)) - dropped), min(narrow, default=1.0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("tau_sim", "tau_diff", "retention"),
    [(0.6, 0.5, 0.3), (0.8, 0.2, 0.5), (0.3, 0.6, 0.25), (-0.5, 0.9, 0.4)],
)
def test_released_rule_equals_a_dense_reference(seed, tau_sim, tau_diff, retention):
    grid = [Grid(4, 3, 4), Grid(1, 4, 5), Grid(7, 2, 2)][seed % 3]
    features = video("mixed", grid, dim=8, seed=seed)
    want, narrowest = reference_stage_one(features, grid, tau_sim, tau_diff, retention)
    method = STSimDiff(tau_sim=tau_sim, tau_diff=tau_diff)
    found = st_simdiff.select(VideoTokens.full(features, grid), retention, method)
    if narrowest < 2e-6:
        pytest.skip("decided by rounding")
    # Two tokens alone are equally central up to rounding: either may stay.
    pairs = np.isin(found.communities.label, np.flatnonzero(found.communities.size == 2))
    kept = np.zeros(grid.tokens, dtype=bool)
    kept[found.selection.keep] = True
    expected = np.isin(np.arange(grid.tokens), want)
    assert np.array_equal(kept[~pairs], expected[~pairs])


def test_paper_rule_keeps_the_most_central_of_each_community_and_all_events():
    grid, retention = Grid(6, 4, 4), 0.3
    tokens = VideoTokens.full(video("mixed", grid), grid)
    found = st_simdiff.select(tokens, retention, STSimDiff(rule="paper", tau_sim=0.5, tau_diff=0.4))
    kept = np.isin(np.arange(grid.tokens), found.selection.keep)
    label = found.communities.label
    assert len(found.communities) > 1 and found.event.any()
    assert kept[label < 0].all() and kept[found.event].all()
    for number, size in enumerate(found.communities.size):
        member = np.flatnonzero(label == number)
        best = sorted(member, key=lambda a: (-found.centrality[a], a))[: int(np.ceil(size * retention))]
        assert set(np.flatnonzero(kept & (label == number))) == set(best) | set(member[found.event[member]])


def test_percentile_events_are_the_most_different_tokens_of_this_video():
    grid = Grid(6, 5, 5)
    tokens = VideoTokens.full(video("mixed", grid), grid)
    found = st_simdiff.select(tokens, 0.3, STSimDiff(tau_diff="p90"))
    late = grid.tokens - grid.per_frame
    assert found.event.sum() == pytest.approx(0.1 * late, abs=1)
    value = found.similarities.temporal.flatten().numpy()
    event = found.event[grid.per_frame :]
    assert value[event].max() < value[~event].min()


def test_ablations_switch_their_part_off():
    grid, retention = Grid(6, 5, 5), 0.3
    tokens = VideoTokens.full(video("mixed", grid), grid)

    def stage_one(**parameters):
        return st_simdiff.select(tokens, retention, STSimDiff(tau_sim=0.5, tau_diff=0.6, **parameters))

    full, no_events, no_similarity = stage_one(), stage_one(difference=False), stage_one(similarity=False)
    assert full.event.any() and not no_events.event.any()
    assert set(no_events.selection.keep.tolist()) != set(full.selection.keep.tolist())
    assert len(no_similarity.selection.keep) == grid.tokens
    layout, budget = layout_for(grid), Budget("tokens", retention)
    method = STSimDiff(similarity=False, tau_diff=0.3)
    event = np.flatnonzero(st_simdiff.select(tokens, retention, method).event)
    _, kept = drive(method.start(layout, budget), tokens.features, layout)
    assert 0 < len(event) < len(kept) and set(event) <= set(kept)


@pytest.mark.parametrize("kind", ["tokens", "compute"])
def test_without_pruning_all_that_stage_one_leaves_stays_and_no_attention_is_read(kind):
    grid = Grid(6, 5, 5)
    tokens, layout, budget = video("mixed", grid), layout_for(grid), Budget(kind, 0.3)
    method = STSimDiff(tau_sim=0.5, tau_diff=0.6, pruning=False)
    method.check(budget, layout.layers)
    left = st_simdiff.select(VideoTokens.full(tokens, grid), 0.3, method).selection.keep
    run = method.start(layout, budget)
    assert not run.places.attention and not run.places.between
    entering, kept = drive(run, tokens, layout)
    assert entering == [len(left)] * layout.layers and list(kept) == left.tolist()
    pruned, _ = drive(STSimDiff(tau_sim=0.5, tau_diff=0.6).start(layout, budget), tokens, layout)
    assert pruned[0] == len(left) > pruned[-1]


def test_heads_are_joined_as_asked():
    attention = torch.tensor([[0.0, 0.4, 0.9], [0.5, 0.4, 0.0]])
    assert torch.allclose(st_simdiff.head_scores(attention), torch.tensor([0.25, 0.4, 0.45]))
    assert torch.allclose(st_simdiff.head_scores(attention, "max"), torch.tensor([0.5, 0.4, 0.9]))


def test_released_ratio_is_clipped_and_skips_a_stage_without_edges():
    assert st_simdiff.released_ratio(0.9, 0.5, 28) == 0
    assert st_simdiff.released_ratio(1.0, 0.0, 28) == 0
    assert st_simdiff.released_ratio(0.3, None, 28) == pytest.approx(0.7)
    assert st_simdiff.released_ratio(0.3, 0.0, 28) == pytest.approx(1 - 7.4 / 27)


@pytest.mark.parametrize("kind", ["tokens", "compute"])
@pytest.mark.parametrize("method", [STSimDiff(layer=3), STSimDiff(layer=3, rule="paper"), STSimDiff(layer=0)])
def test_a_full_budget_keeps_everything_in_a_model_of_any_depth(kind, method):
    grid = Grid(4, 4, 4)
    layout, budget = layout_for(grid, layers=4), Budget(kind, 1.0)
    method.check(budget, 4)
    entering, _ = drive(method.start(layout, budget), video("static", grid), layout)
    assert entering == [64] * 4


def test_a_compute_budget_that_stage_one_has_used_up_is_an_error():
    grid = Grid(4, 4, 4)
    layout = layout_for(grid, layers=4)
    with pytest.raises(BudgetError, match="cannot be met"):
        drive(STSimDiff().start(layout, Budget("compute", 0.3)), video("different", grid), layout)


def test_bounds_of_the_parameters_are_allowed():
    assert STSimDiff(released_layers=2).released_layers == 2
    assert STSimDiff(tau_sim=-1, tau_diff=1, layer=0) and STSimDiff(tau_sim=1, tau_diff=-1)
    assert STSimDiff(tau_sim=0, community="louvain", tau_diff="p0") and STSimDiff(tau_diff="p100")
    for value in (1, 2.5, "28", True):
        with pytest.raises(ConfigError, match="released_layers=.* or a whole number from 2"):
            STSimDiff(released_layers=value)


def test_events_of_a_percentile_lie_above_it():
    """By hand: differences 0.1, 0.2, 0.3, 0.4 and 0.5, whose median is no event."""
    grid = Grid(2, 1, 5)
    temporal = torch.tensor([[[0.9, 0.8, 0.7, 0.6, 0.5]]])
    similarities = graph.Similarities(temporal, torch.zeros(2, 1, 4), torch.zeros(2, 0, 5), torch.ones(10))
    for text, late in (("p0", [1, 2, 3, 4]), ("p50", [3, 4]), ("p75", [4]), ("p100", [])):
        assert np.flatnonzero(st_simdiff.events(similarities, grid, text)).tolist() == [5 + i for i in late]
    # A similarity that equals the threshold is none either.
    assert np.flatnonzero(st_simdiff.events(similarities, grid, 0.6)).tolist() == [9]


@pytest.mark.parametrize("tau_diff", ["p50", 0.5])
def test_a_single_frame_has_no_events(tau_diff):
    grid = Grid(1, 2, 2)
    found = st_simdiff.select(
        VideoTokens.full(video("different", grid), grid), 0.5, STSimDiff(tau_diff=tau_diff)
    )
    assert found.event.tolist() == [False] * 4


@pytest.mark.parametrize("thin", [st_simdiff.thin_released, st_simdiff.thin_paper])
def test_communities_are_visited_from_the_most_similar_down_and_ties_by_number(thin):
    """Forty pairs, more than what a sort of small arrays keeps in order by chance; every other one weighs more."""
    communities = graph.Communities.from_labels(np.repeat(np.arange(40), 2))
    weight = np.tile([0.5, 0.9], 20)
    _, visited = thin(communities, np.ones(80), weight, np.zeros(80, dtype=bool), 0.5)
    assert visited.tolist() == [*range(1, 40, 2), *range(0, 40, 2)]


def test_which_budgets_of_compute_the_last_layer_cannot_meet():
    half, all_ = Budget("compute", 0.5), Budget("compute", 1.0)
    with pytest.raises(BudgetError, match=r"compressor.layer=3 of 4 layers"):
        STSimDiff(layer=3).check(half, 4)
    for method, budget, layers in (
        (STSimDiff(layer=2), half, 4),
        (STSimDiff(layer=3), all_, 4),
        (STSimDiff(layer=3), Budget("tokens", 0.5), 4),
        (STSimDiff(layer=3, pruning=False), half, 4),
        (STSimDiff(layer=3, released_layers=28), half, 4),
        (STSimDiff(layer=3), half, None),
    ):
        method.check(budget, layers)


@pytest.mark.parametrize(
    ("kind", "parameters", "present", "count"),
    [
        # What the two layers before the drop leave: (0.5 * 48 * 6 - 2 * 40) / 4 = 16.
        ("compute", {}, 40, 16),
        ("tokens", {}, 40, 24),
        # Layer 0 alone comes before the drop: (144 - 40) / 5 = 20.8.
        ("compute", {"layer": 0}, 40, 21),
        # As released, of 28 layers: with no edge 40 * 0.5; else 40 * (28 * 0.5 - 5 / 6) / (27 * 5 / 6).
        ("tokens", {"released_layers": 28}, 40, 23),
        ("tokens", {"released_layers": 28, "similarity": False}, 40, 20),
    ],
)
def test_how_many_tokens_stage_two_leaves(kind, parameters, present, count):
    grid = Grid(3, 4, 4)
    layout, features = layout_for(grid, layers=6), video("different", grid)
    features[1] = features[0]  # one edge
    run = STSimDiff(**{"tau_sim": 0.99} | parameters).start(layout, Budget(kind, 0.5))
    run.at_input(VideoTokens.full(features, grid))
    left = VideoTokens(features[:present], grid, torch.arange(present))
    selection = run.between(run.method.layer, left, torch.rand(2, present))
    assert len(selection.keep) == count


def test_a_reason_for_every_token_of_stage_one():
    """By hand: two communities, of which the second is not visited; a token in none; an event; a dropped one."""
    communities = graph.Communities.from_labels(np.array([0, 0, 0, 1, 1, -1]))
    event = np.array([False, True, False, False, False, False])
    dropped = np.array([False, False, True, False, False, False])
    reason = st_simdiff._reasons(communities, np.array([0]), event, dropped)
    assert [Reason(code).name for code in reason] == [
        *("REPRESENTATIVE", "EVENT", "DROPPED", "ALL", "ALL", "UNGROUPED")
    ]


def test_features_without_a_norm_are_refused():
    """Finite each, but their squares are not: no similarity could be computed."""
    grid = Grid(1, 1, 2)
    with pytest.raises(ValueError, match="features are too large for a float32 norm"):
        st_simdiff.select(VideoTokens.full(torch.full((2, 4), 1e30), grid), 0.5, STSimDiff())


def test_stage_two_needs_attention():
    grid = Grid(2, 2, 2)
    run = STSimDiff().start(layout_for(grid), Budget("tokens", 0.5))
    tokens = VideoTokens.full(video("different", grid), grid)
    run.at_input(tokens)
    with pytest.raises(ValueError, match="ST-SimDiff needs the attention of layer 1"):
        run.between(1, tokens, None)


@pytest.mark.parametrize(("grid", "largest"), [(Grid(2, 1, 2), 2), (Grid(3, 1, 2), 2), (Grid(4, 2, 2), 4)])
def test_no_community_is_larger_than_the_root_of_all_tokens(monkeypatch, grid, largest):
    # All tokens alike are one community, which is cut.
    asked = []
    split = graph.split_communities
    monkeypatch.setattr(
        graph,
        "split_communities",
        lambda found, most: asked.append((found.size.tolist(), most)) or split(found, most),
    )
    method = STSimDiff(split_above="sqrt", community="connected")
    layout = layout_for(grid)
    drive(method.start(layout, Budget("tokens", 0.5)), video("constant", grid), layout)
    assert asked == [([grid.tokens], largest)]


def test_without_the_similarity_path_no_community_method_has_edges_to_join():
    grid = Grid(4, 2, 2)
    layout, kept = layout_for(grid), []
    for community in ("connected", "leiden", "louvain"):
        method = STSimDiff(similarity=False, community=community)
        kept.append(drive(method.start(layout, Budget("tokens", 0.5)), video("mixed", grid), layout))
    assert kept[0] == kept[1] == kept[2]


def test_the_last_stage_keeps_one_token_at_least():
    grid = Grid(4, 2, 2)
    layout = layout_for(grid)
    run = STSimDiff(released_layers=28).start(layout, Budget("compute", 0.05))
    run.had_edges = True
    assert [run._final_count(present) for present in (1, 2, 3)] == [1, 1, 1]
