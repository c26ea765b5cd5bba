"""The control that keeps change: the first frame, and the tokens least like their predecessor in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import COSINE, Compressor, Places, Run, top
from stsimdiff.compressors.controls import spread
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace


@dataclass(frozen=True)
class TemporalDifference(Compressor):
    """Keep the first frame and then the tokens that differ most, by cosine, from the one before at their place.

    A budget below one frame keeps evenly spaced tokens of the first.

    Fidelity: a control of this harness. It follows the usual baseline of frame differences, cut to any budget;
    there is no released code to be equal to.
    """

    fidelity: ClassVar[str] = "adapted"

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(budget.keep(layout.grid.tokens, layout.layers))

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """A cosine for each token and its predecessor; none where the budget ends within the first frame."""
        return COSINE * width * (grid.tokens - grid.per_frame) if trace.final > grid.per_frame else 0


def select(tokens: VideoTokens, count: int) -> Selection:
    """``count`` of all tokens of a video: the first frame's as UNIFORM, the most different others as EVENT.

    Raises:
        ValueError: for NaN or infinite features.
    """
    tokens.check_finite("TemporalDifference, input of layer 0")
    n, first = len(tokens), tokens.grid.per_frame
    place = torch.arange(n, device=tokens.features.device)
    mask = torch.zeros(n, dtype=torch.bool, device=place.device)
    mask[torch.from_numpy(spread(first, min(count, first))).to(place.device)] = True
    if count > first:
        similarity = graph.pair_similarities(tokens.features, place[:-first], place[first:])
        mask[first:] = top(-similarity, count - first)
    return Selection.from_mask(mask, torch.where(place < first, Reason.UNIFORM, Reason.EVENT))


class _Run(Run):
    places = Places(input=True)

    def __init__(self, count: int) -> None:
        self.count = count

    def at_input(self, tokens: VideoTokens) -> Selection:
        return select(tokens, self.count)
