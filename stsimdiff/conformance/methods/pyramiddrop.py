"""Replays of PyramidDrop: one stage on the states that enter a layer, and whole answers of a small Llama."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.compressors.pyramiddrop import PyramidRun
from stsimdiff.conformance import small_llama
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay
from stsimdiff.engine import lent
from stsimdiff.tokens import Grid, Layout, Read, Selection, VideoTokens
from stsimdiff.trace import Trace


def run(data: Fields) -> Arrays:
    """One stage, or all of them in a whole model."""
    return _whole(data) if "input_embeds" in data else _stage(data)


def _kept(data: Fields, stage: int) -> int:
    return int(Grid(*data.grid).tokens * data.meta["ratios"][stage])


@torch.no_grad()
def _stage(data: Fields) -> Arrays:
    heads, keys = int(data["num_heads"]), int(data["num_key_value_heads"])
    if heads != keys:
        # Grouped keys, which are no matter here, the authors' code does not repeat.
        return {
            "official_error": np.array(
                f"RuntimeError: The size of tensor a ({heads}) must match the size of tensor b ({keys}) at "
                "non-singleton dimension 0"
            )
        }
    hidden = torch.from_numpy(data["hidden"])
    alive, first = data["alive_idx"].astype(np.int64), int(data["image_token_posi"][0])
    present, kept = len(alive), _kept(data, int(data["stage"]) + 1)
    if kept > present:
        return {"official_error": np.array("RuntimeError: selected index k out of range")}
    length = int(data["prompt_len"][0]) + present
    read = Read("last", over=None, coming=True)
    entered = small_llama.coming(data, hidden[0, :length])
    attention = entered.attention(read, torch.tensor([length - 1]), torch.arange(length), Trace(1, 0, 0))[
        :, 0
    ]
    score = attention[:, first : first + present].mean(0)
    grid = Grid(*data.grid)
    tokens = VideoTokens(hidden[0, first : first + present], grid, torch.from_numpy(alive))
    # The layer is no matter to the run, which is asked at the one that it names.
    selection = PyramidRun({1: kept}, "last").before_layer(1, tokens, score) if kept else None
    rows = np.arange(present) if selection is None else selection.keep.numpy()
    rows = rows[:0] if kept == 0 else rows
    text = np.r_[np.arange(first), np.arange(first + present, length)]
    keep = np.sort(np.r_[text, first + rows])[: int(data["max_length"])]
    out: Arrays = {
        "query_idx": np.int64(length - 1),
        "image_tokens_now": np.int64(present),
        "num_keep": np.int64(kept),
        "lookahead_attention": attention.numpy(),
        "score": score.numpy(),
        "kept_sequence_idx": first + rows,
        "kept_image_idx": alive[rows],
        "keep_idx": keep,
        "frame_counts": np.bincount(alive[rows] // grid.per_frame, minlength=grid.frames),
    }
    return out | _batch(data, len(keep))


def _batch(data: Fields, left: int) -> Arrays:
    """Shapes of the batch that goes on; a sample without a video passes as it is, and the shorter one is filled up."""
    lengths = [left]
    if "attention_mask" in data:
        lengths += [int(mask.sum()) for mask in data["attention_mask"][1:]]
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    out: Arrays = {
        "position_ids_after": np.arange(max(lengths)) * mask,
        "out_hidden_shape": np.array([len(lengths), max(lengths), data["hidden"].shape[2]]),
    }
    if "attention_mask" in data:
        second = np.zeros((max(lengths), data["hidden"].shape[2]), np.float32)
        second[: lengths[1]] = data["hidden"][1, : lengths[1]]
        out |= {"attention_mask_after": mask, "out_hidden_second": second}
    return out


class _Recording(PyramidRun):
    """Keeps what each stage was shown and what it chose."""

    def __init__(self, counts: Mapping[int, int], layout: Layout) -> None:
        super().__init__(dict(counts), "last")
        self.layout = layout
        self.out: Arrays = {}
        self.places = type(self.places)(
            before=self.places.before, attention=self.places.attention, queries=self.places.queries,
            reads=self.places.before,
        )  # fmt: skip
        self.present = np.arange(layout.length)

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        assert tokens.view is not None and attention is not None
        stage = f"stage{sorted(self.counts).index(layer)}"
        # All columns, text too, which no method is given.
        entered = tokens.view._held[layer]  # type: ignore[attr-defined]
        length = entered.hidden.shape[1]
        rows = torch.tensor([length - 1])
        every = entered.attention(Read(over=None), rows, torch.arange(length), Trace(1, 0, 0))[:, 0]
        selection = super().before_layer(layer, tokens, attention)
        index = tokens.index if selection is None else tokens.index[selection.keep]
        gone = np.setdiff1d(tokens.index.numpy(), index.numpy())
        self.present = np.setdiff1d(self.present, self.layout.video.numpy()[gone])
        self.out |= {
            f"{stage}_attention": every.numpy(),
            f"{stage}_score": attention.numpy(),
            f"{stage}_kept_image_idx": index.numpy(),
            f"{stage}_keep_idx": self.present,
        }
        return selection


def _whole(data: Fields) -> Arrays:
    model, grid = small_llama.model_of(data), Grid(*data.grid)
    embeds, first = torch.from_numpy(data["input_embeds"]), int(data["text_before"])
    video = torch.arange(first, first + grid.tokens)
    layout = Layout(grid, video, len(embeds), len(model.model.layers))
    layers = data["layer_list"].tolist()
    recording = _Recording({layer: _kept(data, j + 1) for j, layer in enumerate(layers)}, layout)
    answer = small_llama.answer(
        model, embeds, lent.LentRun(recording, layout, positions="renumbered"), layout
    )
    entering = np.array(answer.trace.entering) + layout.text
    return recording.out | {
        "layer_tokens_prefill": entering,
        "cache_lengths": answer.cached,
        "position_ids_decode": answer.positions,
        "sequences": answer.tokens,
        "logits": answer.logits,
    }


REPLAY = Replay(
    run,
    inputs=(
        "features|n_frames|height|width|text_before|text_after|num_heads|ratios|hidden|alive_idx|stage|layer"
        "|num_key_value_heads|max_length|image_token_posi|prompt_len|image_tokens|attention_mask|weight:.*"
        "|input_ids|input_embeds|layer_list"
    ),
    tolerances={
        r"lookahead_attention|score|stage\d+_(attention|score)": (1e-6, 0.0),
    },
    rules=small_llama.RULES,
)
