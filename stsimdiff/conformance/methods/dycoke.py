"""Replays of DyCoke's stage 1. Its stage 2, which acts during decoding, has no place here yet."""

from __future__ import annotations

import numpy as np
import torch

from stsimdiff.compressors import dycoke
from stsimdiff.conformance.cases import Fields
from stsimdiff.conformance.replays import Replay
from stsimdiff.errors import ConfigError

Arrays = dict[str, np.ndarray]


def run(data: Fields) -> Arrays:
    """Stage 1 as the authors' code does it, its order of tokens included."""
    if "features" not in data or "dycoke_p" in data:
        raise ConfigError(f"{data.file} is a case of DyCoke's stage 2, which this product does not implement")
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


def _outside_ties(name: str, recorded: Fields, own: Arrays) -> str:
    """Equal in order where no cut is tied, else the same tokens but for those within rounding of a cut."""
    want, have = recorded[name], np.asarray(own[name])
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


REPLAY = Replay(
    run,
    inputs="features|n_frames|height|width|num_tokens_per_frame|dycoke_k",
    skipped={"ambiguous": "says which tokens lie within rounding of a cut"},
    tolerances={"(pair|window)_similarity": (1e-6, 0.0)},
    rules={"out_source_idx|keep_idx|pair_keep_idx|window_keep_idx": _outside_ties},
)
