"""The methods against outputs recorded from their authors' code; fields in ``golden/README.md``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import recorded
from stsimdiff.budget import Budget
from stsimdiff.compressors import evs, fastv, framefusion, st_simdiff
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.tokens import Grid, Layout, Reason, VideoTokens


class STSimDiffCase:
    """One recorded case; all indices made relative to the first video token."""

    def __init__(self, path: Path) -> None:
        self.data = np.load(path, allow_pickle=False)
        self.meta = json.loads(str(self.data["meta"]))
        self.start = int(self.data["image_token_start_index"])
        self.grid = Grid(*(int(self.data[name]) for name in ("n_frames", "height", "width")))
        rows = slice(self.start, self.start + self.grid.tokens)
        self.rows = rows
        self.tokens = VideoTokens.full(torch.from_numpy(self.data["hidden"][0, rows]), self.grid)
        edges = {(True, True): "both", (True, False): "spatial", (False, True): "temporal"}
        self.method = STSimDiff(
            tau_sim=float(self.data["similarity_lower_bound"]),
            tau_diff=float(self.data["event_upper_bound"]),
            edges=edges[bool(self.data["spatial"]), bool(self.data["temporal"])],
            released_layers=int(self.data["num_layers"]),
        )
        self.cost = float(self.data["cost"])
        self.event = np.isin(np.arange(self.grid.tokens), self.data["s1_event_idx"] - self.start)
        self.found = st_simdiff.select(self.tokens, self.cost, self.method)

    def video(self, name: str) -> np.ndarray:
        """Raster indices of the video tokens in a recorded index list."""
        index = self.data[name] - self.start
        return index[(index >= 0) & (index < self.grid.tokens)]


@pytest.fixture(scope="module", params=recorded("stsimdiff"))
def simdiff(request) -> STSimDiffCase:
    return STSimDiffCase(request.param)


def test_stsimdiff_neighbour_similarities(simdiff):
    found, grid = simdiff.found.similarities, simdiff.grid
    by_patch = np.full(grid.tokens, -2.0, dtype=np.float32)
    by_patch[grid.per_frame :] = found.temporal.flatten()
    order = simdiff.data["s1_token_index_by_patch"] - simdiff.start
    np.testing.assert_allclose(by_patch[order], simdiff.data["s1_similarity_by_patch"], atol=1e-6)
    if bool(simdiff.data["spatial"]):
        np.testing.assert_allclose(found.right, simdiff.data["s1_right_sim"][:, :, :-1], atol=1e-6)
        np.testing.assert_allclose(found.bottom, simdiff.data["s1_bottom_sim"][:, :-1], atol=1e-6)


def test_stsimdiff_graph(simdiff):
    found, data = simdiff.found, simdiff.data
    want = np.sort(data["s1_edges"] - simdiff.start, axis=1)
    assert sorted(map(tuple, found.edges.tolist())) == sorted(map(tuple, want.tolist()))
    assert np.array_equal(found.communities.label, data["s1_component_of"][simdiff.rows])
    assert np.array_equal(found.event, simdiff.event)
    np.testing.assert_allclose(found.centrality, data["s1_centrality"][simdiff.rows], atol=2e-6)
    np.testing.assert_allclose(found.weight, data["s1_component_weight"], atol=2e-6)
    processed = int(data["s1_components_processed"])
    assert found.visited.tolist() == data["s1_component_order"][:processed].tolist()


def test_stsimdiff_first_stage_keeps_the_recorded_tokens(simdiff):
    """Equal outside ties; among a component's tied tokens any choice is right and only the number counts."""
    data, label = simdiff.data, simdiff.found.communities.label
    ours = simdiff.found.selection.check(simdiff.grid.tokens).keep.numpy()
    kept = np.isin(np.arange(simdiff.grid.tokens), ours)
    want = np.isin(np.arange(simdiff.grid.tokens), simdiff.video("s1_keep_idx"))
    tied = data["s1_ambiguous"][simdiff.rows]
    assert np.array_equal(kept[~tied], want[~tied])
    for number in np.unique(label[tied]):
        member = label == number
        slack = np.count_nonzero(simdiff.event & tied & member)
        assert abs(int(kept[member].sum()) - int(want[member].sum())) <= slack
    if tied.any() or len(data["s1_sparsity_list"]) == 0:
        return
    assert 1 - len(ours) / simdiff.grid.tokens == pytest.approx(float(data["s1_sparsity_list"][0]), abs=1e-12)


def test_stsimdiff_reasons(simdiff):
    reason, label = simdiff.found.selection.reason.numpy(), simdiff.found.communities.label
    kept = reason != Reason.DROPPED
    assert np.array_equal(np.flatnonzero(kept), simdiff.found.selection.keep)
    assert (reason[simdiff.event] == Reason.EVENT).all()
    assert (reason[(label < 0) & ~simdiff.event] == Reason.UNGROUPED).all()
    thinned = np.isin(label, simdiff.found.visited) & (label >= 0) & kept & ~simdiff.event
    assert (reason[thinned] == Reason.REPRESENTATIVE).all()


def test_stsimdiff_second_stage_ratio(simdiff):
    sparsity = simdiff.data["s1_sparsity_list"]
    dropped = float(sparsity[0]) if len(sparsity) else None
    ratio = st_simdiff.released_ratio(simdiff.cost, dropped, int(simdiff.data["num_layers"]))
    assert ratio == pytest.approx(float(simdiff.data["s2_pruning_ratio"]), abs=1e-12)


