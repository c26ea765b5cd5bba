"""FlashVID: diverse attended tokens, trees of like tokens through time, clusters, and a cut deep inside the model.

Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging"
(ICLR 2026, arXiv 2602.08024). Of each frame the tokens stay that are attended to and unlike one another (ADTS); the
others of a segment are joined to the likest of the frame before (TSTM), and what is left is clustered frame by frame.
Checked against recorded outputs of the authors' ``flashvid_compression`` and ``fastv_prune`` (Fanziyang-v/FlashVID
1d37422).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors import density, fastvid
from stsimdiff.compressors.base import Places, Run
from stsimdiff.compressors.fastv import select as most_attended
from stsimdiff.compressors.per_frame import Reduced, frame_shares
from stsimdiff.compressors.picture import PictureCompressor, PictureRun, Pictures, in_order
from stsimdiff.compressors.prunevid import scaled
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens

SELECTIONS = ("attn_div_v2", "attn_div", "attn", "div")
NEIGHBOURS = 7
"""Largest number of distances that count in a density; fixed as published."""
RELEASED_LAYER, RELEASED_LAYERS = 20, 28


@dataclass(frozen=True)
class FlashVID(PictureCompressor):
    """Select, merge through time, cluster; under a budget of kind ``compute`` also prune inside the model.

    A budget of kind ``compute`` is the authors' own: the share at the input, their ``retention_ratio * expansion``,
    follows from it with the cut fixed. One of kind ``tokens`` is met at the input, without a cut.

    Fidelity: every step equals recorded outputs of the authors' code, whose quirks the method itself leaves out: a
    token that counts twice, in a tree's mean only direct children, a doubled cut. They cannot be switched on, as two
    rows would have one place. Positions are kept; random noise that breaks ties there is the lower index here.

    Attributes:
        alpha: share of a frame's tokens that are selected, in [0, 1]; the rest merge.
        temporal_threshold: similarity to the frame before above which a token is merged, in [-1, 1]; 1 merges none.
        segment_threshold: similarity of frames below which a segment ends, in [-1, 1].
        min_segment_num: least number of segments; 1 with a threshold of -1 for a single one.
        token_selection_method: ``attn_div_v2``, ``attn_div`` (the authors' for Qwen), ``attn`` or ``div``.
        pruning_layer: the first layer after the cut, or ``auto``: the authors' 20 of 28 in proportion.
        llm_retention_ratio: share of the tokens that the cut keeps, in (0, 1].

    Raises:
        ConfigError: for any value that is unknown or out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"
    needs_vision: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0, le=1, examples=[0.7])] = 0.7
    temporal_threshold: Annotated[float, Field(ge=-1, le=1, examples=[0.8])] = 0.8
    segment_threshold: Annotated[float, Field(ge=-1, le=1, examples=[0.9])] = 0.9
    min_segment_num: Annotated[int, Field(ge=1, examples=[8])] = 8
    token_selection_method: str = "attn_div_v2"
    pruning_layer: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)], Field(description="auto, 1, 2, ...", examples=[20])
    ] = "auto"
    llm_retention_ratio: Annotated[float, Field(gt=0, le=1, examples=[0.3])] = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_selection_method not in SELECTIONS:
            raise ConfigError(
                f"compressor.token_selection_method={self.token_selection_method!r} is unknown; allowed: "
                f"{', '.join(SELECTIONS)}"
            )

    def layer_of(self, layers: int) -> int:
        """The first layer after the cut, in a model of so many."""
        if self.pruning_layer != "auto":
            return int(self.pruning_layer)
        return max(1, min(layers - 1, round(layers * RELEASED_LAYER / RELEASED_LAYERS)))

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is not None and not 1 <= self.layer_of(layers) < layers:
            raise ConfigError(
                f"compressor.pruning_layer={self.pruning_layer} does not exist in a model of {layers} layers; "
                f"allowed: auto, 1 to {layers - 1}"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)

    @override
    def reduce(self, video: Pictures, count: int) -> Reduced:
        assert video.received is not None
        frames, patches = video.features.shape[:2]
        vectors = video.features.float().mean(1)
        cuts = segment_cuts(fastvid.frame_similarities(vectors), self.segment_threshold, self.min_segment_num)
        budget = frame_shares(count, frames)
        selected = [min(share, math.ceil(share * self.alpha)) for share in budget]
        ends = [-1, *sorted(set(cuts)), frames - 1]
        parts = [range(first + 1, last + 1) for first, last in zip(ends[:-1], ends[1:], strict=True)]
        weight = torch.stack(
            [
                weights(
                    self.token_selection_method,
                    video.features[frame],
                    video.received[frame],
                    vectors[part.start : part.stop],
                )
                for part in parts
                for frame in part
            ]
        )
        orders = pick(video.features, weight, max(selected), self.token_selection_method)
        place, rows, reason = [], [], []
        for part in parts:
            picked = [orders[frame, : selected[frame]].sort().values for frame in part]
            share = [budget[frame] for frame in part]
            left = merge_trees(
                video.features[part.start : part.stop], picked, self.temporal_threshold, sum(share)
            )
            clusters = _clusters([len(one) for one in left.place], share, [len(one) for one in picked])
            for frame, chosen, own, x, n in zip(
                part, picked, left.place, left.features, clusters, strict=True
            ):
                centre, merged = clustered(x, n)[:2]
                place += [chosen + frame * patches, own[centre] + frame * patches]
                rows += [video.features[frame, chosen].float(), merged]
                reason += [int(Reason.IMPORTANT)] * len(chosen) + [int(Reason.MERGED)] * n
        codes = torch.tensor(reason, device=video.features.device)
        return in_order(torch.cat(place), codes, rows)


