"""One prefill of a video for all questions about it, where the method reads nothing of a question.

A prompt up to the end of its video is the same for every question, and so is what a causal decoder makes of it. The
first question is prefilled whole; its keys and values up to there are kept, and the next prompt continues from them.
The cache is then as a whole prefill would have left it, so decoding knows no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

from stsimdiff.compressors.base import Run
from stsimdiff.engine.compression import Args, Compression, Decoder, Kwargs
from stsimdiff.tokens import Layout
from stsimdiff.trace import Trace

MASKED = ("sdpa", "eager")
"""Attention that takes a mask of numbers; with any other each prompt is prefilled whole."""


@dataclass(frozen=True)
class Prefix:
    """What a prefill left of the ``P`` tokens up to the end of the video.

    Attributes:
        embeds: ``(1, P, D)`` that entered the decoder.
        positions: ``(..., P)``; ``None`` where the decoder makes them itself.
        layers: keys and values ``(1, heads, k, d)`` of each layer, of the ``k <= P`` tokens that were left there.
        kept: places of the tokens that were left after the last layer; ``None``: all.
        trace: of the prefill, without its times.
    """

    embeds: Tensor
    positions: Tensor | None
    layers: list[tuple[Tensor, Tensor]]
    kept: Tensor | None
    trace: Trace

    def begins(self, embeds: Tensor, positions: Tensor | None) -> bool:
        """Whether a prompt with these embeddings ``(1, S, D)`` and positions begins with it, bit for bit."""
        length = self.embeds.shape[1]
        if (positions is None) != (self.positions is None) or embeds.shape[1] <= length:
            return False
        same = positions is None or torch.equal(positions[..., :length], self.positions)
        return same and torch.equal(embeds[:, :length], self.embeds)


class SharedPrefix(Compression):
    """A :class:`Compression` that continues from the prefix of an earlier prompt, or leaves one.

    Args:
        decoder, run, layout: as :class:`Compression` takes them. The run reads nothing of the question.
        prefix: of an earlier prompt about the same video by the same method.

    Attributes:
        prefix: for the next prompt; ``None`` where there is none: the run reads attention or acts while decoding, the
            cache forgets, or the attention is none of :data:`MASKED`.
        continued: whether this prompt continued from the one given; a prompt that begins otherwise is prefilled whole.
    """

    def __init__(self, decoder: Decoder, run: Run, layout: Layout, prefix: Prefix | None = None) -> None:
        super().__init__(decoder, run, layout)
        self.prefix, self.continued = prefix, False
        self._end_of_video = int(layout.video[-1]) + 1
        self._continuing = False
        self._cache: Any = None
        self._mask: dict[tuple[int, torch.device], Tensor] = {}

    @override
    def _begin(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        begun = super()._begin(module, args, kwargs)
        if not self._active:
            return begun
        args, kwargs = begun or (args, kwargs)
        self._cache, end = kwargs.get("past_key_values"), self._end_of_video
        embeds, positions = kwargs["inputs_embeds"], kwargs.get("position_ids")
        self._begins = embeds[:, :end], None if positions is None else positions[..., :end]
        if self.prefix is None or self._cache is None or not self.prefix.begins(embeds, positions):
            self.prefix = None
            return begun
        self._active, self._continuing, self.continued = False, True, True
        for number, (keys, values) in enumerate(self.prefix.layers):
            self._cache.update(keys, values, number)
        if positions is None:
            positions = torch.arange(self.layout.length, device=embeds.device)[None]
        left = {"inputs_embeds": embeds[:, end:], "position_ids": positions[..., end:]}
        return args, {**kwargs, **left, "attention_mask": None}

    @override
    def _end(self, module: nn.Module, args: Args, output: Any) -> None:
        if self._continuing:
            assert self.prefix is not None
            self._continuing, self._prefilled, self._kept = False, True, self.prefix.kept
            vars(self.trace).update(vars(replace(self.prefix.trace, text=self.layout.text)))
        else:
            whole = self._active
            super()._end(module, args, output)
            if whole:
                self.prefix = self._left()
        self._mask, self._cache = {}, None

    @override
    def _before(self, number: int) -> Callable[..., Any]:
        whole = super()._before(number)

        def hook(layer: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
            if not self._continuing:
                return whole(layer, args, kwargs)
            assert self.prefix is not None
            hidden = args[0] if args else kwargs["hidden_states"]
            held = self.prefix.layers[number][0].shape[-2]
            kwargs = {**kwargs, "attention_mask": self._causal(held, hidden)}
            if self._renumbered:
                positions = torch.arange(held, held + hidden.shape[1], device=hidden.device)[None]
                rotary = self.decoder.module.rotary_emb(hidden, positions)
                kwargs |= {"position_ids": positions, "position_embeddings": rotary}
            return args, kwargs

        return hook

    def _causal(self, held: int, hidden: Tensor) -> Tensor:
        """``(1, 1, S, held + S)``: each of the ``S`` tokens sees all that are held, and itself and those before it."""
        key, rows = (held, hidden.device), hidden.shape[1]
        if key not in self._mask:
            mask = hidden.new_full((rows, held + rows), torch.finfo(hidden.dtype).min)
            self._mask[key] = mask.triu(held + 1)[None, None]
        return self._mask[key]

    def _left(self) -> Prefix | None:
        """The prefix of this prompt, which was prefilled whole."""
        places = self.run.places
        reads = places.attention or places.reads or places.decoding or places.watched
        attention = getattr(getattr(self.decoder.module, "config", None), "_attn_implementation", None)
        layers = [] if self._cache is None else self._cache.layers
        if reads or attention not in MASKED or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        after = self.layout.length - self._end_of_video
        found = [
            (layer.keys[..., :-after, :], layer.values[..., :-after, :]) for layer in layers if after > 0
        ]
        if len(found) != len(self.decoder):
            return None
        trace = replace(self.trace, compressor_seconds=0.0, prefill_seconds=0.0)
        return Prefix(*self._begins, found, self._kept, trace)
