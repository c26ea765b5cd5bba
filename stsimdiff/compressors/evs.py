"""EVS, efficient video sampling: the first frame, and the tokens least like their predecessor in time.

Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference" (arXiv
2510.14624), as vLLM ships it. :func:`select` was checked against recorded outputs of ``compute_retention_mask``
(vllm-project/vllm d750efb). The paper ranks differences of pixels and keeps the first frame on top of the budget; the
code, and so this, ranks embeddings and counts that frame in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import COSINE, Compressor, Places, Run, top
from stsimdiff.compressors.controls import spread
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace

FIRST = 255
"""Dissimilarity of the first frame's tokens in the released code: above every other."""


@dataclass(frozen=True)
class EVS(Compressor):
    """Keep the first frame and then the tokens that differ most, by cosine, from the one before at their place.

    All frames are ranked together, and a tie goes to the earlier token. The predecessor counts whether it was kept or
    not, so a slow drift is never seen. A newline column stays in the first frame alone, as it never changes.

    Fidelity: with ``as_released`` selections equal recorded outputs of vLLM's code. By default the budget is met: a
    count is rounded (released: truncated), a budget below one frame keeps evenly spaced tokens of the first (released:
    that whole frame), and bfloat16 features are compared in float32 (released: as they are, where ties go to early
    frames). Text after the video keeps its positions, which vLLM numbers from the grid's width on.

    Attributes:
        as_released: count, first frame and precision as vLLM has them; the share is then at least that of one frame.
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    as_released: bool = False

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        if self.as_released:
            return _Run(released_count(layout.grid, 1 - budget.retention), True)
        return _Run(budget.keep(layout.grid.tokens, layout.layers), False)

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """A cosine for each token and its predecessor; none where the budget ends within the first frame."""
        later = self.as_released or trace.final > grid.per_frame
        return COSINE * width * (grid.tokens - grid.per_frame) if later else 0


def released_count(grid: Grid, pruning_rate: float) -> int:
    """Tokens that vLLM keeps at a pruning rate q: ``N (1 - q)``, truncated, but at least one frame and at most all."""
    return min(grid.tokens, max(grid.per_frame, int(grid.tokens * (1 - pruning_rate))))


def dissimilarity(tokens: VideoTokens) -> tuple[Tensor, Tensor]:
    """``(T - 1, F)`` cosine to the predecessor, and ``(N,)`` 1 - cosine by which vLLM ranks; in the features' dtype."""
    frames = tokens.features.unflatten(0, (tokens.grid.frames, -1))
    similarity = torch.nn.functional.cosine_similarity(frames[1:], frames[:-1], dim=-1)
    first = similarity.new_full((tokens.grid.per_frame,), FIRST)
    return similarity, torch.cat((first, 1 - similarity.flatten()))


def select(tokens: VideoTokens, count: int, as_released: bool = False) -> Selection:
    """``count`` of all tokens of a video: the first frame's as UNIFORM, the most different others as EVENT.

    Args:
        tokens: all tokens of a video.
        count: from 1, or from one frame with ``as_released``.
        as_released: rank as vLLM does.

    Raises:
        ValueError: for NaN or infinite features.
    """
    tokens.check_finite("EVS, input of layer 0")
    n, first = len(tokens), tokens.grid.per_frame
    place = torch.arange(n, device=tokens.features.device)
    if as_released:
        mask = top(dissimilarity(tokens)[1], count)
    else:
        mask = torch.zeros(n, dtype=torch.bool, device=place.device)
        mask[torch.from_numpy(spread(first, min(count, first))).to(place.device)] = True
        if count > first:
            similarity = graph.pair_similarities(tokens.features, place[:-first], place[first:])
            mask[first:] = top(-similarity, count - first)
    return Selection.from_mask(mask, torch.where(place < first, Reason.UNIFORM, Reason.EVENT))


class _Run(Run):
    places = Places(input=True)

    def __init__(self, count: int, as_released: bool) -> None:
        self.count, self.as_released = count, as_released

    def at_input(self, tokens: VideoTokens) -> Selection:
        return select(tokens, self.count, self.as_released)
