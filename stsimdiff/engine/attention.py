"""Attention rows of a stock model, read without leaving its own backend.

A function registered with transformers hands queries and keys to whoever asked for them; rows are computed from those,
a few at a time, so that no full attention matrix is ever made.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PROBE = "stsimdiff_probe"
"""Name under which the attention function that reads rows is registered with transformers."""

QUERY_CHUNK = 64
"""Rows of attention held at once when all queries are averaged: memory is heads x 64 x sequence, never a square."""


def attention_rows(query: Tensor, key: Tensor, scaling: float, first: int | None = None) -> Tensor:
    """Attention of some queries over all keys, softmax in float32.

    Args:
        query: ``(B, H, q, d)``, rotated.
        key: ``(B, H_kv, S, d)``, rotated; grouped heads are not repeated in memory.
        scaling: factor of the scores.
        first: position of the first query, for the causal mask; ``None`` for the last row, which sees everything.

    Returns:
        ``(B, H, q, S)`` float32.
    """
    batch, heads, count, width = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups * count, width)
    scores = (grouped @ key.transpose(-1, -2)).reshape(batch, heads, count, -1).float() * scaling
    if first is not None:
        position = torch.arange(first, first + count, device=query.device)
        future = torch.arange(key.shape[2], device=query.device) > position[:, None]
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1)


def mean_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Attention that each key receives, averaged over all causal queries: ``(B, H, S)`` float32, in chunks of rows."""
    length = query.shape[2]
    total = query.new_zeros((query.shape[0], query.shape[1], key.shape[2]), dtype=torch.float32)
    for first in range(0, length, QUERY_CHUNK):
        total += attention_rows(query[:, :, first : first + QUERY_CHUNK], key, scaling, first).sum(2)
    return total / length


Receive = Callable[[Tensor, Tensor, float, dict[str, Any]], None]
"""Called with query ``(B, H, q, d)``, key ``(B, H_kv, S, d)``, the scaling, and the backend's other arguments."""


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


def _probing_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function: hands query and key to the probe, then calls the model's own backend."""
    config = module.config
    config.stsimdiff_receive(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5, kwargs)
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
