"""Replays of DART: the selection on recorded states and keys, and a whole answer of a small Llama."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.compressors import dart
from stsimdiff.conformance import small_llama
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay
from stsimdiff.engine import lent
from stsimdiff.tokens import Grid, Layout, Selection, VideoTokens


def run(data: Fields) -> Arrays:
    """The selection, in a whole model where its weights were recorded."""
    return _whole(data) if "input_features" in data else _alone(data)


def _per_pivot(data: Fields) -> int:
    """Tokens that each pivot takes in the three variants of the code."""
    tokens, image = Grid(*data.grid).tokens, int(data["pivot_image_token"])
    number = image + int(data["pivot_text_token"])
    retain, most = int(data["retain_token_num_for_llava_next"]), int(data["max_num_trunction"])
    if retain >= 0:
        return int(min(retain, tokens - image) // number)
    share = tokens * (1 - float(data["reduction_ratio"]))
    if data.meta["variant"].startswith("llava"):
        return int(np.ceil((most if most >= 0 else share) // number))
    return int(share / number)


@torch.no_grad()
def _alone(data: Fields) -> Arrays:
    hidden, keys = torch.from_numpy(data["hidden"]), torch.from_numpy(data["keys"])
    variance = hidden.pow(2).mean(-1, keepdim=True)
    normed = torch.from_numpy(data["norm_weight"]) * (
        hidden * torch.rsqrt(variance + float(data["norm_eps"]))
    )
    out = _selected(data, keys, normed)
    if "official_error" not in out:
        kept = out["keep_idx"] + int(data["text_before"])
        out["out_features"] = data["hidden"][kept]
        out["position_ids_after"] = out["kept_sequence_idx"][None]
    return out


def _selected(data: Fields, keys: Tensor, normed: Tensor) -> Arrays:
    grid, first, length = Grid(*data.grid), int(data["text_before"]), len(keys)
    tokens = grid.tokens
    video, after = torch.arange(first, first + tokens), torch.arange(first + tokens, length)
    norms = dart.key_norms(keys)
    out: Arrays = {"key_norm": norms.numpy()}
    each = _per_pivot(data)
    method = dart.DART(
        pivot_image_token=int(data["pivot_image_token"]),
        pivot_text_token=int(data["pivot_text_token"]),
        as_released=True,
    )
    number = method.pivot_image_token + method.pivot_text_token
    count = method.pivot_image_token + number * each
    if count > tokens or len(after) < method.pivot_text_token:
        return out | {"official_error": np.array("RuntimeError: selected index k out of range")}
    image = dart.largest(norms[video], method.pivot_image_token)
    words = after[dart.largest(norms[after], method.pivot_text_token)]
    places = torch.cat((video[image], words))
    turns = dart.released_order(places.tolist())
    free = torch.ones(tokens, dtype=torch.bool)
    free[image] = False
    similarity = dart.cosines(normed[video], normed[places])[turns]
    rows_by_turn = dart.take(similarity, [each] * number, free)
    taken_by = torch.full((tokens,), -1)
    taken_by[image] = -2
    shown = similarity.clone()
    for turn, rows in enumerate(rows_by_turn):
        shown[turn, ~free] = torch.nan
        free[rows] = False
        taken_by[rows] = turn
    layout = Layout(grid, video, length, 1)
    selection = dart.DARTRun(method, layout, count).select(normed[video], normed[places], image, words)
    keep = selection.keep.numpy()
    text = np.r_[np.arange(first), after.numpy()]
    return out | {
        "per_pivot": np.int64(each),
        "pivot_image_idx": image.numpy(),
        "pivot_text_idx": words.numpy(),
        "pivot_sequence_idx": places[turns].numpy(),
        "pivot_similarity": shown.numpy(),
        "pivot_taken": torch.stack(rows_by_turn).numpy(),
        "taken_by": taken_by.numpy(),
        "keep_idx": keep,
        "kept_sequence_idx": np.sort(np.r_[text, keep + first]),
    }


class _Recording(dart.DARTRun):
    """Keeps what the selection was made of."""

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        view, everything = tokens.view, torch.arange(self.layout.length)
        assert view is not None
        self.keys = view.keys(layer - 1, everything)
        self.hidden = view.states(everything)
        self.normed = view.normed(self.hidden)
        self.selection = super().before_layer(layer, tokens, attention)
        return self.selection


def _whole(data: Fields) -> Arrays:
    model, grid = small_llama.model_of(data), Grid(*data.grid)
    first, ids = int(data["text_before"]), torch.from_numpy(data["input_ids"].astype(np.int64))
    words = model.get_input_embeddings()(ids).detach()
    embeds = torch.cat((words[:first], torch.from_numpy(data["input_features"]), words[first:]))
    video = torch.arange(first, first + grid.tokens)
    layout = Layout(grid, video, len(embeds), len(model.model.layers))
    image, text = int(data["pivot_image_token"]), int(data["pivot_text_token"])
    method = dart.DART(int(data["start_layer"]), image, text, as_released=True)
    count = image + (image + text) * _per_pivot(data)
    recording = _Recording(method, layout, count)
    answer = small_llama.answer(model, embeds, lent.LentRun(recording, layout), layout)
    # The authors' keys are repeated for grouped heads.
    keys = recording.keys.repeat_interleave(model.config.num_attention_heads // recording.keys.shape[1], 1)
    out = _selected(data, keys, recording.normed)
    assert recording.selection is not None
    kept = out["kept_sequence_idx"]
    return out | {
        "keep_idx": recording.selection.keep.numpy(),
        "normed": recording.normed.numpy(),
        "keys": keys.numpy(),
        "hidden_into_layer": recording.hidden.numpy()[kept],
        "position_ids_prefill": kept,
        "position_ids_decode": answer.positions[:, -1],
        "sequences": answer.tokens,
        "logits": answer.logits,
    }


REPLAY = Replay(
    run,
    inputs=(
        "hidden|norm_weight|norm_eps|keys|n_frames|height|width|text_before|pivot_image_token|pivot_text_token"
        "|reduction_ratio|max_num_trunction|retain_token_num_for_llava_next|input_features|input_ids|start_layer"
        "|weight:.*"
    ),
    skipped={"returned_idx": "keep_idx in the order of a hash table"},
    tolerances={
        "key_norm": (0.0, 1e-4),
        "pivot_similarity": (1e-6, 0.0),
        "logits|normed|hidden_into_layer": (1e-5, 0.0),
    },
    rules=small_llama.RULES,
)
