"""DyCoke: of four frames one stays whole, the others keep what differs most from a frame before; decoding sees less.

Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models" (CVPR 2025, arXiv 2411.15024),
its token temporal merging (TTM), which averages nothing, and its dynamic pruning of cached keys while an answer is
decoded, which changes no prefill. Both were checked against recorded outputs of the authors' code (KD-TAO/DyCoke
dd74634), in a whole answer too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import COSINE, Compressor, Hidden, Places, Run
from stsimdiff.compressors.per_frame import frame_shares
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace

WINDOW = 4
"""Frames of which one stays whole, fixed as published."""


@dataclass(frozen=True)
class DyCoke(Compressor):
    """One frame in four stays whole; a cut frame keeps the tokens least like those at their places a frame before.

    The third frame of four is compared with the first. The number kept in the cut frames, the paper's K, follows from
    the budget, so that 25 % is the least that can be met.

    Fidelity: the kept tokens equal recorded outputs of the authors' code with ``as_released=true``. That code drops the
    last frame of an odd number, cuts no third frame among the last four, fails on 4 frames and fewer, and shuffles the
    tokens of a cut frame. Here, by default, no frame is lost and every window is cut; tokens always stay in order and
    keep their positions. While decoding, the authors' code takes the last video token for text, and begins a question
    with the attention of the one before.

    Attributes:
        as_released: keep which tokens the authors' code keeps, its loss of frames included.
        dycoke_p: share of the video's keys that a generated token does not see, those it looks at least, in [0, 1); 0
            turns that off. It sees all where its attention is much like the last token's.
        dycoke_l: the first layer with fewer keys, at least 1; the attention is that of the layer before.
        similarity: cosine of the two attentions from which all keys are seen, in [-1, 1].
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    as_released: bool = False
    dycoke_p: Annotated[float, Field(ge=0, lt=1, examples=[0.7])] = 0.7
    dycoke_l: Annotated[int, Field(ge=1, examples=[3])] = 3
    similarity: Annotated[float, Field(ge=-1, le=1, examples=[0.9])] = 0.9

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is not None and self.dycoke_p and self.dycoke_l >= layers:
            raise ConfigError(
                f"compressor.dycoke_l={self.dycoke_l} does not exist in a model of {layers} layers; allowed: 1 to "
                f"{layers - 1}, or compressor.dycoke_p=0"
            )
        if budget.retention < 1 / WINDOW:
            raise BudgetError(
                f"budget.retention={budget.retention:g} cannot be met by DyCoke: one frame in {WINDOW} stays whole; "
                f"allowed: {1 / WINDOW:g} to 1"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, layout, budget)

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """A cosine for each token of a cut frame; none where every token stays."""
        if trace.final == grid.tokens:
            return 0
        cut = sum(before is not None for before in references(grid.frames, self.as_released))
        return COSINE * width * cut * grid.per_frame


def references(frames: int, as_released: bool = False) -> list[int | None]:
    """For each frame the one that it is compared with, or ``None`` where it stays whole.

    Args:
        frames: T.
        as_released: the last frame of an odd number is missing, and a window is cut only if a frame follows it.

    Raises:
        ValueError: as released, for 4 frames and fewer, on which the authors' code fails.
    """
    if as_released and frames <= WINDOW:
        raise ValueError(f"DyCoke as released fails on a video of {frames} frames; it needs {WINDOW + 1}")
    found: list[int | None] = []
    for frame in range(frames - (frames % 2 if as_released else 0)):
        first = frame % WINDOW == 0 or (as_released and frame % 2 == 0 and frame - 2 > frames - WINDOW - 1)
        found.append(None if first else frame - 2 if frame % 2 == 0 else frame - 1)
    return found


def similarities(features: Tensor, per_frame: int, before: Sequence[int | None]) -> dict[int, Tensor]:
    """For each cut frame ``(P,)`` cosines to the tokens at the same places of the frame it is compared with.

    Args:
        features: ``(n, D)`` in raster order.
        per_frame: P.
        before: :func:`references`.
    """
    place = torch.arange(per_frame, device=features.device)
    return {
        frame: graph.pair_similarities(features, place + other * per_frame, place + frame * per_frame)
        for frame, other in enumerate(before)
        if other is not None
    }


def least_similar(similarity: Tensor, count: int) -> Tensor:
    """``(count,)`` places of the least similar tokens, the least first; of equal ones the lower place."""
    return torch.sort(similarity, stable=True).indices[:count]


def most_seen(attention: Tensor, before: Tensor | None, method: DyCoke) -> tuple[float, Tensor | None]:
    """Which video tokens a generated token sees, of ``attention`` ``(n,)`` to them.

    Args:
        attention: mean over the heads.
        before: that of the token before; ``None``: there is none.
        method: with its parameters.

    Returns:
        The cosine of both, 0 for the first token, and the rows ``(m,)`` that it sees; ``None``: all.
    """
    similarity = 0.0 if before is None else float(torch.cosine_similarity(attention, before, dim=0))
    if similarity >= method.similarity:
        return similarity, None
    count = int(len(attention) * (1 - method.dycoke_p))
    return similarity, torch.sort(attention, descending=True, stable=True).indices[:count].sort().values


class _Run(Run):
    input_state = ()

    def __init__(self, method: DyCoke, layout: Layout, budget: Budget) -> None:
        self.method = method
        self.attention: Tensor | None = None
        decoding = {method.dycoke_l} if method.dycoke_p else set()
        self.places = Places(
            input=True, decoding=frozenset(decoding), watched=frozenset(layer - 1 for layer in decoding)
        )
        grid = layout.grid
        self.per_frame = grid.per_frame
        self.before = references(grid.frames, method.as_released)
        self.cut = [frame for frame, other in enumerate(self.before) if other is not None]
        count = budget.keep(grid.tokens, layout.layers)
        least, most = (
            frames * grid.per_frame for frames in (len(self.before) - len(self.cut), len(self.before))
        )
        if not least <= count <= most:
            raise BudgetError(
                f"budget.retention={budget.retention:g} cannot be met by DyCoke on a video of {grid.frames} frames, "
                f"of which {least // grid.per_frame} stay whole; it reaches {least / grid.tokens:.3f} to "
                f"{most / grid.tokens:.3f}"
            )
        self.shares = frame_shares(count - least, len(self.cut)) if self.cut else []

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite("DyCoke, input of layer 0")
        reason = torch.zeros(len(tokens), dtype=torch.uint8, device=tokens.features.device)
        for frame, other in enumerate(self.before):
            if other is None:
                reason[frame * self.per_frame : (frame + 1) * self.per_frame] = int(Reason.UNIFORM)
        if sum(self.shares) == len(self.cut) * self.per_frame:
            alike = {frame: torch.zeros(self.per_frame, device=reason.device) for frame in self.cut}
        else:
            alike = similarities(tokens.features, self.per_frame, self.before)
        for frame, share in zip(self.cut, self.shares, strict=True):
            reason[least_similar(alike[frame], share) + frame * self.per_frame] = int(Reason.EVENT)
        return Selection.from_mask(reason > 0, reason)

    @override
    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor | None) -> Hidden | None:
        if attention is None:
            raise ValueError(f"DyCoke needs the attention of layer {layer - 1}")
        # As released, the last video token counts as text, which is never hidden.
        seen = attention.mean(0)[: len(cached) - self.method.as_released]
        _, kept = most_seen(seen, self.attention, self.method)
        self.attention = seen
        if kept is None:
            return None
        hidden = torch.ones(len(seen), dtype=torch.bool, device=seen.device)
        hidden[kept] = False
        return Hidden(cached[: len(seen)][hidden])
