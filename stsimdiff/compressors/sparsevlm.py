"""SparseVLM: words of the question rate the video at three depths, and part of what they pass over is recycled.

Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference" (ICML 2025, arXiv
2410.04417), and SparseVLM+, whose attention is corrected first. Both were checked against recorded outputs of the
authors' code (Gumpest/SparseVLMs 26a5f48), whole answers included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget, share_for
from stsimdiff.compressors import density
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Layout, Read, Reason, Selection, VideoTokens

KEPT = {
    "v1": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "v2": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""Tokens that the authors keep of 576 at each stage, by what they call the tokens retained."""
RELEASED_LAYERS, RELEASED_DEPTH = (2, 6, 15), 32
LEAST_WEIGHT = 0.1
"""Of the distance correction; at up to 450 tokens and 64 values a head it stays above 0.6."""


@dataclass(frozen=True)
class SparseVLM(Compressor):
    """Drop at up to three layers, by the attention of the text tokens that the video is most like at the input.

    The counts of a stage, recycled tokens included, are the authors' list, scaled to meet the budget.

    Fidelity: raters, scores, choices, clusters and means equal recorded outputs of the authors' code, and with recycled
    tokens behind the others and new positions, whole answers. Here a recycled token stands at its cluster's centre, in
    raster order; positions are theirs with ``renumbered``. Noise that breaks ties there is the lower index here.
    Repaired unless ``as_released``: a stage that would leave all tokens drops one; where no word is above the mean, as
    with a single one, all scores are NaN; v2's correction, by distances in the prompt, may be 0 or negative, so that
    what is looked at most goes first (here it is at least 0.1); v2 fails on fewer heads than it takes. Their code for
    videos keeps as many tokens as there are raters, whatever the budget, and is left out.

    Attributes:
        version: ``v1``, or ``v2``, SparseVLM+, which corrects attention by distance, takes the best heads alone and
            recycles nothing.
        layers: whose output is cut by their own attention, ascending, one to three; of fewer the last counts of the
            list hold. ``auto``: the authors' 2, 6 and 15 of 32 in proportion.
        retain_tokens: which of the authors' lists is scaled.
        recycle: share of the dropped tokens that is clustered in ``v1``, in [0, 1); 0 leaves it out.
        tokens_per_cluster: how many of them make a cluster more.
        heads: best ones that count in ``v2``; all where a model has no more.
        positions: of the tokens that stay: ``kept``, or ``renumbered`` as published for ``v1``.
        as_released: without these repairs.

    Raises:
        ConfigError: for any value that is unknown or out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"

    version: Literal["v1", "v2"] = "v1"
    layers: Annotated[
        list[int] | Literal["auto"],
        Field(description="auto, or a list of one to three layers from 0, ascending", examples=["[2,6,15]"]),
    ] = "auto"
    retain_tokens: Literal[192, 128, 96, 64] = 192
    recycle: Annotated[float, Field(ge=0, lt=1, examples=[0.3])] = 0.3
    tokens_per_cluster: Annotated[int, Field(ge=2, examples=[10])] = 10
    heads: Annotated[int, Field(ge=1, examples=[14])] = 14
    positions: Literal["kept", "renumbered"] = "kept"
    as_released: bool = False

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.layers
        if given != "auto" and not (1 <= len(given) <= 3 and given == sorted(set(given)) and given[0] >= 0):
            raise ConfigError(
                f"compressor.layers={given!r} is out of range; allowed: auto, or a list of one to three layers from 0, "
                "ascending; for example [2,6,15]"
            )
        if self.version == "v2" and self.positions == "renumbered":
            raise ConfigError(
                "compressor.positions=renumbered is for compressor.version=v1; v2 corrects attention by the positions "
                "that tokens have: use compressor.positions=kept"
            )

    def at(self, depth: int) -> tuple[int, ...]:
        """Layers whose output is cut, in a model of so many; where two would be one, it is one."""
        if self.layers != "auto":
            return tuple(self.layers)
        found = {min(round(k * depth / RELEASED_DEPTH), depth - 2) for k in RELEASED_LAYERS}
        return tuple(sorted(max(0, layer) for layer in found))

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is None:
            return
        at = self.at(layers)
        if at[-1] + 1 >= layers:
            raise ConfigError(
                f"compressor.layers={self.layers}: layer {at[-1]} has no layer behind it in a model of {layers} "
                f"layers; allowed: auto, or layers from 0 to {layers - 2}"
            )
        used = (at[0] + 1) / layers
        if budget.kind == "compute" and used >= budget.retention:
            raise BudgetError(
                f"budget.retention={budget.retention:g} of kind compute cannot be met: all video tokens enter the "
                f"first {at[0] + 1} of {layers} layers, which alone costs {used:.3f}; use earlier compressor.layers, a "
                f"retention above {used:.3f}, or budget.kind=tokens"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        at = self.at(layout.layers)
        shape = KEPT[self.version][self.retain_tokens][-len(at) :]
        return SparseRun(self, layout, dict(zip(at, counts(layout, budget, at, shape), strict=True)))

    def split(self, present: int, total: int) -> tuple[int, int, int]:
        """Tokens that a stage keeps, clusters, and leaves of those, so that fewer than there are stay in all."""
        if total == present:
            # As released one goes all the same, and comes back alone where it is recycled.
            none = self.version == "v2" or self.recycle == 0
            pool, clusters = (0, 0) if none else recycled(1, self.recycle, self.tokens_per_cluster)
            return present - 1, pool, clusters
        if self.version == "v2" or self.recycle == 0:
            return total, 0, 0

        def made(kept: int) -> int:
            return recycled(present - kept, self.recycle, self.tokens_per_cluster)[1]

        kept = max(1, total - made(0))
        while kept + made(kept) < total:
            kept += 1
        pool = recycled(present - kept, self.recycle, self.tokens_per_cluster)[0]
        return (kept, pool, total - kept) if kept < total else (total, 0, 0)


def counts(layout: Layout, budget: Budget, at: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Video tokens that each stage leaves: a list, scaled so that the last meets the budget; at most all.

    Args:
        layout: of the prompt.
        budget: to be met.
        at: layers whose output is cut.
        shape: the list, descending.
    """
    tokens, depth = layout.grid.tokens, layout.layers

    def plan(share: float) -> list[float]:
        return [min(1.0, share * count / shape[-1]) * tokens for count in shape]

    def entering(left: Sequence[float], layers: int) -> list[float]:
        """Tokens that enter each of so many layers."""
        present = [tokens, *left]
        return [present[sum(layer > k for k in at)] for layer in range(layers)]

    share = budget.retention
    if budget.kind == "compute":
        wanted = budget.retention * tokens * depth
        share = share_for(lambda share: sum(entering(plan(share), depth)), wanted)
    left = [max(1, math.floor(count + 0.5)) for count in plan(share)]
    last = budget.keep(tokens, depth, [int(count) for count in entering(left, at[-1] + 1)])
    return [max(last, count) for count in left[:-1]] + [last]


