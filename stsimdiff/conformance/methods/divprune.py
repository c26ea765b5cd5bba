"""DivPrune: the order of choice and its scores over the window of the prompt that the authors' code looks at."""

from __future__ import annotations

import numpy as np
import torch

from stsimdiff import graph
from stsimdiff.compressors import divprune
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay, refused

WINDOW = 35
"""Place where the released code takes the video to begin, whatever the prompt."""


def _sequence(data: Fields) -> tuple[np.ndarray, int, int]:
    """The prompt, where the video begins in it, and its tokens."""
    start = int(data["text_before"])
    text, video = data["text_features"], data["features"]
    return np.concatenate((text[:start], video, text[start:])), start, len(video)


def replay(data: Fields) -> Arrays:
    """Our outputs, as released: a token may be chosen again."""
    sequence, start, n = _sequence(data)
    count = round(float(data["subset_ratio"]) * n)
    try:
        choice = divprune.choose(torch.from_numpy(sequence[WINDOW : WINDOW + n]), count, as_released=True)
    except ValueError:
        return {"official_error": np.array("RuntimeError: selected index k out of range")}
    return {
        "image_feature_length": np.int64(n),
        "token_count": np.int64(count),
        "first_score": choice.first.numpy(),
        "step_score": choice.step.numpy(),
        "last_score": choice.last.numpy(),
        **kept(data, choice.order.numpy()),
    }


def kept(data: Fields, order: np.ndarray) -> Arrays:
    """What follows from an order of choice."""
    sequence, start, n = _sequence(data)
    place = np.arange(len(sequence))
    text = place[(place < WINDOW) | (place >= WINDOW + n)]
    stay = np.sort(np.concatenate((text, order + WINDOW)))
    keep = stay[(stay >= start) & (stay < start + n)] - start
    out = data["features"][keep] if start == WINDOW else sequence[stay]
    return {"selection_idx": order, "kept_sequence_idx": stay, "keep_idx": keep, "out_features": out}


def same_choice(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Choices are equal until rounding decides; each recorded one after that is among the best there, by our scores."""
    order = recorded["selection_idx"].astype(np.int64)
    certain = int(recorded["first_ambiguous_step"])
    chosen_here = outputs["selection_idx"]
    if len(order) != len(chosen_here) or not np.array_equal(order[:certain], chosen_here[:certain]):
        return f"other choices than recorded before step {certain}"
    sequence, _, n = _sequence(recorded)
    unit = graph.unit(torch.from_numpy(sequence[WINDOW : WINDOW + n]), guarded=False)
    score, nearest = torch.from_numpy(recorded["first_score"]), torch.full((n,), torch.inf)
    for step, chosen in enumerate(order.tolist()):
        if step >= certain and bool(score.max() - score[chosen] > 1e-6):
            return f"step {step} takes a token that is not the farthest"
        score = nearest = torch.minimum(nearest, 1 - unit @ unit[chosen])
    return "" if np.array_equal(kept(recorded, order)[name], recorded[name]) else "other tokens than chosen"


REPLAY = Replay(
    replay,
    inputs="features|text_features|text_before|n_frames|height|width|subset_ratio",
    skipped={"first_ambiguous_step": "says from which choice on rounding decides"},
    tolerances={"first_score|step_score|last_score": (1e-6, 0.0)},
    rules={
        "selection_idx|kept_sequence_idx|keep_idx|out_features": same_choice,
        "official_error": refused,
    },
)
