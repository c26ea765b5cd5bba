"""The language model: FLOPs of its prefill with a token count for each layer, bytes of its cache, and its weights.

Attention is counted causally. Norms, activations, rotary embeddings and the softmax are left out, as
``torch.utils.flop_counter`` leaves them out.
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
        head_dim: width of a head.
        vocabulary: rows of the language head.
        tied: whether the language head shares the embedding's weights.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False

    @classmethod
    def from_config(cls, config: Any, tied: bool | None = None) -> DecoderShape:
        """Read the sizes from a transformers text configuration.

        Args:
            config: of the language model.
            tied: whether the head shares the embedding's weights, where another configuration says so.
        """
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            tied=bool(getattr(config, "tie_word_embeddings", False)) if tied is None else tied,
        )

    @property
    def parameters(self) -> int:
        """Weights of the matrices: embedding, layers and head; biases and norms, a thousandth, are left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.key_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)


def attention_flops(shape: DecoderShape, tokens: int, *, causal: bool = True) -> int:
    """One layer's attention over ``tokens``: the four projections, scores and weighted values."""
    projections = 2 * tokens * shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.key_heads)
    pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    return projections + 4 * pairs * shape.heads * shape.head_dim


def mlp_flops(shape: DecoderShape, tokens: int) -> int:
    """One layer's gated MLP: gate, up and down projection."""
    return 6 * tokens * shape.hidden * shape.intermediate


def lm_head_flops(shape: DecoderShape) -> int:
    """The language head on one position; ``generate`` asks for the last one of the prompt alone."""
    return 2 * shape.hidden * shape.vocabulary


def decoder_flops(
    shape: DecoderShape, text: int, entering: Sequence[int], mlp: Sequence[int], *, causal: bool = True
) -> int:
    """FLOPs of all decoder layers in the prefill; arguments as in :func:`prefill_flops`."""
    if not len(entering) == len(mlp) == shape.layers:
        raise ValueError(f"{len(entering)} and {len(mlp)} counts for {shape.layers} layers")
    return sum(
        attention_flops(shape, text + video, causal=causal) + mlp_flops(shape, text + video_mlp)
        for video, video_mlp in zip(entering, mlp, strict=True)
    )


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
    return lm_head_flops(shape) + decoder_flops(shape, text, entering, mlp, causal=causal)


def continued_flops(
    shape: DecoderShape, text: int, entering: Sequence[int], mlp: Sequence[int], shared: int
) -> int:
    """FLOPs of the prefill of a further question about a video that the first ``shared`` layers hold already.

    Such a layer costs what the text adds to what is held. All of the text counts, although a part of it stands before
    the video: this is the most it can be. The other arguments are those of :func:`prefill_flops`.
    """
    shared_flops = [
        attention_flops(shape, video) + mlp_flops(shape, video_mlp)
        for video, video_mlp in zip(entering[:shared], mlp[:shared], strict=True)
    ]
    return prefill_flops(shape, text, entering, mlp) - sum(shared_flops)


def prefill_flops_all(shape: DecoderShape, text: int, video: int) -> int:
    """The same prefill with all video tokens in every layer: the denominator of every FLOPs ratio."""
    return prefill_flops(shape, text, [video] * shape.layers, [video] * shape.layers)


def closed_form(shape: DecoderShape, text: int, entering: Sequence[int]) -> int:
    """What papers print: the sum over layers of ``4 n d^2 + 2 n^2 d + 2 n d m`` (FastV, section 4.1).

    ``n`` is the tokens that enter the layer, ``d`` the width, ``m`` the MLP's width. It counts a multiply-add once,
    every head as a key head of its own, the full square of attention, an MLP of two matrices instead of three, and
    nothing but decoder layers: only its ratio to the same formula with all tokens means something.
    """
    d, m = shape.hidden, shape.intermediate
    lengths = [text + video for video in entering]
    return sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in lengths)


def kv_bytes(shape: DecoderShape, text: int, entering: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of keys and values after the prefill: each layer holds the tokens that entered it.

    Args:
        shape: sizes of the decoder.
        text: tokens of the prompt that are not video tokens.
        entering: video tokens that entered each layer, length L. A drop between a layer's attention and its MLP
            comes too late for that layer's cache.
        bytes_per_value: bytes of one number in the cache's dtype.
    """
    row = 2 * shape.key_heads * shape.head_dim * bytes_per_value
    return row * sum(text + video for video in entering)