def recycled(dropped: int, share: float = 0.3, per_cluster: int = 10) -> tuple[int, int]:
    """Of so many dropped tokens, those that are clustered, and their clusters."""
    pool = int(dropped * share) + 1
    return pool, pool // per_cluster + 1


def rater_scores(video: Tensor, text: Tensor) -> Tensor:
    """``(a,)`` mean, over video embeddings ``(N, D)``, of the softmax of their products with text ``(a, D)``."""
    return (video @ text.to(video).T).float().softmax(1).mean(0)


def raters(score: Tensor) -> Tensor:
    """Text tokens whose score is above the mean, ascending; none where all are equal, as of a single one."""
    return (score > score.mean()).nonzero()[:, 0]


def distance_weights(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """``(a, n)`` product of two vectors of ones, rotated to their positions, over the root of a head's width."""
    distance = (rows[:, None] - columns).abs()
    # Float32 would be 1e-4 off at a thousand tokens, where a weight may be as small.
    apart = torch.arange(int(distance.max()) + 1, dtype=torch.float64, device=distance.device)
    frequency = 10000.0 ** (-torch.arange(width // 2).to(apart) * 2 / width)
    return (2 / math.sqrt(width) * (apart[:, None] * frequency).cos().sum(1)).float()[distance]


def best_heads(attention: Tensor, count: int) -> Tensor:
    """The heads of the largest sum over the raters' rows ``(heads, r, n)``, the largest first."""
    return torch.sort(attention.sum((1, 2)), descending=True, stable=True).indices[:count]


@dataclass(frozen=True)
class Chosen:
    """What a stage made of the tokens present.

    Attributes:
        keep: ``(k,)`` rows that stay as they are, ascending.
        pool: ``(M,)`` rows that are clustered, by descending score.
        centre: ``(C,)`` numbers in the pool, by descending score of the clustering.
        label: ``(M,)`` cluster of each.
        means: ``(C, D)`` float32.
        peaks: of the pool; ``None`` where nothing is clustered.
    """

    keep: Tensor
    pool: Tensor
    centre: Tensor
    label: Tensor
    means: Tensor
    peaks: density.Peaks | None


def choose(
    features: Tensor, score: Tensor, kept: int, pool: int, clusters: int, noise: Tensor | None = None
) -> Chosen:
    """Keep the best rows of ``(n, D)`` by ``(n,)`` scores, and cluster the best of the others.

    Args:
        features: of the tokens present.
        score: of each; the lower row wins a tie.
        kept: how many stay.
        pool: how many are clustered.
        clusters: into how many.
        noise: ``(pool,)`` added to the densities.
    """
    order = torch.sort(score, descending=True, stable=True).indices
    keep, rows = order[:kept].sort().values, order[kept : kept + pool]
    x = features.index_select(0, rows).float()
    if not clusters:
        return Chosen(keep, rows, rows, rows, x, None)
    peaks = density.peaks(x, clusters, noise)
    centre = peaks.centres(clusters)
    label = peaks.assigned(centre)
    return Chosen(keep, rows, centre, label, graph.group_means(x, label, clusters), peaks)


class SparseRun(Run):
    """Leaves so many tokens behind each of some layers.

    Args:
        method: with its parameters.
        layout: of the prompt.
        left: tokens that stay, recycled ones included, by the layer whose output is cut.
    """

    def __init__(self, method: SparseVLM, layout: Layout, left: Mapping[int, int]) -> None:
        corrected = method.version == "v2"
        self.method, self.layout, self.left = method, layout, left
        self.first = min(left)
        # Rows of all the text behind the video: which of them count is known only as the run begins.
        self.places = Places(
            input=True,
            before=frozenset(layer + 1 for layer in left),
            attention=frozenset(left),
            queries=Read("after", heads=None if corrected else "mean", over=None),
            reads=frozenset({self.first} if corrected else ()),
        )
        self.raters = torch.empty(0, dtype=torch.int64)
        self.width = 0
        self.cut = False

    @override
    def at_input(self, tokens: VideoTokens) -> None:
        tokens.check_finite("SparseVLM, input of layer 0")
        if tokens.view is None:
            raise ValueError("SparseVLM needs the text's embeddings at the input")
        text = self.layout.places("after")
        if len(text) == 0:
            raise ValueError(
                "SparseVLM rates the video by the text behind it, and this prompt ends with the video"
            )
        found = raters(rater_scores(tokens.features, tokens.view.states(text)))
        self.raters = found if len(found) or self.method.as_released else torch.arange(len(text))

    def score(self, tokens: VideoTokens, attention: Tensor) -> Tensor:
        """``(n,)`` mean attention of the raters, corrected in ``v2``."""
        rows = self.raters.to(attention.device)
        if self.method.as_released and attention.ndim == 3 and len(attention) < self.method.heads:
            raise ValueError(
                f"SparseVLM as released fails on {len(attention)} heads; use compressor.heads={len(attention)} or "
                "compressor.as_released=false"
            )
        if len(rows) == 0:
            return attention.new_full(attention.shape[-1:], torch.nan)
        if self.method.version == "v1":
            return attention[rows].mean(0)
        text = self.layout.places("after")
        if not self.width:
            assert tokens.view is not None
            self.width = tokens.view.keys(self.first, text[:1]).shape[2]
        columns = self.layout.video[tokens.index.cpu()]
        weight = distance_weights(text[self.raters.cpu()], columns, self.width)
        if not self.method.as_released:
            weight = weight.clamp(min=LEAST_WEIGHT)
        attention = attention[:, rows] / weight.to(attention.device)
        return attention[best_heads(attention, self.method.heads)].mean((0, 1))

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        tokens.check_finite(f"SparseVLM, before layer {layer}")
        if attention is None:
            raise ValueError(f"SparseVLM needs the attention of layer {layer - 1}")
        total = min(self.left[layer - 1], len(tokens))
        if total == len(tokens) and (total == 1 or not self.method.as_released):
            return None
        counted = self.method.split(len(tokens), total)
        chosen = choose(tokens.features, self.score(tokens, attention), *counted)
        # Tokens that were recycled before stay so.
        kept = Reason.ALL if self.cut else Reason.IMPORTANT
        self.cut = True
        rows = torch.cat((chosen.keep, chosen.pool[chosen.centre]))
        reason = torch.zeros(len(tokens), dtype=torch.uint8, device=rows.device)
        reason[chosen.keep] = int(kept)
        reason[rows[len(chosen.keep) :]] = int(Reason.MERGED)
        rows, turn = rows.sort()
        if len(chosen.centre) == 0:
            return Selection(rows, reason)
        # Every row is copied once, centres included, which their cluster's means then replace.
        features = tokens.features.index_select(0, rows)
        place = (turn >= len(chosen.keep)).nonzero()[:, 0]
        means = chosen.means.to(features)[turn[place] - len(chosen.keep)]
        return Selection(rows, reason, features.index_copy_(0, place, means))
