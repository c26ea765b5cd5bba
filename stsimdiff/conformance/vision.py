"""Replays of recorded selections in the vision tower: VisionZip, FasterVLM, PruMerge and PruMerge+.

The recordings are of still images. What each frame of a video goes through (``visionzip.choose`` and ``merge``,
``fastervlm.select``, ``prumerge.strongest``, ``alike`` and ``sums``) is replayed here together with what no video
does (:mod:`stsimdiff.conformance.still_images`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stsimdiff.compressors import fastervlm
from stsimdiff.conformance import still_images
from stsimdiff.conformance.cases import Arrays, Fields

SAMPLES_END = 575
"""Samples of PruMerge+ lie below this patch in the published code, whatever the grid."""


def _tensor(data: Fields, name: str) -> Tensor:
    return torch.from_numpy(data[name])


def _by_score(score: Tensor, index: Tensor) -> np.ndarray:
    """``index`` ``(B, k)``, ascending, put in the order of descending ``score`` ``(B, N)``."""
    order = torch.sort(score.gather(1, index), dim=1, descending=True, stable=True).indices
    return index.gather(1, order).numpy()


def replay_visionzip(data: Fields) -> Arrays:
    """Dominant and contextual tokens."""
    attention = _tensor(data, "attn_cls")
    rows, dominant, target, source, assignment = still_images.zip_images(
        _tensor(data, "hidden"),
        _tensor(data, "metric"),
        attention,
        int(data["dominant_num"]),
        int(data["contextual_num"]),
    )
    targets = target.shape[1]
    members = torch.stack([row.bincount(minlength=targets) for row in assignment])
    ranked = _by_score(attention.sum(1), dominant[:, 1:])
    return {
        "all_indices": np.pad(ranked, ((0, 0), (1, 0))),
        "dominant_idx_sorted": dominant.numpy(),
        "contextual_target_idx": target.numpy(),
        "merged_source_idx": source.numpy(),
        "assignment": assignment.numpy(),
        "counts": members.clamp_min(1).float().numpy(),
        "hidden_out": rows.numpy(),
    }


def replay_fastervlm(data: Fields) -> Arrays:
    """The kept patches of each tower image, and the output rows in the order of the prompt."""
    attention, hidden = _tensor(data, "attn_cls"), _tensor(data, "hidden")
    score = still_images.scores(attention)
    keep = fastervlm.select(score, int(data["visual_token_num"]))
    out = {"attn_mean": score.numpy(), "topk_idx": _by_score(score, keep), "keep_idx": keep.numpy()}
    source, sizes = still_images.output_order(
        keep, _tensor(data, "tile_grid"), int(data["height"]), int(data["width"])
    )
    out["out_source_idx"], out["out_sizes"] = source.numpy(), sizes.numpy()
    out["tokens_out"] = hidden[:, 1:].flatten(0, 1)[source].numpy()
    return out


def replay_prumerge(data: Fields) -> Arrays:
    """The plain form."""
    attention, ratio, index, out = _prumerge_kept(data)
    return out | _prumerge_merged(data, attention, index)


def replay_prumergeplus(data: Fields) -> Arrays:
    """The plus form: samples of the whole image besides the patches with the highest attention."""
    attention, ratio, index, out = _prumerge_kept(data)
    adapted = data.meta.get("modified", "nothing") != "nothing"
    end = attention.shape[1] - 1 if adapted else SAMPLES_END
    adaptive = bool(data["if_adaptive"])
    out["step_length"] = np.int64(int(1 / ratio))
    sampled = still_images.sample_range(ratio, adaptive, end)
    names = ("sample_start", "sample_end", "sample_stride")
    out |= {name: np.int64(value) for name, value in zip(names, sampled, strict=True)}
    index = still_images.sampled_patches(index, ratio, adaptive, end)
    return out | {"idx": index.numpy()} | _prumerge_merged(data, attention, index)


def _prumerge_kept(data: Fields) -> tuple[Tensor, float, Tensor, Arrays]:
    attention = still_images.cls_attention(_tensor(data, "q_cls"), _tensor(data, "k"))
    ratio = float(data["reduction_ratio"])
    outliers: Arrays = {}
    if bool(data["if_adaptive"]):
        ratio = still_images.adaptive_ratio(attention)
        bounds = still_images.outlier_bounds(attention)
        names = ("outlier_q1", "outlier_q3", "outlier_upper_bound")
        outliers = dict(zip(names, bounds.numpy(), strict=True))
        outliers["outlier_flat_idx"] = (attention.flatten() > bounds[2]).nonzero()[:, 0].numpy()
    index = still_images.kept_patches(attention, ratio)
    out = outliers | {
        "cls_attn": attention.numpy(),
        "ratio": np.float64(ratio),
        "left_tokens": np.int64(index.shape[1]),
        "topk_idx": index.numpy(),
    }
    return attention, ratio, index, out


def _prumerge_merged(data: Fields, attention: Tensor, index: Tensor) -> Arrays:
    hidden, key = _tensor(data, "hidden")[:, 1:], _tensor(data, "k")[:, 1:]
    rows, rest, cluster = still_images.merge_images(hidden, key, attention, index)
    return {
        "compl_idx": rest.numpy(),
        "cluster_idx": cluster.sort(2).values.numpy(),
        "tokens_out": rows.numpy(),
    }


METHODS = {
    "visionzip": replay_visionzip,
    "fastervlm": replay_fastervlm,
    "prumerge": replay_prumerge,
    "prumergeplus": replay_prumergeplus,
}
