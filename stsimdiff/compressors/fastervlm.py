"""FasterVLM: each image keeps the patches that the vision tower's CLS token looks at most.

Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster"
(2024). :func:`select`, through which every frame goes, was checked against recorded outputs of the authors'
``prepare_inputs_labels_for_multimodal`` (Theia-4869/FasterVLM f5d5f12) on still images. Ours are the frames' shares of
the budget and, on towers without a class token, the score: the attention that a patch receives from its frame
(:class:`~stsimdiff.tokens.VisionSignals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.compressors.per_frame import PerFrameCompressor, Reduced
from stsimdiff.tokens import Reason


@dataclass(frozen=True)
class FasterVLM(PerFrameCompressor):
    """Each frame keeps the tokens that receive the most attention in the vision tower.

    Fidelity: Table 1's row is from ST-SimDiff's fork, which takes SigLIP's first patch for a class token, reads
    layer -2, and selects among 729 patches a frame before projector and pooling. Here the score of a patch is the
    attention that it receives from its frame, and tokens are selected after pooling. The published selection, for
    still images, is replayed against recorded outputs of FasterVLM's authors' code.
    """

    fidelity: ClassVar[str] = "variant"

    flops = PerFrameCompressor.no_flops

    @override
    def reduce(self, features: Tensor, received: Tensor, keys: Tensor, rows: Tensor) -> Reduced:
        keep = select(received[None], len(rows))[0]
        return Reduced(keep, torch.full_like(keep, int(Reason.IMPORTANT)))


def select(scores: Tensor, count: int) -> Tensor:
    """``(B, count)`` int64, ascending: the patches of each image that stay. A tie goes to the lower index.

    Args:
        scores: ``(B, N)`` attention of each patch.
        count: patches to keep in each image.

    Raises:
        ValueError: when the count is not in 1 to N.
    """
    if not 1 <= count <= scores.shape[1]:
        raise ValueError(f"{count} patches to keep; allowed: 1 to {scores.shape[1]}")
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values
