"""VisionZip: what the vision tower's CLS token looks at stays, the rest is merged into evenly spaced tokens.

Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (CVPR 2025). What a frame goes
through, :func:`choose` and :func:`merge`, was checked against recorded outputs of the authors'
``CLIPVisionTower_VisionZip.forward`` (dvlab-research 3151f6d) on still images. Ours are the frames' shares of the
budget and, on towers without a class token, the score: the attention that a patch receives from its frame
(:class:`~stsimdiff.tokens.VisionSignals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.compressors.base import top
from stsimdiff.compressors.per_frame import PerFrameCompressor, Reduced, frame_shares
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Grid, Reason
from stsimdiff.trace import Trace


@dataclass(frozen=True)
class VisionZip(PerFrameCompressor):
    """Each frame keeps dominant tokens and merges the others into contextual ones.

    Only the proportion of the two parameters counts: the budget says how many tokens a frame keeps.

    Fidelity: Table 1's row is from ST-SimDiff's fork, which takes SigLIP's first patch for a class token, reads
    layer -2, and selects among 729 patches a frame before projector and pooling. Here the score of a patch is the
    attention that it receives from its frame, and tokens are selected after pooling. The selection itself equals
    recorded outputs of VisionZip's authors' code, which is for still images.

    Attributes:
        dominant: parts of a frame's share kept for the attention they receive; 54 of 64 as published.
        contextual: parts of it that others are merged into; 10 of 64 as published.

    Raises:
        ConfigError: where both are 0.
    """

    fidelity: ClassVar[str] = "variant"

    dominant: Annotated[int, Field(ge=0, examples=[54])] = 54
    contextual: Annotated[int, Field(ge=0, examples=[10])] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dominant + self.contextual == 0:
            raise ConfigError(
                "compressor.dominant=0 and compressor.contextual=0 keep nothing; allowed: one above 0"
            )

    @override
    def reduce(self, features: Tensor, received: Tensor, keys: Tensor, rows: Tensor) -> Reduced:
        count = len(rows)
        contextual = round(count * self.contextual / (self.dominant + self.contextual))
        if contextual == 0:
            keep = top(received, count).nonzero(as_tuple=True)[0]
            return Reduced(keep, torch.full_like(keep, int(Reason.IMPORTANT)))
        # A stand-in for the class token, which the published selection keeps in front and never merges.
        metric = keys.float().mean(1)
        chosen = choose(
            torch.cat((metric.new_ones(1, metric.shape[1]), metric))[None],
            torch.cat((received.new_zeros(1), received))[None, None],
            count - contextual,
            contextual,
        )
        dominant, target, source = chosen[0][0, 1:] - 1, chosen[1][0] - 1, chosen[2] - 1
        keep, order = torch.cat((dominant, target)).sort()
        merges = order >= len(dominant)
        torch.index_select(features, 0, keep, out=rows)
        rows[merges] = merge(features[None], target[None], source, chosen[3])[0]
        reason = torch.full_like(keep, int(Reason.IMPORTANT)).masked_fill(merges, int(Reason.CONTEXTUAL))
        return Reduced(keep, reason, rows)

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """Frame by frame: keys averaged over heads and normalised, sources against targets and added up."""
        assert keys is not None, "methods that read keys are given their size"
        total, patches, (heads, head) = 0, grid.per_frame, keys
        for share in frame_shares(trace.final, grid.frames):
            contextual = round(share * self.contextual / (self.dominant + self.contextual))
            if share in (0, patches) or contextual == 0:
                continue
            sources = patches - share
            total += patches * (heads + 3) * head + 2 * sources * contextual * head
            total += (sources + 2 * contextual) * width
        return total


def choose(
    metric: Tensor, attention: Tensor, dominant: int, contextual: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dominant tokens by CLS attention, and which evenly spaced others the rest goes to.

    Args:
        metric: ``(B, N, m)`` keys by which the tokens of ``B`` images are compared, CLS (index 0) first.
        attention: ``(B, heads, N)`` of the CLS query.
        dominant: tokens to keep for their attention, besides the CLS token.
        contextual: tokens to merge the others into.

    Returns:
        int64: ``(B, 1 + dominant)`` ascending, the CLS token first; ``(B, contextual)`` tokens that others are merged
        into; ``(B, R)`` those others, ascending; ``(B, R)`` the number of the token that each of them goes to.

    Raises:
        ValueError: when the counts are not within the number of tokens.
    """
    batch, n, _ = metric.shape
    rest = n - 1 - dominant
    if dominant < 0 or not 1 <= contextual <= rest:
        raise ValueError(f"{dominant} dominant and {contextual} contextual tokens do not fit {n - 1} patches")
    score = attention[:, :, 1:].sum(1)
    chosen = torch.sort(score, dim=1, descending=True, stable=True).indices[:, :dominant] + 1
    is_dominant = torch.zeros(batch, n, dtype=torch.bool, device=metric.device)
    is_dominant[:, 0] = True
    is_dominant.scatter_(1, chosen, True)
    kept = is_dominant.nonzero()[:, 1].view(batch, 1 + dominant)
    left = (~is_dominant).nonzero()[:, 1].view(batch, rest)

    is_target = torch.zeros(rest, dtype=torch.bool, device=metric.device)
    is_target[torch.arange(contextual, device=metric.device) * max(1, rest // contextual)] = True
    target, source = left[:, is_target], left[:, ~is_target]
    unit = metric / metric.norm(dim=-1, keepdim=True)
    similarity = _rows(unit, source) @ _rows(unit, target).transpose(1, 2)
    return kept, target, source, similarity.argmax(2)


def merge(hidden: Tensor, target: Tensor, source: Tensor, assignment: Tensor) -> Tensor:
    """``(B, contextual, d)``: each target, and the mean of the sources that went to it, added up."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    merged = torch.zeros_like(hidden[:, : target.shape[1]], dtype=dtype)
    for own, image, rows, numbers, owner in zip(merged, hidden, target, source, assignment, strict=True):
        count = torch.bincount(owner, minlength=len(rows)).clamp_min(1)
        graph.add_rows(own, owner, image.index_select(0, numbers).to(dtype))
        own.div_(count[:, None]).add_(image[rows])
    return merged.to(hidden.dtype)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[b, index[b]]`` for each image, whole rows at a time."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]
