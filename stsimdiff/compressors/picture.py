"""Base of methods that act at the input on the picture's tokens alone, frame by frame or in segments of frames.

Newline tokens (a grid's tokens that show no picture) are apart: one stays where its row keeps something, and counts
in the budget.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.compressors.per_frame import Reduced
from stsimdiff.tokens import Layout, Picture, Reason, Selection, VideoTokens, VisionSignals

TRIES = 10
"""Selections made to find the number of picture tokens that, with their newline tokens, meets a budget."""


@dataclass(frozen=True)
class Pictures:
    """The picture's tokens of a video: T frames of P.

    Attributes:
        features: ``(T, P, D)``.
        received: ``(T, P)`` float32 attention received in the vision tower; ``None`` where the method reads none.
        joined: frames of the video that one row in time stands for.
        newline: whether the grid has tokens that show no picture.
        vectors: ``(T, C)`` float32 of the frames, from the vision tower; ``None`` where the method reads none.
    """

    features: Tensor
    received: Tensor | None = None
    joined: int = 1
    newline: bool = False
    vectors: Tensor | None = None


class PictureCompressor(Compressor):
    """Implement :meth:`reduce`; newline tokens and the budget are done here."""

    reads_question: ClassVar[bool] = False
    as_released = False
    """Whether the authors' rounding decides what is left, which misses a budget, and newline tokens come on top."""

    @abstractmethod
    def reduce(self, video: Pictures, count: int) -> Reduced:
        """Reduce the ``T * P`` tokens of a video to ``count``, which is fewer; ``keep`` counts picture tokens alone."""

    def scores(self, vision: VisionSignals, picture: Picture | None) -> Tensor:
        """``(N,)`` what of the tower's signals becomes :attr:`Pictures.received`."""
        return vision.received

    def vectors(self, vision: VisionSignals, picture: Picture | None) -> Tensor | None:
        """``(T, C)`` what of the tower's signals becomes :attr:`Pictures.vectors`."""
        return None

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return PictureRun(self, layout, budget.keep(layout.grid.tokens, layout.layers))


