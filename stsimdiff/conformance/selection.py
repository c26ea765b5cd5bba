"""Replays of recorded selections in the language model: ST-SimDiff, FrameFusion, FastV.

Recorded sequences are text, then the video in raster order, then text; all recorded indices count from the start of
the sequence unless their name says ``by_patch`` (place in the frame first, then time) or ``local``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors import fastv, framefusion, st_simdiff
from stsimdiff.compressors.st_simdiff import STSimDiff, Thinning
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.tokens import Grid, Layout, Selection, VideoTokens

EDGES: dict[tuple[bool, bool], Literal["both", "spatial", "temporal"]] = {
    (True, True): "both",
    (True, False): "spatial",
    (False, True): "temporal",
}
RELEASED = {"strategy": 3, "right": True, "bottom": True}
"""Settings of the released ST-SimDiff that ours has no choice for."""


class Sequence:
    """Where the video stands in a recorded sequence.

    Attributes:
        start: place of the first video token.
        length: tokens of the sequence.
        grid: grid of the video.
    """

    def __init__(self, start: int, length: int, grid: Grid) -> None:
        self.start, self.length, self.grid = start, length, grid

    @classmethod
    def of(cls, data: Fields) -> Sequence:
        """Read from the fields of a recorded file."""
        grid = Grid(*data.grid)
        return cls(int(data["image_token_start_index"]), int(data["original_length"]), grid)

    def layout(self, layers: int) -> Layout:
        """The same for a compressor."""
        return Layout(self.grid, torch.arange(self.start, self.start + self.grid.tokens), self.length, layers)

    def video(self, index: np.ndarray) -> np.ndarray:
        """Raster indices of the video tokens among sequence indices."""
        raster = index.astype(np.int64) - self.start
        return raster[(raster >= 0) & (raster < self.grid.tokens)]

    def is_video(self, index: np.ndarray) -> np.ndarray:
        """Which sequence indices are video tokens."""
        return (index >= self.start) & (index < self.start + self.grid.tokens)

    def with_text(self, raster: np.ndarray) -> np.ndarray:
        """``(K,)`` sequence indices of all text and the given video tokens, ascending."""
        index = np.arange(self.length)
        return np.sort(np.concatenate((index[~self.is_video(index)], np.asarray(raster) + self.start)))

    def by_patch(self, raster: np.ndarray) -> np.ndarray:
        """Order of the given raster indices by place in the frame, then by time."""
        return np.argsort(place_first(raster, self.grid))


def released_method(settings: dict[str, Any], layers: int) -> STSimDiff:
    """ST-SimDiff with the settings of a recording.

    Raises:
        ConfigError: for a setting of the released code that ours does not have.
    """
    for name, value in RELEASED.items():
        if settings.get(name, value) != value:
            raise ConfigError(
                f"the case was recorded with {name}={settings[name]}; only {value} is implemented"
            )
    kinds = bool(settings.get("spatial", True)), bool(settings.get("temporal", True))
    if kinds not in EDGES:
        raise ConfigError(
            "the case was recorded with neither spatial nor temporal edges, which is not implemented"
        )
    return STSimDiff(
        tau_sim=float(settings["similarity_lower_bound"]),
        tau_diff=float(settings.get("event_upper_bound", 0.2)),
        edges=EDGES[kinds],
        released_layers=layers,
    )


def released_edges(thinning: Thinning, method: STSimDiff, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Edges ``(E, 2)`` and similarities ``(E,)`` in the recorded order: temporal ones by place, then spatial ones."""
    edges, value = graph.similar_edges(thinning.similarities, grid, method.tau_sim, method.edges)
    first = edges[:, 0]
    temporal = edges[:, 1] - first == grid.per_frame
    # Ours are temporal, right, bottom, each in raster order; only the temporal ones were recorded in another.
    order = np.lexsort((np.where(temporal, place_first(first, grid), np.arange(len(first))), ~temporal))
    return edges[order], value[order]


def place_first(raster: np.ndarray, grid: Grid) -> np.ndarray:
    """A number for each raster index that sorts by place in the frame first, then by time."""
    return raster % grid.per_frame * grid.frames + raster // grid.per_frame


