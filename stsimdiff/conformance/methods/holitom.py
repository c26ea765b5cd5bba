"""Replays of HoliTom's outer and inner part."""

from __future__ import annotations

import numpy as np
import torch

from stsimdiff.compressors import holitom
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.methods.fastvid import row_ends
from stsimdiff.conformance.replays import Replay
from stsimdiff.errors import DataError


def run(data: Fields) -> Arrays:
    """One part; recorded noise decides where it is there, and recorded centres where chance did."""
    return _inner(data) if "attention_last" in data else _outer(data)


def _inner(data: Fields) -> Arrays:
    start, length = int(data["video_start"]), int(data["video_length"])
    rows = slice(start, start + length)
    states = torch.from_numpy(data["hidden"])
    score = torch.from_numpy(data["attention_last"]).mean(0)[rows]
    count = round(length * (1 - float(data["merge_ratio"])))
    folded = holitom.fold(states[rows], score, count)
    order = torch.sort(score[folded.keep], descending=True, stable=True).indices
    stay = np.ones(len(states), dtype=bool)
    stay[folded.source.numpy() + start] = False
    hidden = data["hidden"].copy()
    hidden[folded.keep.numpy() + start] = folded.features.numpy()
    keep = np.flatnonzero(stay)
    return {
        "keep_num": np.int64(count),
        "topk_idx": folded.keep[order].numpy() + start,
        "merged_idx": folded.source.numpy() + start,
        "target_idx": folded.target.numpy() + start,
        "target_count": folded.taken[order].numpy(),
        "keep_idx": keep,
        "position_ids_after": keep,
        "hidden_out": hidden[keep],
    }


def _outer(data: Fields) -> Arrays:
    frames, height, width = data.grid
    grid = str(data["newline_mode"]) == "grid"
    patches = height * (width - grid)
    picture = np.arange(frames * height * width).reshape(frames, height, width)[:, :, : width - grid].ravel()
    flat = torch.from_numpy(data["hidden"])[picture]
    received, tau = torch.from_numpy(data["received"]), float(data["tau"])
    similarity = holitom.frame_similarities(flat, patches)
    gain = holitom.window_gains(similarity, tau)
    longest = int(data["max_window_size"])
    saved, first = holitom.programme(gain, longest)
    parts = holitom.windows(gain, longest)
    windows = [holitom.window(similarity, tau, a, b) for a, b in parts]
    tokens, reduced = frames * patches, float(sum(gain[a, b] for a, b in parts))
    ratio = holitom.ratio_left(windows, patches, float(data["retain_ratio"]) * tokens)
    counts = holitom.by_ratio(windows, ratio)
    bounds = np.cumsum([0, *(len(window.static) for window in windows)])
    beta = None if bool(data["no_beta"]) else float(data["beta"])
    chance = [
        clusters == 1 and window.frames > 1 for window, (clusters, _) in zip(windows, counts, strict=True)
    ]

    def merged(noise: torch.Tensor | None, fed: bool) -> list[holitom.Clusters]:
        made = []
        for i, (window, (clusters, _)) in enumerate(zip(windows, counts, strict=True)):
            part = None if noise is None else noise[bounds[i] : bounds[i + 1]]
            centre = _recorded_centre(data, window, i, picture, patches) if fed and chance[i] else None
            options = (window, patches, clusters, int(data["neighbours"]), beta, part, centre)
            made.append(holitom.merge_static(flat, *options))
        return made

    noise = torch.from_numpy(data["density_noise"]) if "density_noise" in data else None
    clustered = merged(noise, True)
    chosen = [
        holitom.strongest(received, window, many) for window, (_, many) in zip(windows, counts, strict=True)
    ]
    out = _outputs(data, flat, picture, patches, grid, windows, clustered, chosen)
    quiet = [
        np.concatenate(((window.static[made.centre] + window.first * patches).numpy(), many.numpy()))
        for window, made, many in zip(
            windows, merged(torch.zeros(int(bounds[-1])), False), chosen, strict=True
        )
    ]
    silent = picture[np.concatenate(quiet)]
    if grid:
        silent = np.concatenate((silent, row_ends(silent, width)))
    return out | {
        "feature_sim": similarity.numpy(),
        "static_count": gain.numpy(),
        "dp": np.array(saved, dtype=np.float32),
        "dp_prev": np.array(first),
        "windows": np.array(parts),
        "total_reduced": np.float64(reduced),
        "retain_ratio_after": np.float64(ratio),
        "static_num": np.array([len(window.static) for window in windows]),
        "static_cluster_num": np.array([clusters for clusters, _ in counts]),
        "window_noise_decides": np.array(chance),
        "dynamic_num": np.array([len(window.dynamic) for window in windows]),
        "dynamic_keep_num": np.array([many[0] for _, many in counts]),
        "static_off": bounds,
        "keep_idx_zero_noise": np.sort(silent),
    }


def _recorded_centre(
    data: Fields, window: holitom.Window, number: int, picture: np.ndarray, patches: int
) -> torch.Tensor | None:
    """The centre of a window of one cluster, which noise alone decides; ``None`` where it was not recorded."""
    if "center_idx" not in data or "center_off" not in data:
        return None
    centre = data["center_idx"][data["center_off"][number] : data["center_off"][number + 1]]
    place = np.searchsorted(picture, centre) - window.first * patches
    positions = np.flatnonzero(np.isin(window.static.numpy(), place))
    if len(positions) != 1:
        raise DataError(f"{data.file}: window {number} has the recorded centre {centre}, which is not static")
    return torch.from_numpy(positions)


