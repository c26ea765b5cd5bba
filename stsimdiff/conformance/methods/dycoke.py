"""Replays of DyCoke: stage 1 alone, stage 2 on recorded attention, and both in a whole answer of a small Qwen2."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.compressors import dycoke
from stsimdiff.compressors.base import Hidden, Places, Run
from stsimdiff.conformance import small_llama
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay
from stsimdiff.tokens import Grid, Layout


def run(data: Fields) -> Arrays:
    """The stages that were recorded."""
    if "features" not in data:
        return _decoded(data)
    return _whole(data) if "input_ids" in data else _merged(data)


def _method(data: Fields) -> dycoke.DyCoke:
    layer = int(data["dycoke_l"]) if "dycoke_l" in data else 3
    return dycoke.DyCoke(True, float(data["dycoke_p"]), layer, float(data["similarity_threshold"]))


def _decoded(data: Fields) -> Arrays:
    """Stage 2; its state goes on from one question to the next."""
    method, first = _method(data), int(data["image_token_start_index"])
    count = int(data["ttm_rows"]) - 1
    out: Arrays = {"image_token_length": np.int64(count), "num_keep": np.int64(count * (1 - method.dycoke_p))}
    similarity: list[float] = []
    updated: list[bool] = []
    before, keys = None, int(data["seq_length"])
    for step in range(int(data["n_steps"])):
        attention = torch.from_numpy(data[f"step{step}_attn"])[0, :, 0].mean(0)
        if len(attention) != keys + 1:
            # Another question, whose prompt is longer or shorter by its video alone.
            count = int(data["ttm_rows"]) - 1 + len(attention) - 1 - int(data["seq_length"])
        keys = len(attention)
        seen = attention[first : first + count]
        try:
            alike, kept = dycoke.most_seen(seen, before, method)
        except RuntimeError as error:
            return {"official_error": np.array(f"RuntimeError: {error}"), "error_step": np.int64(step)}
        before = seen
        similarity.append(alike)
        updated.append(kept is not None)
        if kept is not None:
            out |= _cache_rows(step, kept, first, count, keys)
    return out | {"similarity": np.array(similarity, np.float32), "updated": np.array(updated)}


def _cache_rows(step: int, kept: Tensor, first: int, count: int, keys: int) -> Arrays:
    image = kept.numpy()
    everything = np.r_[np.arange(first), first + image, np.arange(first + count, keys)]
    return {f"step{step}_kept_image_idx": image, f"step{step}_kv_idx": everything}


class _Decoding(Run):
    """Stage 2 alone; keeps what each generated token sees."""

    def __init__(self, method: dycoke.DyCoke, first: int, count: int, keys: int) -> None:
        layer = method.dycoke_l
        self.places = Places(decoding=frozenset({layer}), watched=frozenset({layer - 1}))
        self.method, self.first, self.count, self.keys = method, first, count, keys
        self.before: Tensor | None = None
        self.similarity: list[float] = []
        self.updated: list[bool] = []
        self.out: list[Arrays] = []

    @override
    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor | None) -> Hidden | None:
        assert attention is not None
        seen = attention.mean(0)[: self.count]
        alike, kept = dycoke.most_seen(seen, self.before, self.method)
        self.before = seen
        self.similarity.append(alike)
        self.updated.append(kept is not None)
        self.out.append({})
        if kept is None:
            return None
        self.out[-1] = _cache_rows(step, kept, self.first, self.count, self.keys + step + 1)
        return Hidden(cached[: self.count][~torch.isin(torch.arange(self.count), kept)])


def _whole(data: Fields) -> Arrays:
    """Stage 1's tokens in the authors' order, newline after them, then stage 2 in the engine."""
    out, model = _merged(data), small_llama.model_of(data)
    rows, first = out["out_source_idx"], int(data["image_placeholder"])
    ids = torch.from_numpy(data["input_ids"].astype(np.int64))
    ids = torch.cat((ids[:first], ids[first + 1 :]))
    words = model.get_input_embeddings()(ids).detach()
    newline = torch.from_numpy(data["image_newline"].astype(np.float32))[None]
    embeds = torch.cat((words[:first], torch.from_numpy(data["features"])[rows], newline, words[first:]))
    grid, layers = Grid(1, 1, len(rows)), len(model.model.layers)
    layout = Layout(grid, torch.arange(first, first + len(rows)), len(embeds), layers)
    decoding = _Decoding(_method(data), first, len(rows) - 1, len(embeds))
    answer = small_llama.answer(model, embeds, decoding, layout)
    steps = int(data["n_steps"])
    for seen in decoding.out[:steps]:
        out |= seen
    return out | {
        "num_keep": np.int64((len(rows) - 1) * (1 - decoding.method.dycoke_p)),
        "similarity": np.array(decoding.similarity[:steps], np.float32),
        "updated": np.array(decoding.updated[:steps]),
        "sequences": answer.tokens,
        "logits": answer.logits,
    }


def _merged(data: Fields) -> Arrays:
    """Stage 1 as the authors' code does it, its order of tokens included."""
    features, per_frame = torch.from_numpy(data["features"]), int(data["num_tokens_per_frame"])
    frames, grid = len(features) // per_frame, int(data["n_frames"])
    if frames <= dycoke.WINDOW:
        return {"official_error": np.array("RuntimeError: stack expects a non-empty TensorList")}
    before = dycoke.references(frames, as_released=True)
    alike = dycoke.similarities(features, per_frame, before)
    count = int((1 - float(data["dycoke_k"])) * per_frame)
    kept = {frame: dycoke.least_similar(similarity, count).numpy() for frame, similarity in alike.items()}
    rows = [frame * per_frame + kept.get(frame, np.arange(per_frame)) for frame in range(len(before))]
    source = np.concatenate(rows)
    counts = np.zeros(max(frames, grid), dtype=np.int64)
    counts[: len(rows)] = [len(row) for row in rows]
    out: Arrays = {
        "num_tokens_to_keep": np.int64(count),
        "out_source_idx": source,
        "keep_idx": np.sort(source),
        "frame_counts": counts,
        "image_token_length": np.int64(len(source) - 1),
    }
    for name, chosen in (("pair", [f for f in alike if f % 2]), ("window", [f for f in alike if f % 2 == 0])):
        out[f"{name}_similarity"] = np.stack([alike[frame].numpy() for frame in chosen])
        out[f"{name}_keep_idx"] = np.stack([kept[frame] for frame in chosen])
    return out


