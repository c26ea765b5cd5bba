"""VidCom2: channels, scores, shares of the frames, and kept tokens in the authors' order."""

from __future__ import annotations

import numpy as np
import torch

from stsimdiff.compressors import vidcom2
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay

NEWLINES = "llava_vid"
"""The recorded model whose grid ends each row with a newline token; all of them stay, behind their frame's others."""
ROUNDING = 1e-4
"""Tokens by which a frame's share may lie from a half for rounding to decide."""


def replay(data: Fields) -> Arrays:
    """Our outputs, as released."""
    t, h, w = data.grid
    place = torch.arange(t * h * w).view(t, h, w)
    newlines = str(data["model"]) == NEWLINES
    cells = (place[:, :, :-1] if newlines else place).flatten(1)
    hidden = torch.from_numpy(data["hidden"])
    typicality = vidcom2.scores(hidden[cells])
    uniqueness, probability, scale = vidcom2.frame_scale(typicality.video, float(data["base_scale"]))
    counts = vidcom2.frame_counts(scale, cells.shape[1])
    out = {
        "channel_variance": typicality.variance,
        "channel_idx": typicality.channels,
        "video_score": typicality.video,
        "frame_score": typicality.frame,
        "frame_uniqueness": uniqueness,
        "frame_probs": probability,
        "frame_scale": scale,
        "frame_keep_num": counts,
        "newline_idx": place[:, :, -1].flatten(),
    }
    arrays = {name: value.numpy() for name, value in out.items()}
    return arrays | kept(data, typicality.video + typicality.frame, counts)


def kept(data: Fields, score: torch.Tensor, counts: torch.Tensor) -> Arrays:
    """The kept tokens, and with a newline column those of it behind each frame's."""
    t, h, w = data.grid
    place = np.arange(t * h * w).reshape(t, h, w)
    newlines = str(data["model"]) == NEWLINES
    cells = (place[:, :, :-1] if newlines else place).reshape(t, -1)
    behind = place[:, :, -1] if newlines else place[:, :, :0].reshape(t, 0)
    mask = vidcom2.least_typical(score, counts).numpy()
    order = np.concatenate([np.concatenate((cells[i][mask[i]], behind[i])) for i in range(t)])
    return {"out_source_idx": order, "keep_idx": np.sort(order), "tokens_out": data["hidden"][order]}


def rounded(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Counts are equal, but where rounding decides; the kept tokens are those of the recorded counts."""
    share = outputs["frame_scale"] * outputs["video_score"].shape[1]
    counts = recorded["frame_keep_num"].astype(np.int64)
    if (np.abs(np.maximum(share, 1) - counts) > 0.5 + ROUNDING).any():
        return f"the shares {share} do not round to the recorded counts {counts}"
    score = torch.from_numpy(outputs["video_score"] + outputs["frame_score"])
    same = {"frame_keep_num": counts} | kept(recorded, score, torch.from_numpy(counts))
    return "" if np.array_equal(same[name], recorded[name]) else "other tokens than recorded"


REPLAY = Replay(
    replay,
    inputs="hidden|model|n_frames|height|width|base_scale",
    tolerances={"frame_probs|frame_scale": (1e-7, 1e-3)},
    rules={
        "channel_idx": lambda name, recorded, own: (
            "" if set(recorded[name]) == set(own[name]) else "other channels than recorded"
        ),
        "frame_keep_num|out_source_idx|keep_idx|tokens_out": rounded,
    },
)
