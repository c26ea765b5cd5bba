"""What a recorded run holds besides its answer: the tokens in every layer, and each decision on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.compressors import framefusion, st_simdiff
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.compressors.fastv import FastV
from stsimdiff.compressors.framefusion import FrameFusion
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.conformance.cases import Arrays
from stsimdiff.conformance.selection import Sequence, released_edges, removable
from stsimdiff.engine import Compression, Decoder
from stsimdiff.engine.attention import attention_rows
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace

Decide = Callable[[], Selection | None]


@dataclass
class Call:
    """One decision of a run.

    Attributes:
        place: ``input``, ``before`` or ``between``.
        layer: decoder layer.
        index: ``(n,)`` raster indices of the tokens that it was asked about.
        selection: what it said.
        merging: whether FrameFusion was still merging when it was asked.
        room: share of the tokens that FrameFusion's budget allowed to remove.
        state: ``(merging, pruning)`` finished after it, FrameFusion only.
        similarity: ``(n,)`` similarity to the predecessor, FrameFusion only.
    """

    place: str
    layer: int
    index: np.ndarray
    selection: Selection | None
    merging: bool = False
    room: float = 0.0
    state: tuple[bool, bool] = (False, False)
    similarity: np.ndarray | None = None


class WatchedRun(Run):
    """A run whose decisions are written down.

    Args:
        run: the run itself.
        layers: decoder layers of the model at hand; places in layers that it lacks are left out.
        first: raster indices that survive the input stage whatever the run says, so that all later stages start
            from recorded survivors; ``None`` leaves the decision to the run.
    """

    def __init__(self, run: Run, layers: int, first: np.ndarray | None = None) -> None:
        places = run.places
        self.run: Any = run
        self.first = first
        self.calls: list[Call] = []
        self.method: Any = getattr(run, "method", None)
        before, between, attention = (
            frozenset(n for n in group if n < layers)
            for group in (places.before, places.between, places.attention)
        )
        self.places = Places(places.input, before, between, attention, places.queries)
        self.details: st_simdiff.Thinning | None = None

    @property
    @override
    def finished(self) -> bool:
        return self.run.finished

    @override
    def at_input(self, tokens: VideoTokens) -> Selection | None:
        if isinstance(self.method, STSimDiff):
            self.details = st_simdiff.select(tokens, self.run.budget.retention, self.method)
        selection = self._ask("input", 0, tokens, lambda: self.run.at_input(tokens))
        if self.first is None:
            return selection
        stay = torch.zeros(len(tokens), dtype=torch.bool)
        stay[torch.from_numpy(self.first)] = True
        return Selection.from_mask(stay, Reason.ALL)

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        return self._ask("before", layer, tokens, lambda: self.run.before_layer(layer, tokens, attention))

    @override
    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        return self._ask("between", layer, tokens, lambda: self.run.between(layer, tokens, attention))

    def _ask(self, place: str, layer: int, tokens: VideoTokens, decide: Decide) -> Selection | None:
        fusion = isinstance(self.method, FrameFusion)
        merging = fusion and self.run.merging
        call = Call(place, layer, tokens.index.numpy(), decide(), merging)
        if fusion:
            call.room = removable(self.run, len(tokens))
            call.state = not self.run.merging, not self.run.pruning
            call.similarity = framefusion.similarities(tokens, framefusion.predecessors(tokens)).numpy()
        self.calls.append(call)
        return call.selection

    def arrays(self, place: Sequence, watching: WatchedCompression, compressor: Compressor) -> Arrays:
        """The decisions under the recorded names."""
        out: Arrays = {}
        if isinstance(compressor, STSimDiff):
            out.update(_thinning(self, place, compressor))
        if isinstance(compressor, FrameFusion):
            out.update(_merges(self, place, watching))
        prunes = [call for call in self.calls if call.place != "input" and not call.merging]
        if prunes:
            out.update(_prune(prunes[0], self, place, watching, compressor))
        return out


class WatchedCompression(Compression):
    """A :class:`Compression` that also writes down hidden states, full attention rows, positions and cache lengths.

    Attributes:
        hidden: hidden states ``(S, D)`` after each selection, by place and layer.
        row: ``(S,)`` attention of the asking tokens at the selection, mean over the heads, by place and layer.
        positions: position ids of the decoder's calls; the first is the prefill.
        cached: cache length of each layer after each call.
        final: ``(S, D)`` output of the prefill.
        last: ``(L, D)`` output of each layer at the last position of the prefill.
    """

    def __init__(self, decoder: Decoder, run: WatchedRun, layout: Layout) -> None:
        super().__init__(decoder, run, layout)
        self.hidden: dict[tuple[str, int], np.ndarray] = {}
        self.row: dict[tuple[str, int], np.ndarray] = {}
        self.positions: list[np.ndarray] = []
        self.cached: list[list[int]] = []
        self.final: np.ndarray | None = None
        self.last: list[np.ndarray] = []
        self._latest: np.ndarray | None = None

    def __enter__(self) -> Trace:
        # Before the engine's own hooks, whose last one ends the prefill.
        self._hook(self.decoder.module.register_forward_hook(self._called, with_kwargs=True))
        for layer in self.decoder.layers:
            self._hook(layer.register_forward_hook(self._layer_done))
        return super().__enter__()

    def _called(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        self.positions.append(kwargs["position_ids"].cpu().numpy())
        self.cached.append([layer.get_seq_length() for layer in output.past_key_values.layers])
        if self.final is None:
            self.final = output.last_hidden_state[0].cpu().numpy()

    def _layer_done(self, module: Any, args: tuple, output: Any) -> None:
        if self.final is None:
            hidden = output[0] if isinstance(output, tuple) else output
            self.last.append(hidden[0, -1].cpu().numpy())

    def _select(self, place: str, number: int, hidden: Tensor, decide: Any, entered: Any) -> Tensor:
        result = super()._select(place, number, hidden, decide, entered)
        self.hidden[place, number] = result[0].cpu().numpy()
        if self._latest is not None:
            self.row[place, number] = self._latest
        return result

    def _receive(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, options: dict[str, Any]
    ) -> None:
        super()._receive(query, key, value, scaling, options)
        if self._active:
            count = 1 if self.run.places.queries == "last" else self.run.places.queries
            first = query.shape[2] - count
            self._latest = (
                attention_rows(query[:, :, first:], key, scaling, first)[0].mean((0, 1)).cpu().numpy()
            )

    def arrays(self, place: Sequence) -> Arrays:
        """Tokens of each layer, positions and cache lengths under the recorded names."""
        index, present = {}, np.arange(place.length)
        stages = {(stage.place, stage.layer): stage.kept.numpy() for stage in self.trace.stages}
        into: list[int] = []
        inside: list[int] = []
        left: list[int] = []
        for layer in range(len(self.decoder)):
            for stage, count in (("before", into), ("input", inside), ("between", left)):
                if (stage, layer) in stages:
                    present = place.with_text(stages[stage, layer])
                count.append(len(present))
                if stage != "before":
                    index[f"{'attn' if stage == 'input' else 'out'}_index_l{layer}"] = present
        steps = np.stack([ids.reshape(-1, ids.shape[-1])[-3:, 0] for ids in self.positions[1:]])
        assert self.final is not None
        return {
            **index,
            "tokens_into_layer": np.array(into),
            "tokens_in_attention": np.array(inside),
            "tokens_out_of_layer": np.array(left),
            "final_hidden": self.final,
            "layer_last_token_hidden": np.stack(self.last),
            "decode_position_ids": steps[:, 0] if steps.shape[1] == 1 else steps,
            "prefill_kv_len": np.array(self.cached[0]),
            "decode_kv_len": np.array(self.cached[1:]),
        }


def _thinning(watched: WatchedRun, place: Sequence, method: STSimDiff) -> Arrays:
    thinning = watched.details
    assert thinning is not None
    grid, start = place.grid, place.start
    edges, value = released_edges(thinning, method, grid)
    label = thinning.communities.label
    member = np.flatnonzero(label >= 0)
    member = member[np.argsort(label[member], kind="stable")]
    keep = thinning.selection.keep.numpy()
    out = {
        "graph_edges": np.column_stack((edges + start, value)).astype(np.float32),
        "component_offsets": np.concatenate((np.zeros(1, np.int64), np.cumsum(thinning.communities.size))),
        "component_members": member + start,
        "component_weight": thinning.weight.astype(np.float32),
        "component_token_weight": thinning.centrality[member],
        "component_processed": thinning.visited,
        # Not recorded; the rule on ties needs it.
        "event_index": np.flatnonzero(thinning.event) + start,
        "merge_keep_index": place.with_text(keep),
        "sparsity_after_merge": np.array([1 - len(keep) / grid.tokens] if len(edges) else []),
    }
    column = np.arange(grid.tokens).reshape(-1, grid.width)[:, -1]
    return {**out, "newline_index": column + start, "newline_kept": np.intersect1d(column, keep) + start}


def _merges(watched: WatchedRun, place: Sequence, watching: WatchedCompression) -> Arrays:
    calls = [call for call in watched.calls if call.merging]
    out: Arrays = {"num_merges": np.int64(len(calls))}
    shares = []
    for j, call in enumerate(calls):
        assert call.similarity is not None
        above = np.count_nonzero(call.similarity >= watched.method.tau_sim) / len(call.index)
        # The released code notes a share only when the budget allowed all of its merges.
        if above < call.room:
            shares.append(above)
        order = place.by_patch(call.index)
        stay = call.index if call.selection is None else call.index[call.selection.keep.numpy()]
        values = {
            "layer": np.int64(call.layer),
            "after_attention": np.int64(call.place == "between"),
            "keep_index": place.with_text(stay),
            "hidden_out": watching.hidden[call.place, call.layer],
            "finished": np.array(call.state),
            "similarity": call.similarity[order],
            "token_order": call.index[order] + place.start,
        }
        out.update({f"merge{j}_{name}": value for name, value in values.items()})
    return {**out, "sparsity_list": np.array(shares)}


def _prune(
    call: Call, watched: WatchedRun, place: Sequence, watching: WatchedCompression, compressor: Compressor
) -> Arrays:
    stay = call.index if call.selection is None else call.index[call.selection.keep.numpy()]
    out = {
        "prune_layer": np.int64(call.layer),
        "prune_keep_index": place.with_text(stay),
        "prune_attention": watching.row[call.place, call.layer],
    }
    if isinstance(compressor, FastV):
        return out
    if isinstance(compressor, STSimDiff):
        edges = watched.details.edges if watched.details else ()
        dropped = 1 - len(call.index) / place.grid.tokens if len(edges) else None
        ratio = st_simdiff.released_ratio(
            watched.run.budget.retention, dropped, int(compressor.released_layers)
        )
        return {**out, "prune_ratio": np.float64(ratio)}
    return {**out, "prune_ratio": np.float64(call.room)}
