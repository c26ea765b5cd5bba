"""Replays of SparseVLM: its stages on recorded states and attention, and whole answers of a small Llama.

In whole answers recycled tokens stand where the authors' code puts them, behind the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.compressors import sparsevlm
from stsimdiff.conformance import small_llama
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay, same_error
from stsimdiff.engine import lent
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens

VERSIONS = {"1_0": "v1", "2_0": "v2", "video": "video"}
HEADS = 14
NO_HEADS = f"RuntimeError: selected index k out of range (fewer than {HEADS} heads)"
NO_ARGUMENT = "TypeError: attn_postprocess_rank() missing 1 required positional argument"


class _Stages:
    """The stages of one recorded case, one after another, as released.

    Args:
        data: the inputs; of a choice that chance made, what was recorded if it is there.
        layout: of the prompt.
        width: of a head.
    """

    def __init__(self, data: Fields, layout: Layout, width: int) -> None:
        self.data, self.layout, self.width = data, layout, width
        self.version = VERSIONS[data.meta["version"]]
        self.source = torch.arange(layout.grid.tokens)
        self.merged = torch.zeros(layout.grid.tokens, dtype=torch.bool)
        self.raters = self.source[:0]
        # Of a first stage that raises, these alone are known.
        self.out: Arrays = self._block(0)

    def _block(self, number: int) -> Arrays:
        return {
            f"call{number}_block_source": self.source.numpy(),
            f"call{number}_block_merged": self.merged.numpy(),
        }

    def rate(self, video: Tensor, text: Tensor) -> None:
        score = sparsevlm.rater_scores(video, text)
        self.raters = sparsevlm.raters(score)
        self.out |= {"rater_score": score.numpy(), "rater_idx": self.raters.numpy()}

    def cut(self, number: int, features: Tensor, attention: Tensor) -> tuple[sparsevlm.Chosen, Tensor]:
        """What a stage makes of the block ``(n, D)`` and its attention ``(heads, a, n)``; the block after it."""
        name, present = f"call{number}_", len(features)
        self.out |= self._block(number)
        score = self._score(name, attention)
        self.out[f"{name}score"] = score.numpy()
        kept = self._kept(number, present, attention)
        pool, clusters = (
            (0, 0) if self.version == "v2" or kept == present else sparsevlm.recycled(present - kept)
        )
        noise = self.data.get(f"{name}cluster_noise")
        noise = None if noise is None else torch.from_numpy(noise) * 1e-6
        chosen = sparsevlm.choose(features, self._ranked(name, score), kept, pool, clusters, noise)
        self.out[f"{name}keep_local"] = chosen.keep.numpy()
        self.out[f"{name}keep_idx"] = self.source[chosen.keep].numpy()
        if chosen.peaks is not None:
            plain = sparsevlm.choose(features[chosen.pool], torch.zeros(pool), 0, pool, clusters).peaks
            assert plain is not None
            self.out |= {
                f"{name}merge_local": chosen.pool.numpy(),
                f"{name}cluster_density": plain.density.numpy(),
                f"{name}cluster_score": chosen.peaks.score.numpy(),
                f"{name}centre_local": chosen.pool[chosen.centre].numpy(),
                f"{name}assignment": chosen.label.numpy(),
                f"{name}merged_features": chosen.means.numpy(),
            }
        rows = torch.cat((chosen.keep, chosen.pool[chosen.centre]))
        self.source = self.source[rows]
        self.merged = self.merged[rows]
        self.merged[kept:] = True
        after = torch.cat((features[chosen.keep], chosen.means))
        places = torch.cat((self.layout.places("text"), self.layout.video[self.source])).sort().values
        if self.version != "v2":
            places = torch.arange(len(places))
        self.out |= {
            f"{name}out_source": self.source.numpy(),
            f"{name}out_merged": self.merged.numpy(),
            f"{name}out_features": after.numpy(),
            f"{name}positions_after": places.numpy(),
        }
        return chosen, after

    def _score(self, name: str, attention: Tensor) -> Tensor:
        rows = attention[:, self.raters]
        if self.version == "v2":
            text = self.layout.places("after")[self.raters]
            rows = rows / sparsevlm.distance_weights(text, self.layout.video[self.source], self.width)
            heads = sparsevlm.best_heads(rows, HEADS)
            self.out[f"{name}heads"] = heads.numpy()
            rows = rows[heads]
        return rows.mean(0).mean(0)

    def _kept(self, number: int, present: int, attention: Tensor) -> int:
        if self.version == "video":
            rank = int(torch.linalg.matrix_rank(attention.mean(0)[self.raters]))
            self.out[f"call{number}_rank"] = np.int64(rank)
            return min(rank, present)
        kept = sparsevlm.KEPT[self.version][int(self.data["retain_tokens"])]
        return min(kept[number], present - 1)

    def _ranked(self, name: str, score: Tensor) -> Tensor:
        """The scores; without raters they are NaN, and what was recorded of the choice takes their place."""
        recorded = [self.data.get(f"{name}{part}_local") for part in ("merge", "keep")]
        if not bool(score.isnan().any()) or recorded[1] is None:
            return score
        ranked = torch.zeros_like(score)
        if recorded[0] is not None:
            ranked[recorded[0].astype(np.int64)] = torch.arange(len(recorded[0]), 0, -1.0)
        ranked[recorded[1].astype(np.int64)] = len(score) + 1.0
        return ranked


def _layout(data: Fields, after: int, layers: int) -> Layout:
    grid, first = Grid(*data.grid), int(data["text_before"])
    video = torch.arange(first, first + grid.tokens)
    return Layout(grid, video, first + grid.tokens + after, layers)


def _raises(version: str, case: str, heads: int) -> str:
    """What the authors' code raises at its first stage."""
    if version == "video" and "adapted" not in case:
        return NO_ARGUMENT
    return NO_HEADS if version == "v2" and heads < HEADS else ""


