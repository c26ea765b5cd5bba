"""PruneVid: windows of like frames, what is static in them averaged over time, clusters, and a cut by the question.

Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models" (ACL 2025, arXiv 2412.16117).
Stage 1, at the input: frames are clustered into windows; static places are averaged over a window's frames, and they,
and each frame's other tokens, are clustered. Stage 2, after layer M: of each group the rows stay that a text token
behind the video attends to most. Both were checked against recorded outputs of the authors' code for PLLaVA
(Visual-AI/PruneVid b12600c).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors import density
from stsimdiff.compressors.base import Places, Run, top
from stsimdiff.compressors.per_frame import Reduced
from stsimdiff.compressors.picture import PictureCompressor, PictureRun, Pictures, in_order
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Layout, Read, Reason, Selection, VideoTokens

NEIGHBOURS, WHOLE = 7, 14
"""Distances that count in a density, and the largest group that is not clustered; fixed as published."""
RELEASED_LAYER, RELEASED_LAYERS = 10, 32
ATTENTION = Read(rows="after", heads="max", over="max", rotary=False, causal=False)
"""What stage 2 reads: without rotary embedding and mask, the largest over heads and the text behind the video."""


@dataclass(frozen=True)
class PruneVid(PictureCompressor):
    """Merge in windows of frames at the input, then keep what the text attends to.

    A budget of kind ``tokens`` is met by stage 2, whose share of each group follows from it, and where stage 1 leaves
    fewer, by more clusters. One of kind ``compute`` is met by the number of clusters, with ``alpha`` in stage 2.

    Fidelity: windows, clusters, their means and the cut equal recorded outputs of the authors' code, which was released
    for PLLaVA alone. There, rows stand window by window with new positions, and the caches of the layers before the cut
    are cut too; here a row stands at its centre's place with its position, and those caches keep all rows. Random noise
    that breaks ties there is the lower index here. Their code fails on fewer than 7 frames, and rounds what each group
    keeps down, so that small groups vanish: with ``as_released`` as there, by default both are repaired.

    Attributes:
        tau: mean similarity over a window's frames above which a place is static, in [-1, 1].
        temporal_segment_ratio: clusters of frames, as a share of the frames, in (0, 1].
        cluster_ratio: clusters of a group of more than 14 tokens, as a share of it, in (0, 1].
        alpha: share of a group that stage 2 keeps under a budget of kind ``compute``, in (0, 1].
        selected_layer: M, the layer whose attention is read, or ``auto``: the authors' 10 of 32 in proportion.
        as_released: ``cluster_ratio`` holds whatever the budget, of which less is kept; newline tokens come on top;
            and fail where the authors' code does.

    Raises:
        ConfigError: for any value out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"

    tau: Annotated[float, Field(ge=-1, le=1, examples=[0.8])] = 0.8
    temporal_segment_ratio: Annotated[float, Field(gt=0, le=1, examples=[0.25])] = 0.25
    cluster_ratio: Annotated[float, Field(gt=0, le=1, examples=[0.5])] = 0.5
    alpha: Annotated[float, Field(gt=0, le=1, examples=[0.4])] = 0.4
    selected_layer: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=0)], Field(description="auto, 0, 1, ...", examples=[10])
    ] = "auto"
    as_released: bool = False

    def layer_of(self, layers: int) -> int:
        """The layer whose attention is read, in a model of so many."""
        if self.selected_layer != "auto":
            return int(self.selected_layer)
        return max(0, min(layers - 2, round(layers * RELEASED_LAYER / RELEASED_LAYERS)))

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is not None and self.layer_of(layers) + 1 >= layers:
            raise ConfigError(
                f"compressor.selected_layer={self.selected_layer} has no layer behind it in a model of {layers} "
                f"layers; allowed: auto, 0 to {layers - 2}"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)

    @override
    def reduce(self, video: Pictures, count: int) -> Reduced:
        return self.merged(video, self.grouped(video), count)[0]

    def grouped(self, video: Pictures, tau: float | None = None) -> list[Group]:
        """The groups of a video that stage 1 clusters."""
        frames = len(video.features)
        clusters = int(frames * self.temporal_segment_ratio)
        if self.as_released and (frames < NEIGHBOURS or clusters == 0):
            raise ValueError(
                f"PruneVid as released fails on {frames} frames with {clusters} clusters of frames; it needs "
                f"{NEIGHBOURS} frames and a cluster: use compressor.as_released=false"
            )
        clusters = max(1, clusters)
        label = density.peaks(video.features.float().mean(1), NEIGHBOURS)
        parts = windows(refined(label.assigned(label.centres(clusters)).tolist()))
        tau = self.tau if tau is None else tau
        return [
            one for part in parts for one in groups(video.features, part, static(video.features, part, tau))
        ]

    def merged(self, video: Pictures, found: Sequence[Group], count: int) -> tuple[Reduced, Tensor]:
        """Stage 1 with exactly ``count`` rows, as released with the published ones; and the group of each."""
        sizes = [len(one.place) for one in found]
        if sum(sizes) < count and not self.as_released:
            found = self.grouped(video, 2.0)
            sizes = [len(one.place) for one in found]
        published = [clusters_of(size, self.cluster_ratio) for size in sizes]
        if self.as_released:
            count = sum(published)
            if any(size > WHOLE and int(size * self.cluster_ratio) == 0 for size in sizes):
                raise ValueError(
                    f"PruneVid as released fails on compressor.cluster_ratio={self.cluster_ratio:g}, which leaves "
                    "groups without a cluster: use compressor.as_released=false"
                )
        floor = [0] * len(sizes) if sum(published) > count else published
        counts = scaled(floor, published if sum(published) > count else sizes, count)
        place, rows, reason, owner = [], [], [], []
        for number, (one, clusters) in enumerate(zip(found, counts, strict=True)):
            if clusters == 0:
                continue
            centre, label, merged = cluster(one.features, clusters)
            place.append(one.place[centre])
            rows.append(merged)
            alone = (torch.bincount(label, minlength=clusters) == 1) & (one.frames == 1)
            reason.append(torch.where(alone, int(Reason.UNGROUPED), int(Reason.MERGED)))
            owner.append(torch.full_like(centre, number))
        keep, turn = torch.cat(place).sort()
        reduced = in_order(torch.cat(place), torch.cat(reason), rows)
        return reduced, torch.cat(owner)[turn]


