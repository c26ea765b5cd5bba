"""Reading a vision tower's attention: how much each patch receives, and its keys, frame by frame.

Done through the engine's probe on the one layer that is needed; the tower's own backend computes the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stsimdiff.engine.attention import attention_rows, probe, received_attention
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Signals, TowerLayer, VisionSignals, layers_of


class TowerReader:
    """Collects signals of a tower's attention module, in the order in which it saw the patches.

    Args:
        class_token: the first token of each frame is a class token: its attention is what counts, and it is no patch.

    Attributes:
        received: ``(patches,)`` float32: attention received, mean over heads and the queries of the frame or window,
            or over heads alone where only the class token's counts.
        keys: ``(patches, heads, d)``.
        layers: readers of the layers that are read besides, by number.
    """

    def __init__(self, class_token: bool = False) -> None:
        self.class_token = class_token
        self._received: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._queries: list[Tensor] = []
        self._hidden: list[Tensor] = []
        self._frames: list[Tensor] = []
        self._head: list[tuple[Tensor, Tensor]] = []
        self.layers: dict[int, TowerReader] = {}

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

    def others(self, merged: Callable[[Tensor], Tensor], rows: int) -> tuple[TowerLayer, ...]:
        """What the layers that are read besides say of each token of the grid.

        Args:
            merged: from values ``(patches, ...)`` to ``(N, ...)``.
            rows: T.
        """
        return tuple(
            TowerLayer(
                number,
                merged(reader.received),
                merged(reader.keys),
                merged(torch.cat(reader._hidden)),
                reader._vectors(rows),
            )
            for number, reader in self.layers.items()
        )

    def head(self) -> tuple[Tensor, Tensor] | None:
        """What :func:`pooling_head` gives, ``(patches,)`` and ``(frames, C)``; ``None`` where there is no head."""
        if not self._head:
            return None
        attention, vectors = (torch.cat(part) for part in zip(*self._head, strict=True))
        return attention.flatten(), vectors

    def _vectors(self, rows: int) -> Tensor:
        vectors = torch.cat(self._frames or self._hidden)
        return vectors.unflatten(0, (rows, -1)).mean(1, dtype=torch.float32)

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        """One call of the layer: hidden states ``(frames, patches, C)``, or one sequence of all patches."""
        hidden = output[0] if isinstance(output, tuple) else output
        if self.class_token:
            self._frames.append(hidden[:, 0])
            hidden = hidden[:, 1:]
        self._hidden.append(hidden.reshape(-1, hidden.shape[-1]))

    def pool(self, tower: nn.Module, layer: nn.Module, args: Any, output: Any) -> None:
        """One call of the layer whose hidden states ``(frames, patches, C)`` the tower's pooling head is put on."""
        self._head.append(pooling_head(tower, output[0] if isinstance(output, tuple) else output))

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


def pooling_head(tower: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """SigLIP's pooling head: the attention ``(frames, patches)`` of its probe, mean over heads, and its output.

    Args:
        tower: with ``post_layernorm`` and ``head``, those of a stock ``SiglipVisionModel``.
        hidden: ``(frames, patches, C)`` before the final norm.

    Returns:
        Both in float32, the output ``(frames, C)``.
    """
    seen: list[Tensor] = []
    hook = tower.head.attention.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    try:
        vectors = tower.head(tower.post_layernorm(hidden))
    finally:
        hook.remove()
    return seen[0][:, 0].float(), vectors.float()


@contextmanager
def reading(
    layers: Sequence[nn.Module],
    attention: str,
    signals: Signals,
    *,
    last: int = -1,
    class_token: bool = False,
    tower: nn.Module | None = None,
) -> Iterator[TowerReader | None]:
    """Read the attention of a tower that runs within ``with``; nothing is left behind on exit.

    Args:
        layers: of the tower.
        attention: name of the attention module in each.
        signals: what is read; nothing if false, and then ``None`` is given.
        last: the layer whose output becomes the features.
        class_token: see :class:`TowerReader`.
        tower: a stock SigLIP tower, whose pooling head is read too if it has one.

    Raises:
        ConfigError: for a layer that the tower does not have.
    """
    if not signals:
        yield None
        return
    count = len(layers)
    for number in layers_of(signals):
        if not -count <= number < count:
            raise ConfigError(
                f"tower_layers names layer {number}; this model's vision tower has the layers 0 to {count - 1}, or "
                f"-1 to -{count}"
            )
    readers = {last % count: TowerReader(class_token)}
    with ExitStack() as undo:
        for number in layers_of(signals):
            reader = readers.setdefault(number % count, TowerReader(class_token))
            readers[last % count].layers[number] = reader
        for number, reader in readers.items():
            undo.callback(probe(getattr(layers[number], attention), reader.receive))
        for number in {number % count for number in layers_of(signals)}:
            undo.callback(layers[number].register_forward_hook(readers[number].leave).remove)
        if tower is not None and tower.use_head:
            pool = partial(readers[last % count].pool, tower)
            undo.callback(layers[last].register_forward_hook(pool).remove)
        yield readers[last % count]


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

    def merged(values: Tensor) -> Tensor:
        flat = pooled(values.reshape(len(values), -1)).flatten(0, -2)
        return flat.unflatten(1, values.shape[1:]).to(values.dtype) if values.ndim > 1 else flat.flatten()

    rows = len(pooled(reader.received[:, None]))
    attention, vectors = reader.head() or (None, None)
    return VisionSignals(
        merged(reader.received),
        merged(reader.keys),
        reader.query(rows),
        reader.others(merged, rows),
        None if attention is None else merged(attention),
        None if vectors is None else vectors.unflatten(0, (rows, -1)).mean(1),
    )
