"""Reading a vision tower's attention: how much each patch receives, and its keys, frame by frame.

Done through the engine's probe on the one layer that is needed; the tower's own backend computes the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stsimdiff.engine.attention import QUERY_CHUNK, attention_rows, probe
from stsimdiff.tokens import VisionSignals


class TowerReader:
    """Collects signals of a tower's attention module, in the order in which it saw the patches.

    Args:
        class_token: the first token of each frame is a class token: its attention is what counts, and it is no patch.

    Attributes:
        received: ``(patches,)`` float32: attention received, mean over heads and the queries of the frame or window,
            or over heads alone where only the class token's counts.
        keys: ``(patches, heads, d)``.
    """

    def __init__(self, class_token: bool = False) -> None:
        self.class_token = class_token
        self._received: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._queries: list[Tensor] = []

    def query(self, frames: int) -> Tensor:
        """Mean query of each of so many frames of equally many patches, scaled, ``(frames, heads, d)`` float32."""
        return torch.cat(self._queries).unflatten(0, (frames, -1)).mean(1, dtype=torch.float32)

    @property
    def received(self) -> Tensor:
        """Attention received, ``(patches,)``; see the class."""
        return torch.cat(self._received)

    @property
    def keys(self) -> Tensor:
        """Keys of all patches, ``(patches, heads, d)``."""
        return torch.cat(self._keys)

    def receive(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, options: dict[str, Any]
    ) -> None:
        """One call of the attention: ``(frames, H, patches, d)``, or one sequence with cumulative lengths."""
        own = query[:, :, 1:] if self.class_token else query
        self._queries.append(own.transpose(1, 2).flatten(0, 1) * scaling)
        if self.class_token:
            rows = attention_rows(query[:, :, :1], key, scaling)[:, :, 0, 1:]
            self._received.append(rows.mean(1).flatten())
            self._keys.append(key[:, :, 1:].transpose(1, 2).flatten(0, 1))
            return
        bounds = options.get("cu_seq_lens_q")
        for q, k in zip(query, key, strict=True):
            for part in _parts(bounds, q.shape[1]):
                self._received.append(received_attention(q[None, :, part], k[None, :, part], scaling))
            self._keys.append(k.transpose(0, 1))


def received_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """``(S,)`` float32: attention that each key receives, mean over heads and queries, in chunks of query rows.

    Args:
        query, key: ``(1, H, S, d)``, one frame or window; attention is not causal in a vision tower.
        scaling: factor of the scores.
    """
    length = query.shape[2]
    total = query.new_zeros(key.shape[2], dtype=torch.float32)
    for first in range(0, length, QUERY_CHUNK):
        rows = attention_rows(query[:, :, first : first + QUERY_CHUNK], key, scaling)
        total += rows.sum((0, 1, 2))
    return total / (length * query.shape[1])


@contextmanager
def reading(attention: nn.Module, *, class_token: bool = False) -> Iterator[TowerReader]:
    """Read the attention of a tower that runs within ``with``; nothing is left behind on exit."""
    reader = TowerReader(class_token)
    undo: Callable[[], None] = probe(attention, reader.receive)
    try:
        yield reader
    finally:
        undo()


def _parts(bounds: Tensor | None, length: int) -> Sequence[slice]:
    if bounds is None:
        return [slice(0, length)]
    edges = bounds.tolist()
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]


def pooled_signals(
    reader: TowerReader, frames: int, pool: Callable[[Tensor], Tensor], *, newline: bool = False
) -> VisionSignals:
    """Signals of grid tokens, pooled as the features are.

    Args:
        reader: what was read of ``frames`` frames of equally many patches.
        frames: T.
        pool: the family's pooling, ``(T, patches, C)`` to ``(T, ..., C)`` in raster order.
        newline: the grid's last column holds newline tokens. They stand for no patch, so they get the mean of their
            row: methods neither seek nor shun them. ``pool`` must give ``(T, h, w, C)`` then.
    """

    def pooled(values: Tensor) -> Tensor:
        maps = pool(values.float().unflatten(0, (frames, -1)))
        if newline:
            maps = torch.cat((maps, maps.mean(2, keepdim=True)), dim=2)
        return maps

    keys, received = reader.keys, pooled(reader.received[:, None])
    return VisionSignals(
        received=received.flatten(),
        keys=pooled(keys.flatten(1)).flatten(0, -2).unflatten(1, keys.shape[1:]).to(keys.dtype),
        query=reader.query(len(received)),
    )