class _Run(PictureRun):
    """The part at the input, and the cut where the budget is of kind ``compute``."""

    input_state = ()

    def __init__(self, method: FlashVID, layout: Layout, budget: Budget) -> None:
        tokens, layers = layout.grid.tokens, layout.layers
        self.tokens, self.budget = tokens, budget
        count = budget.keep(tokens, layers)
        if budget.kind == "compute":
            layer = method.layer_of(layers)
            share = (layer + (layers - layer) * method.llm_retention_ratio) / layers
            count = max(1, min(tokens, math.floor(budget.retention * tokens / share + 0.5)))
            self.places = Places(input=True, before=frozenset({layer}), attention=frozenset({layer - 1}))
        super().__init__(method, layout, count)

    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        tokens.check_finite(f"FlashVID, before layer {layer}")
        if attention is None:
            raise ValueError(f"FlashVID needs the attention of layer {layer - 1}")
        count = self.budget.keep(self.tokens, self.layout.layers, [len(tokens)] * layer)
        if count >= len(tokens):
            return None
        found = most_attended(attention, count)
        return Selection(found.keep, torch.where(found.reason > 0, int(Reason.ALL), 0).to(torch.uint8))


def segment_cuts(similarity: Tensor, threshold: float, least: int, complementary: bool = True) -> list[int]:
    """Frames before a cut, ascending: below the threshold, and the least similar up to ``least`` segments.

    As published, a cut counts as a similarity of 1 then: where there are too few others it comes again.
    """
    cuts = (similarity < threshold).nonzero()[:, 0].tolist()
    more = min(least - len(cuts) - 1, len(similarity))
    if complementary and more > 0:
        uncut = similarity.clone()
        uncut[cuts] = 1.0
        cuts += torch.sort(uncut, stable=True).indices[:more].tolist()
    return sorted(cuts)


def relevance(features: Tensor, vectors: Tensor) -> Tensor:
    """``(P,)`` mean product of each token with the mean tokens ``(L, D)`` of its segment's frames."""
    return (features.float() @ vectors.float().T).mean(1)


def weights(method: str, features: Tensor, received: Tensor, vectors: Tensor) -> Tensor:
    """``(P,)`` what a frame's tokens are worth by a method of :data:`SELECTIONS`; see :func:`relevance`."""
    if method == "div":
        return torch.ones_like(received)
    weight = received if method == "attn" else received * 1e6
    return weight * relevance(features, vectors) if method == "attn_div_v2" else weight


