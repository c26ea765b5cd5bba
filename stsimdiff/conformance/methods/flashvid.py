"""Replays of FlashVID's compression, quirks included, and of its cut inside the model."""

from __future__ import annotations

import math

import numpy as np
import torch

from stsimdiff.compressors import fastv, fastvid, flashvid
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay, same_error


def run(data: Fields) -> Arrays:
    """One case; recorded noise decides where it is there, and recorded centres where scores are tied."""
    return _cut(data) if "llm_retention_ratio" in data else _compressed(data)


def _cut(data: Fields) -> Arrays:
    where = data["visual_idx"].astype(np.int64)
    length = data["hidden"].shape[1]
    attention = torch.from_numpy(data["attention"][0, :, -1])
    count = math.ceil(int(data["visual_token_length"]) * float(data["llm_retention_ratio"]))
    selection = fastv.select(attention[:, where], count)
    kept = where[selection.keep.numpy()]
    stay = np.ones(length, dtype=bool)
    stay[where] = False
    stay[kept] = True
    keep = np.flatnonzero(stay)
    return {
        "num_retained": np.int64(count),
        "score": attention.mean(0)[where].numpy(),
        "keep_idx": keep,
        "kept_visual_idx": kept,
        "position_ids_after": keep[None],
    }


def _compressed(data: Fields) -> Arrays:
    frames, height, width = data.grid
    patches = height * width
    features = torch.from_numpy(data["features"]).view(frames, patches, -1)
    received, method = torch.from_numpy(data["cls_attention"]), str(data["token_selection_method"])
    vectors = features.mean(1)
    similarity = fastvid.frame_similarities(vectors)
    cuts: list[int] = []
    if bool(data["do_segment"]):
        least = int(data["min_segment_num"])
        cuts = flashvid.segment_cuts(
            similarity, float(data["segment_threshold"]), least, bool(data["complementary_segment"])
        )
        recorded = data["cut_idx"].tolist() if "cut_idx" in data else cuts
        if len(recorded) == len(cuts) and np.allclose(
            similarity[recorded], similarity[cuts], atol=2e-6, rtol=0
        ):
            cuts = recorded
    budget = math.ceil(patches * float(data["retention_ratio"]) * float(data["expansion"]))
    selected = math.ceil(budget * float(data["alpha"]))
    threshold = float(data["temporal_threshold"])
    out: Arrays = {
        "transition_similarity": similarity.numpy(),
        "cut_idx": np.array(cuts, dtype=np.int64),
        "token_budget": np.int64(budget),
        "num_attn_div_tokens": np.int64(selected),
        "num_sttm_tokens": np.int64(budget - selected),
    }
    ends = [-1, *cuts, frames - 1]
    parts = [range(a + 1, b + 1) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    out["segment_lengths"] = np.array([len(part) for part in parts])
    if budget > selected and threshold >= 1:
        return out | {"official_error": np.array("ZeroDivisionError: division by zero")}
    shape = (frames, patches)
    nothing = {
        **dict.fromkeys(("max_similarity", "density", "dpc_score"), np.nan),
        **dict.fromkeys(("anchor_idx", "cluster_of"), -1),
        "merged": False,
        "divisor": 1,
        "event_relevance": 0.0,
    }
    grids = {name: np.full(shape, value) for name, value in nothing.items()}
    order = np.zeros((frames, selected), dtype=np.int64)
    clusters, tied = np.zeros(frames, dtype=np.int64), np.zeros(frames, dtype=bool)
    soft, adaptive, place, rows = [], [], [], []
    output: list[list[tuple[int, int, torch.Tensor]]] = [[] for _ in range(frames)]
    centres: list[np.ndarray] = []
    for part in parts:
        soft.append(math.nan)
        adaptive.append(math.nan)
        if not len(part):
            continue
        inside = slice(part.start, part.stop)
        for frame in part:
            x = features[frame]
            grids["event_relevance"][frame] = flashvid.relevance(x, vectors[inside]).numpy()
            weight = flashvid.weights(method, x, received[frame], vectors[inside])
            again = method == "attn_div_v2"
            order[frame] = flashvid.pick(x[None], weight[None], selected, method, again)[0].numpy()
            for token in np.sort(order[frame]).tolist():
                output[frame].append((token + frame * patches, 0, x[token]))
        if budget == selected:
            continue
        picked = [torch.from_numpy(order[frame]) for frame in part]
        if len(part) > 1 and budget == patches:
            return out | {
                "official_error": np.array(
                    "IndexError: index -1 is out of bounds for dimension 0 with size 0"
                )
            }
        left = flashvid.merge_trees(features[inside], picked, threshold, budget * len(part), as_released=True)
        soft[-1] = left.threshold
        if len(part) > 1:
            names = {
                "max_similarity": "similarity",
                "anchor_idx": "anchor",
                "merged": "merged",
                "divisor": "divisor",
            }
            for name, attribute in names.items():
                grids[name][inside] = getattr(left, attribute).numpy()
        total = sum(len(tokens) for tokens in left.place)
        ratio = (budget - selected) * len(part) / total
        adaptive[-1] = ratio
        for frame, tokens_left, x in zip(part, left.place, left.features, strict=True):
            place.append(tokens_left.numpy() + frame * patches)
            rows.append(x)
            many = len(tokens_left) if ratio >= 1 else math.ceil(len(tokens_left) * ratio)
            clusters[frame] = many
            if ratio >= 1:
                output[frame] += [
                    (int(i) + frame * patches, 1, row) for i, row in zip(tokens_left, x, strict=True)
                ]
                continue
            noise = None
            if "density_noise" in data:
                noise = torch.from_numpy(data["density_noise"][frame])[tokens_left] * 1e-6
            fixed = _recorded_centres(data, frame, patches, tokens_left)
            centre, merged, label, peaks = flashvid.clustered(x, many, noise, fixed)
            if peaks is not None and label is not None:
                grids["density"][frame, tokens_left.numpy()] = peaks.density.numpy()
                grids["dpc_score"][frame, tokens_left.numpy()] = peaks.score.numpy()
                grids["cluster_of"][frame, tokens_left.numpy()] = label.numpy()
                best = torch.sort(peaks.score, descending=True).values[: many + 1]
                tied[frame] = bool((best[1:] == best[:-1]).any())
            centres.append(tokens_left[centre].numpy() + frame * patches)
            output[frame] += [
                (int(tokens_left[i]) + frame * patches, 1, row) for i, row in zip(centre, merged, strict=True)
            ]
    sequence = [row for frame in output for row in sorted(frame, key=lambda row: row[:2])]
    if method != "attn_div_v2":
        grids.pop("event_relevance")
    if budget > selected:
        grids["density"], grids["dpc_score"] = (
            grids[name].astype(np.float32) for name in ("density", "dpc_score")
        )
    return (
        out
        | grids
        | {
            "adts_order": order,
            "adts_idx": np.sort(order, axis=1),
            "soft_threshold": np.array(soft, dtype=np.float32),
            "adaptive_ratio": np.array(adaptive, dtype=np.float32),
            "tstm_idx": np.concatenate([*place, np.zeros(0, dtype=np.int64)]),
            "tstm_features": torch.cat([*rows, features.new_zeros(0, features.shape[2])]).numpy(),
            "num_clusters": clusters,
            "centre_idx": np.concatenate([*centres, np.zeros(0, dtype=np.int64)]),
            "tied_frames": tied,
            "out_source_idx": np.array([row[0] for row in sequence]),
            "out_kind": np.array([row[1] for row in sequence]),
            "out_features": torch.stack([row[2] for row in sequence]).numpy(),
            "frame_counts": np.array([len(frame) for frame in output]),
        }
    )


def _recorded_centres(data: Fields, frame: int, patches: int, tokens: torch.Tensor) -> torch.Tensor | None:
    """Centres of a frame in which scores are tied, as recorded; ``None`` where they are not, or were not recorded."""
    if "tied_frames" not in data or "centre_idx" not in data or not data["tied_frames"][frame]:
        return None
    chosen = data["centre_idx"][data["centre_idx"] // patches == frame] % patches
    return torch.searchsorted(tokens, torch.from_numpy(chosen.astype(np.int64)))


def _same_rows(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Equal but for the order of two rows of one token, which an unstable sort gave, and for frames of tied scores."""
    patches = int(recorded["height"]) * int(recorded["width"])
    tied = np.append(recorded.get("tied_frames", np.zeros(int(recorded["n_frames"]), dtype=bool)), False)
    ordered = []
    for rows in (recorded, outputs):
        values, place = np.asarray(rows[name]), np.asarray(rows["out_source_idx"])
        if name == "cluster_of":
            values = values[~tied[:-1]]
        elif name == "centre_idx":
            values = values[~tied[values // patches]]
        else:
            order = np.lexsort((rows["out_kind"], place))
            values = values[order][~tied[place[order] // patches]]
        ordered.append(values)
    want, have = ordered
    if want.shape != have.shape:
        return f"shape {have.shape} outside tied frames, recorded {want.shape}"
    scale = np.linalg.norm(want, axis=1, keepdims=True).clip(1) if name == "out_features" else 1.0
    worst = float((np.abs(want - have) / scale).max(initial=0))
    return f"differs by up to {worst:.3g}" if worst > 1e-5 else ""


REPLAY = Replay(
    run,
    inputs="features|cls_attention|n_frames|height|width|retention_ratio|expansion|alpha|temporal_threshold"
    "|segment_threshold|min_segment_num|do_segment|complementary_segment|token_selection_method|density_noise|hidden"
    "|attention|visual_token_(start_index|length)|llm_retention_ratio|visual_idx",
    skipped={"causal_mask_shape_after": "the engine makes no mask of the authors' kind"},
    tolerances={"transition_similarity|max_similarity|soft_threshold": (1e-6, 0.0), "density": (2e-6, 0.0)},
    rules={
        "official_error": same_error,
        "out_kind|out_features|out_source_idx|centre_idx|cluster_of": _same_rows,
    },
)
