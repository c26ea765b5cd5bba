"""HoliTom: windows of frames whose unchanging places are kept once, and a merge inside the language model.

Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models" (NeurIPS 2025, arXiv 2505.21334).
Outer part, at the input: dynamic programming finds the windows that save most tokens; of a window's static places the
means are clustered, of the others the most attended tokens stay. Inner part, before a layer: the tokens that the last
prompt token attends to least are merged into the others. Both were checked against recorded outputs of the authors'
code (cokeshao/HoliTom e9b2972).
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
from stsimdiff.compressors import density
from stsimdiff.compressors.base import Places, Run, top
from stsimdiff.compressors.controls import spread
from stsimdiff.compressors.per_frame import Reduced
from stsimdiff.compressors.picture import PictureCompressor, PictureRun, Pictures, in_order
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens

RELEASED_LAYER, RELEASED_LAYERS = 18, 28
"""Where the authors merge inside the language model, and its depth."""


@dataclass(frozen=True)
class HoliTom(PictureCompressor):
    """Merge what stays the same in windows of frames, keep what is attended to, and merge again inside the model.

    The outer part's ratio follows from the budget, with the inner part fixed: of kind ``tokens`` it leaves the budget
    over ``1 - merge_ratio``. Where that is more than the video, or more than the windows leave, the inner part merges
    less and the windows are shorter, so that a budget is met exactly.

    Fidelity: with ``as_released`` windows, counts, clusters, selection and the inner merge equal recorded outputs of
    the authors' code, which leaves at most one frame's tokens of a static video, whatever the budget, and rounds each
    window's share, down to none of its static tokens. By default the budget is met. Theirs puts static tokens first
    and renumbers positions; here tokens stand in order and keep theirs. Noise that breaks ties
    there is the lower index here, and the layer before the inner merge stays causal. ``layer: auto`` is the authors'
    18 of 28 in proportion.

    Attributes:
        tau: similarity to the next frame above which a place is static, in [-1, 1]; the authors take 0.65 at 10 %.
        beta: weight of a cluster's centre beside the mean of its other members, in [0, 1].
        neighbours: K, distances that count in a density.
        max_window: frames of the longest window.
        layer: k, the first layer that sees fewer tokens, or ``auto``.
        merge_ratio: share of the tokens that the inner part merges, in [0, 1); 0 leaves it out.
        as_released: windows and counts as the authors have them; a budget is missed, and newline tokens come on top.

    Raises:
        ConfigError: for any value out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"
    needs_vision: ClassVar[bool] = True

    tau: Annotated[float, Field(ge=-1, le=1, examples=[0.8])] = 0.8
    beta: Annotated[float, Field(ge=0, le=1, examples=[0.6])] = 0.6
    neighbours: Annotated[int, Field(ge=1, examples=[7])] = 7
    max_window: Annotated[int, Field(ge=1, examples=[1024])] = 1024
    layer: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)], Field(description="auto, 1, 2, ...", examples=[18])
    ] = "auto"
    merge_ratio: Annotated[float, Field(ge=0, lt=1, examples=[0.5])] = 0.5
    as_released: bool = False

    def layer_of(self, layers: int) -> int:
        """The layer before which the inner part acts, in a model of so many."""
        if self.layer != "auto":
            return int(self.layer)
        return max(1, min(layers - 1, round(layers * RELEASED_LAYER / RELEASED_LAYERS)))

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is not None and self.merge_ratio and not 1 <= self.layer_of(layers) < layers:
            raise ConfigError(
                f"compressor.layer={self.layer} does not exist in a model of {layers} layers; "
                f"allowed: auto, 1 to {layers - 1}; or compressor.merge_ratio=0"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)

    @override
    def reduce(self, video: Pictures, count: int) -> Reduced:
        frames, patches, width = video.features.shape
        flat = video.features.flatten(0, 1)
        similarity = frame_similarities(flat, patches)
        savings = window_gains(similarity, self.tau)
        # Folding what is static may leave fewer tokens than the budget has: then in shorter windows.
        longest = min(self.max_window, frames)
        while (
            longest > 1
            and not self.as_released
            and frames * patches - sum(savings[a, b] for a, b in windows(savings, longest)) < count
        ):
            longest -= 1
        found = [window(similarity, self.tau, first, last) for first, last in windows(savings, longest)]
        if self.as_released:
            counts = by_ratio(found, ratio_left(found, patches, count))
        else:
            counts = shared_out(found, patches, count)
        kept, rows, codes = [], [], []
        for one, (clusters, dynamic) in zip(found, counts, strict=True):
            merged = merge_static(flat, one, patches, clusters, self.neighbours, self.beta)
            kept.append(one.static[merged.centre] + one.first * patches)
            rows.append(merged.features.to(flat))
            chosen = strongest(video.received, one, dynamic)
            kept.append(chosen)
            rows.append(flat[chosen])
            codes += [int(Reason.MERGED)] * clusters + [int(Reason.IMPORTANT)] * len(chosen)
        return in_order(torch.cat(kept), torch.tensor(codes, device=flat.device), rows)


