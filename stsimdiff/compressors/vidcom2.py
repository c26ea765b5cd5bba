"""VidCom2: frames that stand out in the video keep more, and a frame keeps the tokens that stand out in both.

Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models" (EMNLP
2025, arXiv 2505.14454). Every step was checked against recorded outputs of the authors' ``vidcom2_compression``
(xuyang-liu16/VidCom2 944a17d), and the exact total against vLLM's port of it (vllm-project/vllm 0f17ee0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
"""Kernel widths of the similarity to a centre, fixed as released."""


@dataclass(frozen=True)
class VidCom2(Compressor):
    """Share the budget out among frames by their distance from the video, then keep the least typical tokens of each.

    Newline tokens and others that are no part of the picture are left out of all statistics and stay, as released;
    here they count in the budget, and go where it leaves no room for them and one token of each frame.

    Fidelity: with ``as_released`` selections equal recorded outputs of the authors' code. By default the shares, which
    they round frame by frame, are brought to the exact budget as vLLM's port does it, and a frame that had a token
    keeps one. Kept tokens have their own positions and stand in raster order, on LLaVA too, where the authors number
    them anew and put a frame's newline tokens last.

    Attributes:
        temperature: of the softmax over frames, above 0.
        channels: share of the channels that count, those of lowest variance; at least one does.
        as_released: round frame by frame (a budget is missed by up to half a token a frame, more from about 50 % on),
            and keep newline tokens on top of it.
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    temperature: Annotated[float, Field(ge=1e-6, examples=[0.01])] = 0.01
    channels: Annotated[float, Field(ge=0, le=1, examples=[0.5])] = 0.5
    as_released: bool = False

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """Variances of all channels; of those that count, twice norms, two centres, and the distances to them."""
        return grid.tokens * (4 * width + 14 * max(1, int(width * self.channels)))


@dataclass(frozen=True)
class TypicalityScores:
    """How typical tokens and frames are; T frames of F tokens.

    Attributes:
        variance: ``(d,)`` of each channel over all tokens.
        channels: ``(c,)`` int64, the channels that count, by ascending variance.
        video, frame: ``(T, F)`` similarity to the centre of the video, of the own frame; in (0, 5].
    """

    variance: Tensor
    channels: Tensor
    video: Tensor
    frame: Tensor


def scores(features: Tensor, share: float = 0.5) -> TypicalityScores:
    """Similarity of each token to the centres of video and frame, in float32 at least (the paper's section 3.2).

    Args:
        features: ``(T, F, d)``.
        share: of the channels that count.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    # Frame by frame, so that what is worked on stays in the cache; nothing as large as the tokens is kept.
    count = features.shape[:2].numel()
    mean = features.flatten(0, 1).sum(0, dtype=dtype) / count
    variance = torch.zeros_like(mean)
    for frame in features:
        variance += (frame.to(dtype) - mean).square_().sum(0)
    variance /= count
    channels = torch.sort(variance, stable=True).indices[: max(1, int(features.shape[2] * share))]
    inside = channels.sort().values
    centres = torch.stack(
        [graph.unit_(frame.index_select(1, inside).to(dtype)).mean(0) for frame in features]
    )
    centre = centres.mean(0)
    by_frame = []
    for frame, own in zip(features, centres, strict=True):
        unit = graph.unit_(frame.index_select(1, inside).to(dtype))
        by_frame.append(torch.stack([(unit - point).square_().sum(-1) for point in (centre, own)]))
    video, near = _similarity(torch.stack(by_frame, 1))
    return TypicalityScores(variance, channels, video, near)


def _similarity(distance: Tensor) -> Tensor:
    """The sum of Gaussian kernels of all widths of squared distances, of any shape."""
    return torch.stack([torch.exp(-distance / (2 * width)) for width in WIDTHS]).sum(0)


def frame_scale(video: Tensor, base_scale: float, temperature: float = 0.01) -> tuple[Tensor, Tensor, Tensor]:
    """Uniqueness, probability and share of its tokens of each frame, ``(T,)`` each (the paper's section 3.3).

    Args:
        video: ``(T, F)`` of :class:`TypicalityScores`.
        base_scale: R, the share to keep of all frames.
        temperature: of the softmax.
    """
    uniqueness = -video.mean(1)
    probability = torch.softmax((uniqueness - uniqueness.max()) / temperature, dim=0)
    return uniqueness, probability, (base_scale * (1 + probability - probability.mean())).clamp_max(1)


def frame_counts(scale: Tensor, per_frame: int) -> Tensor:
    """``(T,)`` int64 tokens that each frame keeps: at least one, rounded half to even."""
    return (scale * per_frame).round().clamp(1, per_frame).long()


def least_typical(score: Tensor, counts: Tensor) -> Tensor:
    """``(T, F)`` bool: in frame t the ``counts[t]`` tokens of the lowest score; the lower index wins a tie."""
    return _rank(score) < counts[:, None]


def _rank(score: Tensor) -> Tensor:
    """``(T, F)`` int64 place of each token in its frame by ascending score; the lower index wins a tie."""
    return torch.sort(torch.sort(score, dim=1, stable=True).indices, dim=1).indices


def exact(score: Tensor, kept: Tensor, count: int) -> Tensor:
    """The kept tokens ``(T, F)`` brought to ``count`` by the score over all frames, as vLLM does it.

    The most typical go, the least typical of the others come. Unlike there, each frame's least typical token goes only
    when all others are gone.
    """
    turn = 2 - kept.int() - (_rank(score) == 0).int()
    order = torch.sort(score.flatten(), stable=True).indices
    order = order[torch.sort(turn.flatten()[order], stable=True).indices]
    return torch.zeros_like(kept).flatten().index_fill(0, order[:count], True).view_as(kept)


class _Run(Run):
    places = Places(input=True)

    def __init__(self, method: VidCom2, layout: Layout, budget: Budget) -> None:
        self.method, self.layout, self.budget = method, layout, budget

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite("VidCom2, input of layer 0")
        method, grid, device = self.method, self.layout.grid, tokens.features.device
        cell = self.layout.cells().to(device)
        frames = tokens.features.view(grid.frames, grid.per_frame, -1)
        found = scores(frames if len(cell) == grid.per_frame else frames[:, cell], method.channels)
        score = found.video + found.frame
        others = grid.tokens - score.numel()
        count = self.budget.keep(grid.tokens, self.layout.layers)
        if count < others + grid.frames and not method.as_released:
            others = 0
        share = self.budget.retention if method.as_released else (count - others) / score.numel()
        scale = frame_scale(found.video, share, method.temperature)[2]
        kept = least_typical(score, frame_counts(scale, score.shape[1]))
        if not method.as_released:
            kept = exact(score, kept, count - others)
        mask = torch.full((grid.frames, grid.per_frame), bool(others), device=device)
        mask[:, cell] = kept
        reason = torch.full_like(mask, int(Reason.UNIFORM), dtype=torch.uint8)
        reason[:, cell] = int(Reason.IMPORTANT)
        return Selection.from_mask(mask.flatten(), reason.flatten())
