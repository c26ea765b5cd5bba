"""What a method asks of a layer besides the attention that it is given: made when asked for, from what enters it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from stsimdiff.engine.attention import Projections, joined_attention, projected
from stsimdiff.tokens import Layout, Read, View
from stsimdiff.trace import Trace


@dataclass
class LayerInput:
    """What enters a decoder layer: enough to say what its attention makes of it.

    Attributes:
        layer: the stock layer.
        hidden: ``(1, S, D)`` of the tokens present.
        arguments: what the layer is called with besides, cut to these tokens.
        kept: ``(S,)`` their places in the prompt; ``None``: all of them.
    """

    layer: nn.Module
    hidden: Tensor
    arguments: dict[str, Any]
    kept: Tensor | None

    def projected(self, trace: Trace, rotary: bool = True) -> Projections:
        """Queries, keys and values of all tokens present; written down in the trace."""
        trace.projected.append(self.hidden.shape[1])
        return projected(self.layer, self.hidden, self.arguments, rotary)

    def attention(self, read: Read, rows: Tensor, video: Tensor, trace: Trace) -> Tensor:
        """As :meth:`~stsimdiff.tokens.View.attention`; ``rows`` and ``video`` are rows of ``hidden``."""
        made = self.projected(trace, read.rotary)
        trace.reads.append((len(rows), made.key.shape[2]))
        return joined_attention(made.query, made.key, made.scaling, rows, video, read)


def rows_of(places: Tensor, kept: Tensor | None) -> Tensor:
    """Rows, among the tokens present, of tokens at some places in the prompt.

    Args:
        places: ``(q,)`` int64.
        kept: ``(S,)`` places of the tokens present, ascending; ``None``: all of them.

    Raises:
        ValueError: for a token that was dropped.
    """
    if kept is None:
        return places
    places = places.to(kept.device)
    rows = torch.searchsorted(kept, places).clamp_(max=len(kept) - 1)
    gone = places[kept[rows] != places]
    if len(gone):
        raise ValueError(f"the token at place {int(gone[0])} of the prompt is asked for, but was dropped")
    return rows


def rows_read(read: Read, layout: Layout, kept: Tensor | None, present: int) -> Tensor:
    """``(q,)`` rows, among ``present`` tokens, that a read names."""
    if read.rows in ("text", "after", "question"):
        return rows_of(layout.places(read.rows), kept)
    count = present if read.rows == "all" else 1 if read.rows == "last" else min(int(read.rows), present)
    return torch.arange(present - count, present)


class LayerView(View):
    """The view of one place. It ends with the place.

    Args:
        place: its name, for messages.
        now: what enters the place.
        held: what entered each of the layers that the run may ask of.
        layout: of the prompt.
        video: ``(n,)`` places in the prompt of the video tokens present.
        norm: the decoder's final norm.
        trace: where reads are written down.
    """

    def __init__(
        self,
        place: str,
        now: LayerInput,
        held: Mapping[int, LayerInput],
        layout: Layout,
        video: Tensor,
        norm: Callable[[Tensor], Tensor] | None,
        trace: Trace,
    ) -> None:
        self._place, self._layout, self._video, self._norm, self._trace = place, layout, video, norm, trace
        self._now: LayerInput | None = now
        self._held = held

    def close(self) -> None:
        """End the view: what the place showed is gone."""
        self._now, self._held = None, {}

    def _open(self) -> LayerInput:
        if self._now is None:
            raise RuntimeError(f"the view of {self._place} was asked after the place; ask in its callback")
        return self._now

    def _of(self, layer: int) -> LayerInput:
        self._open()
        if layer not in self._held:
            raise ValueError(
                f"{self._place} asks for layer {layer}, which its places do not name or which is still to come; write "
                f"Places(..., reads=frozenset({{{layer}}})), and ask at the place before that layer or later"
            )
        return self._held[layer]

    @override
    def states(self, places: Tensor) -> Tensor:
        now = self._open()
        rows = rows_of(places, now.kept).to(now.hidden.device)
        return now.hidden[0].index_select(0, rows)

    @override
    def normed(self, states: Tensor) -> Tensor:
        self._open()
        if self._norm is None:
            raise ValueError(
                "this model's decoder has no module norm, the final norm that the method asks for"
            )
        return self._norm(states).to(states.device)

    @override
    def keys(self, layer: int, places: Tensor | None = None) -> Tensor:
        return self._rows_of(layer, places, "key")

    @override
    def values(self, layer: int, places: Tensor | None = None) -> Tensor:
        return self._rows_of(layer, places, "value")

    def _rows_of(self, layer: int, places: Tensor | None, what: str) -> Tensor:
        entered = self._of(layer)
        made = getattr(entered.projected(self._trace), what)[0].transpose(0, 1)
        rows = rows_of(self._video if places is None else places, entered.kept)
        return made.index_select(0, rows.to(made.device)).to(self._video.device)

    @override
    def attention(self, layer: int, read: Read, places: Tensor | None = None) -> Tensor:
        entered = self._of(layer)
        if places is None:
            rows = rows_read(read, self._layout, entered.kept, entered.hidden.shape[1])
        else:
            rows = rows_of(places, entered.kept)
        video = rows_of(self._video, entered.kept)
        return entered.attention(read, rows, video, self._trace).to(self._video.device)