class PictureRun(Run):
    """Reduces at the input.

    Args:
        method: what to do.
        layout: of the video.
        count: tokens to leave, newline tokens included.

    Raises:
        ValueError: when the method reads the tower's attention and the family does not give it.
    """

    places = Places(input=True)

    def __init__(self, method: PictureCompressor, layout: Layout, count: int) -> None:
        self.method, self.layout, self.count = method, layout, count
        if method.needs_vision and layout.vision is None:
            raise ValueError(
                f"{type(method).__name__} reads the vision tower's attention, which this model family does not give"
            )

    @override
    def at_input(self, tokens: VideoTokens) -> Selection:
        name = type(self.method).__name__
        tokens.check_finite(f"{name}, input of layer 0")
        grid, device = tokens.grid, tokens.features.device
        cells = self.layout.cells().to(device)
        if self.count >= grid.tokens:
            everything = torch.ones(grid.tokens, dtype=torch.bool, device=device)
            return Selection.from_mask(everything, Reason.ALL)
        features = tokens.features.view(grid.frames, grid.per_frame, -1)
        received = vectors = None
        if self.layout.vision is not None and self.method.needs_vision:
            scores = self.method.scores(self.layout.vision, self.layout.picture)
            vectors = self.method.vectors(self.layout.vision, self.layout.picture)
            vectors = None if vectors is None else vectors.to(device)
            received = scores.to(device).view(grid.frames, -1)
            if not bool(torch.isfinite(received).all()):
                raise ValueError(
                    f"{name}: the vision tower's received hold NaN or infinite values; load the model in a wider "
                    "dtype, such as bfloat16"
                )
        newline = len(cells) < grid.per_frame
        joined = 1 if self.layout.picture is None else self.layout.picture.frames
        if newline:
            features = features[:, cells]
            received = None if received is None else received[:, cells]
        video = Pictures(features, received, joined, newline, vectors)
        place = (torch.arange(grid.frames, device=device)[:, None] * grid.per_frame + cells).flatten()
        found, ends = self._fitting(video, place, min(self.wanted(video), grid.tokens))
        keep = place[found.keep]
        reason = torch.zeros(grid.tokens, dtype=torch.uint8, device=device)
        reason[ends] = int(Reason.UNIFORM)
        reason[keep] = found.reason.to(torch.uint8)
        rows = None if found.features is None else found.features.to(tokens.features)
        if len(ends):
            keep, turn = torch.cat((keep, ends)).sort()
            rows = None if rows is None else torch.cat((rows, tokens.features[ends]))[turn]
        return Selection(keep, reason, rows)

    def wanted(self, video: Pictures) -> int:
        """Tokens to leave at the input, newline tokens included."""
        return self.count

    def reduce(self, video: Pictures, count: int) -> Reduced:
        """The method's :meth:`PictureCompressor.reduce`."""
        return self.method.reduce(video, count)

    def _fitting(self, video: Pictures, place: Tensor, wanted: int) -> tuple[Reduced, Tensor]:
        """The reduced picture, and the ``(n,)`` raster indices of newline tokens; together they meet the budget."""
        tokens = len(place)
        if not video.newline:
            return self._with_newlines(video, place, wanted)
        if self.method.as_released:
            return self._with_newlines(video, place, max(1, wanted * tokens // self.layout.grid.tokens))
        # Between too few picture tokens and enough, the total grows with their number.
        low, high, best = 0, min(wanted, tokens), None
        guess = round(wanted * tokens / self.layout.grid.tokens)
        for step in range(TRIES):
            count = max(low + 1, min(high, guess))
            found, ends = self._with_newlines(video, place, count)
            total = count + len(ends)
            if total < wanted:
                low = count
            else:
                high, best = count, (found, ends)
            if high - low <= 1 and best is not None or 0 <= total - wanted <= 0.005 * wanted:
                break
            after = count + round((wanted - total) * count / total)
            guess = after if low < after < high and step < 2 else (low + high) // 2
        if best is None:
            best = self._with_newlines(video, place, high)
        found, ends = best
        return found, ends[: wanted - len(found.keep)]

    def _with_newlines(self, video: Pictures, place: Tensor, count: int) -> tuple[Reduced, Tensor]:
        if count < len(place) or self.method.as_released:
            found = self.reduce(video, count)
        else:
            everything = torch.arange(count, device=place.device)
            found = Reduced(everything, torch.full_like(everything, int(Reason.ALL)))
        return found, self._newlines(place[found.keep])

    def _newlines(self, kept: Tensor) -> Tensor:
        """Newline tokens of the grid's rows in which a token of the raster indices ``kept`` is."""
        grid, cells = self.layout.grid, self.layout.cells()
        row = torch.zeros(grid.frames * grid.height, dtype=torch.bool, device=kept.device)
        row[kept // grid.width] = True
        shows = torch.zeros(grid.per_frame, dtype=torch.bool)
        shows[cells] = True
        blank = ~shows.view(grid.height, grid.width).to(kept.device)
        stay = row.view(grid.frames, grid.height, 1) & blank
        return stay.flatten().nonzero(as_tuple=True)[0]


def in_order(keep: Tensor, reason: Tensor, parts: Sequence[Tensor]) -> Reduced:
    """The rows by ascending place; their features come in ``parts``, of which each row is copied once."""
    keep, turn = keep.sort()
    goes = torch.empty_like(turn)
    goes[turn] = torch.arange(len(turn), device=turn.device)
    features = parts[0].new_empty(len(keep), parts[0].shape[1])
    for rows, part in zip(goes.split([len(part) for part in parts]), parts, strict=True):
        features.index_copy_(0, rows, part)
    return Reduced(keep, reason[turn], features)