class _Run(PictureRun):
    """Both parts; the inner one merges to what the budget leaves after the outer one."""

    input_state = ()

    def __init__(self, method: HoliTom, layout: Layout, budget: Budget) -> None:
        tokens, layers = layout.grid.tokens, layout.layers
        self.tokens, self.budget, self.holitom = tokens, budget, method
        self.layer = method.layer_of(layers)
        left = 1 - method.merge_ratio
        share = left if budget.kind == "tokens" else (self.layer + (layers - self.layer) * left) / layers
        outer = max(1, min(tokens, math.floor(budget.retention / share * tokens + 0.5)))
        super().__init__(method, layout, outer)
        if method.merge_ratio:
            self.places = Places(
                input=True, before=frozenset({self.layer}), attention=frozenset({self.layer - 1})
            )

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        tokens.check_finite(f"HoliTom, before layer {layer}")
        if attention is None:
            raise ValueError(f"HoliTom needs the attention of layer {layer - 1}")
        entered = [len(tokens)] * layer
        count = min(len(tokens), self.budget.keep(self.tokens, self.layout.layers, entered))
        if self.holitom.as_released:
            count = max(1, round(len(tokens) * (1 - self.holitom.merge_ratio)))
        if count == len(tokens):
            return None
        folded = fold(tokens.features, attention.float().mean(0), count)
        reason = torch.full_like(folded.keep, int(Reason.ALL))
        reason[folded.taken > 0] = int(Reason.MERGED)
        codes = torch.zeros(len(tokens), dtype=torch.uint8, device=reason.device)
        codes[folded.keep] = reason.to(torch.uint8)
        return Selection(folded.keep, codes, folded.features)


def frame_similarities(features: Tensor, patches: int) -> Tensor:
    """``(T-1, P)`` cosines of each token and the one at its place in the next frame; ``features`` ``(T*P, D)``."""
    frames = features.to(torch.promote_types(features.dtype, torch.float32)).unflatten(0, (-1, patches))
    norm = torch.stack([torch.linalg.vector_norm(frame, dim=1) for frame in frames])
    dot = norm.new_empty(len(frames) - 1, patches)
    for row, before, after in zip(dot, frames[:-1], frames[1:], strict=True):
        row.copy_((before * after).sum(1))
    return dot / (norm[:-1] * norm[1:]).clamp_min(graph.EPS)


def window_gains(similarity: Tensor, tau: float) -> Tensor:
    """``(T, T)`` on the CPU: tokens that a window from the row's to the column's frame saves; 0 up to the diagonal."""
    alike = similarity > tau
    frames = len(alike) + 1
    gain = torch.zeros(frames, frames)
    for first in range(frames - 1):
        static = alike[first:].int().cumprod(0).sum(1).cpu()
        gain[first, first + 1 :] = static * torch.arange(1, frames - first)
    return gain