def test_stsimdiff_second_stage_keeps_the_recorded_tokens(simdiff):
    """Fed with the recorded survivors of stage one, through the run that the engine drives."""
    data = simdiff.data
    present = simdiff.video("s1_keep_idx")
    run = start_with(simdiff, present)
    rows = np.isin(data["s1_keep_idx"] - simdiff.start, present)
    attention = torch.from_numpy(data["s2_attn"][0].mean(axis=1)[:, rows])
    index = torch.from_numpy(present.astype(np.int64))
    left = VideoTokens(simdiff.tokens.features[index], simdiff.grid, index)
    selection = run.between(simdiff.method.layer, left, attention).check(len(present))
    assert present[selection.keep].tolist() == simdiff.video("s2_keep_idx").tolist()


def start_with(case: STSimDiffCase, present: np.ndarray):
    """A run whose first stage has happened."""
    n = case.grid.tokens
    video = torch.arange(case.start, case.start + n)
    layout = Layout(case.grid, video, int(case.data["original_length"]), layers=28)
    run = case.method.start(layout, Budget("compute", case.cost))
    run.at_input(case.tokens)
    return run


@pytest.mark.parametrize("path", recorded("framefusion"))
def test_framefusion(path):
    """Every recorded call, each fed with its recorded input, through one run."""
    data = np.load(path, allow_pickle=False)
    start, n, length = (
        int(data[k]) for k in ("image_token_start_index", "image_token_length", "original_length")
    )
    grid = Grid(*(int(data[name]) for name in ("n_frames", "height", "width")))
    method = framefusion.FrameFusion(float(data["similarity_lower_bound"]), float(data["ratio_lower_bound"]))
    layout = Layout(grid, torch.arange(start, start + n), length, int(data["num_layers"]))
    run = method.start(layout, Budget("compute", float(data["cost"])))
    present, hidden = np.arange(length), data["hidden"][0]
    for i in range(int(data["n_calls"])):
        call = {k.removeprefix(f"call{i}_"): data[k] for k in data.files if k.startswith(f"call{i}_")}
        hidden = call["in_hidden"][0] if "in_hidden" in call else hidden
        hidden = hidden[: len(present)]
        video = (present >= start) & (present < start + n)
        index = torch.from_numpy((present[video] - start).astype(np.int64))
        tokens = VideoTokens(torch.from_numpy(hidden[video]), grid, index)
        if "similarity_by_patch" in call:
            similarity = framefusion.similarities(tokens, framefusion.predecessors(tokens)).numpy()
            order = np.lexsort((index, index % grid.per_frame))
            np.testing.assert_allclose(similarity[order], call["similarity_by_patch"], atol=1e-6)
        attention = None
        if "attn" in call:
            attention = torch.from_numpy(call["attn"][0].mean(axis=1)[:, : len(present)][:, video])
        selection = run.at_input(tokens) if i == 0 else run.between(i - 1, tokens, attention)
        want = call["keep_idx"][(call["keep_idx"] >= start) & (call["keep_idx"] < start + n)] - start
        assert index[selection.check(len(tokens)).keep].tolist() == want.tolist()
        assert (run.merging, run.pruning) == (
            not call["finish_merging_after"],
            not call["finish_pruning_after"],
        )
        present = call["keep_idx"]
        if "out_hidden" in call:
            hidden = call["out_hidden"][0]
            rows = np.isin(present, want + start)
            np.testing.assert_allclose(selection.features, hidden[: len(present)][rows], atol=1e-5)


@pytest.mark.parametrize("path", recorded("evs"))
def test_evs(path):
    """Through the run, by the arm that is as released, in the recorded dtype; the default where nothing differs."""
    data = np.load(path, allow_pickle=False)
    grid = Grid(*(int(data[name]) for name in ("n_frames", "height", "width")))
    features = torch.from_numpy(data["features"]).to(getattr(torch, str(data["dtype"])))
    tokens = VideoTokens.full(features, grid)
    layout = Layout(grid, torch.arange(grid.tokens), grid.tokens + 5, layers=28)
    budget = Budget("tokens", 1 - float(data["pruning_rate"]))
    released = evs.EVS(as_released=True).start(layout, budget).at_input(tokens).check(grid.tokens)
    tied = np.flatnonzero(data["ambiguous"])
    assert set(released.keep.tolist()) ^ set(data["keep_idx"].tolist()) <= set(tied.tolist())
    assert len(released.keep) == data["retained_count"]
    ours = evs.EVS().start(layout, budget).at_input(tokens).check(grid.tokens)
    assert len(ours.keep) == int(budget.retention * grid.tokens + 0.5)
    if not len(tied) and len(ours.keep) == len(released.keep):
        assert torch.equal(ours.keep, released.keep)


def test_evs_as_released_keeps_the_first_frame_whole():
    grid = Grid(10, 5, 6)
    counts = [evs.released_count(grid, rate) for rate in (0.8, 0.75, 0.95, 0.0, 1.5, -0.2)]
    assert counts == [59, 75, 30, 300, 30, 300]


@pytest.mark.parametrize("path", recorded("fastv"))
def test_fastv(path):
    data = np.load(path, allow_pickle=False)
    first, n = int(data["sys_length"]), int(data["image_token_length"])
    layer, count = int(data["agg_layer"]), int(data["attention_rank"])
    attention = torch.from_numpy(data["attention"][0, :, -1, first : first + n])
    grid = Grid(1, 1, n)
    layout = Layout(grid, torch.arange(first, first + n), int(data["seq_length"]), layers=32)
    run = fastv.FastV(layer=layer).start(layout, Budget("tokens", count / n))
    assert run.places.before == {layer} and run.places.attention == {layer - 1}
    tokens = VideoTokens.full(torch.ones(n, 2), grid)
    selection = run.before_layer(layer, tokens, attention).check(n)
    assert selection.keep.tolist() == data["kept_image_idx"].tolist()
    assert set(selection.reason[selection.keep].tolist()) == {int(Reason.IMPORTANT)}
