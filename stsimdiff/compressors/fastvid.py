"""FastVID: segments of frames, the most attended tokens of each frame, and density peaks that take in the rest.

Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models" (NeurIPS 2025, arXiv 2503.11187):
dynamic segmentation (DySeg), attention-based selection (ATS) and density-based merging (DTM). The authors publish three
codes that differ (LunarShen/FastVID a40a109), and each is a ``variant`` here, checked against its recorded outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.compressors import density
from stsimdiff.compressors.per_frame import Reduced, frame_shares
from stsimdiff.compressors.picture import PictureCompressor, Pictures, in_order
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Picture, Reason, VisionSignals

VARIANTS = ("auto", "onevision", "video", "qwen")
NEIGHBOURS = 4
"""Smallest distances of a density, the one to the token itself among them; fixed as published."""


@dataclass(frozen=True)
class FastVID(PictureCompressor):
    """Each frame keeps its most attended tokens; some frames of a segment also centres, into which the rest is merged.

    The number kept follows from the budget, shared out evenly among the frames; what a frame has no room for goes to
    others, so that a budget is met exactly.

    Fidelity: with ``as_released`` segments, tokens, merging and signals equal recorded outputs of the authors' three
    codes, which round each frame's tokens down, lose what a frame has no room for, and fail on videos of fewer frames
    than ``dyseg_c``. For Qwen the
    signals are the attention of the mean query in the tower's last block, and the mean of a frame's tokens. The others
    take SigLIP's pooling head from a checkpoint of its own: the attention of its probe, and its output for each frame.
    Here the head is read where the model's checkpoint holds it, which no released one does; elsewhere a token's score
    is the attention that it receives in the tower, and a frame's vector the mean of its tokens. Noise that breaks ties
    is the lower index here.

    Attributes:
        variant: ``onevision``, ``video`` or ``qwen``: which of the authors' codes; ``auto``: the one for grids as the
            family's: newline tokens, joined frames, or neither.
        dyseg_c: least number of segments.
        dyseg_tau: similarity of neighbouring frames below which a segment ends, in [-1, 1].
        dyseg_ignore: ``qwen`` only: of a segment's frames that are more alike than this, only the last keeps tokens.
        stprune_d: share of the kept tokens that are centres of merging, in [0, 1].
        dtm_p: of so many frames of a segment, counted from its last, one has centres.
        dtm_beta: least weight of a centre's own feature in what it becomes, in [0, 1].
        signal: what scores tokens. ``head``: SigLIP's pooling head, refused for towers without one; ``received``: the
            attention received (for ``qwen`` that of the mean query); ``auto``: the head where there is one.
        as_released: counts as the authors have them, a budget is missed and newline tokens come on top; and fail
            where their code does.

    Raises:
        ConfigError: for any value that is unknown or out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"
    needs_vision: ClassVar[bool] = True

    variant: str = "auto"
    dyseg_c: Annotated[int, Field(ge=1, examples=[8])] = 8
    dyseg_tau: Annotated[Annotated[float, Field(ge=-1, le=1)] | None, Field(examples=[0.9])] = None
    dyseg_ignore: Annotated[float, Field(ge=-1, le=2, examples=[0.95])] = 0.95
    stprune_d: Annotated[float, Field(ge=0, le=1, examples=[0.4])] = 0.4
    dtm_p: Annotated[int, Field(ge=1, examples=[4])] = 4
    dtm_beta: Annotated[float, Field(ge=0, le=1, examples=[0.6])] = 0.6
    signal: Literal["auto", "head", "received"] = "auto"
    as_released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ConfigError(
                f"compressor.variant={self.variant!r} is unknown; allowed: {', '.join(VARIANTS)}"
            )

    def variant_for(self, newline: bool, joined: int) -> str:
        """The variant for a grid with newline tokens, or whose rows in time each stand for several frames."""
        if self.variant != "auto":
            return self.variant
        return "video" if newline else "qwen" if joined > 1 else "onevision"

    @override
    def scores(self, vision: VisionSignals, picture: Picture | None) -> Tensor:
        if self.signal == "head" and vision.head is None:
            raise ConfigError(
                "compressor.signal=head reads SigLIP's pooling head, which this model's vision tower does not have; "
                "use compressor.signal=auto or received, or a checkpoint of LLaVA-OneVision, LLaVA-Video or NVILA that "
                "holds the head's weights"
            )
        if self.signal != "received" and vision.head is not None:
            return vision.head
        newline = picture is not None and picture.stride > picture.width
        if self.variant_for(newline, 1 if picture is None else picture.frames) == "qwen":
            scores = vision.mean_query()
            if scores is not None:
                return scores
        return vision.received

    @override
    def vectors(self, vision: VisionSignals, picture: Picture | None) -> Tensor | None:
        return None if self.signal == "received" else vision.head_frames

    @override
    def reduce(self, video: Pictures, count: int) -> Reduced:
        frames, patches = video.features.shape[:2]
        variant = self.variant_for(video.newline, video.joined)
        # The authors' setting for Qwen differs from the others'.
        tau = self.dyseg_tau if self.dyseg_tau is not None else 0.84 if variant == "qwen" else 0.9
        vectors = video.features.float().mean(1) if video.vectors is None else video.vectors
        found = segments(frame_similarities(vectors), self.dyseg_c, tau)
        ignore = self.dyseg_ignore if variant == "qwen" else None
        valid = [kept_frames(part, found, ignore) for part in found.parts]
        own_frame = None
        if self.as_released:
            kept = count // frames
            own_frame = int(kept * self.stprune_d) if variant == "onevision" else None
            salient, context = released_counts(
                variant, found.parts, valid, kept, self.stprune_d, self.dtm_p, frames, patches
            )
            self._check_released(variant, found, salient, context, patches)
        else:
            salient, context = self._counts(variant, found, valid, count, patches)
        chosen = salient_tokens(video.received, salient)
        merged = merge(
            video.features, chosen, context, found.parts, variant, self.dtm_p, self.dtm_beta, own_frame
        )
        keep = torch.cat((torch.cat(chosen), *(one.place for one in merged)))
        flat = video.features.flatten(0, 1)
        parts = [flat[one] for one in chosen] + [one.features.to(flat) for one in merged]
        reason = torch.full_like(keep, int(Reason.IMPORTANT))
        reason[sum(salient) :] = int(Reason.MERGED)
        return in_order(keep, reason, parts)

    def _counts(
        self, variant: str, found: Segments, valid: Sequence[Sequence[int]], count: int, patches: int
    ) -> tuple[list[int], list[int]]:
        """Salient tokens and centres of each frame that add up to ``count``."""
        frames = sum(map(len, found.parts))
        salient, context = [0] * frames, [0] * frames
        shares = frame_shares(count, frames)
        for part, inside in zip(found.parts, valid, strict=True):
            total = sum(shares[frame] for frame in part)
            centres = sum(int(shares[frame] * self.stprune_d) for frame in part)
            if variant != "onevision":
                centres = int(total * self.stprune_d)
            ends = anchors(inside, self.dtm_p)
            for frame, more in zip(ends, split(centres, len(ends), from_last=True), strict=True):
                context[frame] = min(more, patches // 2)
            for frame, more in zip(inside, split(total - centres, len(inside)), strict=True):
                salient[frame] = min(more, patches - context[frame])
        # What was cut off goes to frames with room, those that keep tokens first.
        left = count - sum(salient) - sum(context)
        for order in (sorted(frame for inside in valid for frame in inside), range(frames)):
            while left > 0 and (
                free := [frame for frame in order if salient[frame] + context[frame] < patches]
            ):
                for frame in free[:left]:
                    salient[frame] += 1
                    left -= 1
        return salient, context

    def _check_released(
        self, variant: str, found: Segments, salient: Sequence[int], context: Sequence[int], patches: int
    ) -> None:
        """Raise ``ValueError`` where the authors' code fails."""
        frames = len(salient)
        if frames < self.dyseg_c:
            reason = f"{frames} frames, fewer than compressor.dyseg_c={self.dyseg_c}"
        elif variant != "onevision" and self.dyseg_c == 1 and not found.below:
            reason = "a single segment"
        elif variant == "onevision" and not any(context):
            reason = "so few tokens a frame that none is a centre"
        elif variant != "onevision" and any(sum(salient[f] for f in part) == 0 for part in found.parts):
            reason = "a segment without salient tokens"
        elif any(a + b > patches for a, b in zip(salient, context, strict=True)):
            reason = f"more tokens to keep of a frame than its {patches}"
        elif any(patches - a < NEIGHBOURS for a, b in zip(salient, context, strict=True) if b):
            reason = f"fewer than {NEIGHBOURS} tokens of a frame that are not salient"
        else:
            return
        raise ValueError(f"FastVID as released fails on {reason}; use compressor.as_released=false")


@dataclass(frozen=True)
class Segments:
    """What DySeg found.

    Attributes:
        similarity: ``(T-1,)`` of neighbouring frames.
        least: the cuts that are made because these are the least similar, by ascending similarity.
        below: the cuts below the threshold, ascending.
        parts: the frames of each segment.
    """

    similarity: Tensor
    least: list[int]
    below: list[int]
    parts: list[list[int]] = field(default_factory=list)

    @property
    def cuts(self) -> list[int]:
        """Frames that end a segment but for the last, ascending."""
        return sorted({*self.least, *self.below})


def frame_similarities(vectors: Tensor) -> Tensor:
    """``(T-1,)`` cosines of neighbouring rows of ``(T, g)`` float32."""
    unit = graph.unit(vectors)
    return (unit[:-1] * unit[1:]).sum(1)


def segments(similarity: Tensor, least: int, tau: float, given: Sequence[int] = ()) -> Segments:
    """Cut at the ``least - 1`` lowest similarities (of equal ones the earlier) and wherever one is below ``tau``.

    ``given`` are further cuts, of a recording.
    """
    fewest = [*torch.sort(similarity, stable=True).indices[: least - 1].tolist(), *given]
    below = (similarity < tau).nonzero()[:, 0].tolist()
    found = Segments(similarity, fewest, below)
    ends = [-1, *found.cuts, len(similarity)]
    found.parts.extend(list(range(a + 1, b + 1)) for a, b in zip(ends[:-1], ends[1:], strict=True))
    return found


def kept_frames(part: Sequence[int], found: Segments, ignore: float | None) -> list[int]:
    """Frames of a segment that keep tokens: all, or the last of each run of frames alike by ``ignore``."""
    if ignore is None:
        return list(part)
    return [frame for frame in part if frame == part[-1] or float(found.similarity[frame]) < ignore]


def anchors(frames: Sequence[int], every: int) -> list[int]:
    """Every ``every``-th of the frames, counted from the last one, ascending."""
    return list(frames)[::-1][::every][::-1]


def split(total: int, parts: int, from_last: bool = False) -> list[int]:
    """``total`` in equal parts, one more for the first ones, or for the last ones."""
    shares = [total // parts + (i < total % parts) for i in range(parts)]
    return shares[::-1] if from_last else shares


def released_counts(
    variant: str,
    parts: Sequence[Sequence[int]],
    valid: Sequence[Sequence[int]],
    kept: int,
    share: float,
    every: int,
    frames: int,
    patches: int,
) -> tuple[list[int], list[int]]:
    """Salient tokens and centres of each frame as the three codes count them, what they cap or floor being lost."""
    salient, context = [0] * frames, [0] * frames
    for part, inside in zip(parts, valid, strict=True):
        ends = anchors(inside, every)
        if variant == "onevision":
            centres = int(kept * share)
            for frame in part:
                salient[frame] = kept - centres
            for frame in ends:
                context[frame] = centres * len(part) // len(ends)
            continue
        centres = int(kept * len(part) * share)
        capped = variant == "qwen" and len(part) > 1
        if variant == "qwen":
            centres = max(centres, 1)
        for frame, more in zip(ends, split(centres, len(ends), from_last=True), strict=True):
            context[frame] = min(more, patches // 2) if capped else more
        many = split(kept * len(part) - centres, len(inside))
        for frame, more in zip(inside, many, strict=True):
            salient[frame] = min(more, patches - context[frame]) if capped else more
    return salient, context


def salient_tokens(scores: Tensor | None, counts: Sequence[int]) -> list[Tensor]:
    """ATS: for each frame the raster indices of its best ``(T, P)`` scores, the best first."""
    assert scores is not None
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    patches = scores.shape[1]
    return [
        row[:count] + frame * patches for frame, (row, count) in enumerate(zip(order, counts, strict=True))
    ]


@dataclass(frozen=True)
class Anchor:
    """The centres of one frame and what they took in.

    Attributes:
        frame: number of the frame.
        place: ``(c,)`` raster indices of the centres.
        source, target: ``(s,)`` raster indices of merged tokens, and the centre of each.
        count: ``(c,)`` tokens merged into each.
        weight: ``(c,)`` of the centre's own feature.
        features: ``(c, D)`` float32.
    """

    frame: int
    place: Tensor
    source: Tensor
    target: Tensor
    count: Tensor
    weight: Tensor
    features: Tensor


def others(salient: Tensor, frame: int, patches: int) -> Tensor:
    """Raster indices, ascending, of a frame's tokens that are not among the ``salient`` ones."""
    left = torch.ones(patches, dtype=torch.bool, device=salient.device)
    left[salient - frame * patches] = False
    return left.nonzero()[:, 0] + frame * patches


def merge(
    features: Tensor,
    salient: Sequence[Tensor],
    context: Sequence[int],
    parts: Sequence[Sequence[int]],
    variant: str,
    every: int,
    beta: float,
    own_frame: int | None = None,
    noise: Mapping[int, Tensor] | None = None,
) -> list[Anchor]:
    """DTM: the centres of each frame that has some, with the rest of their segment merged into them.

    Args:
        features: ``(T, P, D)``.
        salient: raster indices of each frame's salient tokens.
        context: centres of each frame.
        parts: frames of each segment.
        variant: which tokens are merged. ``onevision``: all of the segment that are not salient, centres included;
            else those that are neither salient nor centres of this frame.
        every: one in so many frames has centres.
        beta: least weight of the centre itself.
        own_frame: ``onevision`` as released: frames with so many centres merge their own tokens alone.
        noise: of each frame, as recorded.
    """
    patches = features.shape[1]
    flat = features.flatten(0, 1)
    rest = [others(chosen, frame, patches) for frame, chosen in enumerate(salient)]
    found = []
    for part in parts:
        for frame in part:
            if context[frame] == 0:
                continue
            peaks = density.peaks(flat[rest[frame]], NEIGHBOURS, None if noise is None else noise[frame])
            centres = peaks.centres(context[frame])
            place = rest[frame][centres if variant == "onevision" else centres.sort().values]
            source = rest[frame] if context[frame] == own_frame else torch.cat([rest[f] for f in part])
            if variant != "onevision":
                source = source[torch.isin(source, place, invert=True)]
            # A token's own norm does not decide which centre is nearest to it.
            first, last = part[0] * patches, (part[-1] + 1) * patches
            centre = graph.unit(flat[place])
            nearest = (flat[first:last].to(centre.dtype) @ centre.T).argmax(1)
            target = nearest[source - first]
            found.append(_taken_in(flat, patches, frame, place, source, target, beta))
    return found


def _taken_in(
    flat: Tensor, patches: int, frame: int, place: Tensor, source: Tensor, target: Tensor, beta: float
) -> Anchor:
    count = torch.bincount(target, minlength=len(place))
    total = flat.new_zeros(len(place) + 1, flat.shape[1], dtype=torch.float32)
    # Frame by frame where they lie; what is no source goes into a row that is left out.
    owner = torch.full((len(flat),), len(place), device=flat.device)
    owner[source] = target
    for number in (source // patches).unique().tolist():
        rows = slice(number * patches, (number + 1) * patches)
        graph.add_rows(total, owner[rows], flat[rows].float())
    total = total[:-1]
    own = flat[place].float()
    weight = (1 / (count + 1.0)).clamp_min(beta)
    weight[count == 0] = 1
    mean = total / count.clamp_min(1)[:, None]
    merged = torch.where((count > 0)[:, None], weight[:, None] * own + (1 - weight)[:, None] * mean, own)
    return Anchor(frame, place, source, place[target], count, weight, merged)
