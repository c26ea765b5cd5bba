"""LLaVA-Scissor: semantic connected components become their mean, in each frame and then over the whole video.

Sun et al., "LLaVA-Scissor: Token Compression with Semantic Connected Components for Video LLMs" (arXiv 2506.21862).
Both steps and the reassignment after them were checked against recorded outputs of the authors'
``approximate_components`` and what is around it (HumanMLLM/LLaVA-Scissor b63354c).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Positions, Run, generator_for, top
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens

STEPS = 12
"""Halvings of the interval of tau, less where the budget is met before."""
CLOSE = 0.02
"""Relative excess over the budget from which a tau is good enough."""
FRAMES = 16
"""Frames whose components are found at once."""
Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Scissor(Compressor):
    """Connect tokens whose cosine is above ``tau``, wherever they are; what is connected becomes one token.

    The spatial step does so in each frame, the temporal step among the means of all frames. Then every token of the
    video goes to the most similar row, which becomes the mean of itself and of those. A row takes the place of a token:
    that with the most neighbours in its component, at either step. Newline tokens, being equal, become one.

    The authors have no budget: what is left follows from ``tau`` (0.9 in their README). Here ``tau: auto`` is the
    smallest tau found to leave enough rows, and of these the ones that stand for the most tokens stay.

    Fidelity: for a given ``tau`` rows equal recorded outputs of the authors' code, which samples the tokens of graphs
    of more than 3,233; here components are exact. The budget is ours. Theirs numbers positions anew.

    Attributes:
        tau: in [-1, 1]; then the budget is not met, and the audit says by how much. Or ``auto``.
        epsilon: the sample of n tokens has ``ln(n) / epsilon ** 2``.
        positions: ``kept``, or ``renumbered`` as released.
        as_released: components from a sample of the tokens, drawn by the video's name. Tokens that hang on no sampled
            one directly belong to none and count in the reassignment alone; a zero token attracts all others.

    Raises:
        ConfigError: for a value out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    tau: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=-1, le=1)],
        Field(description="auto, or a number in [-1, 1]", examples=[0.9]),
    ] = "auto"
    epsilon: Annotated[float, Field(ge=1e-3, examples=[0.05])] = 0.05
    positions: Positions = "kept"
    as_released: bool = False

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)


@dataclass(frozen=True)
class Components:
    """Groups of ``n`` tokens, in the order of their keys.

    Attributes:
        member: ``(n,)`` int64, number of each token's component, -1 for none.
        key: ``(R,)`` int64, ascending: the token of each component with the most neighbours, the lowest among equals.
        degree: ``(n,)`` int64 neighbours of each token, itself included.
    """

    member: Tensor
    key: Tensor
    degree: Tensor


def components(unit: Tensor, tau: float, order: Tensor | None = None) -> Components:
    """Components of the graph whose edges are cosines above ``tau`` (the paper's SCC).

    No matrix of all pairs is made. For a block of tokens one edge leads from each token of the graph to the first in
    the block that is connected to it, and tokens of the block that share a neighbour are connected with each other:
    these edges have the components of all.

    Args:
        unit: ``(n, D)`` normalised tokens.
        tau: cosines above it connect.
        order: ``(m,)`` int64 sampled tokens, in the order of the authors' union-find; ``None`` for exact components.
    """
    n, device = len(unit), unit.device
    degree = torch.empty(n, dtype=torch.int64, device=device)
    label, neighbours = torch.arange(n, device=device), {}
    sampled = set() if order is None else set(order.tolist())
    for first, cosine in graph.products(unit):
        connected = cosine > tau
        degree[first : first + len(connected)] = connected.sum(1)
        if order is not None:
            for row in sampled & set(range(first, first + len(connected))):
                neighbours[row] = connected[row - first].nonzero()[:, 0].tolist()
            continue
        others = connected.any(0).nonzero()[:, 0]
        nearest = connected[:, others].int().argmax(0) + first
        block = connected.to(unit.dtype)
        both = (block @ block.T).nonzero() + first
        label = _joined(label, torch.cat((torch.stack((nearest, others), 1), both)))
    if order is not None:
        label = torch.tensor(_sampled_labels(n, order.tolist(), neighbours), device=device)
    return _in_order(label, degree)


def components_by_frame(features: Tensor, tau: float, frames: int, guarded: bool = True) -> Components:
    """:func:`components` of each of ``T`` frames of ``features`` ``(N, D)``, counted over the video."""
    return _of_cosines(cosines_by_frame(features, frames, guarded), tau)


