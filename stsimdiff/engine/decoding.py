"""What a method does while an answer is decoded: it hides cached keys of the video, or removes them.

The prefill is over then, so none of its costs change; what generated tokens saw is written down apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stsimdiff.compressors.base import Hidden
from stsimdiff.engine.attention import Receive, attention_rows
from stsimdiff.engine.lent import LentRun
from stsimdiff.trace import Trace


class Decoding:
    """One prompt's decoding, a token at a time.

    Args:
        run: the run of one video.
        trace: where it is written down.
        video: N of the whole video.
        clock: seconds, once a device has finished its queue.
    """

    def __init__(
        self, run: LentRun, trace: Trace, video: int, clock: Callable[[torch.device], float]
    ) -> None:
        self.run, self.trace, self.video, self.clock = run, trace, video, clock
        self.acts = bool(run.places.decoding)
        self._cached: list[tuple[Tensor, Tensor]] = []
        self._removed: dict[int, int] = {}
        self._step = -1
        self._attention: Tensor | None = None
        self._hiding: Tensor | None = None
        self._removing: Tensor | None = None
        self._visible: dict[int, Tensor] = {}
        self._seen: list[int] = []

    def removed(self, layer: int) -> int:
        """Keys that are gone from a layer's cache."""
        return self._removed.get(layer, 0)

    def enter(self, raster: Tensor, rows: Callable[[], slice | Tensor]) -> None:
        """Remember which video tokens a layer's cache will hold, and at which of its rows; layers come in order.

        Args:
            raster: ``(n,)`` raster indices of the video tokens that enter the layer.
            rows: gives their rows among all tokens that do.
        """
        if self.acts:
            found: Any = rows() if len(raster) else raster
            if isinstance(found, slice):
                found = torch.arange(found.start, found.stop, device=raster.device)
            self._cached.append((raster, found))

    def begin_token(self) -> None:
        """A generated token begins its way through the layers."""
        self._step += 1
        self._attention = self._hiding = self._removing = None
        self._visible, self._seen = {}, []

    def end_token(self) -> None:
        """It has reached the end."""
        self.trace.decoded += 1
        if self.acts and self._seen:
            self.trace.visible.append(sum(self._seen) / len(self._seen))

    def before(self, number: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        """Ask the run before a layer, and give the mask of the layer's keys; ``None``: it sees all that are cached.

        Args:
            number: of the layer.
            layer: itself.
            hidden: ``(1, 1, D)`` of the generated token.
            kwargs: what the layer is called with, its cache among it.
        """
        if not self.acts:
            return None
        raster, rows = (part.to(hidden.device) for part in self._cached[number])
        if number in self.run.places.decoding and len(raster):
            started = self.clock(hidden.device)
            self._ask(number, raster)
            self.trace.decoding_seconds += self.clock(hidden.device) - started
        cache = kwargs["past_key_values"].layers[number]
        if self._removing is not None:
            gone = self._removing.to(hidden.device)[raster]
            stay = torch.ones(cache.keys.shape[-2], dtype=torch.bool, device=hidden.device)
            stay[rows[gone]] = False
            left = stay.nonzero(as_tuple=True)[0]
            cache.keys, cache.values = cache.keys.index_select(-2, left), cache.values.index_select(-2, left)
            self._removed[number] = self.removed(number) + int(gone.sum())
            raster, rows = raster[~gone], (stay.cumsum(0) - 1)[rows[~gone]]
        self._cached[number] = raster, rows
        self._seen.append(len(raster))
        if self._hiding is None:
            return None
        out = self._hiding.to(hidden.device)[raster]
        # The token's own key comes last.
        visible = torch.ones(cache.keys.shape[-2] + 1, dtype=torch.bool, device=hidden.device)
        visible[rows[out]] = False
        self._visible[number] = visible
        self._seen[-1] -= int(out.sum())
        config = layer.self_attn.config
        if "flash" in str(getattr(config, "stsimdiff_stock", config)._attn_implementation):
            return visible[None].int()
        mask = torch.zeros_like(visible, dtype=hidden.dtype)
        return mask.masked_fill(~visible, torch.finfo(hidden.dtype).min)[None, None, None]

    def _ask(self, number: int, raster: Tensor) -> None:
        said = self.run.at_token(number, self._step, raster, self._attention)
        if said is None:
            return
        where = f"{self.run.name}, before layer {number} while decoding,"
        if not isinstance(said, Hidden):
            raise TypeError(
                f"{where} returned a {type(said).__name__}; expected Hidden, or None to hide nothing"
            )
        index = said.index
        if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype != torch.int64:
            raise ValueError(
                f"{where} hides {index!r}; expected raster indices, a tensor (k,) of torch.int64"
            )
        index = index.to(raster.device)
        if not bool(torch.isin(index, raster).all()):
            raise ValueError(f"{where} hides tokens that are not in this layer's cache")
        old = self._removing if said.removed else self._hiding
        marked = (
            torch.zeros(self.video, dtype=torch.bool, device=raster.device) if old is None else old.clone()
        )
        marked[index] = True
        if said.removed:
            self._removing = marked
        else:
            self._hiding = marked

    def receive(self, number: int) -> Receive:
        """What reads a layer's attention of a generated token."""

        def read(query: Tensor, key: Tensor, value: Tensor, scaling: float, options: dict[str, Any]) -> None:
            if self._step < 0 or query.shape[2] != 1:
                return
            started = self.clock(query.device)
            rows = self._cached[number][1].to(query.device)
            visible = self._visible.get(number)
            if visible is None:
                weights = attention_rows(query, key, scaling)[0, :, 0]
            else:
                weights = query.new_zeros(query.shape[1], key.shape[2], dtype=torch.float32)
                weights[:, visible] = attention_rows(query, key[:, :, visible], scaling)[0, :, 0]
            self._attention = weights[:, rows]
            self.trace.decoding_seconds += self.clock(query.device) - started

        return read