@torch.no_grad()
def run(data: Fields) -> Arrays:
    """The stages on the recorded states."""
    first = int(data["text_before"])
    text = torch.from_numpy(data["text_features"])[first:]
    layers = data["prune_layers"].tolist()
    stages = _Stages(data, _layout(data, len(text), layers[-1] + 2), int(data.get("head_dim", 0)))
    stages.rate(torch.from_numpy(data["features"]), text)
    for number in range(len(layers)):
        hidden = torch.from_numpy(data[f"call{number}_layer_out"])
        attention = torch.from_numpy(data[f"call{number}_text_attention"])
        if error := _raises(stages.version, data.meta.get("case", ""), len(attention)):
            return stages.out | {"official_error": np.array(error)}
        stages.cut(number, hidden[first : first + len(stages.source)], attention)
    return stages.out


class _Whole(sparsevlm.SparseRun):
    """The product's run, with the authors' counts, and recycled tokens behind the others."""

    def __init__(self, stages: _Stages, method: sparsevlm.SparseVLM, layers: Mapping[int, int]) -> None:
        super().__init__(method, stages.layout, layers)
        self.stages = stages
        self.places = type(self.places)(
            input=True, before=self.places.before, attention=self.places.attention, queries=self.places.queries,
            reads=self.places.attention,
        )  # fmt: skip

    @override
    def at_input(self, tokens: VideoTokens) -> None:
        super().at_input(tokens)
        assert tokens.view is not None
        self.stages.rate(tokens.features, tokens.view.states(self.layout.places("after")))

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
        view, number = tokens.view, self.left[layer - 1]
        assert view is not None
        read = sparsevlm.Read("after", over=None)
        every = view.attention(layer - 1, read)
        first = int(self.layout.video[0])
        text = view.states(self.layout.places("text"))
        self.stages.out[f"call{number}_layer_out"] = torch.cat(
            (text[:first], tokens.features, text[first:])
        ).numpy()
        self.stages.out[f"call{number}_text_attention"] = every.numpy()
        index = self.stages.source
        _, after = self.stages.cut(number, tokens.features, every)
        # The engine's rows are ascending; which token stands in them the stages know.
        assert torch.equal(index.sort().values, tokens.index)
        mask = torch.isin(tokens.index, self.stages.source)
        return Selection.from_mask(mask, Reason.IMPORTANT, after)


