"""EVS: counts, ranking and kept tokens, and the positions that the kept tokens have."""

from __future__ import annotations

import numpy as np
import torch

from stsimdiff.compressors import evs
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay
from stsimdiff.tokens import Grid, VideoTokens


def replay(data: Fields) -> Arrays:
    """Our outputs in the recorded dtype."""
    grid = Grid(*data.grid)
    features = torch.from_numpy(data["features"])
    tokens = VideoTokens.full(features.to(getattr(torch, str(data["dtype"]))), grid)
    similarity, ranked = evs.dissimilarity(tokens)
    count = evs.released_count(grid, float(data["pruning_rate"]))
    keep = evs.select(tokens, count, as_released=True).keep.numpy()
    place = np.indices((grid.frames, grid.height, grid.width)).reshape(3, -1)
    seconds = float(data["tokens_per_second"]) * float(data["second_per_grid"])
    width = np.full(grid.tokens, grid.width)
    return {
        "similarity": similarity.float().numpy(),
        "dissimilarity": ranked.float().numpy(),
        "order": torch.sort(ranked, descending=True, stable=True).indices.numpy(),
        "retained_count": np.int64(count),
        "keep_idx": keep,
        "frame_counts": np.bincount(keep // grid.per_frame, minlength=grid.frames),
        "out_features": features[keep].numpy(),
        "media_positions": np.stack(((place[0] * seconds).astype(np.int64), *place[1:], width), axis=1),
    }


def same_order(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Our order sorts the recorded dissimilarities too, up to rounding."""
    value = recorded["dissimilarity"]
    if sorted(outputs[name]) == list(range(len(value))) and np.allclose(
        value[outputs[name]], value[recorded[name]], rtol=0, atol=2e-6
    ):
        return ""
    return "orders the recorded dissimilarities otherwise"


def same_tokens(name: str, recorded: Fields, outputs: Arrays) -> str:
    """The kept tokens are equal but for those that rounding decides."""
    differ = np.setxor1d(recorded["keep_idx"], outputs["keep_idx"])
    wrong = differ[~recorded["ambiguous"][differ]]
    if len(wrong):
        return f"{len(wrong)} tokens differ that no rounding decides, first {wrong[0]}"
    if len(differ) or np.array_equal(recorded[name], outputs[name]):
        return ""
    return "differs for the same tokens"


REPLAY = Replay(
    replay,
    inputs="features|dtype|n_frames|height|width|spatial_merge_size|pruning_rate|tokens_per_second|second_per_grid",
    skipped={
        "ambiguous": "says which tokens rounding decides",
        "prompt_ids|prompt_positions|position_delta": "kept tokens have their `media_positions`; the text after the "
        "video keeps its own in the engine, where vLLM numbers it from the grid's width on",
    },
    tolerances={"similarity|dissimilarity": (1e-6, 0.0)},
    rules={"order": same_order, "keep_idx|frame_counts|out_features": same_tokens},
)