def programme(gain: Tensor, longest: int) -> tuple[list[float], list[int]]:
    """The most that windows up to each frame can save, and the first frame of the window that ends there.

    A tie goes to the shorter window.
    """
    saved: list[float] = []
    first: list[int] = []
    for last in range(len(gain)):
        best, start = (saved[last - 1] if last else 0.0), last
        for begin in range(last - 1, max(-1, last - longest), -1):
            total = (saved[begin - 1] if begin else 0.0) + float(gain[begin, last])
            if total > best:
                best, start = total, begin
        saved.append(best)
        first.append(start)
    return saved, first


def windows(gain: Tensor, longest: int) -> list[tuple[int, int]]:
    """First and last frame of each window, in order of time; see :func:`programme`."""
    _, first = programme(gain, longest)
    found, last = [], len(first) - 1
    while last >= 0:
        found.append((first[last], last))
        last = first[last] - 1
    return found[::-1]


@dataclass(frozen=True)
class Window:
    """Frames ``first`` to ``last`` with their places ``(m,)`` that are static, and ``(l,)`` that are not, ascending."""

    first: int
    last: int
    static: Tensor
    dynamic: Tensor

    @property
    def frames(self) -> int:
        """How many."""
        return self.last - self.first + 1


def window(similarity: Tensor, tau: float, first: int, last: int) -> Window:
    """A window's static places: those more alike than ``tau`` from each of its frames to the next."""
    if first == last:
        static = torch.zeros(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    else:
        static = (similarity[first:last] > tau).all(0)
    return Window(first, last, static.nonzero()[:, 0], (~static).nonzero()[:, 0])


def by_ratio(found: Sequence[Window], ratio: float) -> list[tuple[int, list[int]]]:
    """Clusters of each window, and tokens of each of its frames, as the authors count them."""
    return [
        (round(len(one.static) * ratio), [math.ceil(len(one.dynamic) * ratio)] * one.frames) for one in found
    ]


def ratio_left(found: Sequence[Window], patches: int, count: float) -> float:
    """The authors' share of what folding leaves, so that ``count`` tokens are kept in all; 1 where it leaves fewer."""
    saved = sum(len(one.static) * (one.frames - 1) for one in found)
    return min(1.0, count / (sum(one.frames for one in found) * patches - saved))


def shared_out(found: Sequence[Window], patches: int, count: int) -> list[tuple[int, list[int]]]:
    """The counts of :func:`by_ratio` whose sum comes next below ``count``, and the rest spread over time."""

    def total(ratio: float) -> int:
        return sum(clusters + sum(dynamic) for clusters, dynamic in by_ratio(found, ratio))

    low, high = 0.0, 1.0
    if total(high) <= count:
        low = high
    for _ in range(40 if low < high else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= count else (low, middle)
    counts = by_ratio(found, low)
    flat = [[clusters, *dynamic] for clusters, dynamic in counts]
    most = [[len(one.static), *[len(one.dynamic)] * one.frames] for one in found]
    left = count - sum(map(sum, flat))
    while left > 0:
        free = [(i, j) for i, row in enumerate(flat) for j, n in enumerate(row) if n < most[i][j]]
        for place in spread(len(free), min(left, len(free))).tolist():
            i, j = free[place]
            flat[i][j] += 1
            left -= 1
    return [(row[0], row[1:]) for row in flat]


@dataclass(frozen=True)
class Clusters:
    """Static tokens of one window; numbers are those of its ``m`` static places.

    Attributes:
        mean: ``(m, D)`` float32 over the frames.
        peaks: their densities; ``None`` where none is kept.
        centre: ``(n,)`` ascending.
        source, target: ``(m - n,)`` the other places, and the centre of each.
        features: ``(n, D)`` float32.
    """

    mean: Tensor
    peaks: density.Peaks | None
    centre: Tensor
    source: Tensor
    target: Tensor
    features: Tensor


def merge_static(
    features: Tensor,
    one: Window,
    patches: int,
    clusters: int,
    neighbours: int,
    beta: float | None,
    noise: Tensor | None = None,
    centres: Tensor | None = None,
) -> Clusters:
    """Mean of each static place over the window's frames, clustered; ``features`` ``(T*P, D)``.

    Args:
        features: of the video.
        one: the window.
        patches: P.
        clusters: n.
        neighbours: K; of fewer clusters as many as these.
        beta: weight of the centre; ``None``: the plain mean of a cluster.
        noise: ``(m,)`` as recorded.
        centres: as recorded, where chance decides.
    """
    mean = features.new_zeros(len(one.static), features.shape[1], dtype=torch.float32)
    if len(mean):
        for frame in range(one.first, one.last + 1):
            mean += features[one.static + frame * patches].float()
        mean /= one.frames
    nothing = one.static[:0]
    if clusters == 0:
        return Clusters(mean, None, nothing, nothing, nothing, mean[:0])
    peaks = density.peaks(mean, min(neighbours, clusters), noise)
    centre = (peaks.centres(clusters) if centres is None else centres).sort().values
    nearest = peaks.assigned(centre)
    is_source = torch.ones(len(mean), dtype=torch.bool, device=mean.device)
    is_source[centre] = False
    source = is_source.nonzero()[:, 0]
    count = torch.bincount(nearest[source], minlength=clusters)[:, None]
    total = graph.add_rows(mean.new_zeros(clusters, mean.shape[1]), nearest[source], mean[source])
    if beta is None:
        merged = (mean[centre] + total) / (count + 1)
    else:
        merged = beta * mean[centre] + (1 - beta) * total / count.clamp_min(1)
    rows = torch.where(count > 0, merged, mean[centre])
    return Clusters(mean, peaks, centre, source, centre[nearest[source]], rows)


def strongest(received: Tensor | None, one: Window, counts: Sequence[int]) -> Tensor:
    """Raster indices, ascending by frame, of its best ``counts`` tokens at dynamic places, by ``(T, P)`` scores."""
    assert received is not None
    patches, found = received.shape[1], []
    for frame, count in zip(range(one.first, one.last + 1), counts, strict=True):
        best = top(received[frame, one.dynamic], count)
        found.append(one.dynamic[best] + frame * patches)
    return torch.cat(found)


@dataclass(frozen=True)
class Folded:
    """The inner merge of ``n`` tokens.

    Attributes:
        keep: ``(k,)`` rows that stay, ascending.
        source, target: ``(n - k,)`` rows that are merged, ascending, and the kept row of each.
        taken: ``(k,)`` rows merged into each.
        features: ``(k, D)``.
    """

    keep: Tensor
    source: Tensor
    target: Tensor
    taken: Tensor
    features: Tensor


def fold(states: Tensor, score: Tensor, count: int) -> Folded:
    """Keep the ``count`` best scores ``(n,)``; each other row, in turn, is averaged into the kept one most like it.

    The later of two rows that go to one so weighs twice as much as the earlier. ``states`` ``(n, D)``.
    """
    best = top(score, count)
    keep, source = best.nonzero()[:, 0], (~best).nonzero()[:, 0]
    unit = graph.unit(states)
    # So many at once that no matrix is larger than the states.
    kept, at_once = unit[keep], max(1, states.numel() // count)
    likest = [(unit[rows] @ kept.T).argmax(1) for rows in source.split(at_once)]
    target = torch.cat(likest) if likest else source
    taken = torch.bincount(target, minlength=count)
    # Of c rows merged into one, the j-th has the weight 2^-(c - j + 1), and the kept one 2^-c.
    order = torch.sort(target, stable=True).indices
    after = torch.empty_like(target)
    ends = taken.cumsum(0)
    after[order] = ends[target[order]] - torch.arange(len(order), device=order.device)
    rows = states[keep].float() * torch.exp2(-taken.float())[:, None]
    for part, owner, power in zip(source.split(1024), target.split(1024), after.split(1024), strict=True):
        graph.add_rows(rows, owner, states[part].float() * torch.exp2(-power.float())[:, None])
    return Folded(keep, source, keep[target], taken, rows.to(states.dtype))
