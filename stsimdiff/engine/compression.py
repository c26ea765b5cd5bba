"""A compressor applied to a stock decoder: a context manager that drops tokens, and the trace that it leaves.

Hooks on the decoder layers slice the hidden states, the position embeddings and the mask, which equals masking the
dropped tokens as keys from that layer on. Nothing is patched on a class, and every hook is gone on exit. This module
knows decoders and runs; which model family or which method they come from it does not know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stsimdiff.compressors.base import Places, Run
from stsimdiff.engine.attention import attention_rows, joined_attention, mean_attention, probe
from stsimdiff.engine.decoding import Decoding
from stsimdiff.engine.lent import LentRun
from stsimdiff.engine.slicing import SLICED
from stsimdiff.engine.view import LayerInput, LayerView, rows_read
from stsimdiff.tokens import Layout, Read, Reason, Selection, VideoTokens
from stsimdiff.trace import Stage, Trace

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True)
class Decoder:
    """The parts of a stock language model that the engine needs.

    Attributes:
        module: the module whose forward runs the decoder (it takes ``inputs_embeds`` and runs ``layers``).
        layers: its decoder layers.
        added: where the module adds features to the video tokens after its first layers (Qwen3-VL's deepstack): takes
            them out of the module's keyword arguments, which it may change, and returns ``(N, D)`` in raster order for
            each of these layers. The engine then adds them to the tokens that are left. A merged token gets those of
            the token in whose place it stands.
        mrope: whether a token's position is more than one number (M-RoPE).
    """

    module: nn.Module
    layers: nn.ModuleList
    added: Callable[[dict[str, Any]], Sequence[Tensor]] | None = None
    mrope: bool = False

    def __len__(self) -> int:
        return len(self.layers)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its queue, so that a clock read on the host means something."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Compression:
    """``with Compression(decoder, run, layout) as trace: model.generate(...)``: one prompt, batch of one.

    Args:
        decoder: the stock decoder.
        run: the run of one video; see :class:`~stsimdiff.compressors.base.Run`.
        layout: where the video tokens are in the prompt.
        trace: one of an earlier prompt, to be filled anew; made if not given.

    Raises:
        ValueError: for positions that are to be renumbered in a decoder with M-RoPE.
        ValueError: from the forward pass, when the batch is not one, the prompt's length is not the layout's, the
            prompt is prefilled in chunks, the cache has a fixed length, the attention read for the run is NaN, or the
            run returns an invalid selection.
        MethodFault: from the forward pass, when the run writes into what it is given.
    """

    def __init__(self, decoder: Decoder, run: Run, layout: Layout, trace: Trace | None = None) -> None:
        self.decoder, self.layout = decoder, layout
        self.run = LentRun.of(run, layout)
        self.trace = trace or Trace(len(decoder), 0, 0)
        self.trace.restart(layout.grid.tokens, layout.text, self.run.reasons)
        self._undo: list[Callable[[], None]] = []
        self._prefilled = False
        self._active = False
        self._renumbered = self.run.positions == "renumbered"
        if self._renumbered and decoder.mrope:
            raise ValueError(
                f"{self.run.name} renumbers positions, but positions of this model's tokens are more than one number "
                "(M-RoPE): use positions: kept"
            )
        self._decoding = Decoding(self.run, self.trace, layout.grid.tokens, lambda device: _now(device))
        _check_places(run.places, len(decoder))

    def __enter__(self) -> Trace:
        places = self.run.places
        try:
            self._hook(self.decoder.module.register_forward_pre_hook(self._begin, with_kwargs=True))
            for number, layer in enumerate(self.decoder.layers):
                self._hook(layer.register_forward_pre_hook(self._before(number), with_kwargs=True))
                if number in places.between:
                    self._split(number, layer)
                if number in places.attention and not _at_entry(places.queries):
                    self._undo.append(probe(layer.self_attn, self._receive))
                if number in places.watched:
                    self._undo.append(probe(layer.self_attn, self._decoding.receive(number)))
                if self.decoder.added is not None:
                    self._hook(layer.register_forward_hook(self._after(number)))
            self._hook(self.decoder.module.register_forward_hook(self._end))
        except BaseException:
            self.__exit__()
            raise
        return self.trace

    def __exit__(self, *exc: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _hook(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    # The decoder as a whole ------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        embeds = kwargs.get("inputs_embeds")
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        self._active = past == 0
        if embeds is None:
            if self._active:
                raise ValueError(
                    "the decoder was called without inputs_embeds; a video prompt always has them"
                )
            # A language model that is no part of a multimodal class embeds generated tokens itself.
            embeds = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if embeds.shape[0] != 1:
            raise ValueError(f"compression runs on a batch of one prompt, got {embeds.shape[0]}")
        if not self._active:
            if not self._prefilled or embeds.shape[1] != 1:
                raise ValueError(
                    f"{embeds.shape[1]} new tokens on a cache of {past}: prefill the prompt in one piece "
                    "(prefill_chunk_size=None) and decode one token at a time"
                )
            self._decoding.begin_token()
            return None
        if self._prefilled:
            raise ValueError("a second prompt inside one Compression; open a new one for each prompt")
        if embeds.shape[1] != self.layout.length:
            raise ValueError(f"the prompt has {embeds.shape[1]} tokens, the layout says {self.layout.length}")
        if cache is not None and any(layer.is_compileable for layer in cache.layers):
            raise ValueError(
                "a cache of fixed length cannot hold layers of different lengths; use a DynamicCache"
            )
        device = embeds.device
        self._started = _now(device)
        self._video = self.layout.video.to(device)
        self._raster = torch.arange(self.layout.grid.tokens, device=device)
        self._reason = torch.full(
            (self.layout.grid.tokens,), int(Reason.ALL), dtype=torch.uint8, device=device
        )
        self._kept: Tensor | None = None
        self._attention: Tensor | None = None
        self._sliced: dict[Any, Any] = {}
        self._added: Sequence[Tensor] = ()
        self._held: dict[int, LayerInput] = {}
        if self.decoder.added is None:
            return None
        kwargs = dict(kwargs)
        self._added = self.decoder.added(kwargs)
        return args, kwargs

    def _end(self, module: nn.Module, args: Args, output: Any) -> None:
        if not self._active:
            self._decoding.end_token()
            return
        self.trace.prefill_seconds = _now(self._video.device) - self._started
        self.trace.reason = self._reason.cpu()
        self._prefilled, self._active = True, False
        # Tensors of the prefill must not live as long as the decoding does.
        self._sliced, self._attention, self._added, self._held = {}, None, (), {}

    # One layer -------------------------------------------------------------------------------------------------

    def _before(self, number: int) -> Callable[..., Any]:
        places = self.run.places
        read = _at_entry(places.queries) if number in places.attention else None

        def hook(layer: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
            if not self._active:
                # Batch of one without padding: a new token sees every key that its layer kept. The mask handed
                # down was made for the first layer's cache length and would be wrong for the others.
                hidden = args[0] if args else kwargs["hidden_states"]
                mask = self._decoding.before(number, layer, hidden, kwargs)
                if self._kept is None and not self._decoding.acts:
                    return None
                kwargs = {**kwargs, "attention_mask": mask}
                return args, self._following(number, args, kwargs) if self._renumbered else kwargs
            hidden = args[0] if args else kwargs["hidden_states"]

            def entered() -> LayerInput:
                return self._entered(layer, hidden, kwargs)

            if number == 0 and places.input:
                if 0 in places.reads:
                    self._held[0] = entered()
                hidden = self._select("input", 0, hidden, lambda tokens: self.run.at_input(tokens), entered)
            if number in places.reads:
                self._held[number] = entered()
            if read is not None and read.coming:
                self._read(read, entered())
            if number in places.before:
                present = self._raster
                hidden = self._select(
                    "before",
                    number,
                    hidden,
                    lambda tokens: self.run.before_layer(number, tokens, self._attention),
                    entered,
                )
                if number in places.reads and self._raster is not present:
                    self._held[number] = entered()
            if read is not None and not read.coming:
                self._read(read, entered())
            self.trace.entering.append(self._raster.shape[0])
            self._decoding.enter(self._raster, self._video_rows)
            if number not in places.between:
                self.trace.mlp.append(self._raster.shape[0])
            if self._kept is None:
                return None
            kwargs = {key: self._slice(key, value) for key, value in kwargs.items() if key != "hidden_states"}
            return (hidden, *args[1:]), kwargs

        return hook

    def _following(self, number: int, args: Args, kwargs: Kwargs) -> Kwargs:
        """A generated token's position is that after the last token in the layer's own cache."""
        hidden = args[0] if args else kwargs["hidden_states"]
        length = kwargs["past_key_values"].get_seq_length(number) + self._decoding.removed(number)
        position = torch.tensor([[length]], device=hidden.device)
        embeddings = self.decoder.module.rotary_emb(hidden, position)
        return {**kwargs, "position_ids": position, "position_embeddings": embeddings}

    def _entered(self, layer: nn.Module, hidden: Tensor, kwargs: Kwargs) -> LayerInput:
        """What enters a layer now; ``kwargs`` are those of the full sequence."""
        left_out = ("hidden_states", "attention_mask", "past_key_values")
        arguments = {key: value for key, value in kwargs.items() if key not in left_out}
        arguments = {key: self._slice(key, value) for key, value in arguments.items()}
        return LayerInput(layer, hidden, arguments, self._kept)

    def _split(self, number: int, layer: nn.Module) -> None:
        """Put a forward on this layer instance that is the stock one with a selection after the attention."""

        def forward(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
            # Where layers lie on several devices, the attention has moved to this layer's.
            hidden_states = hidden_states.to(attended.device) + attended
            if self._active:
                states = hidden_states
                hidden_states = self._select(
                    "between",
                    number,
                    states,
                    lambda t: self.run.between(number, t, self._attention),
                    lambda: LayerInput(layer, states, {}, self._kept),
                )
                self.trace.mlp.append(self._raster.shape[0])
            return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))

        missing = [p for p in _PARTS if not hasattr(layer, p)]
        if missing:
            raise ValueError(
                f"{type(layer).__name__} lacks {missing}; selecting inside a layer needs {list(_PARTS)}"
            )
        previous = layer.__dict__.get("forward")
        layer.forward = forward

        def undo() -> None:
            if previous is None:
                del layer.forward
            else:
                layer.forward = previous

        self._undo.append(undo)

    def _after(self, number: int) -> Callable[..., Any]:
        """Add what the decoder itself would add to the video tokens after this layer, to those that are left."""

        def hook(layer: nn.Module, args: Args, hidden: Tensor) -> Tensor | None:
            if not self._active or number >= len(self._added) or self._raster.shape[0] == 0:
                return None
            self._follow(hidden.device)
            rows = self._video_rows()
            hidden = hidden.clone()
            hidden[0, rows] = hidden[0, rows] + self._added[number].to(hidden)[self._raster]
            return hidden

        return hook

    # Selecting -------------------------------------------------------------------------------------------------

    def _select(
        self,
        place: str,
        number: int,
        hidden: Tensor,
        decide: Callable[[VideoTokens], Selection | None],
        entered: Callable[[], LayerInput],
    ) -> Tensor:
        """Ask the run, apply what it says to the hidden states ``(1, S, D)``, and write the trace.

        ``entered`` gives what enters the place, for its view.
        """
        if self.run.finished or self._raster.shape[0] == 0:
            return hidden
        started = _now(hidden.device)
        self._follow(hidden.device)
        self.trace.asked.append((place, number, self._raster.shape[0]))
        rows = self._video_rows()
        features = hidden[0, rows] if isinstance(rows, slice) else hidden[0].index_select(0, rows)
        view = LayerView(
            f"{self.run.name}, {place} of layer {number},",
            entered(),
            self._held,
            self.layout,
            self._video[self._raster],
            getattr(self.decoder.module, "norm", None),
            self.trace,
        )
        tokens = VideoTokens(features, self.layout.grid, self._raster, view)
        if self._attention is not None and bool(torch.isnan(self._attention).any()):
            raise ValueError(
                f"{self.run.name}, {place} of layer {number}: the attention read for it is NaN; queries and keys of "
                f"{hidden.dtype} overflow: load the model in a wider dtype, such as bfloat16"
            )
        try:
            selection = decide(tokens)
        finally:
            view.close()
        if selection is None:
            return hidden
        if not isinstance(selection, Selection):
            raise TypeError(
                f"{self.run.name} returned a {type(selection).__name__} at its {place} place; expected a "
                "Selection, such as Selection.from_mask(mask, Reason.IMPORTANT), or None to leave the tokens as they "
                "are"
            )
        selection.check(
            len(tokens),
            width=features.shape[1],
            dtype=hidden.dtype,
            may_be_empty=self.run.may_be_empty,
            own=tuple(self.run.reasons),
        )
        hidden = self._apply(hidden, rows, selection)
        seconds = _now(hidden.device) - started
        self.trace.compressor_seconds += seconds
        self.trace.stages.append(Stage(place, number, self._raster.cpu(), seconds))
        return hidden

    def _apply(self, hidden: Tensor, rows: slice | Tensor, selection: Selection) -> Tensor:
        keep = selection.keep.to(self._raster.device)
        codes = selection.reason.to(self._raster.device)
        # A stage that names no reason of its own keeps the reason that an earlier stage gave.
        earlier = self._reason[self._raster]
        self._reason[self._raster] = torch.where(codes == int(Reason.ALL), earlier, codes)
        if keep.shape[0] == self._raster.shape[0] and selection.features is None:
            return hidden
        stay = torch.ones(hidden.shape[1], dtype=torch.bool, device=hidden.device)
        stay[rows] = False
        video_rows = torch.arange(hidden.shape[1], device=hidden.device)[rows]
        stay[video_rows[keep]] = True
        local = stay.nonzero(as_tuple=True)[0]
        if selection.features is not None:
            hidden = hidden.clone()
            hidden[0, video_rows[keep]] = selection.features.to(hidden)
        hidden = hidden.index_select(1, local)
        self._kept = local if self._kept is None else self._kept[local]
        self._raster = self._raster[keep]
        self._sliced = {}
        if self._attention is not None:
            self._attention = self._attention[..., keep]
        return hidden

    def _follow(self, device: torch.device) -> None:
        """Bring the state of the prefill to the device of a layer; a model's layers may lie on several."""
        if self._raster.device == device:
            return
        for name in ("_video", "_raster", "_reason", "_kept", "_attention"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.to(device))

    def _video_rows(self) -> slice | Tensor:
        """Rows of the video tokens in the current hidden states; a slice (a view, no copy) where they adjoin."""
        places = self._video[self._raster]
        rows = places if self._kept is None else torch.searchsorted(self._kept, places)
        first, last = int(rows[0]), int(rows[-1])
        return slice(first, last + 1) if last - first + 1 == rows.shape[0] else rows

    def _slice(self, key: str, value: Any) -> Any:
        """Cut a stock argument of full length S to the tokens that are left; once for each drop and tensor."""
        if value is None or key not in SLICED or self._kept is None:
            return value
        memo = (key, id(value))
        if memo not in self._sliced:
            # The value is held beside its cut, so that its id cannot be used again by another tensor.
            places = self._kept
            if self._renumbered and key != "attention_mask":
                # The prompt's positions are 0, 1, ...: those of its first tokens are the new ones.
                places = torch.arange(self._kept.shape[0], device=self._kept.device)
            self._sliced[memo] = (value, SLICED[key](value, places, self.layout.length))
        return self._sliced[memo][1]

    # Attention -------------------------------------------------------------------------------------------------

    def _read(self, read: Read, entered: LayerInput) -> None:
        """Attention that is made of what enters a layer, not taken from the layer as it runs."""
        if self.run.finished or self._raster.shape[0] == 0:
            return
        started = _now(entered.hidden.device)
        self._follow(entered.hidden.device)
        rows = rows_read(read, self.layout, self._kept, entered.hidden.shape[1])
        video = torch.arange(entered.hidden.shape[1], device=entered.hidden.device)[self._video_rows()]
        self._attention = entered.attention(read, rows, video, self.trace).to(entered.hidden.device)
        self.trace.compressor_seconds += _now(entered.hidden.device) - started

    def _receive(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, options: dict[str, Any]
    ) -> None:
        if not self._active or self.run.finished or self._raster.shape[0] == 0:
            return
        started = _now(query.device)
        self._follow(query.device)
        queries = self.run.places.queries
        if isinstance(queries, Read):
            rows = rows_read(queries, self.layout, self._kept, key.shape[2])
            self._attention = joined_attention(query, key, scaling, rows, self._video_rows(), queries)
            read = len(rows)
        elif queries == "all":
            self._attention = mean_attention(query, key, scaling)[0][:, self._video_rows()]
            read = query.shape[2]
        else:
            # A number: the mean over so many last tokens, each of which sees what is before it.
            read = 1 if queries == "last" else int(queries)
            last = attention_rows(query[:, :, -read:], key, scaling, key.shape[2] - read)[0].mean(1)
            self._attention = last[:, self._video_rows()]
        self.trace.reads.append((read, key.shape[2]))
        self.trace.compressor_seconds += _now(query.device) - started


_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def _now(device: torch.device) -> float:
    synchronise(device)
    return time.perf_counter()


def _at_entry(queries: str | int | Read) -> Read | None:
    """A read that is made of what enters a layer; ``None`` for one of the layer's attention as it runs."""
    return queries if isinstance(queries, Read) and (queries.coming or not queries.rotary) else None


def _check_places(places: Places, layers: int) -> None:
    for name in ("before", "between", "attention", "reads", "decoding", "watched"):
        wrong = [n for n in getattr(places, name) if not 0 <= n < layers]
        if wrong:
            raise ValueError(f"layer {wrong[0]} does not exist: the model has layers 0 to {layers - 1}")
