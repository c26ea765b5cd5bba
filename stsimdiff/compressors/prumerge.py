"""PruMerge and PruMerge+: patches with outlying CLS attention stay and take in their most similar patches.

Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models" (2024). What a frame goes
through, :func:`strongest`, :func:`alike` and :func:`sums`, was checked against recorded outputs of the authors'
``token_prune_merge_advanced`` and ``token_prune_merge_advanced_plus`` (42Shawn/LLaVA-PruMerge 097c041) on still images;
sums are not divided. Ours are what :class:`PruMerge` names and, on towers without a class token, the attention of a
patch: what it receives from its frame (:class:`~stsimdiff.tokens.VisionSignals`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.compressors.per_frame import PerFrameCompressor, Reduced, Sums, frame_shares
from stsimdiff.tokens import Grid, Reason
from stsimdiff.trace import Trace

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
    """

    fidelity: ClassVar[str] = "official, adapted"

    plus: bool = False

    @override
    def reduce(self, features: Tensor, received: Tensor, keys: Tensor, rows: Tensor) -> Reduced:
        count = len(rows) - 1
        sampled = count // 2 if self.plus else 0
        kept = strongest(received[None], count - sampled)[0]
        index = kept
        if sampled:
            free = torch.ones_like(received, dtype=torch.bool).index_fill(0, kept, False)
            left = free.nonzero(as_tuple=True)[0]
            at = torch.linspace(0, len(left) - 1, sampled + 2, device=left.device)[1:-1].long()
            index = torch.cat((kept, left[at]))
        neighbours = min(NEIGHBOURS, len(features) - 1)
        rest, cluster = alike(keys.flatten(1).to(features.dtype), index, neighbours)
        place = rest[received[rest].argmax()]
        keep, turn = torch.cat((index, place[None])).sort()
        reason = torch.full_like(keep, int(Reason.IMPORTANT))
        reason[(turn >= len(kept)) & (turn < count)] = int(Reason.UNIFORM)
        reason[turn == count] = int(Reason.MERGED)
        return Reduced(keep, reason, sums=sums(received, index, rest, cluster, turn))

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """Frame by frame: keys normalised, kept ones compared with all, and what each takes in added up by weight."""
        assert keys is not None, "methods that read keys are given their size"
        total, patches, key = 0, grid.per_frame, math.prod(keys)
        for share in frame_shares(trace.final, grid.frames):
            if share in (0, patches):
                continue
            rows = share - 1
            total += patches * 3 * key + 2 * rows * patches * key
            total += 2 * (rows * (min(NEIGHBOURS, patches - 1) + 1) + patches - rows) * width
        return total


def strongest(attention: Tensor, count: int) -> Tensor:
    """``(B, count)`` int64: patches by descending attention ``(B, N)``; a tie goes to the lower index."""
    return torch.sort(attention, dim=1, descending=True, stable=True).indices[:, :count]


def alike(key: Tensor, index: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The patches that count as not kept, and those merged into each kept one.

    Args:
        key: ``(P, d)`` by which patches are compared (cosine).
        index: ``(n,)`` kept patches; it may hold a patch twice.
        neighbours: patches merged into each.

    Returns:
        ``(P - n,)`` and ``(n, neighbours)`` int64.
    """
    patches, n = len(key), len(index)
    left = torch.ones(patches, dtype=torch.bool, device=key.device)
    left[index] = False
    # With a patch twice in the index, the published complement lacks as many of its lowest patches.
    complement = left.nonzero(as_tuple=True)[0]
    complement = complement[len(complement) - (patches - n) :]
    others = torch.cat((complement, index))
    unit = graph.unit(key)
    similarity = (unit[index] @ unit.T)[:, others]
    row = torch.arange(n, device=key.device)
    similarity[row, len(complement) + row] = -torch.inf
    return complement, others[similarity.topk(neighbours, dim=1).indices]


def sums(attention: Tensor, index: Tensor, complement: Tensor, cluster: Tensor, order: Tensor) -> Sums:
    """Each patch of ``index`` with its ``cluster`` by attention, then the ``complement`` by attention, in this order.

    ``order`` ``(n + 1,)`` int64 holds the number of each row.
    """
    last = int((order == len(index)).nonzero())
    order = torch.cat((order[:last], order[last + 1 :]))
    taken = torch.cat((index[:, None], cluster), 1)
    weight = attention[taken]
    weight[:, 0] = 1

    def flat(of_each: Tensor, of_last: Tensor) -> Tensor:
        rows = of_each[order]
        return torch.cat((rows[:last].flatten(), of_last, rows[last:].flatten()))

    first = torch.arange(len(index) + 1, device=index.device) * taken.shape[1]
    first[last + 1 :] += len(complement) - taken.shape[1]
    return Sums(flat(taken, complement), flat(weight, attention[complement]), first)
