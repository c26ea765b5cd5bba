"""A run that drops fixed tokens at fixed places, and the places that the engine's tests drop at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stsimdiff.models.kit.running import ScriptedRun
from stsimdiff.tokens import Selection, VideoTokens

DROPS = {
    "input": {("input", 0): 0.7},
    "input, all but one": {("input", 0): 47 / 48},
    "before 1": {("before", 1): 0.5},
    "before 2": {("before", 2): 0.5},
    "before last": {("before", 3): 0.9},
    "between 0": {("between", 0): 0.5},
    "between 1": {("between", 1): 0.5},
    "between last": {("between", 3): 0.5},
    "input and between 1": {("input", 0): 0.4, ("between", 1): 0.6},
    "four places": {("input", 0): 0.2, ("before", 1): 0.3, ("between", 1): 0.2, ("before", 3): 0.4},
}


class Scripted(ScriptedRun):
    """A scripted run with further places, which keeps the attention that it was shown."""

    def __init__(
        self, drops: dict[tuple[str, int], set[int]], attention: frozenset[int] = frozenset(), **places: Any
    ):
        super().__init__(drops, attention)
        self.places = replace(self.places, **places)
        self.seen: dict[tuple[str, int], Tensor | None] = {}

    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
        self.seen["before", layer] = attention
        return super().before_layer(layer, tokens, attention)

    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
        self.seen["between", layer] = attention
        return super().between(layer, tokens, attention)


def some(seed: int, share: float, tokens: int = 48) -> set[int]:
    generator = torch.Generator().manual_seed(seed)
    return set(torch.randperm(tokens, generator=generator)[: int(tokens * share)].tolist())