def _outside_ties(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Equal in order where no cut is tied, else the same tokens but for those within rounding of a cut."""
    want, have = recorded[name], np.asarray(outputs[name])
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    per_frame = int(recorded["num_tokens_per_frame"])
    if name.endswith("keep_idx") and want.ndim == 2:
        step, first = (2, 1) if name.startswith("pair") else (4, 2)
        start = (np.arange(len(want)) * step + first)[:, None] * per_frame
        want, have = want + start, have + start
    tied = recorded["ambiguous"] if "ambiguous" in recorded else np.zeros(0, dtype=bool)
    if tied.any():
        wrong = np.setxor1d(want, have)
        wrong = wrong[~tied[wrong]]
    else:
        wrong = want[want != have]
    return f"{len(wrong)} tokens differ, first {wrong.flat[0]}" if len(wrong) else ""


def _same_keys(name: str, recorded: Fields, outputs: Arrays) -> str:
    """The same keys; their order, which decides nothing, was left open."""
    if np.array_equal(np.sort(recorded[name]), np.sort(outputs[name])):
        return ""
    return f"{len(np.setxor1d(recorded[name], outputs[name]))} keys differ"


REPLAY = Replay(
    run,
    inputs=(
        "features|n_frames|height|width|num_tokens_per_frame|dycoke_[klp]|image_token_start_index|ttm_rows|seq_length"
        r"|similarity_threshold|n_steps|question_of_step|step\d+_attn|input_ids|image_placeholder|image_newline|weight:.*"
    ),
    skipped={"ambiguous": "says which tokens lie within rounding of a cut"},
    tolerances={"(pair|window)_similarity|similarity": (1e-6, 0.0)},
    rules={
        **small_llama.RULES,
        r"step\d+_kv_idx": _same_keys,
        "out_source_idx|keep_idx|pair_keep_idx|window_keep_idx": _outside_ties,
    },
)
