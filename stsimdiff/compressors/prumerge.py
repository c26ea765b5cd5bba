"""PruMerge and PruMerge+: patches with outlying CLS attention stay and take in their most similar patches.

Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models" (2024), checked
against its authors' code, whose habits are kept: one ratio for the whole batch, sums that are not divided, and the
way that PruMerge+ samples. On towers without a class token the attention of a patch is what it receives from its frame;
see :class:`~stsimdiff.tokens.VisionSignals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stsimdiff.compressors.per_frame import PerFrameCompressor, Reduced
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Reason

NEIGHBOURS = 32
"""Patches merged into each kept one, fixed as published."""


@dataclass(frozen=True)
class PruMerge(PerFrameCompressor):
    """Each frame keeps the tokens that receive the most attention, merges their likes into them, and sums up the rest.

    The number kept follows from the budget instead of the outlier rule. What differs from still images, because a
    decoder reads tokens in order and a place can be taken once: rows stand in raster order; the token that sums up
    what was not kept takes the place of the one among them with the most attention; the samples of the plus form are
    evenly spaced among the tokens not kept for their attention. Frames of fewer than 33 tokens merge all others.

    Fidelity: the authors' code reduces a still image by the class token's attention to its patches. Here a patch's
    score is the attention that it receives from its frame, tokens are reduced after pooling, and the budget
    replaces the outlier rule. Merging equals recorded outputs of the authors' code.

    Attributes:
        plus: PruMerge+: half of a frame's share are evenly spaced samples.

    Raises:
        ConfigError: when ``plus`` is neither true nor false.
    """

    fidelity: ClassVar[str] = "adapted"

    plus: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.plus, bool):
            raise ConfigError(f"compressor.plus={self.plus!r} is unknown; allowed: true, false")

    def reduce(self, features: Tensor, received: Tensor, keys: Tensor, count: int) -> Reduced:
        order = torch.sort(received, descending=True, stable=True).indices
        rows = count - 1
        sampled = rows // 2 if self.plus else 0
        kept, left = order[: rows - sampled], order[rows - sampled :].sort().values
        samples = left[torch.linspace(0, len(left) - 1, sampled + 2, device=left.device)[1:-1].long()]
        index = torch.cat((kept, samples))
        merged = merge(
            features[None],
            keys.flatten(1)[None].to(features.dtype),
            received[None].to(features.dtype),
            index[None],
            min(NEIGHBOURS, len(features) - 1),
        )
        rest = merged.complement[0]
        place = rest[received[rest].argmax()]
        keep, turn = torch.cat((index, place[None])).sort()
        reason = torch.full_like(keep, int(Reason.IMPORTANT))
        reason[(turn >= len(kept)) & (turn < rows)] = int(Reason.UNIFORM)
        reason[turn == rows] = int(Reason.MERGED)
        return Reduced(keep, reason, merged.features[0][turn])


@dataclass(frozen=True)
class Merged:
    """The reduced tokens of ``B`` images.

    Attributes:
        features: ``(B, n + 1, d)``: a row for each of ``index``, then one that sums up what was not kept.
        index: ``(B, n)`` int64, kept patches in the order of the rows; it may hold a patch twice.
        complement: ``(B, N - n)`` int64, patches that count as not kept.
        cluster: ``(B, n, 32)`` int64, patches merged into each row.
    """

    features: Tensor
    index: Tensor
    complement: Tensor
    cluster: Tensor


def cls_attention(query: Tensor, key: Tensor) -> Tensor:
    """``(B, N)`` attention of the CLS query ``(B, d)`` to the patches of ``key`` ``(B, 1 + N, d)``, CLS first.

    One softmax at full width, without heads; the CLS column is left out and the rest not normalised again.
    """
    return (torch.einsum("bd,bnd->bn", query, key) / key.shape[2] ** 0.5).softmax(1)[:, 1:]


def outlier_bounds(attention: Tensor) -> Tensor:
    """``(3,)`` quartiles Q1 and Q3 of all values of ``(B, N)`` together, and the bound Q3 + 1.5 (Q3 - Q1)."""
    low, high = torch.quantile(
        attention.flatten().float(), torch.tensor([0.25, 0.75], device=attention.device)
    )
    return torch.stack((low, high, high + 1.5 * (high - low)))


def adaptive_ratio(attention: Tensor) -> float:
    """Share of the patches of all images together whose attention ``(B, N)`` lies above the outlier bound."""
    return int((attention.float() > outlier_bounds(attention)[2]).sum()) / attention.numel()


def kept_patches(attention: Tensor, ratio: float) -> Tensor:
    """``(B, int(N * ratio))`` int64: patches by descending attention; a tie goes to the lower index."""
    order = torch.sort(attention, dim=1, descending=True, stable=True).indices
    return order[:, : int(attention.shape[1] * ratio)]


def sampled_patches(kept: Tensor, ratio: float, adaptive: bool, end: int) -> Tensor:
    """``(B, n)``: the kept patches of PruMerge+, evenly spaced samples of the flat index after ``kept`` ``(B, M)``.

    Adaptive: samples every ``int(1 / ratio) / 3`` patches, without those that are kept anyway. Fixed: every
    ``int(1 / ratio)`` patches from half a step on, in every image, so that a patch may be there twice.

    Args:
        kept: patches of the plain form.
        ratio: the ratio in use.
        adaptive: whether it was found by :func:`adaptive_ratio`.
        end: samples lie below it; 575 as published, whose grid has 576 patches.

    Raises:
        ValueError: for a ratio of 0, for adaptive sampling of several images (each has a number of its own), and
            for fixed sampling that does not give as many samples as kept patches, as the published code demands.
    """
    if ratio <= 0:
        raise ValueError("no patch stands out from the others: PruMerge+ has no ratio to sample by")
    start, stop, stride = sample_range(ratio, adaptive, end)
    samples = torch.arange(start, stop, stride, device=kept.device)
    if adaptive:
        if len(kept) != 1:
            raise ValueError(f"adaptive PruMerge+ takes one image at a time, got {len(kept)}")
        return torch.cat((kept, samples[~torch.isin(samples, kept[0])][None]), 1)
    if len(samples) != kept.shape[1]:
        raise ValueError(
            f"{len(samples)} samples for {kept.shape[1]} kept patches; choose a ratio that gives as many"
        )
    return torch.cat((kept, samples.expand(len(kept), -1)), 1)


def sample_range(ratio: float, adaptive: bool, end: int) -> tuple[int, int, int]:
    """Start, end and stride of the samples of PruMerge+; arguments as in :func:`sampled_patches`."""
    step = int(1 / ratio)
    return (0, end, max(1, int(step / 3))) if adaptive else (int(step / 2), end, step)


def merge(
    hidden: Tensor, key: Tensor, attention: Tensor, index: Tensor, neighbours: int = NEIGHBOURS
) -> Merged:
    """Add to each kept patch its most similar others, weighted by their attention, and sum up the rest.

    Args:
        hidden: ``(B, N, d)`` features of the patches, without CLS.
        key: ``(B, N, d)`` keys by which patches are compared (cosine).
        attention: ``(B, N)`` from :func:`cls_attention`.
        index: ``(B, n)`` kept patches.
        neighbours: patches merged into each; 32 as published.

    Raises:
        ValueError: for images that have no more patches than that.
    """
    patches = hidden.shape[1]
    if patches <= neighbours:
        raise ValueError(
            f"PruMerge merges {neighbours} neighbours, so an image needs more patches than {patches}"
        )
    images = [_merge_one(*image, neighbours) for image in zip(hidden, key, attention, index, strict=True)]
    features, complement, cluster = (torch.stack(part) for part in zip(*images, strict=True))
    return Merged(features, index, complement, cluster)


def _merge_one(
    hidden: Tensor, key: Tensor, attention: Tensor, index: Tensor, neighbours: int
) -> tuple[Tensor, Tensor, Tensor]:
    patches, n = len(hidden), len(index)
    left = torch.ones(patches, dtype=torch.bool, device=hidden.device)
    left[index] = False
    # With a patch twice in the index, the published complement lacks as many of its lowest patches.
    complement = left.nonzero(as_tuple=True)[0]
    complement = complement[len(complement) - (patches - n) :]
    others = torch.cat((complement, index))
    unit = torch.nn.functional.normalize(key, dim=1)
    similarity = unit[index] @ unit[others].T
    row = torch.arange(n, device=hidden.device)
    similarity[row, len(complement) + row] = -torch.inf
    cluster = others[similarity.topk(neighbours, dim=1).indices]
    weighted = hidden * attention[:, None]
    rows = hidden[index] + weighted[cluster].sum(1)
    return torch.cat((rows, weighted[complement].sum(0, keepdim=True))), complement, cluster
