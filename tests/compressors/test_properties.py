"""Properties that hold for any video: valid selections within the budget, the rules' symmetries, no square matrix."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.fake_engine import at_input, drive, layout_for, reach, video
from helpers.tiny_models import qwen2_5_vl
from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.fastv import FastV
from stsimdiff.compressors.st_simdiff import STSimDiff, select
from stsimdiff.engine import Compression
from stsimdiff.kit.running import InterceptedRun
from stsimdiff.tokens import Grid, Layout, VideoTokens, VisionSignals

DROPPING = [name for name in compressors.BUILTIN if name not in ("none", "no_video")]
grids = st.builds(Grid, st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
retentions = st.floats(0.01, 1.0)
kinds = st.sampled_from(["mixed", "static", "different", "constant"])
some = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", DROPPING)
@some
@given(grid=grids, retention=retentions, kind=kinds, seed=st.integers(0, 99))
def test_a_budget_is_never_exceeded(name: str, grid: Grid, retention: float, kind: str, seed: int) -> None:
    method, layout = compressors.resolve(name)(), layout_for(grid)
    features = video(kind, grid, seed=seed)
    if retention * grid.tokens + 0.5 < reach(method, grid):
        return  # refused, as test_compressors.py checks
    _, kept = drive(method.start(layout, Budget("tokens", retention)), features, layout, seed)
    assert kept == sorted(set(kept)) and 1 <= len(kept) <= max(1, retention * grid.tokens + 0.5)
    assert kept[0] >= 0 and kept[-1] < grid.tokens


@pytest.mark.parametrize("name", DROPPING)
@some
@given(grid=grids, kind=kinds)
def test_retention_one_changes_nothing(name: str, grid: Grid, kind: str) -> None:
    layout, features = layout_for(grid), video(kind, grid)
    run = compressors.resolve(name)().start(layout, Budget("tokens", 1.0))
    if name == "sparsevlm":
        # It looks at the text, which the engine alone shows.
        assert drive(run, features, layout)[1] == list(range(grid.tokens))
    elif run.places.input:
        selection = run.at_input(VideoTokens.full(features, grid))
        if selection is not None:
            assert selection.keep.tolist() == list(range(grid.tokens))
            assert selection.features is None or torch.equal(selection.features, features)


@some
@given(grid=grids, retention=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_st_simdiff_does_not_know_left_from_right(grid: Grid, retention: float, seed: int) -> None:
    """Mirrored frames give mirrored communities, events and weights, and as many tokens kept in each community."""
    features = video("mixed", grid, seed=seed)
    place = torch.arange(grid.tokens).view(grid.frames, grid.height, grid.width)
    mirror = place.flip(2).flatten()
    method = STSimDiff(tau_sim=0.6)
    plain = select(VideoTokens.full(features, grid), retention, method)
    mirrored = select(VideoTokens.full(features[mirror], grid), retention, method)
    assert (plain.event[mirror] == mirrored.event).all()

    def parts(found, order):
        kept = set(found.selection.keep.tolist())
        groups: dict[int, list[int]] = {}
        for i, label in enumerate(found.communities.label.tolist()):
            if label >= 0:
                groups.setdefault(label, []).append(i)
        return {
            frozenset(int(order[i]) for i in group): sum(i in kept for i in group)
            for group in groups.values()
        }

    ours, theirs = parts(plain, torch.arange(grid.tokens)), parts(mirrored, mirror)
    assert ours.keys() == theirs.keys()
    # Equal weights, and so the order in which communities are visited, are broken by index.
    if len({round(float(w), 5) for w in plain.weight}) == len(plain.weight) and not plain.event.any():
        assert ours == theirs


@some
@given(grid=grids, retention=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_evs_looks_at_places_one_by_one(grid: Grid, retention: float, seed: int) -> None:
    """The same permutation of every frame's tokens permutes what is kept, outside the first frame's fixed order."""
    if round(retention * grid.tokens) <= grid.per_frame:
        return
    features = video("different", grid, seed=seed)
    order = torch.randperm(grid.per_frame, generator=torch.Generator().manual_seed(seed))
    moved = features.view(grid.frames, grid.per_frame, -1)[:, order].reshape(features.shape)
    method, layout = compressors.resolve("evs")(), layout_for(grid)
    kept = [at_input(method, x, layout, retention).keep.tolist() for x in (features, moved)]
    back = {i // grid.per_frame * grid.per_frame + int(order[i % grid.per_frame]) for i in kept[1]}
    assert back == set(kept[0])


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes, in elements; views of something larger do not count.

    ``held`` adds up those of a quarter of ``matrix`` and more, for which fresh memory is touched.
    """

    def __init__(self, matrix: int = 0) -> None:
        super().__init__()
        self.elements, self.held, self.matrix = 0, 0, matrix

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
                # What is written in place or seen in another way is no new memory.
                made = function._schema.returns and function._schema.returns[0].alias_info is None
                self.held += tensor.numel() if made and 4 * tensor.numel() >= self.matrix else 0
        return result


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("kind", ["mixed", "static", "different"])
def test_no_square_matrix_in_a_selection(name: str, kind: str) -> None:
    grid, width = Grid(32, 6, 7), 16
    features = video(kind, grid, width)
    # No built-in method asks for the frames, so none is given any.
    layout = dataclasses.replace(layout_for(grid), frames=None)
    run = compressors.resolve(name)().start(layout, Budget("tokens", 0.3))
    with Largest() as largest:
        drive(run, features, layout)
    matrix = grid.tokens * width
    assert largest.elements <= 2 * matrix < grid.tokens**2 / 30