def _outputs(
    data: Fields,
    flat: torch.Tensor,
    picture: np.ndarray,
    patches: int,
    grid: bool,
    windows: list[holitom.Window],
    clustered: list[holitom.Clusters],
    chosen: list[torch.Tensor],
) -> Arrays:
    raster = [picture[(window.static + window.first * patches).numpy()] for window in windows]
    empty = torch.zeros(0)

    def joined(name: str) -> np.ndarray:
        made = [
            torch.full((len(cluster.mean),), torch.nan)
            if cluster.peaks is None
            else getattr(cluster.peaks, name)
            for cluster in clustered
        ]
        return torch.cat([empty, *made]).numpy()

    def places(name: str) -> list[np.ndarray]:
        return [at[getattr(cluster, name).numpy()] for at, cluster in zip(raster, clustered, strict=True)]

    centres, sources = places("centre"), places("source")
    place, kind, rows = [], [], []
    for at, cluster, many in zip(centres, clustered, chosen, strict=True):
        place += [at, picture[many.numpy()]]
        kind += [np.ones(len(at), dtype=np.uint8), np.zeros(len(many), dtype=np.uint8)]
        rows += [cluster.features.numpy(), flat[many].numpy()]
    out, kinds, features = np.concatenate(place), np.concatenate(kind), np.concatenate(rows)
    if grid:
        ends = row_ends(out, data.grid[2])
        order = np.argsort(np.concatenate((out, ends)))
        out = np.concatenate((out, ends))[order]
        kinds = np.concatenate((kinds, np.full(len(ends), 2, dtype=np.uint8)))[order]
        features = np.concatenate((features, data["hidden"][ends]))[order]
    return {
        "static_idx": np.concatenate(raster),
        "static_feat": torch.cat([cluster.mean for cluster in clustered]).numpy(),
        "density": joined("density"),
        "delta": joined("delta"),
        "density_score": joined("score"),
        "center_off": np.cumsum([0, *map(len, centres)]),
        "center_idx": np.concatenate(centres),
        "assign_off": np.cumsum([0, *map(len, sources)]),
        "assign_source_idx": np.concatenate(sources),
        "assign_target_idx": np.concatenate(places("target")),
        "out_source_idx": out,
        "out_kind": kinds,
        "tokens_out": features,
        "keep_idx": np.sort(out),
    }


def _equal_targets(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Equal, but for targets with the same states, which are interchangeable."""
    want, have = recorded[name], outputs[name]
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    states = recorded["hidden"]
    if name == "target_idx":
        wrong = (states[want] != states[have]).any(axis=1)
        return f"{int(wrong.sum())} of {len(want)} differ" if wrong.any() else ""
    twin = np.unique(states[recorded["topk_idx"]], axis=0, return_inverse=True)[1].ravel()
    totals = [np.bincount(twin, weights=counts) for counts in (want, have)]
    return (
        "" if np.array_equal(totals[0], totals[1]) else "equal targets have taken in other numbers of tokens"
    )


def _hidden(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Within 1e-5; of kept tokens that were equal, what is merged into which may differ."""
    want, have = recorded[name], outputs[name]
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    states = recorded["hidden"][recorded["keep_idx"]]
    twins = np.unique(states, axis=0, return_inverse=True, return_counts=True)
    alone = twins[2][twins[1].ravel()] == 1
    worst = float(np.abs(want - have)[alone].max(initial=0))
    return f"differs by up to {worst:.3g}, allowed 1e-05" if worst > 1e-5 else ""


def _chance(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Equal, but for the static tokens of windows whose only centre chance decides."""
    want, have = recorded[name], outputs[name]
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    free = np.zeros(0, dtype=np.int64)
    for number in np.flatnonzero(recorded.get("window_noise_decides", np.zeros(0))):
        bounds = recorded["static_off"]
        free = np.concatenate((free, recorded["static_idx"][bounds[number] : bounds[number + 1]]))
    if len(free) and str(recorded["newline_mode"]) == "grid":
        width = int(recorded["width"])
        free = np.concatenate((free, (free // width + 1) * width - 1))
    if name == "tokens_out":
        want = want[~np.isin(recorded["out_source_idx"], free)]
        have = have[~np.isin(outputs["out_source_idx"], free)]
        if want.shape == have.shape and np.allclose(have, want, atol=1e-5, rtol=0):
            return ""
        return "differs by more than 1e-05"
    want, have = want[~np.isin(want, free)], have[~np.isin(have, free)]
    return "" if np.array_equal(want, have) else f"{len(np.setxor1d(want, have))} tokens differ"


REPLAY = Replay(
    run,
    inputs="hidden|received|newline_mode|n_frames|height|width|retain_ratio|tau|beta|neighbours|max_window_size|no_beta"
    "|density_noise|attention_last|video_start|video_length|seq_length|layer|merge_ratio",
    tolerances={"feature_sim": (1e-6, 0.0)},
    rules={
        "target_(idx|count)": _equal_targets,
        "hidden_out": _hidden,
        "tokens_out|(keep|center|out_source)_idx|assign_(source|target)_idx|keep_idx_zero_noise": _chance,
    },
)
