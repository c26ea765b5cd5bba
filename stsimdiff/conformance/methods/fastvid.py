"""Replays of FastVID: the authors' three codes with their counts."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from stsimdiff.compressors import density, fastvid
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import VisionSignals


def run(data: Fields) -> Arrays:
    """One case; recorded noise decides where it is there."""
    variant = str(data["variant"])
    if variant not in fastvid.VARIANTS:
        raise ConfigError(f"{data.file} is a case of variant {variant!r}, which is unknown")
    frames, height, width = data.grid
    newline = variant == "video"
    patches = height * (width - newline)
    picture = (
        np.arange(frames * height * width).reshape(frames, height, width)[:, :, : width - newline].ravel()
    )
    features = torch.from_numpy(data["hidden"])[picture].view(frames, patches, -1)
    every, share, beta = int(data["dtm_p"]), float(data["stprune_d"]), float(data["dtm_beta"])
    vectors = torch.from_numpy(data["frame_global"]) if "frame_global" in data else features.mean(1)
    similarity = fastvid.frame_similarities(vectors)
    segments = _segments(data, similarity)
    ignore = float(data["dyseg_ignore"]) if variant == "qwen" else None
    kept = int(patches * float(data["retention_ratio"]))
    valid = [fastvid.kept_frames(part, segments, ignore) for part in segments.parts]
    salient, context = fastvid.released_counts(
        variant, segments.parts, valid, kept, share, every, frames, patches
    )
    chosen = fastvid.salient_tokens(torch.from_numpy(data["frame_attn"]), salient)
    dense = range(frames) if variant == "onevision" else [f for f in range(frames) if context[f]]
    rest = {frame: fastvid.others(chosen[frame], frame, patches) for frame in dense}
    bounds = np.cumsum([0, *(len(rest[frame]) for frame in dense)])
    noise = None
    if "density_noise" in data:
        drawn = torch.from_numpy(data["density_noise"])
        noise = {f: drawn[a:b] for f, a, b in zip(dense, bounds[:-1], bounds[1:], strict=True)}
    per_anchor = int(kept * share) if variant == "onevision" else None
    options = (features, chosen, context, segments.parts, variant, every, beta, per_anchor)
    merged = fastvid.merge(*options, noise)
    flat = features.flatten(0, 1)
    peaks = [density.peaks(flat[rest[f]], fastvid.NEIGHBOURS, noise and noise[f]) for f in dense]
    out = _outputs(picture, chosen, merged, flat)
    # Without noise the authors' code takes none of equal tokens for denser than the others.
    quiet = fastvid.merge(*options, {f: torch.zeros(len(rest[f])) for f in dense})
    out["keep_idx_zero_noise"] = np.sort(
        picture[torch.cat([*chosen, *(anchor.place for anchor in quiet)]).numpy()]
    )
    out |= {
        "frame_sim": similarity.numpy(),
        "cut_cos_idx": np.array(segments.below, dtype=np.int64),
        "cut_idx": np.array(segments.cuts, dtype=np.int64),
        "segment_sizes": np.array([len(part) for part in segments.parts]),
        "frame_retain_num": np.int64(kept),
        "salient_num": np.array(salient),
        "context_num": np.array(context),
        "density_frame": np.array(list(dense)),
        "density_off": bounds,
        "density_idx": picture[torch.cat([rest[f] for f in dense]).numpy()],
        "density": torch.cat([anchor.density for anchor in peaks]).numpy(),
        "delta": torch.cat([anchor.delta for anchor in peaks]).numpy(),
        "density_score": torch.cat([anchor.score for anchor in peaks]).numpy(),
    }
    if variant == "onevision":
        out["cut_topk_idx"] = np.array(segments.least, dtype=np.int64)
        out["frame_salient_num"], out["frame_context_num"] = (
            np.int64(kept - int(kept * share)),
            np.int64(int(kept * share)),
        )
    if variant == "qwen":
        out["subsegment_sizes"] = np.diff(np.array([-1, *(f for inside in valid for f in inside)]))
    return _with_newlines(data, out) if newline else out


def _segments(data: Fields, similarity: torch.Tensor) -> fastvid.Segments:
    """Our segments; those of the recorded cuts where these are as good."""
    tau = float(data["dyseg_tau"])
    segments = fastvid.segments(similarity, int(data["dyseg_c"]), tau)
    recorded = data["cut_idx"] if "cut_idx" in data else np.array(segments.cuts)
    if recorded.tolist() != segments.cuts and _as_good(similarity.numpy(), recorded, segments.cuts):
        return fastvid.segments(similarity, 1, tau, recorded.tolist())
    return segments


def _with_newlines(data: Fields, out: Arrays) -> Arrays:
    """The outputs with the newline token of each row of the frames that keeps a token."""
    _, _, width = data.grid
    ends = row_ends(out["keep_idx"], width)
    place = np.concatenate((out["keep_idx"], ends))
    tokens = torch.cat((torch.from_numpy(out["tokens_out"]), torch.from_numpy(data["hidden"][ends])))
    silent = out["keep_idx_zero_noise"]
    return out | {
        "newline_idx": ends,
        "keep_idx": np.sort(place),
        "tokens_out": tokens.numpy()[np.argsort(place)],
        "keep_idx_zero_noise": np.sort(np.concatenate((silent, row_ends(silent, width)))),
    }


def row_ends(place: np.ndarray, width: int) -> np.ndarray:
    """The last token of each row that holds one of these, ascending."""
    return np.unique(place // width) * width + width - 1


def _scores(data: Fields) -> Arrays:
    """The attention of each frame's mean query, from queries and keys of merged patches."""
    query, key = (torch.from_numpy(data[name]) for name in ("queries", "keys"))
    frames, width = int(data["n_frames"]), query.shape[3]
    mean = query.unflatten(0, (frames, -1)).mean((1, 2)) * width**-0.5
    attention = VisionSignals(torch.zeros(len(key)), key.mean(1), mean).mean_query()
    assert attention is not None
    return {"frame_attn": attention.view(frames, -1).numpy()}