@pytest.mark.parametrize(
    ("name", "most"), [("sttm", 0.7), ("sparsevlm", 1.8), ("prunevid", 0.5), ("prumerge", 0.7)]
)
def test_tokens_are_copied_no_more_than_needed(name: str, most: float) -> None:
    """What a method gives back at each of its places, and little more."""
    grid, width = Grid(32, 6, 7), 256
    matrix = grid.tokens * width
    layout = dataclasses.replace(layout_for(grid, layers=4), frames=None)
    run = compressors.resolve(name)().start(layout, Budget("tokens", 0.3))
    counting = Largest(matrix)

    class Counted(InterceptedRun):
        def intercept(self, call):
            with counting:
                return call()

    drive(Counted(run), video("mixed", grid, width), layout)
    assert 0 < counting.held <= most * matrix


@torch.no_grad()
@pytest.mark.parametrize("queries", ["last", "all"])
def test_no_square_attention_in_the_engine(queries: str) -> None:
    case = qwen2_5_vl(0, grid=Grid(30, 8, 8))
    run = FastV(layer=2, queries=queries).start(case.layout, Budget("tokens", 0.3))
    length, heads = case.layout.length, 4
    with Compression(case.decoder, run, case.layout), Largest() as largest:
        hidden = torch.randn(1, length, 48)
        positions = torch.arange(length).expand(3, 1, -1)
        case.decoder.module(inputs_embeds=hidden, position_ids=positions, use_cache=False)
    assert largest.elements <= 64 * heads * length < length**2 / 5


def test_batches_of_one_share_nothing() -> None:
    """The same run class on two layouts with signals of their own."""
    grid = Grid(2, 3, 3)
    layouts = [
        Layout(grid, torch.arange(18), 20, 4, f"q{i}", VisionSignals(torch.rand(18), torch.randn(18, 1, 2)))
        for i in range(2)
    ]
    method, features = compressors.resolve("fastervlm")(), video("mixed", grid)
    alone = [at_input(method, features, lay, 0.5) for lay in layouts]
    runs = [method.start(lay, Budget("tokens", 0.5)) for lay in layouts]
    together = [run.at_input(VideoTokens.full(features, grid)) for run in runs]
    assert all(torch.equal(a.keep, b.keep) for a, b in zip(alone, together, strict=True))