def replay_stsimdiff(data: Fields) -> Arrays:
    """Both stages of ST-SimDiff; ``s1_*`` and ``s2_*`` of the recording."""
    place = Sequence.of(data)
    layers = int(data["num_layers"])
    names = ("similarity_lower_bound", "event_upper_bound", "spatial", "temporal", *RELEASED)
    method = released_method({name: data[name].item() for name in names}, layers)
    cost = float(data["cost"])
    rows = slice(place.start, place.start + place.grid.tokens)
    tokens = VideoTokens.full(torch.from_numpy(data["hidden"][0, rows]), place.grid)
    thinning = st_simdiff.select(tokens, cost, method)
    out = _first_stage(data, place, thinning, method)
    out["s1_sparsity_upper_bound"] = np.float64(st_simdiff.released_ratio(cost, None, layers))
    if "s2_attn" in data:
        out.update(_second_stage(data, place, tokens, method, out))
    return out


def _first_stage(data: Fields, place: Sequence, thinning: Thinning, method: STSimDiff) -> Arrays:
    grid, start = place.grid, place.start
    n = grid.tokens
    by_patch = place.by_patch(np.arange(n))
    earlier = np.full(n, -2.0, dtype=np.float32)
    earlier[grid.per_frame :] = thinning.similarities.temporal.flatten().numpy()
    edges, value = released_edges(thinning, method, grid)
    keep = place.with_text(thinning.selection.keep.numpy())
    component = np.full(place.length, -1)
    component[start : start + n] = thinning.communities.label
    centrality = np.full(place.length, np.nan, dtype=np.float32)
    centrality[start : start + n] = thinning.centrality
    out = {
        "s1_token_index_by_patch": by_patch + start,
        "s1_similarity_by_patch": earlier[by_patch],
        "s1_edges": edges + start,
        "s1_edge_sim": value,
        "s1_event_idx": np.flatnonzero(thinning.event) + start,
        "s1_component_of": component,
        "s1_component_weight": thinning.weight.astype(np.float32),
        "s1_component_order": np.argsort(-thinning.weight, kind="stable"),
        "s1_components_processed": np.int64(len(thinning.visited)),
        "s1_centrality": centrality,
        "s1_keep_idx": keep,
        "s1_sparsity_list": np.array([1 - len(thinning.selection.keep) / n] if len(edges) else []),
    }
    if "patch_type" in data:
        out["s1_patch_type_out"] = data["patch_type"][:, keep]
    if method.edges != "temporal":
        out["s1_right_sim"] = np.pad(thinning.similarities.right.numpy(), ((0, 0), (0, 0), (0, 1)))
        out["s1_bottom_sim"] = np.pad(thinning.similarities.bottom.numpy(), ((0, 0), (0, 1), (0, 0)))
    return out


def _second_stage(
    data: Fields, place: Sequence, tokens: VideoTokens, method: STSimDiff, first_stage: Arrays
) -> Arrays:
    """Stage two, from the recorded survivors of stage one where they are there, as the recording demands."""
    rows = data["s2_attn"].shape[3]
    recorded = data if "s1_keep_idx" in data and "s1_sparsity_list" in data else first_stage
    # Survivors that the attention does not fit are wrong; the comparison of stage one says so.
    source = recorded if len(recorded["s1_keep_idx"]) == rows else first_stage
    survivors, sparsity = source["s1_keep_idx"], source["s1_sparsity_list"]
    if len(survivors) != rows:
        raise DataError(f"{data.file}: s2_attn covers {rows} tokens, but stage one left {len(survivors)}")
    present = place.video(survivors)
    layers, cost = int(data["num_layers"]), float(data["cost"])
    run = method.start(place.layout(layers), Budget("compute", cost))
    run.at_input(tokens)
    attention = torch.from_numpy(data["s2_attn"][0].mean(axis=1)[:, place.is_video(survivors)])
    index = torch.from_numpy(present)
    selection = run.between(method.layer, VideoTokens(tokens.features[index], place.grid, index), attention)
    left = place.with_text(kept(selection, present))
    return {
        "s2_pruning_ratio": np.float64(
            st_simdiff.released_ratio(cost, float(sparsity[0]) if len(sparsity) else None, layers)
        ),
        "s2_keep_idx": left,
        "s2_keep_idx_local": np.searchsorted(survivors, left),
    }


def kept(selection: Selection | None, index: np.ndarray) -> np.ndarray:
    """What a selection leaves of ``index``; ``None`` leaves all."""
    return index if selection is None else index[selection.keep.numpy()]


