"""The token graph against dense references that compute the definitions literally."""

import random
import sys

import numpy as np
import pytest
import torch

from stsimdiff import graph
from stsimdiff.errors import ConfigError
from stsimdiff.graph import Communities
from stsimdiff.tokens import Grid


def scene(grid: Grid, dim: int = 24, noise: float = 0.5, seed: int = 0) -> torch.Tensor:
    """``(N, dim)`` features: a still picture of smooth patches with noise on top, for communities."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dim, 2, 2, generator=generator)
    still = torch.nn.functional.interpolate(coarse, (grid.height, grid.width), mode="nearest")[0].flatten(1).T
    noisy = still + noise * torch.randn(grid.frames, grid.per_frame, dim, generator=generator)
    return noisy.reshape(grid.tokens, dim) * (0.5 + torch.rand(grid.tokens, 1, generator=generator))


def dense_cosine(features: torch.Tensor) -> np.ndarray:
    """``(N, N)`` float64 cosine similarities."""
    x = features.double()
    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (x @ x.T).numpy()


GRIDS = [Grid(5, 4, 3), Grid(1, 4, 6), Grid(6, 1, 1), Grid(3, 1, 5), Grid(3, 5, 1), Grid(1, 1, 1)]


@pytest.mark.parametrize("grid", GRIDS)
def test_neighbour_similarities_equal_the_dense_matrix(grid):
    features = scene(grid)
    cosine = dense_cosine(features)
    found = graph.neighbour_similarities(features, grid)
    place = np.arange(grid.tokens).reshape(grid.frames, grid.height, grid.width)
    np.testing.assert_allclose(found.temporal, cosine[place[:-1], place[1:]], atol=1e-6)
    np.testing.assert_allclose(found.right, cosine[place[:, :, :-1], place[:, :, 1:]], atol=1e-6)
    np.testing.assert_allclose(found.bottom, cosine[place[:, :-1], place[:, 1:]], atol=1e-6)
    np.testing.assert_allclose(found.norm, features.norm(dim=1), rtol=1e-6)


def test_a_zero_feature_is_similar_to_nothing():
    grid = Grid(2, 2, 2)
    features = scene(grid)
    features[5] = 0
    found = graph.neighbour_similarities(features, grid)
    assert float(found.temporal[0, 0, 1]) == 0
    assert not torch.isnan(found.right).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_is_computed_in_float32(dtype):
    grid = Grid(3, 4, 4)
    features = scene(grid).to(dtype)
    found = graph.neighbour_similarities(features, grid)
    want = graph.neighbour_similarities(features.double(), grid)
    assert found.temporal.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    np.testing.assert_allclose(found.temporal, want.temporal, atol=1e-6)


@pytest.mark.parametrize("kinds", ("both", "spatial", "temporal"))
def test_edges_are_similar_neighbours_of_the_chosen_kind(kinds):
    grid = Grid(4, 5, 3)
    features = scene(grid)
    edges, value = graph.similar_edges(graph.neighbour_similarities(features, grid), grid, 0.7, kinds)
    cosine = dense_cosine(features)
    want = set()
    for a in range(grid.tokens):
        for b in range(a + 1, grid.tokens):
            (fa, ya, xa), (fb, yb, xb) = (np.unravel_index(i, (4, 5, 3)) for i in (a, b))
            spatial = fa == fb and abs(ya - yb) + abs(xa - xb) == 1
            temporal = fb - fa == 1 and (ya, xa) == (yb, xb)
            if {"both": spatial or temporal, "spatial": spatial, "temporal": temporal}[kinds] and cosine[
                a, b
            ] > 0.7:
                want.add((a, b))
    assert want and set(map(tuple, edges.tolist())) == want
    np.testing.assert_allclose(value, cosine[edges[:, 0], edges[:, 1]], atol=1e-6)


def test_only_temporal_edges_take_the_threshold_itself():
    grid = Grid(2, 1, 2)
    half = graph.Similarities(
        torch.full((1, 1, 2), 0.5), torch.full((2, 1, 1), 0.5), torch.zeros(2, 0, 2), torch.ones(4)
    )
    assert graph.similar_edges(half, grid, 0.5)[0].tolist() == [[0, 2], [1, 3]]
    assert len(graph.similar_edges(half, grid, 0.5, strict_temporal=True)[0]) == 0


def test_components_are_numbered_by_lowest_member_and_leave_single_tokens_out():
    edges = np.array([[5, 6], [1, 4], [4, 7]])
    found = graph.find_communities(8, edges, np.ones(3))
    assert found.label.tolist() == [-1, 0, -1, -1, 0, 1, 1, 0]
    assert found.size.tolist() == [3, 2]
    assert len(graph.find_communities(3, edges[:0], np.ones(0))) == 0


@pytest.mark.parametrize("method", ["louvain", "leiden"])
def test_communities_by_modularity_part_what_one_edge_joins(method):
    pytest.importorskip("igraph")
    cliques = [[(a, b) for a in range(o, o + 5) for b in range(a + 1, o + 5)] for o in (1, 6)]
    edges = np.array([*cliques[0], *cliques[1], (5, 6)])
    found = graph.find_communities(13, edges, np.full(len(edges), 0.9), method)
    assert found.label.tolist() == [-1] + [0] * 5 + [1] * 5 + [-1] * 2
    assert len(graph.find_communities(13, edges, np.ones(len(edges)))) == 1
    assert len(graph.find_communities(3, edges[:0], np.ones(0), method)) == 0


@pytest.mark.parametrize("method", ["louvain", "leiden"])
def test_communities_by_modularity_do_not_depend_on_the_state_of_random(method):
    pytest.importorskip("igraph")
    grid = Grid(6, 8, 8)
    similarities = graph.neighbour_similarities(scene(grid, noise=0.6), grid)
    edges, value = graph.similar_edges(similarities, grid, 0.5)
    first = graph.find_communities(grid.tokens, edges, value, method)
    random.seed(1)
    state = random.getstate()
    assert np.array_equal(graph.find_communities(grid.tokens, edges, value, method).label, first.label)
    assert random.getstate() == state


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(
        ConfigError, match=r"community='leiden' needs the package igraph.*'stsimdiff\[communities\]'"
    ):
        graph.find_communities(2, np.array([[0, 1]]), np.ones(1), "leiden")


@pytest.mark.parametrize("at_once", [2, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_centrality_and_weight_equal_the_dense_means(at_once, dtype, monkeypatch):
    monkeypatch.setitem(graph._ROWS, "cpu", at_once)
    grid = Grid(5, 6, 5)
    features = scene(grid).to(dtype)
    features[[3, 40]] = 0
    label = np.random.default_rng(0).integers(-1, 9, grid.tokens)
    label[:40] = 3  # a community larger than what is worked on at once
    communities = Communities.from_labels(label)
    norm = features.to(torch.float32).norm(dim=1)
    centrality = graph.community_centrality(features, norm, communities)
    weight = graph.community_weights(centrality, norm, communities)
    cosine = dense_cosine(features)
    for number, size in enumerate(communities.size):
        member = np.flatnonzero(communities.label == number)
        assert len(member) == size
        block = cosine[np.ix_(member, member)]
        np.testing.assert_allclose(centrality[member], block.mean(1), atol=2e-6)
        want = (block.sum() - np.trace(block)) / (size * (size - 1))
        np.testing.assert_allclose(weight[number], want, atol=2e-6)
    assert np.isnan(centrality[communities.label < 0]).all()


def test_pair_similarities_and_group_means(monkeypatch):
    monkeypatch.setitem(graph._ROWS, "cpu", 7)
    grid = Grid(4, 3, 5)
    features = scene(grid)
    first, second = torch.randint(grid.tokens, (2, 40), generator=torch.Generator().manual_seed(0))
    want = dense_cosine(features)[first, second]
    np.testing.assert_allclose(graph.pair_similarities(features, first, second), want, atol=1e-6)
    group = torch.arange(grid.tokens) * 7 % 9
    means = graph.group_means(features.bfloat16(), group, 9)
    assert means.dtype is torch.bfloat16
    for number in range(9):
        mean = features.bfloat16().float()[group == number].mean(0)
        assert torch.allclose(means[number].float(), mean, rtol=0.01)


def test_split_communities_are_runs_of_nearly_equal_size():
    label = np.array([0] * 7 + [-1] + [1] * 3 + [0] * 4)
    found = graph.split_communities(Communities.from_labels(label), 4)
    assert sorted(found.size.tolist()) == [3, 3, 4, 4]
    for number in range(len(found)):
        assert len(set(label[found.label == number])) == 1
    assert found.label[7] == -1


def test_working_memory_does_not_grow_with_the_features():
    """Nothing the size of the token matrix is allocated, whatever the communities look like."""
    grid = Grid(48, 12, 12)
    features = scene(grid, dim=256, noise=0.4)
    matrix = features.numel() * features.element_size()
    with torch.profiler.profile(profile_memory=True) as profile:
        found = graph.neighbour_similarities(features, grid)
        edges, value = graph.similar_edges(found, grid, 0.8)
        communities = graph.find_communities(grid.tokens, edges, value)
        graph.community_centrality(features, found.norm, communities)
    assert communities.size.max() > 64
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < matrix / 8


def modularity(edges: np.ndarray, weight: np.ndarray, label: np.ndarray) -> float:
    """Newman's definition: the share of the weight inside communities less what chance would put there."""
    total, degree = weight.sum(), np.bincount(edges.ravel(), np.repeat(weight, 2))
    return sum(
        weight[(label[edges] == number).all(1)].sum() / total
        - (degree[label == number].sum() / (2 * total)) ** 2
        for number in set(label)
    )


def test_leiden_goes_on_until_no_token_is_better_off_elsewhere():
    """On this graph one iteration leaves a vertex that another community would take gladly."""
    pytest.importorskip("igraph")
    generator = np.random.default_rng(0)
    pairs = [(a, b) for a in range(20) for b in range(a + 1, 20) if generator.random() < 0.2]
    edges, weight = np.array(pairs), generator.random(len(pairs))
    label = graph.find_communities(20, edges, weight, "leiden").label
    best = modularity(edges, weight, label)
    for vertex in range(20):
        for number in range(label.max() + 2):
            moved = label.copy()
            moved[vertex] = number
            assert modularity(edges, weight, moved) <= best + 1e-9
