"""What a sample costs, from token counts and a model's sizes alone: FLOPs by part, bytes of the cache and of weights.

A multiply-add counts 2 FLOPs. Counted are products of matrices and convolutions, as ``torch.utils.flop_counter`` counts
them, and what pooling and the compressors compute besides; norms, activations, rotary embeddings and the softmax are
left out. What was measured with a clock stands elsewhere (:mod:`stsimdiff.latency.measure`).
"""

from stsimdiff.cost.decoder import (
    DecoderShape,
    attention_flops,
    closed_form,
    continued_flops,
    decoder_flops,
    kv_bytes,
    lm_head_flops,
    mlp_flops,
    prefill_flops,
    prefill_flops_all,
)
from stsimdiff.cost.model import ModelShape, compressor_flops, sample_cost, sample_flops
from stsimdiff.cost.tower import TowerShape, TowerWork

__all__ = [
    "DecoderShape",
    "ModelShape",
    "TowerWork",
    "TowerShape",
    "attention_flops",
    "closed_form",
    "compressor_flops",
    "continued_flops",
    "decoder_flops",
    "lm_head_flops",
    "kv_bytes",
    "mlp_flops",
    "prefill_flops",
    "prefill_flops_all",
    "sample_cost",
    "sample_flops",
]
