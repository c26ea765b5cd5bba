"""Whole recorded runs of a small Llama or Qwen2: its weights in stock classes, its answer through the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from stsimdiff.compressors.base import Run
from stsimdiff.conformance.cases import Fields
from stsimdiff.engine import Compression, Decoder
from stsimdiff.engine.view import LayerInput
from stsimdiff.tokens import Layout
from stsimdiff.trace import Trace

WEIGHT = "weight:"
STEPS = 8
"""Tokens that are generated, more than any recording has: how many it has is no input."""


def model_of(data: Fields) -> Any:
    """The stock model with the recorded weights, in float32."""
    config = {key: value for key, value in data.meta["config"].items() if key != "attention"}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    biased = any(name.endswith("q_proj.bias") for name in data)
    model: Any = (
        Qwen2ForCausalLM(Qwen2Config(**config)) if biased else LlamaForCausalLM(LlamaConfig(**config))
    )
    model.eval()
    weights = {}
    for name, value in data.items():
        if name.startswith(WEIGHT):
            short = name.removeprefix(WEIGHT)
            full = short if short.startswith(("model.", "lm_head")) else f"model.{short}"
            full = "lm_head.weight" if full == "lm_head" else full
            weights[full] = torch.from_numpy(value.astype(np.float32))
    model.load_state_dict(weights)
    return model


@dataclass
class Answer:
    """What a run of the small model gave.

    Attributes:
        tokens, logits: ``(steps,)`` greedy tokens and ``(steps, V)`` what chose them.
        positions: ``(steps - 1, layers)`` position of each generated token in every layer.
        cached: ``(layers,)`` keys in each layer's cache after the prefill.
        trace: of the prefill.
    """

    tokens: np.ndarray
    logits: np.ndarray
    positions: np.ndarray
    cached: np.ndarray
    trace: Trace


@torch.no_grad()
def answer(model: Any, embeds: Tensor, run: Run, layout: Layout) -> Answer:
    """Answer greedily through the engine.

    Args:
        model: of :func:`model_of`.
        embeds: ``(S, D)`` of the prompt.
        run: of the video.
        layout: where it is in the prompt.
    """
    layers, cache = model.model.layers, DynamicCache(config=model.config)
    positions: list[int] = []
    logits: list[Tensor] = []
    with Compression(Decoder(model.model, layers), run, layout) as trace:
        hooks = [
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: positions.append(int(kwargs["position_ids"][0, -1])),
                with_kwargs=True,
            )
            for layer in layers
        ]
        for step in range(STEPS):
            if step == 0:
                inputs = {"inputs_embeds": embeds[None]}
            else:
                place = torch.tensor([[layout.length + step - 1]])
                inputs = {"input_ids": logits[-1].argmax()[None, None], "position_ids": place}
            logits.append(model(**inputs, past_key_values=cache, use_cache=True).logits[0, -1])
            if step == 0:
                cached = [layer.keys.shape[-2] for layer in cache.layers]
    for hook in hooks:
        hook.remove()
    chosen = torch.stack(logits)
    return Answer(
        chosen.argmax(1).numpy(),
        chosen.numpy(),
        np.array(positions).reshape(STEPS, len(layers))[1:],
        np.array(cached),
        trace,
    )


@torch.no_grad()
def coming(data: Fields, hidden: Tensor) -> LayerInput:
    """Recorded states ``(S, D)`` as they enter a layer of which norm and projections of queries and keys are known."""
    width, heads = hidden.shape[1], int(data["num_heads"])
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=1,
        num_attention_heads=heads,
        num_key_value_heads=int(data["num_key_value_heads"]),
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, 0).eval()
    modules: dict[str, nn.Module] = {
        "q_proj": layer.self_attn.q_proj,
        "k_proj": layer.self_attn.k_proj,
        "input_layernorm": layer.input_layernorm,
    }
    for name, module in modules.items():
        module.weight.copy_(torch.from_numpy(data[WEIGHT + name].astype(np.float32)))
    place = torch.arange(len(hidden))[None]
    embeddings = LlamaRotaryEmbedding(config)(hidden[None], place)
    return LayerInput(layer, hidden[None], {"position_embeddings": embeddings}, None)


def _first_steps(name: str, recorded: Fields, outputs: dict[str, np.ndarray]) -> str:
    """So many steps as were recorded are equal; logits to 1e-4."""
    want = recorded[name]
    have = np.asarray(outputs[name])[: len(want)]
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    off = np.abs(have - want).max()
    return f"differs by up to {off:.3g}" if off > (1e-4 if name == "logits" else 0) else ""


def _cached(name: str, recorded: Fields, outputs: dict[str, np.ndarray]) -> str:
    """The caches hold the prefill, and every generated token but the last."""
    have = np.asarray(outputs[name]) + len(recorded["sequences"]) - 1
    return (
        "" if np.array_equal(recorded[name], have) else f"{have.tolist()}, recorded {recorded[name].tolist()}"
    )


RULES = {"sequences|logits|position_ids_decode": _first_steps, "cache_lengths": _cached}
"""How what an answer gives is compared."""