def pick(features: Tensor, weight: Tensor, count: int, method: str, again: bool = False) -> Tensor:
    """ADTS: ``(L, count)`` tokens of each frame in the order of picking.

    The first has the largest second smallest distance to another; each next one the largest smallest distance to those
    picked; distances are one less the cosine, times the candidate's weight.

    Args:
        features: ``(L, P, D)``.
        weight: ``(L, P)``.
        count: tokens to pick in each frame.
        method: of :data:`SELECTIONS`; ``attn``: simply the largest weights.
        again: as released in ``attn_div_v2``: a token can be picked twice.
    """
    if method == "attn":
        return torch.sort(weight, descending=True, stable=True).indices[:, :count]
    frames, patches = weight.shape
    if count == 0 or patches == 1:
        return torch.arange(count, device=features.device).expand(frames, -1)
    # Many frames together, as a GPU takes as long for one; their distances are no more than the tokens' numbers.
    at_once = max(1, features.numel() // patches**2)
    found = zip(features.split(at_once), weight.split(at_once), strict=True)
    return torch.cat([_farthest(part, its_weight, count, again) for part, its_weight in found])


def _farthest(features: Tensor, weight: Tensor, count: int, again: bool) -> Tensor:
    distance = torch.stack(
        [(1 - (unit := graph.unit(one)) @ unit.T) * own for one, own in zip(features, weight, strict=True)]
    )
    frame = torch.arange(len(features), device=features.device)
    picked = [distance.kthvalue(2, dim=1).values.argmax(1)]
    nearest = distance[frame, picked[0]]
    for _ in range(count - 1):
        if not again:
            nearest[frame, picked[-1]] = -torch.inf
        picked.append(nearest.argmax(1))
        nearest = torch.minimum(nearest, distance[frame, picked[-1]])
    return torch.stack(picked, 1)


@dataclass(frozen=True)
class Trees:
    """TSTM in a segment of ``L`` frames; lists have an entry for each frame.

    Attributes:
        similarity, anchor: ``(L, P)`` of each token to the likest of the frame before, and which; -1 where none.
        merged: ``(L, P)`` bool.
        threshold: that was used in place of the given one; NaN where none was.
        divisor: ``(L, P)`` what a tree's sum was divided by.
        place: tokens that are left, of those not picked.
        features: ``(n, D)`` float32 of these.
    """

    similarity: Tensor
    anchor: Tensor
    merged: Tensor
    threshold: float
    divisor: Tensor
    place: list[Tensor]
    features: list[Tensor]


def merge_trees(
    features: Tensor,
    picked: Sequence[Tensor],
    threshold: float,
    least: int,
    as_released: bool = False,
) -> Trees:
    """Join tokens that were not picked to the likest of the frame before, if that is like enough.

    Args:
        features: ``(L, P, D)``.
        picked: tokens of each frame that stay out of it.
        threshold: similarity above which a token is merged; the cut is raised so that ``least`` tokens remain.
        least: tokens of the segment, picked ones included.
        as_released: a tree's sum is divided by its root's direct children and itself, and a segment of one frame leaves
            the picked tokens too.
    """
    frames, patches = features.shape[:2]
    out = torch.zeros(frames, patches, dtype=torch.bool, device=features.device)
    for frame, chosen in enumerate(picked):
        out[frame, chosen] = True
    similarity = features.new_full((frames, patches), -1, dtype=torch.float32)
    anchor = torch.full((frames, patches), -1, dtype=torch.int64, device=features.device)
    before = None
    for frame in range(frames):
        unit = graph.unit(features[frame])
        if before is not None:
            alike = unit @ before.T
            alike[out[frame]] = -1
            alike[:, out[frame - 1]] = -1
            similarity[frame], anchor[frame] = alike.max(1)
        before = unit
    raised = math.nan
    merged = similarity > threshold
    if frames > 1 and int((~merged).sum()) < least:
        most = frames * patches - least
        if most == 0:
            raised = math.inf
        else:
            raised = max(float(torch.sort(similarity.flatten(), descending=True).values[most - 1]), -1 + 1e-6)
        merged = similarity > raised
    # From the last frame to the first, each tree's sum, its size and its root's children go to the token joined to.
    sums, size = features.float(), torch.ones(frames, patches, device=features.device)
    if frames > 1:
        sums = sums.clone()
    children = torch.ones_like(size)
    for frame in range(frames - 1, 0, -1):
        rows = merged[frame].nonzero()[:, 0]
        to = anchor[frame, rows]
        graph.add_rows(sums[frame - 1], to, sums[frame, rows])
        graph.add_rows(size[frame - 1], to, size[frame, rows])
        graph.add_rows(children[frame - 1], to, torch.ones_like(size[frame, rows]))
    divisor = children if as_released else size
    stay = ~merged if frames == 1 and as_released else ~merged & ~out
    place = [row.nonzero()[:, 0] for row in stay]
    means = [sums[frame, rows] / divisor[frame, rows, None] for frame, rows in enumerate(place)]
    return Trees(similarity, anchor, merged, raised, divisor, place, means)


def clustered(
    features: Tensor, count: int, noise: Tensor | None = None, centres: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, density.Peaks | None]:
    """Centres ``(count,)``, the means ``(count, D)`` of their clusters, the cluster of each row, and the densities.

    Without clusters the last two are ``None``. ``centres``: as recorded, where scores are tied.
    """
    if count == 0:
        return torch.arange(0, device=features.device), features[:0], None, None
    peaks = density.peaks(features, min(count, NEIGHBOURS), noise)
    centre = peaks.centres(count) if centres is None else centres
    label = peaks.assigned(centre)
    total = graph.add_rows(features.new_zeros(count, features.shape[1]), label, features)
    return centre, total / torch.bincount(label, minlength=count)[:, None], label, peaks


def _clusters(left: Sequence[int], budget: Sequence[int], picked: Sequence[int]) -> list[int]:
    """Clusters of each frame of a segment: what the budget leaves beside the picked tokens, in proportion."""
    return scaled([0] * len(left), left, sum(budget) - sum(picked))
