"""FasterVLM: each image keeps the patches that the vision tower's CLS token looks at most.

Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster"
(2024), checked against its authors' code. On towers without a class token the score of a patch is the attention it
receives from its frame; see :class:`~stsimdiff.tokens.VisionSignals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stsimdiff.compressors.base import top
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


def output_order(keep: Tensor, tile_grid: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The order in which the released code puts the kept patches into the prompt.

    A plain image keeps patch order. A still image cut into tiles comes as its overview, then its tiles' patches by
    their position in the whole mosaic, row by row. Videos have no tiles; this is here for the recorded cases.

    Args:
        keep: ``(B, T)`` kept patches of each tower image, ascending.
        tile_grid: ``(I, 2)`` rows and columns of tiles of each prompt image; 0, 0 for a plain one.
        height, width: patches of a tower image.

    Returns:
        ``(R,)`` source of each output row (tower image * N + patch), and ``(I,)`` rows of each prompt image.
    """
    patches, count = height * width, keep.shape[1]
    image, sources, sizes = 0, [], []
    for rows, columns in tile_grid.tolist():
        sources.append(keep[image] + image * patches)
        tiles = keep[image + 1 : image + 1 + rows * columns]
        if len(tiles):
            number = torch.arange(len(tiles), device=keep.device)[:, None]
            y = number // columns * height + tiles // width
            x = number % columns * width + tiles % width
            order = (y * columns * width + x).flatten().argsort()
            sources.append((tiles + (image + 1 + number) * patches).flatten()[order])
        image += 1 + len(tiles)
        sizes.append(count * (1 + len(tiles)))
    return torch.cat(sources), torch.tensor(sizes)