def _whole(data: Fields) -> Arrays:
    model, first = small_llama.model_of(data), int(data["text_before"])
    words = model.get_input_embeddings()(torch.from_numpy(data["input_ids"].astype(np.int64))).detach()
    embeds = torch.cat((words[:first], torch.from_numpy(data["features"]), words[first:]))
    layout = _layout(data, len(words) - first, len(model.model.layers))
    width = model.model.layers[0].self_attn.head_dim
    stages = _Stages(data, layout, width)
    if error := _raises(stages.version, data.meta.get("case", ""), model.config.num_attention_heads):
        stages.rate(torch.from_numpy(data["features"]), words[first:])
        return stages.out | {"official_error": np.array(error)}
    corrected = stages.version == "v2"
    method = sparsevlm.SparseVLM(version="v2" if corrected else "v1")
    layers = {layer: number for number, layer in enumerate(data["prune_layers"].tolist())}
    recording = lent.LentRun(
        _Whole(stages, method, layers), layout, positions="kept" if corrected else "renumbered"
    )
    answer = small_llama.answer(model, embeds, recording, layout)
    return stages.out | {
        "cache_lengths": answer.cached,
        "position_ids_decode": answer.positions,
        "sequences": answer.tokens,
        "logits": answer.logits,
    }


def _choice(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Equal, save where chance decides: the centre of a single cluster, and all choices among scores that are NaN."""
    number = int(name[4])
    if np.isnan(recorded[f"call{number}_score"]).any():
        if recorded[name].shape != np.shape(outputs[name]):
            return f"shape {np.shape(outputs[name])}, recorded {recorded[name].shape}"
        outputs = run(recorded)
    want, have = recorded[name], np.array(outputs[name])
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    if want.dtype.kind == "f":
        # Distances of the same function differ by their last bits between machines.
        allowed = 3e-6 if "_cluster_" in name else 1e-5
        off = np.abs(have - want).max(initial=0)
        return "" if np.allclose(have, want, allowed, 1e-6) else f"differs by up to {off:.3g}"
    for call in range(number + 1):
        centre = recorded.get(f"call{call}_centre_local", np.zeros(0))
        if len(centre) != 1:
            continue
        ours = np.asarray(outputs[f"call{call}_centre_local"])[0]
        if ours not in recorded[f"call{call}_merge_local"]:
            return "the centre of the cluster is not one of its tokens"
        if name == f"call{call}_centre_local":
            return ""
        if name.endswith(("source", "keep_idx")):
            have[have == outputs[f"call{call}_block_source"][ours]] = recorded[f"call{call}_block_source"][
                centre[0]
            ]
    wrong = np.flatnonzero(want != have)
    return f"{len(wrong)} of {want.size} differ, first at {wrong[0]}" if len(wrong) else ""


INPUTS = (
    r"n_frames|height|width|text_before|retain_tokens|prune_layers|head_dim|features|call\d+_cluster_noise"
)
STAGES = INPUTS + r"|text_features|call\d+_(layer_out|text_attention)"
RULES = {
    r"call\d+_(block_.*|keep_.*|merge_local|cluster_.*|centre_local|assignment|merged_features|out_.*)": _choice,
    "official_error": same_error,
}
REPLAY = Replay(
    run,
    inputs=STAGES,
    tolerances={r"call\d+_score": (1e-12, 1e-6)},
    rules=RULES,
    parts={
        "input_ids": Replay(
            _whole,
            inputs=INPUTS + "|input_ids|weight:.*",
            tolerances={r"call\d+_score": (1e-12, 2e-4)},
            rules=RULES | {key: rule for key, rule in small_llama.RULES.items() if key != "cache_lengths"},
        ),
        "head_dim": Replay(run, inputs=STAGES, tolerances={r"call\d+_score": (1e-12, 2e-4)}, rules=RULES),
    },
)