def cosines_by_frame(features: Tensor, frames: int, guarded: bool = True) -> list[Tensor]:
    """``(t, F, F)`` cosines of each frame's tokens, a few of ``T`` frames of ``features`` ``(N, D)`` together.

    So many at once that what is worked on takes no more than half of the tokens' memory.
    """
    n, width = features.shape
    size = n // frames
    at_once = max(1, min(FRAMES, n * width // (2 * size * size)))
    units = (graph.unit(part, guarded).unflatten(0, (-1, size)) for part in features.split(at_once * size))
    return [unit @ unit.mT for unit in units]


def _of_cosines(cosines: list[Tensor], tau: float) -> Components:
    degree, label, start = [], [], 0
    for part in cosines:
        connected = part > tau
        degree.append(connected.sum(-1).flatten())
        count, size = connected.shape[:2]
        begin = torch.arange(start, start + count * size, size, device=part.device)
        label.append((_lowest(connected | connected.mT) + begin[:, None]).flatten())
        start += count * size
    return _in_order(torch.cat(label), torch.cat(degree))


def _lowest(connected: Tensor) -> Tensor:
    """``(T, F)`` int64: the lowest token that each one is connected to over others, of ``(T, F, F)`` bool."""
    size = connected.shape[-1]
    label = torch.arange(size, dtype=torch.int32, device=connected.device).expand(connected.shape[:-1])
    while True:
        lower = torch.where(connected, label[:, None], size).amin(-1).minimum(label)
        lower = lower.gather(1, lower.long())
        if torch.equal(lower, label):
            return label.long()
        label = lower


def _joined(label: Tensor, pairs: Tensor) -> Tensor:
    """``(n,)`` labels below n, after the labels of each of ``(E, 2)`` pairs of tokens became one."""
    one, two = label[pairs].unbind(1)
    parent = torch.arange(len(label), device=label.device)
    while True:
        a, b = parent[one], parent[two]
        if torch.equal(a, b):
            return parent[label]
        parent.scatter_reduce_(0, a.maximum(b), a.minimum(b), "amin")
        parent = parent[parent]
        parent = parent[parent]


def sample_size(n: int, epsilon: float) -> int:
    """Tokens that the authors' code samples of ``n``."""
    return min(n, math.ceil(math.log(n) / epsilon**2))


def _sampled_labels(n: int, order: list[int], neighbours: dict[int, list[int]]) -> list[int]:
    """The authors' union-find: the root that a token hangs on directly, itself where nothing connects it, else -1."""
    parent, rank = list(range(n)), [0] * n

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    seen = set(order)
    for node in order:
        seen.update(neighbours[node])
        for other in neighbours[node]:
            one, two = find(node), find(other)
            if one == two:
                continue
            if rank[one] < rank[two]:
                one, two = two, one
            parent[two] = one
            rank[one] += rank[one] == rank[two]
    roots = {find(node) for node in order}
    return [x if x not in seen else parent[x] if parent[x] in roots else -1 for x in range(n)]


def _in_order(label: Tensor, degree: Tensor) -> Components:
    """Components of a labelling (-1: none), numbered by their keys."""
    inside = (label >= 0).nonzero()[:, 0]
    # By label, then by descending degree, then by index: the first of each label is its key.
    by_degree = inside[torch.sort(degree[inside], descending=True, stable=True).indices]
    ordered = by_degree[torch.sort(label[by_degree], stable=True).indices]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = label[ordered[1:]] != label[ordered[:-1]]
    key, turn = ordered[first].sort()
    number = torch.empty_like(turn)
    number[turn] = torch.arange(len(turn), device=turn.device)
    member = torch.full_like(label, -1)
    member[ordered] = number[first.cumsum(0) - 1]
    return Components(member, key, degree)


def means(features: Tensor, found: Components) -> Tensor:
    """``(R, D)`` mean of each component."""
    inside = (found.member >= 0).nonzero()[:, 0]
    if len(inside) < len(features):
        return graph.group_means(features[inside], found.member[inside], len(found.key))
    return graph.group_means(features, found.member, len(found.key))


@dataclass(frozen=True)
class Steps:
    """Both steps; R rows are left, in raster order of their keys.

    Attributes:
        spatial: of all tokens, numbers and keys counted over the video.
        temporal: of the spatial means.
        spatial_means: ``(n2, D)``.
        rows: ``(R, D)`` temporal means.
        keep: ``(R,)`` int64 raster index of the token in whose place each row stands, ascending.
    """

    spatial: Components
    temporal: Components
    spatial_means: Tensor
    rows: Tensor
    keep: Tensor


def steps(
    features: Tensor,
    grid: Grid,
    tau: float,
    guarded: bool = True,
    draw: Draw | None = None,
    least: int = 0,
    cosines: list[Tensor] | None = None,
) -> Steps | None:
    """The spatial and the temporal step; ``None`` where the first leaves fewer than ``least``.

    Args:
        features: ``(N, D)`` of all tokens, compared in float32 at least.
        grid: of the video.
        tau: cosines above it connect.
        guarded: whether a zero token is at right angles to all others, and not NaN.
        draw: the sampled tokens of a graph of n, in order; asked for each frame and then for the temporal step.
        least: rows that are wanted.
        cosines: :func:`cosines_by_frame` where they are there already.
    """
    if cosines is not None:
        spatial = _of_cosines(cosines, tau)
    elif draw is None and grid.per_frame <= features.shape[1]:
        spatial = components_by_frame(features, tau, grid.frames, guarded)
    else:
        parts, done = [], 0
        for first, frame in enumerate(features.split(grid.per_frame)):
            part = components(graph.unit(frame, guarded), tau, draw and draw(len(frame)))
            member = torch.where(part.member >= 0, part.member + done, -1)
            parts.append((member, part.key + first * grid.per_frame, part.degree))
            done += len(part.key)
        spatial = Components(*(torch.cat(column) for column in zip(*parts, strict=True)))
    if len(spatial.key) < least:
        return None
    middle = means(features, spatial)
    temporal = components(graph.unit(middle, guarded), tau, draw and draw(len(middle)))
    return Steps(spatial, temporal, middle, means(middle, temporal), spatial.key[temporal.key])


def reassigned(features: Tensor, rows: Tensor, guarded: bool = True) -> tuple[Tensor, Tensor]:
    """The most similar row for each token ``(N,)``, the lower on a tie, and the rows' new features ``(R, D)``.

    A row becomes the mean of itself and of the tokens that go to it.
    """
    at = graph.unit(rows, guarded)
    owner = torch.cat(
        [(graph.unit(part, guarded) @ at.T).argmax(1) for part in features.split(graph.block(features))]
    )
    group = torch.cat((owner, torch.arange(len(rows), device=owner.device)))
    return owner, graph.group_means(torch.cat((features, rows)), group, len(rows))


class _Run(Run):
    places = Places(input=True)

    def __init__(self, method: Scissor, layout: Layout, budget: Budget) -> None:
        self.method, self.layout = method, layout
        self.count = budget.keep(layout.grid.tokens, layout.layers)

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite("Scissor, input of layer 0")
        method = self.method
        mask = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.features.device)
        if method.tau == "auto" and self.count == len(tokens):
            return Selection.from_mask(~mask, Reason.ALL)
        found = self._solved(tokens) if method.tau == "auto" else self._steps(tokens, float(method.tau))
        assert found is not None
        rows, keep = found.rows, found.keep
        if method.tau == "auto":
            stay = top(_stands_for(found), self.count)
            rows, keep = rows[stay], keep[stay]
        mask[keep] = True
        _, features = reassigned(tokens.features, rows, not method.as_released)
        return Selection.from_mask(mask, Reason.REPRESENTATIVE, features)

    def _steps(
        self, tokens: VideoTokens, tau: float, least: int = 0, cosines: list[Tensor] | None = None
    ) -> Steps | None:
        method, generator = self.method, generator_for(self.layout.sample, 0)

        def draw(n: int) -> Tensor:
            return torch.randperm(n, generator=generator)[: sample_size(n, method.epsilon)]

        released = method.as_released
        return steps(
            tokens.features, tokens.grid, tau, not released, draw if released else None, least, cosines
        )

    def _solved(self, tokens: VideoTokens) -> Steps:
        """Bisection: the steps at the smallest tau found that leaves enough rows."""
        # Above every cosine nothing is connected, and every token is a row.
        low, high, enough = -1.0, 1.0, 2.0
        cosines = None
        if not self.method.as_released and 2 * tokens.grid.per_frame <= tokens.features.shape[1]:
            # The same at every tau; they take no more memory than the tokens do in half precision.
            cosines = cosines_by_frame(tokens.features, tokens.grid.frames)
        for _ in range(STEPS):
            tau = (low + high) / 2
            # Made again at the end rather than kept: its means are as large as the tokens.
            found = self._steps(tokens, tau, self.count, cosines)
            rows = 0 if found is None else len(found.keep)
            if found is not None and self.count <= rows <= (1 + CLOSE) * self.count:
                return found
            del found
            if rows < self.count:
                low = tau
            else:
                high = enough = tau
        found = self._steps(tokens, enough, cosines=cosines)
        assert found is not None, "no least number of rows was asked for"
        return found


def _stands_for(found: Steps) -> Tensor:
    """``(R,)`` tokens of the video that went into each row."""
    size = torch.bincount(found.spatial.member + 1, minlength=len(found.spatial.key) + 1)[1:]
    inside = found.temporal.member >= 0
    total = torch.zeros(len(found.keep), dtype=torch.int64, device=size.device)
    return total.index_add_(0, found.temporal.member[inside], size[inside])
