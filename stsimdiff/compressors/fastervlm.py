"""FasterVLM: each image keeps the patches that the vision tower's CLS token looks at most.

Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster"
(2024), checked against its authors' code. On towers without a class token the score of a patch is the attention it
receives from its frame; see :class:`~stsimdiff.tokens.VisionSignals`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stsimdiff.compressors.base import top
from stsimdiff.compressors.per_frame import PerFrameCompressor, Reduced
from stsimdiff.tokens import Reason


@dataclass(frozen=True)
class FasterVLM(PerFrameCompressor):
    """Each frame keeps the tokens that receive the most attention in the vision tower."""

    def reduce(self, features: Tensor, received: Tensor, keys: Tensor, count: int) -> Reduced:
        keep = top(received, count).nonzero(as_tuple=True)[0]
        return Reduced(keep, torch.full_like(keep, int(Reason.IMPORTANT)))


def scores(attention: Tensor) -> Tensor:
    """``(B, N)`` mean over the heads of the CLS query's attention ``(B, heads, 1 + N)``, its own column left out."""
    return attention.mean(1)[:, 1:]


def select(attention: Tensor, count: int) -> Tensor:
    """``(B, count)`` int64, ascending: the patches of each image that stay. A tie goes to the lower index.

    Args:
        attention: ``(B, heads, 1 + N)`` attention of the CLS query in the layer that made the features.
        count: patches to keep in each image.

    Raises:
        ValueError: when the count is not in 1 to N.
    """
    patches = attention.shape[2] - 1
    if not 1 <= count <= patches:
        raise ValueError(f"{count} patches to keep; allowed: 1 to {patches}")
    order = torch.sort(scores(attention), dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values
