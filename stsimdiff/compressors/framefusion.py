"""FrameFusion: merge tokens into their predecessor in time, layer after layer, then prune by attention.

Fu et al., "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language
Models" (ICCV 2025). Every call of a run was checked against recorded outputs of the authors' class ``FrameFusion``
(thu-nics/FrameFusion fbec1d2), whose ``cost`` is our budget of kind ``compute``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import COSINE, Compressor, Places, Run, top
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace


@dataclass(frozen=True)
class FrameFusion(Compressor):
    """Merge at the input and between the attention and the MLP of the first layers, then prune in the next.

    Merging ends with the first layer that merges less than ``ratio_lower_bound`` of its tokens, or whose similar
    tokens exceed the budget; then only the most similar are merged and nothing is pruned.

    Fidelity: every step, and whole answers on LLaVA-Video, NVILA and Qwen2-VL, equal recorded outputs of the
    authors' code. Their settings differ by model: ``tau_sim`` 0.6, 0.7 and 0.5, ``queries`` 1, 1 and 4.

    Attributes:
        tau_sim: similarity to the predecessor from which a token is merged into it, in [-1, 1].
        ratio_lower_bound: share of the tokens below which a layer is the last merging one, in [0, 1].
        released_layers: ``auto`` spreads a budget of compute over the layers of the model at hand; a number (28 in the
            released code) over so many, whatever the model's depth.
        queries: last prompt tokens whose attention counts: 1 as the authors have it for LLaVA-Video and NVILA, 4
            as they have it for Qwen2-VL.
    """

    fidelity: ClassVar[str] = "official"
    reads_question: ClassVar[bool] = False

    tau_sim: Annotated[float, Field(ge=-1, le=1, examples=[0.6])] = 0.6
    ratio_lower_bound: Annotated[float, Field(ge=0, le=1, examples=[0.1])] = 0.1
    queries: Annotated[int, Field(ge=1, examples=[1])] = 1
    released_layers: Annotated[Literal["auto"] | Annotated[int, Field(ge=2)], Field(examples=[28])] = "auto"

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is not None and layers < 2:
            raise ConfigError("FrameFusion needs a model of at least 2 layers: it prunes after it has merged")

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """At each merging place a cosine for each token with a predecessor, and the means where tokens were merged."""
        layers = trace.layers if self.released_layers == "auto" else int(self.released_layers)
        total, merging = 0, True
        counts = [*(count for _, _, count in trace.asked), trace.final]
        for (place, layer, present), (_, left) in zip(trace.asked, pairwise(counts), strict=True):
            if place != "input" and not (merging and layer < layers - 2):
                break
            total += COSINE * width * (present - grid.per_frame)
            if left < present:
                total += width * (present + left)
            merging = 1 - left / present >= self.ratio_lower_bound
        return total


def predecessors(tokens: VideoTokens) -> Tensor:
    """``(n,)`` int64: row of the nearest earlier token at the same place of its frame, -1 for none."""
    per_frame = tokens.grid.per_frame
    # Raster order is kept among equal keys, so each place's tokens stand together in order of time.
    order = torch.sort(tokens.index % per_frame, stable=True).indices
    place = (tokens.index % per_frame)[order]
    before = torch.full_like(order, -1)
    same = place[1:] == place[:-1]
    before[order[1:][same]] = order[:-1][same]
    return before


def similarities(tokens: VideoTokens, before: Tensor) -> Tensor:
    """``(n,)`` cosine similarity of each token to its predecessor; -2, below every threshold, where there is none."""
    result = torch.full((len(tokens),), -2.0, device=tokens.features.device)
    late = (before >= 0).nonzero(as_tuple=True)[0]
    result[late] = graph.pair_similarities(tokens.features, before[late], late).to(result.dtype)
    return result


def merge(tokens: VideoTokens, before: Tensor, absorbed: Tensor, alone: Reason) -> Selection:
    """Average every run of absorbed tokens into the token that the run follows.

    Args:
        tokens: the tokens present.
        before: ``(n,)`` their predecessors.
        absorbed: ``(n,)`` bool, tokens that are merged into their predecessor.
        alone: reason of the tokens that stay as they are.
    """
    keep = (~absorbed).nonzero(as_tuple=True)[0]
    head = torch.where(absorbed, before, torch.arange(len(tokens), device=before.device))
    while bool(absorbed[head].any()):
        head = head[head]
    group = torch.empty_like(head)
    group[keep] = torch.arange(len(keep), device=keep.device)
    group = group[head]
    size = torch.bincount(group, minlength=len(keep))
    reason = torch.full((len(tokens),), int(alone), dtype=torch.uint8, device=keep.device)
    reason[keep[size > 1]] = int(Reason.MERGED)
    return Selection.from_mask(~absorbed, reason, graph.group_means(tokens.features, group, len(keep)))


class _Run(Run):
    """Which stage the video is in, and how many tokens entered the layers so far."""

    def __init__(self, method: FrameFusion, layout: Layout, budget: Budget) -> None:
        self.method, self.layout, self.budget = method, layout, budget
        self.layers = layout.layers if method.released_layers == "auto" else int(method.released_layers)
        # What the last layer drops no layer sees any more.
        layers = frozenset(range(min(self.layers, layout.layers) - 1))
        self.places = Places(input=True, between=layers, attention=layers, queries=method.queries)
        self._reset()

    def _reset(self) -> None:
        self.entering: list[int] = []
        self.merging, self.pruning = True, True
        # Share of the video that is left, and its sum over the layers so far.
        self.share, self.spent = 1.0, 0.0

    @property
    def finished(self) -> bool:
        return not self.pruning

    def at_input(self, tokens: VideoTokens) -> Selection | None:
        tokens.check_finite("FrameFusion, input of layer 0")
        self._reset()
        return self._merge(tokens, Reason.UNGROUPED)

    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        if self.finished:
            return None
        self.entering.append(len(tokens))
        self.spent += self.share
        if self.merging and layer < self.layers - 2:
            return self._merge(tokens, Reason.ALL)
        self.pruning = False
        if attention is None:
            raise ValueError(f"FrameFusion needs the attention of layer {layer}")
        count = self._count()
        if count >= len(tokens):
            return None
        # ALL: what stays keeps the reason that merging gave it.
        return Selection.from_mask(top(attention.float().mean(0), count), Reason.ALL)

    def _count(self) -> int:
        """Tokens to leave if this were the last drop."""
        return self.budget.keep(self.layout.grid.tokens, self.layers, self.entering)

    def _room(self, present: int) -> tuple[float, int]:
        """Share of the tokens present that may be merged, and their number.

        For a budget of compute in the authors' own order of operations, as they round the product down: with 0.3 of
        360 tokens, 251 may go and not 252.
        """
        most = max(0, present - self._count())
        if self.budget.kind == "tokens":
            return most / present, most
        layers, passed = self.layers, len(self.entering)
        left = (layers * self.budget.retention - self.spent) / ((layers - passed) * self.share)
        room = max(0.0, 1 - left)
        return room, int(room * present)

    def _merge(self, tokens: VideoTokens, alone: Reason) -> Selection | None:
        room, most = self._room(len(tokens))
        before = predecessors(tokens)
        similarity = similarities(tokens, before)
        absorbed = similarity >= self.method.tau_sim
        found = int(absorbed.sum()) / len(tokens)
        if found >= room:
            self.merging = self.pruning = False
            absorbed = top(similarity, most)
        else:
            self.share *= 1 - found
            self.merging = found >= self.method.ratio_lower_bound
        return merge(tokens, before, absorbed, alone) if bool(absorbed.any()) else None
