"""A run that drops fixed tokens at fixed places, and the places that the engine's tests drop at."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from stsimdiff.compressors.base import Places, Run
from stsimdiff.engine import Compression, Decoder
from stsimdiff.tokens import Layout, Reason, Selection

NEW_TOKENS = 5

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


class Scripted(Run):
    """Drops fixed raster indices at fixed places; keeps what it was shown."""

    def __init__(
        self, drops: dict[tuple[str, int], set[int]], attention: frozenset[int] = frozenset(), **places
    ):
        self.drops = drops
        self.places = Places(
            input=("input", 0) in drops,
            before=frozenset(n for place, n in drops if place == "before"),
            between=frozenset(n for place, n in drops if place == "between"),
            attention=attention,
            **places,
        )
        self.seen: dict[tuple[str, int], torch.Tensor] = {}

    def _drop(self, place, layer, tokens, attention=None):
        self.seen[place, layer] = attention
        stay = torch.tensor([int(i) not in self.drops[place, layer] for i in tokens.index])
        return Selection.from_mask(stay, Reason.RANDOM)

    def at_input(self, tokens):
        return self._drop("input", 0, tokens)

    def before_layer(self, layer, tokens, attention):
        return self._drop("before", layer, tokens, attention)

    def between(self, layer, tokens, attention):
        return self._drop("between", layer, tokens, attention)


def some(seed: int, share: float, tokens: int = 48) -> set[int]:
    generator = torch.Generator().manual_seed(seed)
    return set(torch.randperm(tokens, generator=generator)[: int(tokens * share)].tolist())


def generated(
    model: nn.Module, inputs: dict[str, Any], decoder: Decoder, layout: Layout, run: Run | None
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Logits ``(NEW_TOKENS, V)`` and ids of the new tokens, and the trace; the stock model's without a run."""
    options = dict(
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with Compression(decoder, run, layout) if run else nullcontext() as trace:
        output = model.generate(**inputs, **options)
    return torch.cat(output.logits), output.sequences[0, -NEW_TOKENS:], trace
