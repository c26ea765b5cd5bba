"""Base of methods that reduce each frame by itself, by what the vision tower's attention says of its patches.

The published methods reduce a still image whose tower has a class token. What they mean here, on towers without one
and after pooling or merging, is said in :class:`~stsimdiff.tokens.VisionSignals`; a budget of a video is shared out
evenly among its frames.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens, all_finite


@dataclass(frozen=True)
class Reduced:
    """The reduced tokens of one frame of ``P`` tokens.

    Attributes:
        keep: ``(k,)`` int64, strictly ascending.
        reason: ``(k,)`` uint8 codes.
        features: ``(k, D)`` where the method merged, else ``None``. Of :meth:`PerFrameCompressor.reduce` the ``rows``.
    """

    keep: Tensor
    reason: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class PerFrameCompressor(Compressor):
    """Implement :meth:`reduce`; the budget, its share for each frame and the bookkeeping are done here."""

    needs_vision: ClassVar[bool] = True
    reads_question: ClassVar[bool] = False

    @abstractmethod
    def reduce(self, features: Tensor, received: Tensor, keys: Tensor, rows: Tensor) -> Reduced:
        """Reduce one frame to ``count`` tokens.

        Args:
            features: ``(P, D)``.
            received: ``(P,)`` float32, attention received.
            keys: ``(P, heads, d)``.
            rows: ``(count, D)``, to be filled by a method that merges; count is in ``[1, P - 1]``.
        """

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _PerFrameRun(self, layout, budget)


def frame_shares(count: int, frames: int) -> list[int]:
    """``count`` tokens shared out among ``frames``: equal but for one token, the larger shares at equal distance."""
    base, extra = divmod(count, frames)
    return [base + (i + 1) * extra // frames - i * extra // frames for i in range(frames)]


class _PerFrameRun(Run):
    places = Places(input=True)

    def __init__(self, method: PerFrameCompressor, layout: Layout, budget: Budget) -> None:
        if layout.vision is None:
            raise ValueError(
                f"{type(method).__name__} reads the vision tower's attention, which this model family does not give"
            )
        self.method, self.layout, self.budget, self.vision = method, layout, budget, layout.vision

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite(f"{type(self.method).__name__}, input of layer 0")
        grid, vision = self.layout.grid, self.vision
        for name in ("received", "keys"):
            if not all_finite(getattr(vision, name)):
                raise ValueError(
                    f"{type(self.method).__name__}: the vision tower's {name} hold NaN or infinite values; load the "
                    "model in a wider dtype, such as bfloat16"
                )
        count = self.budget.keep(grid.tokens, self.layout.layers)
        device = tokens.features.device
        received = vision.received.to(device).view(grid.frames, -1)
        keys = vision.keys.to(device).view(grid.frames, grid.per_frame, *vision.keys.shape[1:])
        features = tokens.features.view(grid.frames, grid.per_frame, -1)
        # Memory that nothing was written to costs nothing: only a method that merges fills the rows.
        rows = tokens.features.new_empty(count, tokens.features.shape[1])
        kept: list[Tensor] = []
        as_they_are: list[tuple[Tensor, Tensor]] = []
        reason = torch.zeros(grid.tokens, dtype=torch.uint8, device=device)
        shares = frame_shares(count, grid.frames)
        for frame, own in enumerate(rows.split(shares)):
            if len(own) == 0:
                continue
            if len(own) == grid.per_frame:
                everything = torch.arange(len(own), device=device)
                found = Reduced(everything, torch.full_like(everything, int(Reason.ALL)))
            else:
                found = self.method.reduce(features[frame], received[frame], keys[frame], own)
            index = found.keep + frame * grid.per_frame
            kept.append(index)
            reason[index] = found.reason.to(torch.uint8)
            if found.features is None:
                as_they_are.append((own, index))
        if len(as_they_are) == len(kept):
            return Selection(torch.cat(kept), reason)
        for own, index in as_they_are:
            own.copy_(tokens.features[index])
        return Selection(torch.cat(kept), reason, rows)
