"""STTM: pyramid, nodes, pairs and merged tokens; and a whole run on a stock Qwen2, through the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stsimdiff.budget import Budget
from stsimdiff.compressors import sttm
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay, refused
from stsimdiff.engine import Compression, Decoder
from stsimdiff.engine.lent import start
from stsimdiff.tokens import Grid, Layout

NEW_TOKENS = 4


def replay(data: Fields) -> Arrays:
    """Our outputs; of a whole run from the hidden states that our own decoder gives."""
    grid = Grid(*data.grid)
    method = sttm.STTM(
        threshold=float(data["threshold"]),
        temporal_threshold=max(-1.0, float(data["temporal_threshold"])),
        root_level=int(data["root_level"]),
        weighted_avg=bool(data["weighted_avg"]),
        head_dim=int(data["head_dim"]),
        slow_version=bool(data["slow_version"]),
        layer=int(data.get("start_layer", 2)),
        positions="renumbered",
        as_released=True,
    )
    out: Arrays = {}
    features = torch.from_numpy(data["features"]) if "input_features" not in data else None
    if features is None:
        out, features = whole_run(data, grid, method)
    try:
        return out | selection(features, grid, method)
    except ValueError:
        return out | {"official_error": np.array("IndexError: list index out of range")}


def selection(features: Tensor, grid: Grid, method: sttm.STTM) -> Arrays:
    """Both steps on the tokens that enter the layer."""
    sizes = sttm.level_sizes(grid.height, grid.width, method.root_level, as_released=True)
    levels = sttm.pyramid(features, grid.frames, sizes, method)
    nodes = sttm.nodes(levels, method.threshold)
    threshold = float(method.temporal_threshold)
    pairs = sttm.merging_pairs(nodes, threshold, method.slow_version) if threshold > 0 else None
    result = sttm.merged(nodes, pairs)
    box = nodes.box[result.node]
    keep = box[:, 0] * grid.per_frame + box[:, 1] * grid.width + box[:, 2]
    out: Arrays = {
        "n_levels": np.int64(len(sizes)),
        "level_sizes": np.array(sizes),
        "node_tyxyx": nodes.box,
        "pair_idx": nodes.pairs,
        "pair_similarity": nodes.similarity,
        "merge_pair_idx": np.zeros((0, 2), dtype=np.int64) if pairs is None else pairs,
        "representative": result.representative,
        "n_iterations": np.int64(result.rounds),
        "out_node_idx": result.node,
        "out_tyxyx": box,
        "out_patches": result.patches,
        "keep_idx": keep,
        "token_to_out": result.group[nodes.owner].ravel(),
        "frame_counts": np.bincount(box[:, 0], minlength=grid.frames),
        "out_features": sttm.merged_features(levels, nodes, result, method.weighted_avg).numpy(),
    }
    for number, (level, size) in enumerate(zip(levels.levels[:-1], sizes, strict=False)):
        rows = levels.pooled[level.first : level.first + grid.frames * len(level.box)]
        shape = (grid.frames, *size)
        visited = nodes.visited[number][:, :, None]
        similarity = np.where(visited, levels.similarity[number], np.nan).astype(np.float32)
        out[f"level{number}_features"] = rows.numpy().reshape(*shape, -1)
        out[f"level{number}_tyxyx"] = level.box.reshape(*size, 4)
        out[f"level{number}_similarity"] = similarity.reshape(*shape, 4)
        out[f"level{number}_stop"] = nodes.stopped[number].reshape(shape)
    return out


@torch.inference_mode()
def whole_run(data: Fields, grid: Grid, method: sttm.STTM) -> tuple[Arrays, Tensor]:
    """A prefill and greedy tokens on a stock Qwen2; and the hidden states of the video that enter the layer.

    In the authors' code a generated token has the position that follows the whole prompt, in every layer, also where
    the prompt was numbered anew. The engine has it follow the layer's own cache; so what it says while decoding is put
    back to what the stock model says.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(**data.meta["config"])).eval()
    weights = {name.removeprefix("weight:"): data[name] for name in data if name.startswith("weight:")}
    model.load_state_dict({name: torch.from_numpy(value).float() for name, value in weights.items()})
    before, ids = int(data["text_before"]), torch.from_numpy(data["input_ids"].astype(np.int64))
    text, video = model.model.embed_tokens(ids), torch.from_numpy(data["input_features"])
    embeds = torch.cat((text[:before], video, text[before:]))[None]
    place = torch.arange(before, before + grid.tokens)
    layout = Layout(grid, place, embeds.shape[1], len(model.model.layers))
    layer, seen = model.model.layers[method.layer], {}
    stock: list[Any] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] > 1:
            seen["features"] = hidden[0, place]
        stock[:] = [kwargs["position_ids"], kwargs["position_embeddings"]]

    positions: list[Tensor] = []

    def restore(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] == 1:
            kwargs = {**kwargs, "position_ids": stock[0], "position_embeddings": stock[1]}
        if module is layer:
            positions.append(kwargs["position_ids"].flatten())
        return args, kwargs

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True)]
    tokens, logits = [], []
    try:
        run = start(method, layout, Budget())
        with Compression(Decoder(model.model, model.model.layers), run, layout):
            later = model.model.layers[method.layer :]
            handles += [block.register_forward_pre_hook(restore, with_kwargs=True) for block in later]
            output = model(inputs_embeds=embeds, use_cache=True)
            for _ in range(NEW_TOKENS):
                logits.append(output.logits[0, -1])
                tokens.append(int(logits[-1].argmax()))
                if len(tokens) < NEW_TOKENS:
                    output = model(
                        input_ids=torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values
                    )
    finally:
        for handle in handles:
            handle.remove()
    out = {
        "position_ids_prefill": positions[0].numpy(),
        "position_ids_decode": torch.cat(positions[1:]).numpy(),
        "sequences": np.array(tokens),
        "logits": torch.stack(logits).numpy(),
    }
    return out, seen["features"]


def same_rounds(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Rounds of the temporal step; where nothing merges, none and one are the same."""
    want, have = int(recorded[name]), int(outputs[name])
    nothing = len(outputs["merge_pair_idx"]) == 0 and max(want, have) <= 1
    return "" if want == have or nothing else f"{have} rounds, recorded {want}"


REPLAY = Replay(
    replay,
    inputs="features|n_frames|height|width|threshold|temporal_threshold|root_level|weighted_avg|slow_version|head_dim"
    "|input_features|input_ids|text_before|start_layer|weight:.*",
    tolerances={
        r"level\d+_similarity|pair_similarity": (1e-6, 0.0),
        "logits": (1e-4, 0.0),
    },
    rules={"n_iterations": same_rounds, "official_error": refused},
)