class _Run(PictureRun):
    """Both stages, and the groups that the first one leaves to the second."""

    input_state = ("groups",)

    def __init__(self, method: PruneVid, layout: Layout, budget: Budget) -> None:
        super().__init__(method, layout, budget.keep(layout.grid.tokens, layout.layers))
        self.prunevid, self.budget = method, budget
        self.layer = method.layer_of(layout.layers) + 1
        self.places = Places(
            input=True,
            before=frozenset({self.layer}),
            attention=frozenset({self.layer - 1}),
            queries=ATTENTION,
        )
        self.found: list[Group] = []
        self.groups: dict[int, Tensor] = {}

    @override
    def wanted(self, video: Pictures) -> int:
        tokens, layers, method = self.layout.grid.tokens, self.layout.layers, self.prunevid
        self.found = method.grouped(video)
        if self.budget.kind == "compute":
            share = (self.layer + (layers - self.layer) * method.alpha) / layers
            return max(1, min(tokens, math.floor(self.budget.retention * tokens / share + 0.5)))
        rows = sum(clusters_of(len(one.place), method.cluster_ratio) for one in self.found)
        pictures = video.features.shape[0] * video.features.shape[1]
        return max(self.count, min(tokens, round(rows * tokens / pictures)))

    @override
    def reduce(self, video: Pictures, count: int) -> Reduced:
        reduced, groups = self.prunevid.merged(video, self.found, count)
        self.groups[len(groups)] = groups
        return reduced

    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        tokens.check_finite(f"PruneVid, before layer {layer}")
        if attention is None:
            raise ValueError(f"PruneVid needs the attention of layer {layer - 1}")
        entered = [len(tokens)] * layer
        count = min(len(tokens), self.budget.keep(self.layout.grid.tokens, self.layout.layers, entered))
        if count == len(tokens):
            return None
        cells = self.layout.cells().to(tokens.index.device)
        shows = torch.isin(tokens.index % tokens.grid.per_frame, cells)
        # Newline tokens are a group of their own, and so are all tokens where stage 1 left them alone.
        owner = torch.full((len(tokens),), -1, dtype=torch.int64, device=shows.device)
        known = self.groups.get(int(shows.sum()))
        if known is not None:
            owner[shows] = known
        owner = owner.unique(return_inverse=True)[1]
        sizes = owner.bincount().tolist()
        if self.prunevid.as_released:
            counts = truncated(sizes, count / len(tokens))
        else:
            counts = scaled([0] * len(sizes), sizes, count)
        return Selection.from_mask(best_of_groups(attention.float(), owner, counts), Reason.ALL)


@dataclass(frozen=True)
class Group:
    """Tokens that are clustered together.

    Attributes:
        window: frames of the window, ascending.
        frame: of the tokens; ``None``: static ones, averaged over the window.
        place: ``(n,)`` raster indices, those of static tokens in the window's first frame.
        video: ``(T, P, D)`` features of the whole video, of which a group is read only when it is clustered.
    """

    window: list[int]
    frame: int | None
    place: Tensor
    video: Tensor

    @property
    def frames(self) -> int:
        """Frames that a row of it stands for."""
        return len(self.window) if self.frame is None else 1

    @property
    def features(self) -> Tensor:
        """``(n, D)`` float32."""
        if self.frame is not None and len(self.place) == self.video.shape[1]:
            return self.video[self.frame].float()
        if self.frame is not None:
            return self.video.flatten(0, 1).index_select(0, self.place).float()
        still = self.place - self.window[0] * self.video.shape[1]
        mean = self.video.new_zeros(len(still), self.video.shape[2], dtype=torch.float32)
        for frame in self.window:
            mean += self.video[frame].index_select(0, still)
        return mean / len(self.window)


