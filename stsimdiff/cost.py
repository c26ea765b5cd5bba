"""FLOPs of the language model's prefill from token counts: 2 FLOPs a multiply-add, attention counted causally.

Norms, activations, rotary embeddings and the softmax are left out, as ``torch.utils.flop_counter`` leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a dense decoder with grouped-query attention and a gated MLP.

    Attributes:
        layers: decoder layers L.
        hidden: width D.
        intermediate: width of the MLP.
        heads: query heads.
        key_heads: key and value heads.
        head: width of a head.
        vocabulary: rows of the language head.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: Any) -> DecoderShape:
        """Read the sizes from a transformers text configuration."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
        )


def attention_flops(shape: DecoderShape, tokens: int, *, causal: bool = True) -> int:
    """One layer's attention over ``tokens``: the four projections, scores and weighted values."""
    projections = 2 * tokens * shape.hidden * shape.head * (2 * shape.heads + 2 * shape.key_heads)
    pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    return projections + 4 * pairs * shape.heads * shape.head


def mlp_flops(shape: DecoderShape, tokens: int) -> int:
    """One layer's gated MLP: gate, up and down projection."""
    return 6 * tokens * shape.hidden * shape.intermediate


def prefill_flops(
    shape: DecoderShape, text: int, entering: Sequence[int], mlp: Sequence[int], *, causal: bool = True
) -> int:
    """FLOPs of the language model's prefill, language head on the last position included.

    Args:
        shape: sizes of the decoder.
        text: tokens of the prompt that are not video tokens; they are never dropped.
        entering: video tokens that entered each layer, length L.
        mlp: video tokens in each layer's MLP, length L.
        causal: count each pair of query and key once; ``False`` counts the full square, as kernels that compute
            it, and ``torch.utils.flop_counter``, do.

    Raises:
        ValueError: if the counts are not one per layer.
    """
    if not len(entering) == len(mlp) == shape.layers:
        raise ValueError(f"{len(entering)} and {len(mlp)} counts for {shape.layers} layers")
    total = 2 * shape.hidden * shape.vocabulary
    for video, video_mlp in zip(entering, mlp, strict=True):
        total += attention_flops(shape, text + video, causal=causal) + mlp_flops(shape, text + video_mlp)
    return total


def prefill_flops_all(shape: DecoderShape, text: int, video: int) -> int:
    """The same prefill with all video tokens in every layer: the denominator of every FLOPs ratio."""
    return prefill_flops(shape, text, [video] * shape.layers, [video] * shape.layers)
