"""The token graph: neighbour similarities, communities and centrality, as functions on tensors.

Nothing here knows a model or a budget. Features are read a few hundred rows at a time, so that what is worked
on stays in the cache, and are never copied as a whole nor moved to the host; only vectors of one number a
token and the edge list travel. No ``N x N`` and no ``component x component`` matrix is ever made.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from stsimdiff.errors import ConfigError
from stsimdiff.extras import is_installed
from stsimdiff.tokens import Grid

_BLOCK = {"cpu": 256, "cuda": 2048}
"""Rows compared with all others at once: enough for a product of matrices to run at its full speed."""
_ROWS = {"cpu": 64, "cuda": 4096}
"""Rows of features gathered at once: what fits the second-level cache of a core, or what fills a GPU."""
EPS = 1e-12
"""Least norm, so that a zero feature has similarity 0 to everything instead of NaN."""


@dataclass(frozen=True)
class Similarities:
    """Cosine similarities of neighbouring tokens, on the device of the features.

    Attributes:
        temporal: ``(T-1, H, W)``, each token of frame ``t+1`` and the token at its place in frame ``t``.
        right: ``(T, H, W-1)``, each token and its right neighbour.
        bottom: ``(T, H-1, W)``, each token and its lower neighbour.
        norm: ``(N,)`` Euclidean norm of each feature.
    """

    temporal: Tensor
    right: Tensor
    bottom: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Communities:
    """A partition of some of the tokens, on the host. Only groups of two and more tokens count.

    Attributes:
        label: ``(N,)`` int64, number of each token's community, -1 for none; numbered by lowest member.
        size: ``(C,)`` int64.
    """

    label: np.ndarray
    size: np.ndarray

    @classmethod
    def from_labels(cls, label: np.ndarray) -> Communities:
        """Drop the groups of one from any integer labelling (negative: no group) and number the rest anew."""
        values, first, inverse, count = np.unique(
            label, return_index=True, return_inverse=True, return_counts=True
        )
        grouped = np.flatnonzero((count >= 2) & (values >= 0))
        grouped = grouped[np.argsort(first[grouped])]
        number = np.full(len(values), -1, dtype=np.int64)
        number[grouped] = np.arange(len(grouped))
        return cls(number[inverse], count[grouped].astype(np.int64))

    def __len__(self) -> int:
        return len(self.size)


def neighbour_similarities(features: Tensor, grid: Grid) -> Similarities:
    """Cosine similarity of every token to its neighbours at Manhattan distance 1, in space and in time.

    Args:
        features: ``(N, D)`` in raster order, any floating dtype; computed in float32 at least.
        grid: the grid of the video.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    t, h, w = grid.frames, grid.height, grid.width
    frames = features.view(t, grid.per_frame, -1)
    norm = torch.empty(t, grid.per_frame, dtype=dtype, device=features.device)
    temporal = norm.new_empty(t - 1, grid.per_frame)
    right = norm.new_empty(t, h, w - 1)
    bottom = norm.new_empty(t, grid.per_frame - w)
    before = None
    for i in range(t):
        frame = frames[i].to(dtype)
        rows = frame.view(h, w, -1)
        norm[i] = torch.linalg.vector_norm(frame, dim=1)
        right[i] = (rows[:, 1:] * rows[:, :-1]).sum(-1)
        bottom[i] = (frame[w:] * frame[:-w]).sum(-1)
        if before is not None:
            temporal[i - 1] = (frame * before).sum(-1)
        before = frame
    inverse = norm.clamp_min(EPS).reciprocal()
    inverse_rows = inverse.view(t, h, w)
    temporal *= inverse[1:] * inverse[:-1]
    right *= inverse_rows[:, :, 1:] * inverse_rows[:, :, :-1]
    bottom *= inverse[:, w:] * inverse[:, :-w]
    return Similarities(temporal.view(t - 1, h, w), right, bottom.view(t, h - 1, w), norm.flatten())


