"""One prefill of a video for all questions about it, as far as the method reads nothing of a question.

A prompt up to the end of its video is the same for every question, and so is what a causal decoder makes of it. The
first question is prefilled whole. Of its layers up to the first one whose attention, keys or values the run reads, the
keys and values up to the end of the video are kept, and the hidden states that leave them; the next prompt continues
from those. Where the run reads nothing, that is the whole decoder. The cache is then as a whole prefill would have left
it, so decoding knows no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

from stsimdiff.compressors.base import Places, Run
from stsimdiff.engine.compression import Args, Compression, Decoder, Kwargs
from stsimdiff.engine.slicing import SLICED
from stsimdiff.engine.view import LayerInput, rows_read
from stsimdiff.tokens import Layout, Read, Selection, VideoTokens
from stsimdiff.trace import Trace

MASKED = ("sdpa", "eager")
"""Attention that takes a mask of numbers; with any other each prompt is prefilled whole."""


@dataclass(frozen=True)
class Prefix:
    """What a prefill left of the ``P`` tokens up to the end of the video, ``k <= P`` of them in a layer.

    Attributes:
        embeds: ``(1, P, D)`` that entered the decoder.
        positions: ``(..., P)``; ``None`` where the decoder makes them itself.
        layers: keys and values ``(1, heads, k, d)`` of each layer that is shared.
        hidden: ``(1, k, D)`` that left the last of them; ``None`` where all layers are shared.
        entered: ``(1, k, D)`` that entered it, where it is read.
        kept: places of the tokens that were left then; ``None``: all.
        raster: ``(n,)`` raster indices of the video tokens that were left then.
        reason: ``(N,)`` reasons then.
        trace: of the prefill up to there, without its times.
        state: what the run remembers of its input, by attribute; ``None``: it has to be asked there again.
    """

    embeds: Tensor
    positions: Tensor | None
    layers: list[tuple[Tensor, Tensor]]
    hidden: Tensor | None
    entered: Tensor | None
    kept: Tensor | None
    raster: Tensor
    reason: Tensor
    trace: Trace
    state: dict[str, Any] | None

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
        decoder, run, layout: as :class:`Compression` takes them. The run reads nothing of the question but what its
            places announce.
        prefix: of an earlier prompt about the same video by the same method.

    Attributes:
        prefix: for the next prompt; ``None`` where there is none: the run selects by what it reads in the first layer,
            or inside the layers below the first that it reads, or inside any and acts while decoding; the cache
            forgets; the attention is none of :data:`MASKED`; or the keys depend on the prompt's length.
        continued: whether this prompt continued from the one given; a prompt that begins otherwise is prefilled whole.
        asks_later: whether a prompt that continues asks the run, in the layers that are not shared or while decoding.
    """

    def __init__(self, decoder: Decoder, run: Run, layout: Layout, prefix: Prefix | None = None) -> None:
        super().__init__(decoder, run, layout)
        self.prefix, self.continued = prefix, False
        self._end_of_video = int(layout.video[-1]) + 1
        same = not rotates_by_length(decoder.module, layout.length)
        self._shared = shared_layers(self.run, layout, len(decoder)) if same else 0
        self.asks_later = self._shared < len(decoder) or self._decoding.acts
        self._continuing = False
        self._cache: Any = None
        self._left: Prefix | None = None
        self._entering: Tensor | None = None
        self._mask: dict[tuple[int, torch.device], Tensor] = {}

    @override
    def _begin(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        begun = super()._begin(module, args, kwargs)
        if not self._active:
            return begun
        kwargs, end = begun[1] if begun else kwargs, self._end_of_video
        embeds, positions = kwargs["inputs_embeds"], kwargs.get("position_ids")
        self._begins = embeds[:, :end], None if positions is None else positions[..., :end]
        self._cache = kwargs.get("past_key_values")
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if self._cache is None or attention not in MASKED or end == self.layout.length:
            self._shared = 0
        if self._shared and self.prefix is not None:
            # A text that is shorter than what the run reads of it shares one layer less.
            fits = len(self.prefix.layers) == self._shared
            self._continuing = self.continued = fits and self.prefix.begins(embeds, positions)
        return begun

    @override
    def _end(self, module: nn.Module, args: Args, output: Any) -> None:
        if not self._active:
            return super()._end(module, args, output)
        if self._continuing:
            self._restore()
        elif not self.continued and self._shared == len(self.decoder):
            self._leave(None)
        super()._end(module, args, output)
        if self.continued:
            self.trace.prefill_seconds = self.trace.compressor_seconds = 0.0
        else:
            self.prefix = self._left
        self._continuing, self._mask, self._cache, self._left, self._entering = False, {}, None, None, None

    @override
    def _before(self, number: int) -> Callable[..., Any]:
        whole = super()._before(number)
        # Of what enters layer 0, ``whole`` takes what is read.
        reads = 0 < number == self._shared - 1 and number in self.run.places.attention | self.run.places.reads

        def hook(layer: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
            if not self._active or not self._shared or number > self._shared:
                return whole(layer, args, kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            kwargs = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            if not self._continuing:
                if number == self._shared:
                    self._leave(hidden)
                elif reads:
                    self._entering = hidden
                return whole(layer, (hidden, *args[1:]), kwargs)
            assert self.prefix is not None
            if number == self._shared:
                assert self.prefix.hidden is not None
                self._continuing = False
                self._restore()
                hidden = torch.cat([self.prefix.hidden.to(hidden.device), hidden], dim=1)
                return whole(layer, (hidden, *args[1:]), kwargs) or ((hidden, *args[1:]), kwargs)
            if number == 0:
                for place, (keys, values) in enumerate(self.prefix.layers):
                    self._cache.update(keys, values, place)
                if self.asks_later and not self._recall():
                    # What the run knows of the video when it is asked again.
                    whole(layer, (hidden, *args[1:]), kwargs)
                hidden = hidden[:, self._end_of_video :]
            elif reads:
                assert self.prefix.entered is not None
                entered = torch.cat([self.prefix.entered.to(hidden.device), hidden], dim=1)
                whole(layer, (entered, *args[1:]), kwargs)
            else:
                self._decoding.enter(self._raster, self._video_rows)
            return (hidden, *args[1:]), self._suffix(number, hidden, kwargs)

        return hook

    @override
    def _after(self, number: int) -> Callable[..., Any]:
        whole = super()._after(number)
        # What comes after the video gets none of its features.
        return lambda layer, args, hidden: None if self._continuing else whole(layer, args, hidden)

    @override
    def _select(
        self,
        place: str,
        number: int,
        hidden: Tensor,
        decide: Callable[[VideoTokens], Selection | None],
        entered: Callable[[], LayerInput],
    ) -> Tensor:
        # Inside a layer that is shared it has been done, and what passes here is the text behind the video.
        if self._continuing and place != "input":
            return hidden
        return super()._select(place, number, hidden, decide, entered)

    def _recall(self) -> bool:
        """Let the run know of the video what it knew after its input; whether it can without being asked there."""
        assert self.prefix is not None
        places = self.run.places
        if self.prefix.state is None or 0 in places.reads | places.attention:
            return False
        vars(self.run.run).update(deepcopy(self.prefix.state))
        self._raster, self._kept = self.prefix.raster.to(self._video.device), self._kept_before()
        self._decoding.enter(self._raster, self._video_rows)
        return True

    def _kept_before(self) -> Tensor | None:
        """Places of the tokens of this prompt that were left when the prefix was; ``None``: all."""
        assert self.prefix is not None
        if self.prefix.kept is None:
            return None
        device = self._video.device
        after = torch.arange(self._end_of_video, self.layout.length, device=device)
        return torch.cat([self.prefix.kept.to(device), after])

    def _suffix(self, number: int, hidden: Tensor, kwargs: Kwargs) -> Kwargs:
        """A layer's keyword arguments for the tokens after the video alone."""
        assert self.prefix is not None
        held = self.prefix.layers[number][0].shape[-2]
        first = held if self._renumbered else self._end_of_video
        cut = {key: value for key, value in kwargs.items() if key != "attention_mask"}
        for key in SLICED.keys() & cut.keys():
            value, memo = cut[key], (key, id(cut[key]), first)
            if value is None:
                continue
            if memo not in self._sliced:
                # Once for all layers that hold as many keys; beside its cut, as ``_slice`` does.
                rows = torch.arange(first, first + hidden.shape[1], device=hidden.device)
                self._sliced[memo] = (value, SLICED[key](value, rows, self.layout.length))
            cut[key] = self._sliced[memo][1]
        return {**cut, "attention_mask": self._causal(held, hidden)}

    def _causal(self, held: int, hidden: Tensor) -> Tensor:
        """``(1, 1, S, held + S)``: each of the ``S`` tokens sees all that are held, and itself and those before it."""
        key, rows = (held, hidden.device), hidden.shape[1]
        if key not in self._mask:
            mask = hidden.new_full((rows, held + rows), torch.finfo(hidden.dtype).min)
            self._mask[key] = mask.triu(held + 1)[None, None]
        return self._mask[key]

    def _leave(self, hidden: Tensor | None) -> None:
        """Keep what the layers that are shared left of the prompt up to the end of its video.

        Args:
            hidden: ``(1, S, D)`` that left them; ``None`` where all layers are shared.
        """
        shared = self._cache.layers[: self._shared]
        if any(type(layer) is not DynamicLayer for layer in shared):
            return
        after = self.layout.length - self._end_of_video
        layers = [(layer.keys[..., :-after, :], layer.values[..., :-after, :]) for layer in shared]
        hidden = None if hidden is None else hidden[:, :-after]
        entered = None if self._entering is None else self._entering[:, :-after]
        kept = None if self._kept is None else self._kept[:-after]
        trace = replace(_copied(self.trace), compressor_seconds=0.0, prefill_seconds=0.0)
        names = self.run.input_state
        state = None if names is None else {name: deepcopy(getattr(self.run.run, name)) for name in names}
        self._left = Prefix(
            *self._begins, layers, hidden, entered, kept, self._raster, self._reason.clone(), trace, state
        )

    def _restore(self) -> None:
        """Go on as if the layers that are shared had run on the whole prompt."""
        assert self.prefix is not None
        left, device = self.prefix, self._video.device
        if self.asks_later and not torch.equal(self._raster, left.raster.to(device)):
            raise ValueError(
                f"{self.run.name} selects other tokens of the same video for another question: declare "
                "reads_question = True, or draw from generator_for(layout.sample, seed)"
            )
        # Later stages write into the reasons, and the next question wants them as they are here.
        self._raster, self._reason = left.raster.to(device), left.reason.to(device).clone()
        self._kept = self._kept_before()
        earlier = _copied(left.trace)
        if self.asks_later:
            # Of a layer that is read, this question's rows.
            earlier.reads, earlier.projected = self.trace.reads, self.trace.projected
        vars(self.trace).update(vars(replace(earlier, text=self.layout.text)))
        self._sliced = {}


def shared_layers(run: Run, layout: Layout, layers: int) -> int:
    """How many of the first layers are the same for all questions; 0 where that cannot be said, or helped."""
    places = run.places
    selecting = places.before | places.between
    first = min(places.attention | places.reads, default=layers)
    # What such a layer of a video selected would have to be selected anew, for what the run remembers of it.
    if (first < layers or places.decoding or places.watched) and any(place < first for place in selecting):
        return 0
    # What the first layer that is read makes of the video is the same too, where only the text's attention is read of
    # it, and nothing selected before the next.
    if first < layers - 1 and first not in selecting and _reads_text(places, layout):
        return first + 1
    return first


def rotates_by_length(module: nn.Module, length: int) -> bool:
    """Whether a decoder's rotary embedding takes other frequencies for a prompt of ``length`` tokens than for a short
    one, so that it shares keys with no other prompt."""
    rotary = getattr(module, "rotary_emb", None)
    kind = getattr(rotary, "rope_type", "")
    if isinstance(kind, dict):  # one for each kind of layer
        return any("dynamic" in one or one == "longrope" for one in kind.values())
    if kind == "longrope":
        return length > rotary.config.rope_parameters["original_max_position_embeddings"]  # type: ignore[union-attr]
    return "dynamic" in kind and length > rotary.original_max_seq_len  # type: ignore[union-attr]


def _reads_text(places: Places, layout: Layout) -> bool:
    """Whether the attention that is read, if any, is that of tokens behind the video."""
    queries, text = places.queries, layout.length - int(layout.video[-1]) - 1
    if not places.attention or queries == "last":
        return text > 0
    if isinstance(queries, Read):
        rows = rows_read(queries, layout, None, layout.length)
        return len(rows) > 0 and int(rows[0]) >= layout.length - text
    return queries != "all" and int(queries) <= text


def _copied(trace: Trace) -> Trace:
    """The same, with lists of its own."""
    found = copy(trace)
    vars(found).update({name: list(value) for name, value in vars(trace).items() if isinstance(value, list)})
    return found
