"""ST-SimDiff: keep what stands for a community of similar tokens, and what differs from the frame before.

Stage one (input): a graph joins similar neighbours in space and time; of each community the most central
tokens stay (the paper's SRTS), and tokens that differ much from their predecessor stay as events (its
DETS). Stage two (between the attention and the MLP of a shallow layer): what is over the budget is
pruned by the attention of the last prompt token (the paper's fusion and budget, as FastV scores tokens).

Paper: "ST-SimDiff: Balancing Spatiotemporal Similarity and Difference for Efficient Video Understanding with MLLMs"
(ICLR 2026, arXiv 2605.22158). ``rule: released`` is what the authors' published code does: both stages were checked
against recorded outputs of their class ``SimDiff`` (bingjunluo/ST-SimDiff 7284c05). ``rule: paper`` is what the paper
says, and nothing recorded holds it. They differ in the edges, in the share each community keeps, and in the budget of
stage one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run, top
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace


def percentile(text: str) -> float:
    """The number of a percentile such as ``p95``; raises ``ValueError`` when the text is none within 0 to 100."""
    value = float(text[1:]) if text[:1] == "p" else math.nan
    if not 0 <= value <= 100:
        raise ValueError(f"{text!r} is no percentile")
    return value


def _percentile(text: str) -> str:
    percentile(text)
    return text


Percentile = Annotated[str, AfterValidator(_percentile), Field(description="a percentile from p0 to p100")]


@dataclass(frozen=True)
class STSimDiff(Compressor):
    """ST-SimDiff with every choice of the paper's ablations.

    Fidelity: with ``rule: released``, the default, selections and whole answers equal recorded outputs of the
    authors' code on LLaVA-Video. The other rules and switches are the paper's text and its ablations, for which
    there is no released code.

    Attributes:
        rule: ``released`` or ``paper``.
        tau_sim: similarity from which neighbours are joined, in [-1, 1].
        tau_diff: temporal similarity below which a token is an event, in [-1, 1]; or a percentile such as
            ``p95``: events are the tokens whose difference to their predecessor lies above it in this video.
        edges: ``both``, ``spatial`` or ``temporal``.
        similarity: thin the communities in stage one; off, all tokens go on to stage two.
        difference: keep events. With ``similarity`` off, events are kept first in stage two.
        pruning: prune to the budget in stage two; off, all that stage one leaves stays, whatever the budget, and
            the audit says by how much it is missed. For finding out which part did what.
        community: ``connected``, ``louvain`` or ``leiden`` (the last two need igraph, and
            ``tau_sim`` from 0, as modularity has no meaning for negative weights).
        split_above: ``sqrt`` cuts communities of more than sqrt(N) tokens; ``off`` leaves them (as released).
        layer: decoder layer between whose attention and MLP stage two prunes.
        reduction: how heads are joined, ``mean`` or ``max``.
        released_layers: ``auto`` meets the budget for the model at hand; a number (28 in the released code)
            computes the final count as the released code does for a model of so many layers, whatever the
            budget's kind.

    Raises:
        ConfigError: for a negative ``tau_sim`` where communities need positive weights.
    """

    fidelity: ClassVar[str] = "official"
    reads_question: ClassVar[bool] = False

    rule: Literal["released", "paper"] = "released"
    tau_sim: Annotated[float, Field(ge=-1, le=1, examples=[0.8])] = 0.8
    tau_diff: Annotated[
        Annotated[float, Field(ge=-1, le=1)] | Percentile,
        Field(examples=[0.2, "p95"]),
    ] = 0.2
    edges: Literal["both", "spatial", "temporal"] = "both"
    similarity: bool = True
    difference: bool = True
    pruning: bool = True
    community: Literal["connected", "louvain", "leiden"] = "connected"
    split_above: Literal["off", "sqrt"] = "off"
    layer: Annotated[int, Field(ge=0, examples=[1])] = 1
    reduction: Literal["mean", "max"] = "mean"
    released_layers: Annotated[Literal["auto"] | Annotated[int, Field(ge=2)], Field(examples=[28])] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.community != "connected" and self.tau_sim < 0:
            raise ConfigError(
                f"compressor.tau_sim={self.tau_sim!r} does not go with compressor.community={self.community}, which "
                "needs edges of positive weight; allowed: a number in [0, 1], for example 0.8"
            )

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        graph.check_installed(self.community)
        if layers is None:
            return
        if self.layer >= layers:
            raise ConfigError(
                f"compressor.layer={self.layer} does not exist in a model of {layers} layers; "
                f"allowed: 0 to {layers - 1}"
            )
        unmeetable = self.released_layers == "auto" and self.layer == layers - 1 and budget.retention < 1
        if budget.kind == "compute" and unmeetable and self.pruning:
            raise BudgetError(
                "budget.kind=compute cannot be met when the last drop is in the last layer "
                f"(compressor.layer={self.layer} of {layers} layers); use an earlier layer "
                "or budget.kind=tokens"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """Norms, a product for each pair of neighbours, and at most two passes over all features for centrality.

        The last is exact when every token is in a community: scaling, adding up, one product with the sum.
        """
        t, h, w = grid.frames, grid.height, grid.width
        neighbours = (t - 1) * h * w + t * h * (w - 1) + t * (h - 1) * w
        centrality = 4 * grid.tokens if self.similarity else 0
        return width * (2 * grid.tokens + 2 * neighbours + centrality)


@dataclass(frozen=True)
class Thinning:
    """What stage one found and decided; the recorded outputs of the authors' code hold the same fields.

    Attributes:
        selection: of the N tokens. REPRESENTATIVE: among the most central of a thinned community. EVENT:
            differs from its predecessor. UNGROUPED: in no community. ALL: its community was not thinned.
        similarities: of neighbouring tokens.
        edges: ``(E, 2)`` raster indices.
        communities: of two and more tokens.
        centrality: ``(N,)`` mean similarity to the own community, itself included; NaN outside communities.
        weight: ``(C,)`` mean similarity of different members.
        visited: communities in the order they were thinned.
        event: ``(N,)`` bool.
    """

    selection: Selection
    similarities: graph.Similarities
    edges: np.ndarray
    communities: graph.Communities
    centrality: np.ndarray
    weight: np.ndarray
    visited: np.ndarray
    event: np.ndarray


def select(tokens: VideoTokens, retention: float, method: STSimDiff) -> Thinning:
    """Stage one: thin the communities of similar tokens, sparing events (the paper's SRTS and DETS).

    Args:
        tokens: all tokens of a video.
        retention: r; at most a share ``1 - r`` of the tokens goes (released), or of each community (paper).
        method: the parameters.

    Raises:
        ValueError: for NaN or infinite features, or when tokens of the grid are missing.
    """
    grid = tokens.grid
    if len(tokens) != grid.tokens:
        raise ValueError(
            f"ST-SimDiff needs every token of the grid {grid}, got {len(tokens)} of {grid.tokens}"
        )
    similarities = graph.neighbour_similarities(tokens.features, grid)
    if not bool(torch.isfinite(similarities.norm).all()):
        tokens.check_finite("ST-SimDiff, input of layer 0")
        raise ValueError("ST-SimDiff, input of layer 0: features are too large for a float32 norm")
    edges, value = graph.similar_edges(
        similarities, grid, float(method.tau_sim), method.edges, strict_temporal=method.rule == "paper"
    )
    if not method.similarity:
        edges, value = edges[:0], value[:0]
    communities = graph.find_communities(grid.tokens, edges, value, method.community)
    if method.split_above == "sqrt":
        communities = graph.split_communities(communities, max(2, math.isqrt(grid.tokens)))
    centrality = graph.community_centrality(tokens.features, similarities.norm, communities)
    weight = graph.community_weights(centrality, similarities.norm, communities)
    event = (
        events(similarities, grid, method.tau_diff)
        if method.difference
        else np.zeros(grid.tokens, dtype=bool)
    )
    thin = thin_released if method.rule == "released" else thin_paper
    dropped, visited = thin(communities, centrality, weight, event, retention)
    reason = _reasons(communities, visited, event, dropped)
    device = tokens.features.device
    selection = Selection(
        torch.from_numpy(np.flatnonzero(~dropped)).to(device), torch.from_numpy(reason).to(device)
    )
    return Thinning(selection, similarities, edges, communities, centrality, weight, visited, event)


def events(similarities: graph.Similarities, grid: Grid, tau_diff: float | str) -> np.ndarray:
    """``(N,)`` bool: tokens unlike their predecessor (DETS); the first frame has none."""
    value = similarities.temporal.cpu().numpy().ravel()
    if isinstance(tau_diff, str):
        different = 1 - value
        late = different > np.percentile(different, percentile(tau_diff)) if len(value) else value > 0
    else:
        late = value < float(tau_diff)
    return np.concatenate((np.zeros(grid.per_frame, dtype=bool), late))


def thin_released(
    communities: graph.Communities,
    centrality: np.ndarray,
    weight: np.ndarray,
    event: np.ndarray,
    retention: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The released rule: visit communities by descending weight and drop the least central of each.

    ``ceil(|c| * (1 - r))`` tokens of each are named, events among them stay, and the first community that
    could bring the drops above ``(1 - r) * N`` if it had no events ends the loop. The lower index wins a tie.

    Returns:
        ``(N,)`` bool of dropped tokens, and the communities visited, in order.
    """
    share = 1 - retention
    # Counted from the most central token down, so that of equal tokens the last is dropped first.
    rank = _rank_by_centrality(communities, -centrality)
    grouped = communities.label >= 0
    owner = communities.label
    most = np.ceil(communities.size * share)
    named = grouped & (rank >= (communities.size - most)[owner] if len(communities) else grouped)
    candidate = named & ~event
    order = np.argsort(-weight, kind="stable")
    count = np.bincount(owner[candidate], minlength=len(communities))[order]
    over = (np.cumsum(count) - count + most[order]) / len(owner) > share
    visited = order[: int(np.argmax(over)) if over.any() else len(order)]
    return candidate & np.isin(owner, visited), visited


def thin_paper(
    communities: graph.Communities,
    centrality: np.ndarray,
    weight: np.ndarray,
    event: np.ndarray,
    retention: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's rule: every community keeps its ``ceil(|c| * r)`` most central tokens; events stay.

    Arguments and result as in :func:`thin_released`. The paper's centrality leaves the token itself out,
    which orders the tokens of a community in the same way.
    """
    rank = _rank_by_centrality(communities, -centrality)
    # A product such as 100 * 0.55 lies a rounding error above the whole number that is meant.
    quota = np.ceil(communities.size * retention - 1e-9)
    kept = rank < quota[communities.label] if len(communities) else rank >= 0
    visited = np.argsort(-weight, kind="stable")
    return (communities.label >= 0) & ~kept & ~event, visited


def released_ratio(retention: float, dropped_share: float | None, layers: int) -> float:
    """Share of the remaining video tokens that the released stage two prunes (FrameFusion's formula).

    Args:
        retention: the released ``cost``.
        dropped_share: share of the tokens that stage one dropped, or ``None`` where the graph had no edge at
            all: stage one then does not count as a layer.
        layers: decoder layers that the budget is spread over; 28 in the released code.
    """
    if dropped_share is None:
        return max(0.0, 1 - layers * retention / layers)
    left = 1 - dropped_share
    return max(0.0, 1 - (layers * retention - left) / ((layers - 1) * left))


def head_scores(attention: Tensor, reduction: str = "mean") -> Tensor:
    """``(n,)`` float32 scores from ``(heads, n)`` attention: the mean or the largest over the heads."""
    return attention.float().mean(0) if reduction == "mean" else attention.float().amax(0)


class _Run(Run):
    """State between the stages: which tokens are events, and whether there was a graph at all."""

    input_state = ("event", "had_edges")

    def __init__(self, method: STSimDiff, layout: Layout, budget: Budget) -> None:
        self.method, self.layout, self.budget = method, layout, budget
        shallow = frozenset({method.layer}) if method.pruning else frozenset()
        self.places = Places(input=True, between=shallow, attention=shallow)
        self.event: Tensor | None = None
        self.had_edges = False

    def at_input(self, tokens: VideoTokens) -> Selection:
        found = select(tokens, self.budget.retention, self.method)
        self.event = found.selection.reason == Reason.EVENT
        self.had_edges = len(found.edges) > 0
        return found.selection

    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        if attention is None:
            raise ValueError(f"ST-SimDiff needs the attention of layer {layer}")
        if self.budget.retention == 1:
            return None
        count = self._final_count(len(tokens))
        if count >= len(tokens):
            return None
        scores = head_scores(attention, self.method.reduction)
        if self.event is not None and not self.method.similarity and self.method.difference:
            # No stage one spares the events, so they come first here.
            event = self.event.to(tokens.index.device)[tokens.index]
            scores = torch.where(event, scores + 1 + scores.amax(), scores)
        # ALL: what stays keeps the reason that stage one gave it.
        return Selection.from_mask(top(scores, count), Reason.ALL)

    def _final_count(self, present: int) -> int:
        tokens, layers = self.layout.grid.tokens, self.method.released_layers
        if layers == "auto":
            entering = [present] * (self.method.layer + 1)
            return self.budget.keep(tokens, self.layout.layers, entering)
        dropped = 1 - present / tokens if self.had_edges else None
        return max(1, round(present * (1 - released_ratio(self.budget.retention, dropped, int(layers)))))


def _rank_by_centrality(communities: graph.Communities, key: np.ndarray) -> np.ndarray:
    """``(N,)`` rank of each token in its community by ascending ``key``, ties by index; else 0."""
    rank = np.zeros(len(key), dtype=np.int64)
    order = np.lexsort((key, communities.label))
    order = order[communities.label[order] >= 0]
    size = communities.size
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
    return rank


def _reasons(
    communities: graph.Communities, visited: np.ndarray, event: np.ndarray, dropped: np.ndarray
) -> np.ndarray:
    """``(N,)`` uint8 :class:`Reason` codes of stage one."""
    reason = np.full(len(event), Reason.UNGROUPED, dtype=np.uint8)
    reason[communities.label >= 0] = Reason.ALL
    reason[(communities.label >= 0) & np.isin(communities.label, visited)] = Reason.REPRESENTATIVE
    reason[event] = Reason.EVENT
    reason[dropped] = Reason.DROPPED
    return reason
