"""Replays of PruneVid's two stages."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stsimdiff.compressors import density, prunevid
from stsimdiff.compressors.base import Places, Run
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay, same_error
from stsimdiff.engine import Compression, Decoder
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens


def run(data: Fields) -> Arrays:
    """What a case holds the inputs of: both stages, or the second on a recorded attention."""
    out = _Merging(data).run() if "features" in data else {}
    if "weight:model.embed_tokens.weight" in data:
        return out | _whole_run(data, out)
    if "attn" in data:
        sizes = {name: data[name] for name in ("window_sizes", "static_sizes", "dynamic_sizes")}
        out |= sizes | _cut(data, sizes, torch.from_numpy(data["attn"]))
    return out


class _Cutting(Run):
    """Stage 2 as the authors count, in the engine: the rows of stage 1 are the video."""

    def __init__(self, data: Fields, sizes: Arrays) -> None:
        self.data, self.sizes, layer = data, sizes, int(data["selected_layer"])
        self.places = Places(
            before=frozenset({layer + 1}),
            attention=frozenset({layer}),
            queries=dataclasses.replace(prunevid.ATTENTION, heads=None, over=None),
        )
        self.out: Arrays = {}

    def before_layer(self, layer: int, tokens: VideoTokens, attention: torch.Tensor | None) -> Selection:
        assert attention is not None
        self.out = {"attn": attention.numpy(), **_cut(self.data, self.sizes, attention)}
        mask = torch.zeros(len(tokens), dtype=torch.bool)
        mask[self.out["kept_rows"]] = True
        return Selection.from_mask(mask, Reason.ALL)


@torch.no_grad()
def _whole_run(data: Fields, merged: Arrays) -> Arrays:
    """Both stages in a stock Llama with the recorded weights, up to the first token."""
    config = LlamaConfig(**data.meta["config"])
    model = LlamaForCausalLM(config).eval()
    named = {
        name.removeprefix("weight:"): array for name, array in data.items() if name.startswith("weight:")
    }
    model.load_state_dict({name: torch.from_numpy(array).float() for name, array in named.items()})
    ids, start = torch.from_numpy(data["input_ids"].astype(np.int64)), int(data["image_placeholder"])
    rows = torch.from_numpy(merged["out_features"])
    text = [model.model.embed_tokens(part) for part in (ids[:start], ids[start + 1 :])]
    embeds = torch.cat((text[0], rows, text[1]))[None]
    layout = Layout(
        Grid(1, 1, len(rows)),
        torch.arange(start, start + len(rows)),
        embeds.shape[1],
        config.num_hidden_layers,
    )
    places = {
        "image_start": np.int64(start),
        "image_rows": np.int64(len(rows)),
        "seq_length": np.int64(layout.length),
    }
    fields = Fields(data.file, {**data, **places})
    run = _Cutting(fields, merged)
    with Compression(Decoder(model.model, model.model.layers), run, layout):
        logits = model(inputs_embeds=embeds).logits[0, -1:]
    out = {**places, **run.out, "logits": logits.numpy(), "sequences": logits.argmax(1).numpy()}
    del out["group_counts"]
    return out


class _Merging:
    """Stage 1, each clustering with its part of the recorded noise."""

    def __init__(self, data: Fields) -> None:
        self.data, self.at = data, 0
        self.calls: list[tuple] = []
        self.out: Arrays = {}

    def run(self) -> Arrays:
        """All fields up to where the authors' code raises."""
        try:
            self._merge()
        except (RuntimeError, IndexError) as error:
            self.out["official_error"] = np.array(f"{type(error).__name__}: {error}")
        return self.out

    def _cluster(
        self, kind: int, window: int, frame: int, features: torch.Tensor, raster: np.ndarray, clusters: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = len(features)
        if size < prunevid.NEIGHBOURS:
            raise RuntimeError("selected index k out of range")
        if clusters == 0:
            features.new_zeros(1, 0, size).argmin(1)  # raises what the authors' code raises
        noise = None
        if "noise" in self.data:
            noise = torch.from_numpy(self.data["noise"][self.at : self.at + size]) * 1e-6
        self.at += size
        peaks = density.peaks(features, prunevid.NEIGHBOURS, noise)
        centre = peaks.centres(clusters)
        label = peaks.assigned(centre)
        self.calls.append((kind, window, frame, size, clusters, raster, peaks, centre, label))
        return centre, label

    def _merge(self) -> None:
        data, out = self.data, self.out
        frames, height, width = data.grid
        patches = height * width
        features = torch.from_numpy(data["features"]).view(frames, patches, -1)
        tau, ratio = float(data["tau"]), float(data["cluster_ratio"])
        many = int(frames * float(data["temporal_segment_ratio"]))
        _, label = self._cluster(0, -1, -1, features.mean(1), np.arange(frames), many)
        parts = prunevid.windows(prunevid.refined(label.tolist()))
        out["frame_label_raw"], out["frame_label"] = label.numpy(), np.array(prunevid.refined(label.tolist()))
        out["window_sizes"] = np.array([len(part) for part in parts])
        similarity = torch.stack([prunevid.window_similarity(features, part) for part in parts])
        out["window_similarity"], out["static_mask"] = similarity.numpy(), (similarity > tau).numpy()
        token = np.full(frames * patches, -1)
        names: dict[str, list] = {name: [] for name in ("window", "frame", "place", "count", "features")}
        static, dynamic, done = np.zeros(len(parts), dtype=int), np.zeros(len(parts), dtype=int), 0
        for number, part in enumerate(parts):
            for group in prunevid.groups(features, part, similarity[number] > tau):
                still = group.frame is None
                size = len(group.place)
                centre = label_of = torch.arange(size)
                rows = group.features
                if size > prunevid.WHOLE:
                    kind, frame = (1, -1) if group.frame is None else (2, group.frame)
                    clusters = int(size * ratio)
                    centre, label_of = self._cluster(kind, number, frame, rows, group.place.numpy(), clusters)
                    rows = prunevid.graph.group_means(rows, label_of, clusters)
                for step in range(group.frames):
                    token[group.place.numpy() + step * patches] = label_of.numpy() + done
                done += len(centre)
                (static if still else dynamic)[number] += len(centre)
                names["window"] += [number] * len(centre)
                names["frame"] += [-1 if still else group.frame] * len(centre)
                names["place"] += group.place[centre].tolist()
                names["count"] += (torch.bincount(label_of, minlength=len(centre)) * group.frames).tolist()
                names["features"].append(rows)
        out |= {f"out_{name}": np.array(names[name]) for name in ("window", "frame", "place", "count")}
        out["out_features"] = torch.cat(names["features"]).numpy()
        out["token_to_out"], out["static_sizes"], out["dynamic_sizes"] = token, static, dynamic
        columns = list(zip(*self.calls, strict=True))
        for name, column in zip(("kind", "window", "frame", "size", "clusters"), columns, strict=False):
            out[f"call_{name}"] = np.array(column)
        out["call_raster"] = np.concatenate(columns[5])
        out["density"] = torch.cat([peaks.density for peaks in columns[6]]).numpy()
        out["score"] = torch.cat([peaks.score for peaks in columns[6]]).numpy()
        out["centre_idx"] = torch.cat(columns[7]).numpy()
        out["assignment"] = torch.cat(columns[8]).numpy()


def _cut(data: Fields, sizes: Arrays, attention: torch.Tensor) -> Arrays:
    """Stage 2 with the authors' truncated counts."""
    rows, alpha, start = int(data["image_rows"]), float(data["alpha"]), int(data["image_start"])
    score = attention.amax((0, 1))
    parts = []
    for frames, still, moving in zip(
        *(sizes[name].tolist() for name in ("window_sizes", "static_sizes", "dynamic_sizes")), strict=True
    ):
        parts += [still, *[moving // frames] * frames]
    counts = prunevid.truncated(parts, alpha)
    owner = torch.arange(len(parts)).repeat_interleave(torch.tensor(parts))
    kept = prunevid.best_of_groups(score, owner, counts).nonzero()[:, 0].numpy()
    length = int(data["seq_length"])
    stay = np.ones(length, dtype=bool)
    stay[start : start + rows] = False
    stay[kept + start] = True
    keep = np.flatnonzero(stay)
    return {
        "attn_score": score.numpy(),
        "group_counts": np.array(counts),
        "kept_rows": kept,
        "keep_idx": keep,
        "position_ids_after": keep,
        "cache_position_after": np.arange(len(keep)),
        "attention_mask_shape_after": np.array([1, len(keep)]),
        "causal_mask_shape_after": np.array([1, 1, len(keep), len(keep)]),
        "n_cut_layers": np.int64(int(data["selected_layer"]) + 1),
    }


def _first_run(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Equal; where the scores of all frames are tied, as in a static video, their clusters are any."""
    want, have = recorded[name], outputs[name]
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    frames = int(recorded["n_frames"])
    if np.ptp(recorded["score"][:frames]) < 2e-6 if "score" in recorded else False:
        first = int(recorded["call_clusters"][0]) if name == "centre_idx" else frames
        want, have = want[first:], have[first:]
    wrong = int((want != have).sum())
    return f"{wrong} of {want.size} differ" if wrong else ""


def _first_token(name: str, recorded: Fields, outputs: Arrays) -> str:
    """The first token alone: in decoding the authors' code also cuts the caches of the layers before the cut."""
    want, have = recorded[name][:1], outputs[name]
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    worst = float(np.abs(want - have).max())
    return f"differs by up to {worst:.3g}, allowed 0.0001" if worst > 1e-4 else ""


REPLAY = Replay(
    run,
    inputs="features|n_frames|height|width|tau|temporal_segment_ratio|cluster_ratio|k_neighbours|merge_above|noise"
    "|alpha|selected_layer|image_start|image_rows|seq_length|input_ids|image_placeholder|weight:.*"
    # Of stage 2 alone; where stage 1 is replayed they are outputs, which others determine.
    "|attn|window_sizes|static_sizes|dynamic_sizes",
    skipped={
        "position_ids_decode": "generated tokens continue from another position, and see caches that were cut"
    },
    tolerances={"window_similarity|density|score|attn_score": (2e-6, 0.0)},
    rules={
        "official_error": same_error,
        "logits|sequences": _first_token,
        "frame_label_raw|centre_idx|assignment": _first_run,
    },
)