def refined(label: Sequence[int]) -> list[int]:
    """Labels of frames, stray ones taken over by the longer of their neighbouring runs.

    Of each label only the longest runs stay, and none of a single frame. What is free takes, from left to right, the
    label of the longer run beside it, the left one of equal ones.
    """
    runs = _runs(label)
    longest: dict[int | None, int] = {}
    for value, length in runs:
        longest[value] = max(longest.get(value, 0), length)
    spread: list[int | None] = []
    for value, length in runs:
        spread += [value if length == longest[value] > 1 else None] * length
    result: list[int | None] = []
    stretches = _runs(spread)
    for number, (value, length) in enumerate(stretches):
        if value is None:
            before = next(((v, n) for v, n in _runs(result)[-1:]), (0, 0))
            after = next(((v, n) for v, n in stretches[number + 1 : number + 2]), (0, 0))
            value = before[0] if before[1] >= after[1] else after[0]
        result += [value] * length
    return [int(value or 0) for value in result]


def _runs(label: Sequence[int | None]) -> list[tuple[int | None, int]]:
    return [(value, len(list(run))) for value, run in groupby(label)]


def windows(label: Sequence[int]) -> list[list[int]]:
    """Frames of each run of equal labels."""
    found, first = [], 0
    for _, length in _runs(label):
        found.append(list(range(first, first + length)))
        first += length
    return found


def window_similarity(features: Tensor, part: Sequence[int]) -> Tensor:
    """``(P,)`` mean cosine of each place over the pairs of a window's frames; -1 for a window of one.

    The cosines of all pairs add up to the square of the sum of the normalised features. ``features`` ``(T, P, D)``.
    """
    if len(part) == 1:
        return features.new_full((features.shape[1],), -1, dtype=torch.float32)
    total = features.new_zeros(features.shape[1:], dtype=torch.float32)
    for frame in part:
        total += graph.unit(features[frame])
    return (total.square().sum(1) - len(part)) / (len(part) * (len(part) - 1))


def static(features: Tensor, part: Sequence[int], tau: float) -> Tensor:
    """``(P,)`` bool: places of a window that are static."""
    return window_similarity(features, part) > tau


def groups(features: Tensor, part: list[int], mask: Tensor) -> Iterator[Group]:
    """The static tokens of a window, then each frame's others; none that is empty."""
    patches = features.shape[1]
    still, moving = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    if len(still):
        yield Group(part, None, still + part[0] * patches, features)
    if len(moving):
        for frame in part:
            yield Group(part, frame, moving + frame * patches, features)


def clusters_of(size: int, ratio: float) -> int:
    """Clusters of a group of so many tokens; a small one stays as it is."""
    return size if size <= WHOLE else max(1, int(size * ratio))


def cluster(features: Tensor, count: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Centres ``(count,)`` by descending score, the cluster ``(n,)`` of each row, and the means ``(count, D)``.

    As many clusters as rows: each its own, in order.
    """
    if count == len(features):
        rows = torch.arange(count, device=features.device)
        return rows, rows, features
    peaks = density.peaks(features, NEIGHBOURS, noise)
    centre = peaks.centres(count)
    label = peaks.assigned(centre)
    return centre, label, graph.group_means(features, label, count)


def truncated(sizes: Sequence[int], share: float) -> list[int]:
    """What the authors' code keeps of groups of these sizes."""
    return [int(size * share) for size in sizes]


def scaled(low: Sequence[int], high: Sequence[int], total: int) -> list[int]:
    """Counts between ``low`` and ``high``, equally far on the way, that add up to ``total``.

    What rounding down leaves goes to the largest remainders, the first of equal ones.
    """
    room = sum(high) - sum(low)
    way = (total - sum(low)) / room if room else 0.0
    exact = [a + (b - a) * way for a, b in zip(low, high, strict=True)]
    counts = [math.floor(value + 1e-9) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def best_of_groups(score: Tensor, owner: Tensor, counts: Sequence[int]) -> Tensor:
    """``(n,)`` bool: of each group the ``counts`` rows of the highest score."""
    mask = torch.zeros_like(owner, dtype=torch.bool)
    for number, count in enumerate(counts):
        rows = (owner == number).nonzero()[:, 0]
        mask[rows[top(score[rows], count)]] = True
    return mask
