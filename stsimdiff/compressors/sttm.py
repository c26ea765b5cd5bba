"""STTM: before a shallow layer, quadtree nodes stand for squares of similar tokens, and merge along time.

Hyun et al., "Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration of Video LLMs" (ICCV 2025,
arXiv 2507.07990). Pyramid, nodes, pairs and merging were checked against recorded outputs of the authors'
``quadtree_build_video`` (HYUNJS/STTM 00736c7), and a whole run of theirs on a stock Qwen2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Positions, Run, top
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens

STEPS = 14
"""Halvings of the interval of a threshold, less where the budget is met before."""
CLOSE = 0.01
"""Relative excess over the budget from which a threshold is good enough."""
ALL, NONE = -2.0, 2.0
"""Thresholds below and above every similarity."""


@dataclass(frozen=True)
class STTM(Compressor):
    """Spatial step: a square of a frame becomes one token where it is similar to its four parts, else they are looked
    at. Temporal step: overlapping squares of neighbouring frames that are similar merge, over any number of frames.

    At an odd side the first row or column stands alone, and a square at that border must also be similar to the top
    left part of its frame, as released. Tokens that are no part of the picture (newline tokens, which the authors leave
    out of the prompt) go, unless the budget has room for them.

    The authors have no budget: what is left follows from both thresholds. With ``temporal_threshold: auto`` that one is
    the smallest found to leave enough; where it cannot, ``threshold`` moves too. Of what is left, the tokens that stand
    for the most others stay.

    Fidelity: for given thresholds tokens and features equal recorded outputs of the authors' code, and with positions
    renumbered the logits of its prefill. The budget is ours. Small grids on which their code fails work.

    Attributes:
        threshold: s of the spatial step, in [-1, 1]; above 1 nothing is a square.
        temporal_threshold: t of the temporal step, in [-1, 1], 0 and less for none; then the budget is not met, and
            the audit says by how much. Or ``auto``.
        root_level: of the pyramid's levels from the coarsest, 2 rows or columns, the one to begin with; negative from
            the finest. Beyond the levels of a grid: the nearest one.
        weighted_avg: squares and merged tokens are means of their tokens; off, of their parts whatever their size.
        head_dim: similarities are means over slices of so many channels; 0 compares whole tokens.
        slow_version: of a frame's pairs by falling similarity, one is left out that has the later square of the one
            before it.
        layer: the first layer that sees fewer tokens.
        positions: ``kept`` as released for Qwen2-VL, or ``renumbered`` as for LLaVA.
        as_released: fail where the authors' code does.

    Raises:
        ConfigError: for a value out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    threshold: Annotated[float, Field(ge=-1, le=2, examples=[0.85])] = 0.85
    temporal_threshold: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=-1, le=2)],
        Field(description="auto, or a number in [-1, 2]", examples=[0.65]),
    ] = "auto"
    root_level: Annotated[int, Field(examples=[1])] = 1
    weighted_avg: bool = False
    head_dim: Annotated[int, Field(ge=0, examples=[128])] = 0
    slow_version: bool = False
    layer: Annotated[int, Field(ge=0, description="0, 1, ...", examples=[2])] = 2
    positions: Positions = "kept"
    as_released: bool = False

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is None:
            return
        if self.layer >= layers:
            raise ConfigError(
                f"compressor.layer={self.layer} does not exist in a model of {layers} layers; "
                f"allowed: 0 to {layers - 1}"
            )
        used = self.layer / layers
        if budget.kind == "compute" and used >= budget.retention:
            raise BudgetError(
                f"budget.retention={budget.retention:g} of kind compute cannot be met: all video tokens enter "
                f"the first {self.layer} of {layers} layers, which alone costs {used:.3f}; use a "
                f"lower compressor.layer, a retention above {used:.3f}, or budget.kind=tokens"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)


def level_sizes(height: int, width: int, root_level: int, as_released: bool = False) -> list[tuple[int, int]]:
    """Rows and columns of each level from the root to the finest.

    Raises:
        ValueError: as released, for a root that the grid does not have, and for a single token.
    """
    sizes = [(height, width)]
    while 2 not in sizes[-1] and sizes[-1] != (1, 1):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    if as_released and sizes[-1] == (1, 1):
        raise ValueError("STTM as released never ends on a grid of 1 x 1")
    if as_released and not -len(sizes) <= root_level < len(sizes):
        raise ValueError(f"STTM as released has no level {root_level} on {height} x {width} tokens")
    level = max(-len(sizes), min(root_level, len(sizes) - 1))
    root = sizes[::-1][level]
    # Levels are pooled until the width is the root's.
    used = next(i for i, size in enumerate(sizes) if size[1] == root[1]) + 1
    return sizes[:used][::-1]


