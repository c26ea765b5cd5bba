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
    return _cut(data) if "llm_retention_ratio" in data else _Compression(data).run()


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


class _Compression:
    """One case: the settings of its recording, and what each step leaves."""

    def __init__(self, data: Fields) -> None:
        self.data = data
        self.frames, height, width = data.grid
        self.patches = height * width
        self.method = str(data["token_selection_method"])
        self.features = torch.from_numpy(data["features"]).view(self.frames, self.patches, -1)
        self.vectors = self.features.mean(1)
        self.budget = math.ceil(self.patches * float(data["retention_ratio"]) * float(data["expansion"]))
        self.selected = math.ceil(self.budget * float(data["alpha"]))
        self.threshold = float(data["temporal_threshold"])
        blank = {
            **dict.fromkeys(("max_similarity", "density", "dpc_score"), np.nan),
            **dict.fromkeys(("anchor_idx", "cluster_of"), -1),
            "merged": False,
            "divisor": 1,
            "event_relevance": 0.0,
        }
        self.grids = {name: np.full((self.frames, self.patches), value) for name, value in blank.items()}
        self.order = np.zeros((self.frames, self.selected), dtype=np.int64)
        self.clusters, self.tied = np.zeros(self.frames, dtype=np.int64), np.zeros(self.frames, dtype=bool)
        self.soft: list[float] = []
        self.adaptive: list[float] = []
        self.place: list[np.ndarray] = []
        self.rows: list[torch.Tensor] = []
        self.centres: list[np.ndarray] = []
        self.output: list[list[tuple[int, int, torch.Tensor]]] = [[] for _ in range(self.frames)]

    def run(self) -> Arrays:
        """The recorded fields, those of an error included."""
        similarity = fastvid.frame_similarities(self.vectors)
        cuts = self._cuts(similarity)
        ends = [-1, *cuts, self.frames - 1]
        parts = [range(a + 1, b + 1) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        out: Arrays = {
            "transition_similarity": similarity.numpy(),
            "cut_idx": np.array(cuts, dtype=np.int64),
            "token_budget": np.int64(self.budget),
            "num_attn_div_tokens": np.int64(self.selected),
            "num_sttm_tokens": np.int64(self.budget - self.selected),
            "segment_lengths": np.array([len(part) for part in parts]),
        }
        if error := self._official_error(parts):
            return out | {"official_error": np.array(error)}
        for part in parts:
            self.soft.append(math.nan)
            self.adaptive.append(math.nan)
            if len(part):
                self._select(part)
                if self.budget > self.selected:
                    self._merge(part)
        return out | self._outputs()

    def _cuts(self, similarity: torch.Tensor) -> list[int]:
        """The cuts between segments; those that were recorded where they are as good as ours."""
        data = self.data
        if not bool(data["do_segment"]):
            return []
        least, complementary = int(data["min_segment_num"]), bool(data["complementary_segment"])
        cuts = flashvid.segment_cuts(similarity, float(data["segment_threshold"]), least, complementary)
        recorded = data["cut_idx"].tolist() if "cut_idx" in data else cuts
        same = len(recorded) == len(cuts) and np.allclose(
            similarity[recorded], similarity[cuts], atol=2e-6, rtol=0
        )
        return recorded if same else cuts

    def _official_error(self, parts: list[range]) -> str:
        """What the authors' code fails with; empty where it does not."""
        if self.budget == self.selected:
            return ""
        if self.threshold >= 1:
            return "ZeroDivisionError: division by zero"
        if self.budget == self.patches and any(len(part) > 1 for part in parts):
            return "IndexError: index -1 is out of bounds for dimension 0 with size 0"
        return ""

    def _select(self, part: range) -> None:
        """The tokens that attention and diversity choose in each frame of a segment."""
        received = torch.from_numpy(self.data["cls_attention"])
        vectors = self.vectors[part.start : part.stop]
        again = self.method == "attn_div_v2"
        for frame in part:
            x = self.features[frame]
            self.grids["event_relevance"][frame] = flashvid.relevance(x, vectors).numpy()
            weight = flashvid.weights(self.method, x, received[frame], vectors)
            picked = flashvid.pick(x[None], weight[None], self.selected, self.method, again)[0]
            self.order[frame] = picked.numpy()
            for token in np.sort(self.order[frame]).tolist():
                self.output[frame].append((token + frame * self.patches, 0, x[token]))

    def _merge(self, part: range) -> None:
        """The trees over the frames of a segment, and the clusters of what is left of each frame."""
        inside = slice(part.start, part.stop)
        picked = [torch.from_numpy(self.order[frame]) for frame in part]
        count = self.budget * len(part)
        trees = flashvid.merge_trees(self.features[inside], picked, self.threshold, count, as_released=True)
        self.soft[-1] = trees.threshold
        if len(part) > 1:
            self.grids["max_similarity"][inside] = trees.similarity.numpy()
            self.grids["anchor_idx"][inside] = trees.anchor.numpy()
            self.grids["merged"][inside] = trees.merged.numpy()
            self.grids["divisor"][inside] = trees.divisor.numpy()
        total = sum(len(tokens) for tokens in trees.place)
        self.adaptive[-1] = ratio = (self.budget - self.selected) * len(part) / total
        for frame, tokens, x in zip(part, trees.place, trees.features, strict=True):
            self.place.append(tokens.numpy() + frame * self.patches)
            self.rows.append(x)
            if ratio < 1:
                self._cluster(frame, tokens, x, math.ceil(len(tokens) * ratio))
            else:
                self.clusters[frame] = len(tokens)
                self._put(frame, tokens, x)

    def _cluster(self, frame: int, tokens: torch.Tensor, x: torch.Tensor, count: int) -> None:
        self.clusters[frame] = count
        noise = None
        if "density_noise" in self.data:
            noise = torch.from_numpy(self.data["density_noise"][frame])[tokens] * 1e-6
        fixed = _recorded_centres(self.data, frame, self.patches, tokens)
        centre, merged, label, peaks = flashvid.clustered(x, count, noise, fixed)
        if peaks is not None and label is not None:
            self.grids["density"][frame, tokens.numpy()] = peaks.density.numpy()
            self.grids["dpc_score"][frame, tokens.numpy()] = peaks.score.numpy()
            self.grids["cluster_of"][frame, tokens.numpy()] = label.numpy()
            best = torch.sort(peaks.score, descending=True).values[: count + 1]
            self.tied[frame] = bool((best[1:] == best[:-1]).any())
        self.centres.append(tokens[centre].numpy() + frame * self.patches)
        self._put(frame, tokens[centre], merged)

    def _put(self, frame: int, tokens: torch.Tensor, x: torch.Tensor) -> None:
        """Add merged tokens to a frame's output."""
        self.output[frame] += [
            (int(token) + frame * self.patches, 1, row) for token, row in zip(tokens, x, strict=True)
        ]

    def _outputs(self) -> Arrays:
        sequence = [row for frame in self.output for row in sorted(frame, key=lambda row: row[:2])]
        if self.method != "attn_div_v2":
            self.grids.pop("event_relevance")
        if self.budget > self.selected:
            for name in ("density", "dpc_score"):
                self.grids[name] = self.grids[name].astype(np.float32)
        return self.grids | {
            "adts_order": self.order,
            "adts_idx": np.sort(self.order, axis=1),
            "soft_threshold": np.array(self.soft, dtype=np.float32),
            "adaptive_ratio": np.array(self.adaptive, dtype=np.float32),
            "tstm_idx": np.concatenate([*self.place, np.zeros(0, dtype=np.int64)]),
            "tstm_features": torch.cat(
                [*self.rows, self.features.new_zeros(0, self.features.shape[2])]
            ).numpy(),
            "num_clusters": self.clusters,
            "centre_idx": np.concatenate([*self.centres, np.zeros(0, dtype=np.int64)]),
            "tied_frames": self.tied,
            "out_source_idx": np.array([row[0] for row in sequence]),
            "out_kind": np.array([row[1] for row in sequence]),
            "out_features": torch.stack([row[2] for row in sequence]).numpy(),
            "frame_counts": np.array([len(frame) for frame in self.output]),
        }


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