def similar_edges(
    similarities: Similarities,
    grid: Grid,
    threshold: float,
    kinds: str = "both",
    *,
    strict_temporal: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Edges between similar neighbours, on the host, in the released order: temporal, right, bottom.

    Args:
        similarities: of the grid's tokens.
        grid: the grid of the video.
        threshold: tau_sim. Spatial edges lie above it, temporal edges at or above it (as released) unless
            ``strict_temporal`` (as the paper says).
        kinds: ``both``, ``spatial`` or ``temporal``.

    Returns:
        ``(E, 2)`` int64 raster indices, lower first, and the ``(E,)`` similarities.
    """
    place = np.arange(grid.tokens).reshape(grid.frames, grid.height, grid.width)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    if kinds != "spatial":
        value = similarities.temporal.cpu().numpy()
        chosen = value > threshold if strict_temporal else value >= threshold
        parts.append((place[:-1][chosen], place[1:][chosen], value[chosen]))
    if kinds != "temporal":
        for value, lower, upper in (
            (similarities.right.cpu().numpy(), place[:, :, :-1], place[:, :, 1:]),
            (similarities.bottom.cpu().numpy(), place[:, :-1], place[:, 1:]),
        ):
            chosen = value > threshold
            parts.append((lower[chosen], upper[chosen], value[chosen]))
    lower, upper, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return np.stack((lower, upper), axis=1), value


def find_communities(
    tokens: int, edges: np.ndarray, similarity: np.ndarray, method: str = "connected"
) -> Communities:
    """Communities of the token graph ("SRTS"): connected components, Louvain or Leiden.

    Args:
        tokens: N.
        edges: ``(E, 2)`` raster indices.
        similarity: ``(E,)`` edge weights; read by Louvain and Leiden only.
        method: ``connected``, ``louvain`` or ``leiden``.

    Raises:
        ConfigError: for Louvain or Leiden when igraph is not installed.
    """
    if method == "connected":
        ones = np.ones(len(edges), dtype=np.int8)
        graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(tokens, tokens))
        _, label = connected_components(graph, directed=False)
    else:
        label = _modularity_labels(tokens, edges, similarity, method)
    return Communities.from_labels(label)


def check_installed(method: str) -> None:
    """Raise :class:`~stsimdiff.errors.ConfigError` where a method of :func:`find_communities` lacks its package."""
    if method != "connected" and not is_installed("igraph"):
        package = __name__.partition(".")[0]
        raise ConfigError(
            f"compressor.community={method!r} needs the package igraph, which is not installed; install it "
            f"(pip install '{package}[communities]') or use compressor.community=connected"
        )


def _modularity_labels(tokens: int, edges: np.ndarray, similarity: np.ndarray, method: str) -> np.ndarray:
    """Labels of the Louvain or Leiden partition by modularity, from a fixed seed."""
    check_installed(method)
    import igraph

    if len(edges) == 0:
        return np.arange(tokens)
    net = igraph.Graph(n=tokens, edges=edges)
    weight = similarity.astype(np.float64).tolist()
    # Both visit the vertices in random order. igraph draws from Python's module by default, and does so again after.
    igraph.set_random_number_generator(random.Random(0))
    try:
        if method == "louvain":
            found = net.community_multilevel(weights=weight)
        else:
            found = net.community_leiden(objective_function="modularity", weights=weight, n_iterations=-1)
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership)


def split_communities(communities: Communities, largest: int) -> Communities:
    """Cut communities of more than ``largest`` tokens into runs of nearly equal size, in raster order.

    The paper bounds a community at the square root of N without saying how it is cut.
    """
    label, size = communities.label, communities.size
    pieces = -(-size // largest)
    grouped = np.flatnonzero(label >= 0)
    order = grouped[np.argsort(label[grouped], kind="stable")]
    member = label[order]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
    split = np.full(len(label), -1, dtype=np.int64)
    split[order] = (np.cumsum(pieces) - pieces)[member] + rank * pieces[member] // size[member]
    return Communities.from_labels(split)


def community_centrality(features: Tensor, norm: Tensor, communities: Communities) -> np.ndarray:
    """Mean cosine similarity of each token to its community, itself included.

    The mean over the members is one product with their sum, ``x_i . sum_j x_j / |c|``, so the cost is linear
    in the members whatever the sizes.

    Args:
        features: ``(N, D)`` any floating dtype and device.
        norm: ``(N,)`` their norms, as in :class:`Similarities`.
        communities: which tokens belong together.

    Returns:
        ``(N,)`` floats on the host, NaN outside communities.
    """
    label, size = communities.label, communities.size
    result = np.full(len(label), np.nan, dtype=np.float32)
    if len(size) == 0:
        return result
    grouped = np.flatnonzero(label >= 0)
    order = grouped[np.argsort(label[grouped], kind="stable")]
    member = torch.from_numpy(order).to(features.device)
    owner = torch.from_numpy(label[order]).to(features.device)
    inverse = norm.clamp_min(EPS).reciprocal()[member]
    total = norm.new_empty(len(order))
    at_once = _rows_at_once(features)
    for first, last, rows in _batches(size, at_once):
        if last == first + 1:
            total[rows] = _products_with_sum(features, member[rows], inverse[rows], at_once)
            continue
        x = features.index_select(0, member[rows]).to(norm.dtype).mul_(inverse[rows, None])
        local = owner[rows] - first
        sums = add_rows(x.new_zeros(last - first, x.shape[1]), local, x)
        total[rows] = x.mul_(sums[local]).sum(-1)
    result[order] = total.cpu().numpy() / size[label[order]]
    return result


def community_weights(centrality: np.ndarray, norm: Tensor, communities: Communities) -> np.ndarray:
    """Mean similarity of the pairs of different tokens in each community, ``(C,)`` float64.

    The sum over all pairs is ``|c|`` times the sum of the centralities; a token's similarity to itself, 1
    unless its feature is zero, is taken off.
    """
    label, size = communities.label, communities.size
    grouped = np.flatnonzero(label >= 0)
    owner = label[grouped]
    total = np.bincount(owner, centrality[grouped].astype(np.float64), len(size)) * size
    itself = np.bincount(owner, norm.cpu().numpy()[grouped] > EPS, len(size))
    return (total - itself) / (size * (size - 1))


def pair_similarities(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``(P,)`` cosine similarities of the rows ``first`` and ``second`` (``(P,)`` int64) of ``features`` ``(n, D)``.

    NaN where a feature is not finite.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    result = torch.empty(len(first), dtype=dtype, device=features.device)
    at_once = _rows_at_once(features)
    for start in range(0, len(first), at_once):
        rows = slice(start, start + at_once)
        x = features.index_select(0, first[rows]).to(dtype)
        y = features.index_select(0, second[rows]).to(dtype)
        scale = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
        result[rows] = x.mul_(y).sum(1) / scale.clamp_min(EPS)
    return result


def unit(features: Tensor, guarded: bool = True) -> Tensor:
    """``(n, D)`` features divided by their norms, in float32 at least; zeros stay, or are NaN unless ``guarded``."""
    rows = features.to(torch.promote_types(features.dtype, torch.float32))
    return rows / _norm(rows, guarded) if rows is features else unit_(rows, guarded)


def unit_(rows: Tensor, guarded: bool = True) -> Tensor:
    """:func:`unit` in the place of rows in float32 at least."""
    return rows.div_(_norm(rows, guarded))


def _norm(rows: Tensor, guarded: bool) -> Tensor:
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm.clamp_min_(EPS if guarded else 0.0)


def products(rows: Tensor, others: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first, (b, m))``: products of a block of ``rows`` ``(n, D)`` with all ``others`` ``(m, D)``.

    No block is larger than the matrix of the others, whatever n and m are.
    """
    others = rows if others is None else others
    for first in range(0, len(rows), size := block(rows)):
        yield first, rows[first : first + size] @ others.T


def block(rows: Tensor) -> int:
    """How many of ``rows`` ``(n, D)`` are compared with others at once."""
    return min(_BLOCK.get(rows.device.type, _BLOCK["cuda"]), rows.shape[1])


def group_means(features: Tensor, group: Tensor, groups: int) -> Tensor:
    """``(groups, D)`` mean of the rows of each group, summed in float32 and returned in the features' dtype.

    Args:
        features: ``(n, D)``.
        group: ``(n,)`` int64 on the same device; every group has a member.
        groups: how many.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    total = torch.zeros(groups, features.shape[1], dtype=dtype, device=features.device)
    for rows, owner in zip(
        features.split(_rows_at_once(features)), group.split(_rows_at_once(features)), strict=True
    ):
        add_rows(total, owner, rows.to(dtype))
    total /= torch.bincount(group, minlength=groups)[:, None]
    return total.to(features.dtype)


def blocks(index: np.ndarray, features: Tensor) -> Iterator[np.ndarray]:
    """Pieces of ``(n,)`` rows of ``features``, of as many as are gathered at once."""
    size = _rows_at_once(features)
    return (index[first : first + size] for first in range(0, len(index), size))


def _rows_at_once(features: Tensor) -> int:
    return _ROWS.get(features.device.type, _ROWS["cuda"])


def _batches(size: np.ndarray, at_once: int) -> Iterator[tuple[int, int, slice]]:
    """Yield ``(first, last, rows)``: runs of communities of at most ``at_once`` tokens, or a larger one."""
    end = np.cumsum(size)
    first, start = 0, 0
    while first < len(size):
        last = max(first + 1, int(np.searchsorted(end, start + at_once, side="right")))
        yield first, last, slice(start, int(end[last - 1]))
        first, start = last, int(end[last - 1])


def _products_with_sum(features: Tensor, member: Tensor, inverse: Tensor, at_once: int) -> Tensor:
    """``x_i . sum_j x_j`` of the normalised features of one community, read twice, piece by piece."""
    total = inverse.new_zeros(features.shape[1])
    pieces = list(zip(member.split(at_once), inverse.split(at_once), strict=True))
    for rows, scale in pieces:
        total += scale @ features.index_select(0, rows).to(inverse.dtype)
    return torch.cat(
        [(features.index_select(0, rows).to(inverse.dtype) @ total) * scale for rows, scale in pieces]
    )


def add_rows(target: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Add each row to ``target[index]`` in place, in an order that does not change from run to run.

    ``index_add_`` runs in index order on the CPU but with atomics on CUDA, where ``index_put_`` sorts
    instead.
    """
    if target.is_cuda:
        return target.index_put_((index,), rows, accumulate=True)
    return target.index_add_(0, index, rows)