def _halves(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Along an axis of n: the coarser cell of each ``(n,)``; the parts of each coarser cell ``(m, 2)``, -1 for none."""
    cell = (np.arange(n) + n % 2) // 2
    part = 2 * np.arange(-(-n // 2))[:, None] - n % 2 + np.arange(2)
    if n % 2:
        part[0] = 0, -1
    return cell, part


@dataclass(frozen=True)
class Level:
    """One level of the pyramid, of P cells a frame.

    Attributes:
        size: rows, columns.
        first: row of its first cell in the pyramid, frame by frame.
        box: ``(P, 4)`` int64 y0, x0, y1, x1 of each cell, half open, in tokens.
        cell: ``(H * W,)`` int64 cell of each token.
        parent: ``(P,)`` int64 cell of the coarser level; empty for the root.
        parts: ``(P, 4)`` int64 cells of the finer level: top left, top right, bottom left, bottom right; cell 0 where
            there is none. Empty for the finest.
    """

    size: tuple[int, int]
    first: int
    box: np.ndarray
    cell: np.ndarray
    parent: np.ndarray
    parts: np.ndarray


@dataclass(frozen=True)
class Pyramid:
    """All levels of a video. Its rows are those of ``pooled``, then those of ``features``.

    Attributes:
        pooled: ``(C, D)`` of all cells of all levels but the finest, from the root on.
        features: ``(N, D)`` of the finest.
        norm: ``(C + N, S)`` of each row's slices, whose similarities are averaged.
        levels: from the root to the finest.
        similarity: ``(T, P, 4)`` float of each level but the finest: each cell and its parts.
        frames: T.
    """

    pooled: Tensor
    features: Tensor
    norm: Tensor
    levels: list[Level]
    similarity: list[np.ndarray]
    frames: int

    def gathered(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Blocks of these ``(n,)`` int64 rows: their numbers ``(b,)`` among them, and their features ``(b, D)``."""
        fine = rows >= len(self.pooled)
        for part, chosen, first in ((self.pooled, ~fine, 0), (self.features, fine, len(self.pooled))):
            for at in graph.blocks(np.flatnonzero(chosen), part):
                yield at, part.index_select(0, self.index(rows[at] - first))

    def index(self, rows: np.ndarray) -> Tensor:
        """Where the features are."""
        return torch.from_numpy(rows).to(self.features.device)

    def compare(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """``(n,)`` similarities of two ``(n,)`` int64 lists of rows."""
        found = np.empty(len(one), dtype=np.float32)
        for first, x in self.gathered(one):
            for second, y in self.gathered(two[first]):
                at = first[second]
                left = x if len(second) == len(x) else x.index_select(0, self.index(second))
                norms = (self.norm.index_select(0, self.index(rows[at])) for rows in (one, two))
                found[at] = _cosines(left, y, *norms).cpu().numpy()
        return found


def _cosines(x: Tensor, y: Tensor, x_norm: Tensor, y_norm: Tensor) -> Tensor:
    """``(n,)`` mean cosines of the slices of ``(n, D)`` rows with norms ``(n, S)``; may overwrite ``x``."""
    dots = x.to(x_norm.dtype).mul_(y).unflatten(1, (x_norm.shape[1], -1)).sum(-1)
    return (dots / (x_norm * y_norm).clamp_min(graph.EPS)).mean(1)


def pyramid(features: Tensor, frames: int, sizes: list[tuple[int, int]], method: STTM) -> Pyramid:
    """Pool ``(N, D)`` features level by level, and compare each cell with its parts.

    Raises:
        ValueError: for ``head_dim`` that does not divide D; as released, for sums over one odd and one even side.
    """
    width, device = features.shape[1], features.device
    if method.head_dim and width % method.head_dim:
        raise ValueError(f"compressor.head_dim={method.head_dim} does not divide {width} channels")
    uneven = [f"{h} x {w}" for h, w in sizes[:0:-1] if (h + w) % 2]
    if method.weighted_avg and method.as_released and uneven:
        raise ValueError(
            f"STTM as released cannot sum {uneven[0]} tokens up: one side is odd and one is even"
        )
    levels = _levels(frames, sizes)
    slices = width // method.head_dim if method.head_dim else 1
    pooled = features.new_empty(levels[-1].first, width)
    norm = features.new_empty(
        len(pooled) + len(features), slices, dtype=torch.promote_types(features.dtype, torch.float32)
    )
    parents = [torch.from_numpy(level.parent).to(device) for level in levels]
    parts = [torch.from_numpy(level.parts).to(device) for level in levels]
    edges = [(part == 0).any(1).nonzero()[:, 0] for part in parts]
    similarity = [norm.new_empty(frames, len(level.box), 4) for level in levels[:-1]]
    # Frame by frame, each of which is worked on while it is in the cache.
    for frame, tokens in enumerate(features.split(len(levels[-1].box))):
        rows, norms = tokens, norm[:0]
        for number, level in reversed(list(enumerate(levels))):
            here = slice(level.first + frame * len(level.box), level.first + (frame + 1) * len(level.box))
            below, below_norms = rows, norms
            if number + 1 < len(levels):
                up = parents[number + 1]
                rows = graph.group_means(below, up, len(level.box))
                if method.weighted_avg:
                    rows = rows * torch.bincount(up)[:, None].to(rows.dtype)
                pooled[here] = rows
            norms = torch.linalg.vector_norm(rows.to(norm.dtype).unflatten(1, (slices, -1)), dim=-1)
            norm[here] = norms
            if number + 1 < len(levels):
                part, edge = parts[number], edges[number]
                found = _cosines(rows.index_select(0, up), below, norms[up], below_norms)[part]
                # A part that a cell lacks is the first of the frame.
                first = _cosines(rows.index_select(0, edge), below[:1], norms[edge], below_norms[:1])
                found[edge] = torch.where(part[edge] == 0, first[:, None], found[edge])
                similarity[number][frame] = found
    return Pyramid(pooled, features, norm, levels, [one.cpu().numpy() for one in similarity], frames)


def _levels(frames: int, sizes: list[tuple[int, int]]) -> list[Level]:
    """The levels of these sizes, from the root to the finest."""
    height, width = sizes[-1]
    cell = np.arange(height * width)
    parent = parts = np.zeros((0, 4), dtype=np.int64)
    finer: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(cell, parent, parts)]
    for (h, w), (ph, pw) in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
        (rows, row_parts), (columns, column_parts) = _halves(h), _halves(w)
        up = (rows[:, None] * pw + columns).ravel()
        y, x = row_parts[:, None, :, None], column_parts[None, :, None, :]
        parts = np.where((y < 0) | (x < 0), 0, y * w + x).reshape(ph * pw, 4)
        cell = up[cell]
        finer[-1] = (finer[-1][0], up, finer[-1][2])
        finer.append((cell, parent, parts))
    levels, first = [], 0
    for size, (cell, up, parts) in zip(sizes, finer[::-1], strict=True):
        order = np.argsort(cell, kind="stable")
        ends = np.searchsorted(cell[order], [np.arange(size[0] * size[1]), np.arange(size[0] * size[1]) + 1])
        low, high = order[ends[0]], order[ends[1] - 1]
        box = np.stack((low // width, low % width, high // width + 1, high % width + 1), 1)
        levels.append(Level(size, first, box, cell, up, parts))
        first += frames * size[0] * size[1]
    return levels


@dataclass(frozen=True)
class Nodes:
    """What the spatial step left: M nodes, by frame and by the place of their top left token.

    Attributes:
        box: ``(M, 5)`` int64 frame, y0, x0, y1, x1.
        row: ``(M,)`` int64 rows of the pyramid.
        owner: ``(T, H * W)`` int64 node of each token.
        visited, stopped: of each level, ``(T, P)`` bool: cells that were looked at, that became a node.
        pairs: ``(Q, 2)`` int64 overlapping nodes of neighbouring frames.
        similarity: ``(Q,)`` of each pair.
    """

    box: np.ndarray
    row: np.ndarray
    owner: np.ndarray
    visited: list[np.ndarray]
    stopped: list[np.ndarray]
    pairs: np.ndarray
    similarity: np.ndarray


def nodes(found: Pyramid, threshold: float) -> Nodes:
    """The spatial step: from the root on, a cell stops where it is similar enough to all its parts."""
    visited: list[np.ndarray] = []
    stopped: list[np.ndarray] = []
    boxes, rows = [], []
    frame = np.arange(found.frames)[:, None]
    active = np.ones((found.frames, len(found.levels[0].box)), dtype=bool)
    for number, level in enumerate(found.levels):
        if number:
            active = (active & ~stopped[-1])[:, level.parent]
        finest = number == len(found.similarity)
        stop = active if finest else active & (found.similarity[number] >= threshold).all(2)
        visited.append(active)
        stopped.append(stop)
        at, cell = np.nonzero(stop)
        boxes.append(np.column_stack((at, level.box[cell])))
        rows.append(level.first + at * len(level.box) + cell)
    box, row = np.concatenate(boxes), np.concatenate(rows)
    order = np.lexsort((box[:, 2], box[:, 1], box[:, 0]))
    box, row = box[order], row[order]
    number_of = np.full(len(found.norm), -1)
    number_of[row] = np.arange(len(row))
    owner = np.full((found.frames, len(found.levels[-1].box)), -1)
    for level in found.levels:
        owner = np.maximum(owner, number_of[level.first + frame * len(level.box) + level.cell])
    # Squares of a quadtree that overlap contain one another.
    pairs = np.unique(np.stack((owner[:-1].ravel(), owner[1:].ravel()), 1), axis=0)
    return Nodes(box, row, owner, visited, stopped, pairs, found.compare(row[pairs[:, 0]], row[pairs[:, 1]]))


def merging_pairs(found: Nodes, threshold: float, slow_version: bool = False) -> np.ndarray:
    """``(., 2)`` pairs of the temporal step; in the slow version frame by frame, by falling similarity."""
    chosen = found.similarity >= threshold
    pairs, similarity = found.pairs[chosen], found.similarity[chosen]
    if not slow_version or len(pairs) == 0:
        return pairs
    frame = found.box[pairs[:, 0], 0]
    order = np.lexsort((-similarity, frame))
    pairs, frame = pairs[order], frame[order]
    again = (pairs[1:, 1] == pairs[:-1, 1]) & (frame[1:] == frame[:-1])
    return pairs[np.concatenate(([True], ~again))]


def representatives(count: int, pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """``(M,)`` node that each of ``count`` nodes joins, itself or an earlier one, and the rounds that it took.

    The authors' loop, which ends when every representative represents itself: pairs may be left apart.
    """
    joined, rounds = np.arange(count), 0
    while True:
        least = joined[pairs].min(1) if len(pairs) else joined[:0]
        np.minimum.at(joined, pairs[:, 0], least)
        np.minimum.at(joined, pairs[:, 1], least)
        joined = joined[joined]
        rounds += 1
        if np.array_equal(joined, joined[joined]):
            return joined, rounds


@dataclass(frozen=True)
class Merged:
    """What both steps leave, K rows.

    Attributes:
        node: ``(K,)`` int64 surviving nodes, ascending.
        representative: ``(M,)`` int64 of each node.
        rounds: of the temporal step.
        patches: ``(K,)`` int64 tokens that each row stands for.
        group: ``(M,)`` int64 row of each node.
    """

    node: np.ndarray
    representative: np.ndarray
    rounds: int
    patches: np.ndarray
    group: np.ndarray


def merged(found: Nodes, pairs: np.ndarray | None) -> Merged:
    """The temporal step along these pairs; ``None`` for none."""
    count = len(found.row)
    joined, rounds = (np.arange(count), 0) if pairs is None else representatives(count, pairs)
    node, group = np.unique(joined, return_inverse=True)
    patches = np.bincount(group, (found.box[:, 3] - found.box[:, 1]) * (found.box[:, 4] - found.box[:, 2]))
    return Merged(node, joined, rounds, patches.astype(np.int64), group)


def merged_features(
    levels: Pyramid, found: Nodes, result: Merged, weighted_avg: bool, stay: np.ndarray | None = None
) -> Tensor:
    """``(K, D)`` mean over each row's nodes, or over its tokens; only of the rows in ``(K,)`` bool ``stay``."""
    features = levels.features
    stay = np.ones(len(result.node), dtype=bool) if stay is None else stay
    group = np.where(stay, np.cumsum(stay) - 1, -1)[result.group]
    # A row's first node is the one that survives: it is copied, and the others are added to it.
    alone = np.zeros(len(group), dtype=bool)
    alone[result.node] = True
    total = features.new_empty(int(stay.sum()), features.shape[1], dtype=levels.norm.dtype)
    for first in (True, False):
        nodes = np.flatnonzero((group >= 0) & (alone == first))
        for at, rows in levels.gathered(found.row[nodes]):
            into = levels.index(group[nodes[at]])
            if first:
                total.index_copy_(0, into, rows.to(total.dtype))
            else:
                graph.add_rows(total, into, rows.to(total.dtype))
    size = np.bincount(result.group)[stay]
    total /= levels.index(size)[:, None]
    means = total.to(features.dtype)
    if weighted_avg:
        share = levels.index(size / result.patches[stay]).float()
        means = (means * share[:, None]).to(means.dtype)
    return means


class _Run(Run):
    def __init__(self, method: STTM, layout: Layout, budget: Budget) -> None:
        self.places = Places(before=frozenset({method.layer}))
        self.method, self.layout = method, layout
        tokens = layout.grid.tokens
        self.count = budget.keep(tokens, layout.layers, [tokens] * method.layer)

    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
        tokens.check_finite(f"STTM, before layer {layer}")
        n, grid, method = len(tokens), self.layout.grid, self.method
        if n != grid.tokens:
            raise ValueError(f"STTM needs every token of the grid {grid}, got {n} of {grid.tokens}")
        device, auto = tokens.features.device, method.temporal_threshold == "auto"
        picture, cells = self.layout.picture, self.layout.cells()
        place = (torch.arange(grid.frames)[:, None] * grid.per_frame + cells).flatten().to(device)
        mask = torch.zeros(n, dtype=torch.bool, device=device)
        if auto and self.count >= len(place):
            mask[place] = True
            mask[(~mask).nonzero()[: self.count - len(place), 0]] = True
            return Selection.from_mask(mask, Reason.ALL)
        size = (picture.height, picture.width) if picture else (grid.height, grid.width)
        sizes = level_sizes(*size, method.root_level, method.as_released)
        features = tokens.features if len(place) == n else tokens.features.index_select(0, place)
        levels = pyramid(features, grid.frames, sizes, method)
        found, result = self._solved(levels) if auto else self._fixed(levels)
        stay = np.ones(len(result.node), dtype=bool)
        if auto:
            stay = top(torch.from_numpy(result.patches), self.count).numpy()
        box = found.box[result.node[stay]]
        inside = torch.from_numpy(box[:, 0] * len(cells) + box[:, 1] * size[1] + box[:, 2]).to(device)
        mask[place[inside]] = True
        rows = merged_features(levels, found, result, method.weighted_avg, stay)
        return Selection.from_mask(mask, Reason.REPRESENTATIVE, rows)

    def _fixed(self, levels: Pyramid) -> tuple[Nodes, Merged]:
        method, threshold = self.method, float(self.method.temporal_threshold)
        found = nodes(levels, method.threshold)
        pairs = merging_pairs(found, threshold, method.slow_version) if threshold > 0 else None
        return found, merged(found, pairs)

    def _solved(self, levels: Pyramid) -> tuple[Nodes, Merged]:
        """Thresholds that leave enough tokens, and of those tried the lowest: t at s, then s where t is at its end."""
        method = self.method

        def at(spatial: float | Nodes, temporal: float) -> tuple[Nodes, Merged]:
            found = spatial if isinstance(spatial, Nodes) else nodes(levels, spatial)
            return found, merged(found, merging_pairs(found, temporal, method.slow_version))

        found = nodes(levels, method.threshold)
        if len(found.row) < self.count:
            return self._bisected(lambda s: at(s, NONE), method.threshold, 1.0, at(NONE, NONE))
        least = at(found, 0.0)
        if len(least[1].node) > self.count:
            return self._bisected(lambda s: at(s, 0.0), -1.0, method.threshold, least)
        return self._bisected(lambda t: at(found, t), 0.0, 1.0, at(found, NONE))

    def _bisected(
        self, at: Callable[[float], tuple[Nodes, Merged]], low: float, high: float, best: tuple[Nodes, Merged]
    ) -> tuple[Nodes, Merged]:
        for _ in range(STEPS):
            if len(best[1].node) <= (1 + CLOSE) * self.count:
                break
            middle = (low + high) / 2
            found = at(middle)
            if len(found[1].node) >= self.count:
                high, best = middle, found
            else:
                low = middle
        return best
