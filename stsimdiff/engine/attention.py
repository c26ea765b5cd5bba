"""Attention rows of a stock model, read without leaving its own backend.

A function registered with transformers hands queries and keys to whoever asked for them; rows are computed from those,
a few at a time, so that no full attention matrix is ever made.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stsimdiff.tokens import Read

PROBE = "stsimdiff_probe"
"""Name under which the attention function that reads rows is registered with transformers."""

QUERY_CHUNK = 64
"""Rows of attention held at once when all queries are averaged: memory is heads x 64 x sequence, never a square."""


def attention_rows(query: Tensor, key: Tensor, scaling: float, first: int | Tensor | None = None) -> Tensor:
    """Attention of some queries over all keys, softmax in float32.

    Args:
        query: ``(B, H, q, d)``, rotated.
        key: ``(B, H_kv, S, d)``, rotated; grouped heads are not repeated in memory.
        scaling: factor of the scores.
        first: position of the first query, or ``(q,)`` those of all, for the causal mask; ``None`` for rows that see
            everything.

    Returns:
        ``(B, H, q, S)`` float32.
    """
    batch, heads, count, width = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups * count, width)
    scores = (grouped @ key.transpose(-1, -2)).reshape(batch, heads, count, -1).float() * scaling
    if first is not None:
        position = first if isinstance(first, Tensor) else torch.arange(first, first + count)
        position = position.to(query.device)
        future = torch.arange(key.shape[2], device=query.device) > position[:, None]
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1)


def mean_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Attention that each key receives, averaged over all causal queries: ``(B, H, S)`` float32, in chunks of rows."""
    return _received(query, key, scaling, True, (2,)) / query.shape[2]


def received_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """``(S,)`` float32: attention that each key receives, mean over heads and queries, in chunks of query rows.

    Args:
        query, key: ``(1, H, S, d)``, one frame or window; attention is not causal in a vision tower.
        scaling: factor of the scores.
    """
    return _received(query, key, scaling, False, (0, 1, 2)) / (query.shape[2] * query.shape[1])


def _received(query: Tensor, key: Tensor, scaling: float, causal: bool, over: tuple[int, ...]) -> Tensor:
    """What each key receives, added up over the dimensions ``over`` of ``(B, H, q, S)``."""
    chunks = enumerate(query.split(QUERY_CHUNK, 2))
    rows = (attention_rows(part, key, scaling, n * QUERY_CHUNK if causal else None) for n, part in chunks)
    return reduce(torch.add, (part.sum(over) for part in rows))


def joined_attention(
    query: Tensor, key: Tensor, scaling: float, rows: Tensor, columns: slice | Tensor, read: Read
) -> Tensor:
    """Attention of some rows to some columns, joined as ``read`` says, a few rows at a time.

    Args:
        query, key, scaling: as in :func:`attention_rows`, batch of one, queries of all tokens or of the last ones.
        rows: ``(q,)`` int64 ascending: the queries.
        columns: the keys that it is given for, of all that the softmax is over.
        read: what is joined, and whether the attention is causal.

    Returns:
        ``(H, q, n)`` float32, less the dimensions that were joined.
    """
    parts: list[Tensor] = []
    first = key.shape[2] - query.shape[2]
    for chunk in rows.to(query.device).split(QUERY_CHUNK):
        weights = attention_rows(query[:, :, chunk - first], key, scaling, chunk if read.causal else None)
        part = weights[0][..., columns]
        if read.heads is not None:
            part = part.mean(0) if read.heads == "mean" else part.amax(0)
        if read.over == "mean":
            part = part.sum(-2)
        elif read.over == "max":
            part = part.amax(-2)
        if read.over is not None and parts:
            part = parts.pop() + part if read.over == "mean" else torch.maximum(parts.pop(), part)
        parts.append(part)
    if read.over is None:
        return torch.cat(parts, -2)
    return parts[0] / len(rows) if read.over == "mean" else parts[0]


Receive = Callable[[Tensor, Tensor, Tensor, float, dict[str, Any]], None]
"""Called with query ``(B, H, q, d)``, key and value ``(B, H_kv, S, d)``, the scaling, and the backend's other
arguments."""


def probe(attention: nn.Module, receive: Receive) -> Callable[[], None]:
    """Read an attention module's queries and keys through a registered function; its backend computes the output.

    Returns:
        A function that takes the probe off again.
    """
    stock = attention.config
    probing = copy.copy(stock)
    probing._attn_implementation_internal = PROBE
    probing.stsimdiff_stock = stock
    probing.stsimdiff_receive = receive
    attention.config = probing
    return lambda: setattr(attention, "config", stock)


class _Received(Exception):
    """Queries, keys and values are there: the rest of the attention need not run."""


@dataclass
class Projections:
    """What a stock attention makes of the tokens that enter it.

    Attributes:
        query: ``(1, H, S, d)``.
        key, value: ``(1, H_kv, S, d)``.
        scaling: factor of the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float


def projected(
    layer: nn.Module, hidden: Tensor, arguments: dict[str, Any], rotary: bool = True
) -> Projections:
    """Queries, keys and values by a decoder layer's own norm, projections and rotary embedding; no cache is touched.

    Args:
        layer: a stock decoder layer.
        hidden: ``(1, S, D)`` that enters it.
        arguments: what the layer is called with besides, for these S tokens.
        rotary: whether queries and keys are rotated.
    """
    arguments = {**arguments, "past_key_values": None, "attention_mask": None}
    embeddings = arguments.get("position_embeddings")
    if not rotary and embeddings is not None:
        # A rotation by no angle: cosine 1 and sine 0.
        arguments["position_embeddings"] = (torch.ones_like(embeddings[0]), torch.zeros_like(embeddings[1]))
    found: list[Projections] = []

    def receive(query: Tensor, key: Tensor, value: Tensor, scaling: float, options: dict[str, Any]) -> None:
        found.append(Projections(query, key, value, scaling))
        raise _Received

    undo = probe(layer.self_attn, receive)
    try:
        layer.self_attn(hidden_states=layer.input_layernorm(hidden), **arguments)
    except _Received:
        pass
    finally:
        undo()
    return found[0]


def _probing_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function: hands query and key to the probe, then calls the model's own backend."""
    config = module.config
    config.stsimdiff_receive(query, key, value, kwargs.get("scaling") or query.shape[-1] ** -0.5, kwargs)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    stock = config.stsimdiff_stock
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(stock._attn_implementation, eager)
    # Flash attention reads the implementation's name from the module's configuration: it must find the stock one.
    module.config = stock
    try:
        return backend(module, query, key, value, attention_mask, **kwargs)
    finally:
        module.config = config


ALL_ATTENTION_FUNCTIONS.register(PROBE, _probing_attention)