@torch.inference_mode()
def _head(data: Fields) -> Arrays:
    """The signals of SigLIP's pooling head, its recorded weights in the stock classes."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from stsimdiff.models.llava_video import pool_frames
    from stsimdiff.models.tower import pooling_head

    hidden, frames = torch.from_numpy(data["tower_hidden"]), int(data["n_frames"])
    config = SiglipVisionConfig(
        hidden_size=hidden.shape[2],
        intermediate_size=len(data["head_mlp_fc1_bias"]),
        num_attention_heads=int(data["heads"]),
        layer_norm_eps=float(data["layer_norm_eps"]),
        num_hidden_layers=0,
        image_size=int(data["patches_per_side"]),
        patch_size=1,
    )
    tower = SiglipVisionModel(config).eval()
    weights = {
        name: torch.from_numpy(data[name.replace(".", "_")])
        for name in tower.state_dict()
        if name.startswith(("post_layernorm.", "head."))
    }
    tower.load_state_dict(weights, strict=False)
    pool = partial(pool_frames, pooling=str(data["pool_mode"]), stride=2)
    attention, vectors = pooling_head(tower, hidden)
    return {
        "head_attn": attention.numpy(),
        "frame_global": vectors.numpy(),
        "frame_attn": pool(attention[..., None]).view(frames, -1).numpy(),
        "hidden_pooled": pool(hidden).flatten(1, 2).numpy(),
    }


def _outputs(
    picture: np.ndarray, chosen: list[torch.Tensor], merged: list[fastvid.Anchor], flat: torch.Tensor
) -> Arrays:
    keep = torch.cat([*chosen, *(anchor.place for anchor in merged)])
    rows = torch.cat([flat[torch.cat(chosen)], *(anchor.features for anchor in merged)])
    place = picture[keep.numpy()]
    order = np.argsort(place)

    def joined(name: str) -> np.ndarray:
        parts = [getattr(anchor, name) for anchor in merged]
        return torch.cat(parts).numpy() if parts else np.zeros(0, dtype=np.int64)

    return {
        "salient_idx": picture[torch.cat(chosen).numpy()],
        "anchor_frame": np.array([anchor.frame for anchor in merged]),
        "context_off": np.cumsum([0, *(len(anchor.place) for anchor in merged)]),
        "context_idx": picture[joined("place")],
        "context_weight": joined("weight"),
        "context_count": joined("count"),
        "assign_off": np.cumsum([0, *(len(anchor.source) for anchor in merged)]),
        "assign_source_idx": picture[joined("source")],
        "assign_target_idx": picture[joined("target")],
        "keep_idx": place[order],
        "tokens_out": rows.numpy()[order],
    }


def _as_good(similarity: np.ndarray, recorded: np.ndarray, ours: list[int]) -> bool:
    """Whether recorded cuts are other than ours among equally similar frames: then any are right, and those count."""
    return len(recorded) == len(ours) and np.allclose(
        np.sort(similarity[recorded]), np.sort(similarity[ours]), atol=2e-6, rtol=0
    )


def _same_cuts(name: str, recorded: Fields, outputs: Arrays) -> str:
    want, have = recorded[name], outputs[name]
    if want.shape != have.shape:
        return f"{len(have)} cuts, recorded {len(want)}"
    similarity = recorded["frame_sim"]
    worst = float(np.abs(similarity[want] - similarity[have]).max(initial=0))
    return f"similarities at the cuts differ by {worst:.3g}" if worst > 2e-6 else ""


def _up_to_twins(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Equal; where a frame holds identical tokens, any of them is right, and their densities are not compared."""
    want, have = recorded[name], np.asarray(outputs[name])
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    tied = recorded["ambiguous"] if "ambiguous" in recorded else np.zeros(0, dtype=bool)
    if want.dtype.kind == "f":
        if tied.any() and len(want) == len(recorded["density_idx"]):
            want, have = (values[~tied[recorded["density_idx"]]] for values in (want, have))
        elif tied.any():
            want, have = np.sort(want, axis=0), np.sort(have, axis=0)
        worst = float(np.abs(want - have).max(initial=0))
        return f"differs by up to {worst:.3g}, allowed 1e-05" if worst > 1e-5 else ""
    if tied.any() and name.endswith("count"):
        want, have = np.sort(want), np.sort(have)
    elif tied.any():
        hidden = recorded["hidden"]
        frame = np.arange(len(hidden))[:, None] // (int(recorded["height"]) * int(recorded["width"]))
        twin = np.unique(np.concatenate((frame, hidden), 1), axis=0, return_inverse=True)[1].ravel()
        want, have = np.sort(twin[want]), np.sort(twin[have])
    wrong = int((want != have).sum())
    return f"{wrong} of {want.size} differ" if wrong else ""


REPLAY = Replay(
    run,
    inputs="hidden|frame_global|frame_attn|variant|n_frames|height|width|retention_ratio|dyseg_(c|tau|ignore)|"
    "stprune_d|dtm_(p|beta)|density_noise",
    skipped={"ambiguous": "says which tokens have a twin in their frame"},
    tolerances={"frame_sim": (1e-6, 0.0)},
    rules={
        "cut_topk_idx": _same_cuts,
        "density(_score)?|delta|context_(idx|weight|count)|tokens_out": _up_to_twins,
        "assign_(source|target)_idx|keep_idx(_zero_noise)?": _up_to_twins,
    },
    parts={
        "queries": Replay(_scores, inputs="queries|keys|n_frames|height|width|heads|window_index"),
        "tower_hidden": Replay(
            _head,
            inputs="tower_hidden|n_frames|patches_per_side|heads|layer_norm_eps|pool_mode|pooled_side|"
            "(post_layernorm|head)_.*(probe|weight|bias)",
        ),
    },
)
