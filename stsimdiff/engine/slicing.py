"""Cutting what a stock decoder layer is given, made for the full sequence, to the tokens that are left.

Each function takes a value, the places ``(k,)`` int64 of the tokens that are left, ascending, and the full length S.
The value may lie on another device than the hidden states, where a model's layers are spread over several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def cut_mask(mask: Tensor, kept: Tensor, length: int) -> Tensor:
    """A mask ``(B, S)`` or ``(B, 1, S or 1, S)``. Raises ``ValueError`` for any other."""
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            f"a mask of type {type(mask).__name__} cannot be cut; use sdpa, eager or flash attention"
        )
    kept = kept.to(mask.device)
    if mask.ndim == 4 and mask.shape[-2] == length:
        mask = mask.index_select(-2, kept)
    return mask.index_select(-1, kept)


def cut_rotary(embeddings: Any, kept: Tensor, length: int) -> Any:
    """Rotary embeddings ``(..., S, d)``, or a tuple of them."""
    if isinstance(embeddings, Tensor):
        return embeddings.index_select(-2, kept.to(embeddings.device))
    return type(embeddings)(cut_rotary(e, kept, length) for e in embeddings)


def cut_positions(positions: Tensor, kept: Tensor, length: int) -> Tensor:
    """Positions ``(..., S)``."""
    return positions.index_select(-1, kept.to(positions.device))


SLICED: dict[str, Callable] = {  # type: ignore[type-arg]  # the annotation is in the arms' ids
    "attention_mask": cut_mask,
    "position_embeddings": cut_rotary,
    "position_ids": cut_positions,
}
"""Keyword arguments of a stock decoder layer that are as long as the sequence, and how each is cut."""