def replay_framefusion(data: Fields) -> Arrays:
    """Every call of FrameFusion in one run, each on its recorded input; ``call{i}_*`` of the recording."""
    place = Sequence.of(data)
    method = framefusion.FrameFusion(float(data["similarity_lower_bound"]), float(data["ratio_lower_bound"]))
    budget = Budget("compute", float(data["cost"]))
    run: Any = method.start(place.layout(int(data["num_layers"])), budget)
    present, hidden, shares = np.arange(place.length), data["hidden"][0], []
    out: Arrays = {}
    calls = int(data["n_calls"]) if "n_calls" in data else int(data["num_layers"])
    for i in range(calls):
        if not run.pruning:
            break
        recorded = data.get(f"call{i}_in_hidden")
        hidden = hidden if recorded is None else recorded[0]
        if len(hidden) != len(present):
            raise DataError(
                f"{data.file}: call {i} is given {len(hidden)} tokens, but {len(present)} were left"
            )
        call, hidden, present = _fusion_call(data, place, run, i, hidden, present)
        if "above_k_ratio" in call and call["above_k_ratio"] < call["sparsity_upper_bound"]:
            shares.append(float(call["above_k_ratio"]))
        call["sparsity_list_after"] = np.array(shares)
        call["finish_merging_after"] = np.array(not run.merging)
        call["finish_pruning_after"] = np.array(not run.pruning)
        out.update({f"call{i}_{name}": value for name, value in call.items()})
    return out


def _fusion_call(
    data: Fields, place: Sequence, run, i: int, hidden: np.ndarray, present: np.ndarray
) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """One call: its arrays, the hidden states after it, and the sequence indices that they belong to."""
    video = place.is_video(present)
    index = place.video(present)
    tokens = VideoTokens(torch.from_numpy(hidden[video]), place.grid, torch.from_numpy(index))
    merging = run.merging
    attention = None
    if not merging:
        attention = torch.from_numpy(data[f"call{i}_attn"][0].mean(axis=1)[:, video])
    selection = run.at_input(tokens) if i == 0 else run.between(i - 1, tokens, attention)
    stay = np.ones(len(present), dtype=bool)
    stay[video] = selection is None
    if selection is not None:
        stay[np.flatnonzero(video)[selection.keep.numpy()]] = True
    call: Arrays = {"keep_idx_local": np.flatnonzero(stay), "keep_idx": present[stay]}
    room = removable(run, len(index))
    after = hidden[stay]
    if not merging:
        call["pruning_ratio"] = np.float64(room)
        return call, after, present[stay]
    if selection is not None and selection.features is not None:
        after = after.copy()
        after[video[stay]] = selection.features.numpy()
    order = place.by_patch(index)
    similarity = framefusion.similarities(tokens, framefusion.predecessors(tokens)).numpy()
    call["similarity_by_patch"] = similarity[order]
    call["token_index_by_patch"] = np.flatnonzero(video)[order]
    call["merge_index_by_patch"] = np.flatnonzero(~stay[video][order])
    call["above_k_ratio"] = np.float64(np.count_nonzero(similarity >= run.method.tau_sim) / len(index))
    call["sparsity_upper_bound"] = np.float64(room)
    call["out_hidden"] = after[None]
    return call, after, present[stay]


def removable(run, present: int) -> float:
    """Share of the ``present`` video tokens that FrameFusion's budget allows to remove before the next layer."""
    tokens, layers = run.layout.grid.tokens, run.layers
    left = run.budget.retention * tokens * layers - sum(run.entering)
    return max(0.0, 1 - left / ((layers - len(run.entering)) * present))


def replay_fastv(data: Fields) -> Arrays:
    """FastV's one cut; positions are not renumbered."""
    first, n = int(data["sys_length"]), int(data["image_token_length"])
    layer, count = int(data["agg_layer"]), int(data["attention_rank"])
    place = Sequence(first, int(data["seq_length"]), Grid(1, 1, n))
    # Any depth will do, the method only needs the layer to exist.
    run = fastv.FastV(layer=layer).start(place.layout(layer + 1), Budget("tokens", count / n))
    attention = torch.from_numpy(data["attention"][0, :, -1, first : first + n])
    tokens = VideoTokens.full(torch.ones(n, 1), place.grid)
    image = kept(run.before_layer(layer, tokens, attention), np.arange(n))
    keep = place.with_text(image)
    return {
        "kept_image_idx": image,
        "keep_idx": keep,
        "position_ids_after": keep[None],
        "attention_mask_shape_after": np.array([1, 1, len(keep), len(keep)]),
    }


METHODS = {"stsimdiff": replay_stsimdiff, "framefusion": replay_framefusion, "fastv": replay_fastv}
