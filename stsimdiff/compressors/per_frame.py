"""Base of methods that reduce each frame by itself, by what the vision tower's attention says of its patches.

The published methods reduce a still image whose tower has a class token. What they mean here, on towers without one
and after pooling or merging, is said in :class:`~stsimdiff.tokens.VisionSignals`; a budget of a video is shared out
evenly among its frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens, all_finite


@dataclass(frozen=True)
class Sums:
    """Rows that are weighted sums of a frame's tokens, each of which is read for what it goes into and no more.

    Attributes:
        taken: ``(m,)`` int64 tokens, row by row.
        weight: ``(m,)`` of each.
        first: ``(k,)`` int64, where each row's begin.
    """

    taken: Tensor
    weight: Tensor
    first: Tensor

    def of(self, features: Tensor) -> Tensor:
        """``(k, D)`` sums of ``(P, D)`` features."""
        weight = self.weight.to(features.dtype)
        return torch.nn.functional.embedding_bag(
            self.taken, features, self.first, mode="sum", per_sample_weights=weight
        )

    @classmethod
    def each(cls, keep: Tensor) -> Sums:
        """These tokens as they are."""
        return cls(keep, torch.ones_like(keep), torch.arange(len(keep), device=keep.device))

    @classmethod
    def joined(cls, frames: Sequence[tuple[int, Sums]]) -> Sums:
        """Those of some frames, each of whose tokens begin with this one of the video."""
        length = [0, *accumulate(len(sums.taken) for _, sums in frames)]
        return cls(
            torch.cat([sums.taken + start for start, sums in frames]),
            torch.cat([sums.weight.float() for _, sums in frames]),
            torch.cat([sums.first + before for before, (_, sums) in zip(length, frames, strict=False)]),
        )


@dataclass(frozen=True)
class Reduced:
    """The reduced tokens of one frame of ``P`` tokens.

    Attributes:
        keep: ``(k,)`` int64, strictly ascending.
        reason: ``(k,)`` uint8 codes.
        features: ``(k, D)`` where the method merged, else ``None``. Of :meth:`PerFrameCompressor.reduce` the ``rows``.
        sums: instead of features, what they are sums of.
    """

    keep: Tensor
    reason: Tensor
    features: Tensor | None = None
    sums: Sums | None = None


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
            rows: ``(count, D)``, to be filled by a method that merges and gives no sums; count is in ``[1, P - 1]``.
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
        reduced: list[tuple[int, Tensor, Reduced]] = []
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
            first = frame * grid.per_frame
            reason[found.keep + first] = found.reason.to(torch.uint8)
            reduced.append((first, own, found))
        keep = torch.cat([found.keep + first for first, _, found in reduced])
        if any(found.sums is not None for _, _, found in reduced):
            parts = [(first, found.sums or Sums.each(found.keep)) for first, _, found in reduced]
            return Selection(keep, reason, Sums.joined(parts).of(tokens.features))
        if all(found.features is None for _, _, found in reduced):
            return Selection(keep, reason)
        for first, own, found in reduced:
            if found.features is None:
                own.copy_(tokens.features[found.keep + first])
        return Selection(keep, reason, rows)
