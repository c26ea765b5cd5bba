"""Methods that act on the picture's tokens alone: newline tokens, budgets, and rules worked out by hand."""

import pytest
import torch
from fake_engine import layout_for, video

from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors import density, fastvid
from stsimdiff.compressors.picture import PictureCompressor
from stsimdiff.tokens import Grid, Layout, Picture, VideoTokens

METHODS = [name for name in compressors.BUILTIN if issubclass(compressors.resolve(name), PictureCompressor)]


def with_newlines(grid: Grid) -> Layout:
    layout = layout_for(grid)
    picture = Picture(1, grid.height, grid.width - 1, grid.width)
    return Layout(**{**vars(layout), "picture": picture})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["mixed", "static"])
@pytest.mark.parametrize("retention", [0.1, 0.3, 0.8])
def test_newline_tokens_stay_with_their_rows_and_count(name, kind, retention):
    grid = Grid(12, 6, 8)
    features, layout = video(kind, grid), with_newlines(grid)
    run = compressors.resolve(name)().start(layout, Budget("tokens", retention))
    selection = run.at_input(VideoTokens.full(features, grid)).check(grid.tokens)
    keep = selection.keep
    assert len(keep) == pytest.approx(retention * grid.tokens, rel=0.02)
    newline = keep % grid.width == grid.width - 1
    rows = set((keep[~newline] // grid.width).tolist())
    ends = (keep[newline] // grid.width).tolist()
    assert set(ends) <= rows and len(ends) >= 0.8 * len(rows)
    if selection.features is not None:
        assert torch.equal(selection.features[newline], features[keep[newline]])


@pytest.mark.parametrize("name", METHODS)
def test_newline_tokens_decide_nothing(name):
    """Other newline tokens change no choice and no other feature."""
    grid = Grid(6, 4, 5)
    features, layout = video("mixed", grid), with_newlines(grid)
    other = features.clone()
    other[grid.width - 1 :: grid.width] = 7
    found = []
    for given in (features, other):
        run = compressors.resolve(name)().start(layout, Budget("tokens", 0.4))
        found.append(run.at_input(VideoTokens.full(given, grid)))
    assert torch.equal(found[0].keep, found[1].keep)
    shows = found[0].keep % grid.width < grid.width - 1
    if found[0].features is not None:
        assert torch.equal(found[0].features[shows], found[1].features[shows])


def test_cells_of_a_picture():
    layout = with_newlines(Grid(2, 2, 3))
    assert layout.cells().tolist() == [0, 1, 3, 4]
    assert layout_for(Grid(2, 2, 3)).cells().tolist() == list(range(6))


def test_density_peaks_by_hand():
    # Two pairs of twins, far apart; the first of equals is denser, and so one of each pair is a centre.
    x = torch.tensor([[0.0, 0], [0, 0], [10, 0], [10, 0]])
    found = density.peaks(x, 2)
    assert found.density.tolist() == [1, 1, 1, 1]
    far = 10 / 2**0.5
    assert found.delta.tolist() == pytest.approx([far, 0, far, 0], abs=1e-5)
    centres = found.centres(2)
    assert centres.tolist() == [0, 2] and found.assigned(centres).tolist() == [0, 0, 1, 1]
    # As recorded, with noise: equal densities stay equal, and each of them has the largest delta.
    noisy = density.peaks(x, 2, torch.zeros(4))
    assert noisy.delta.tolist() == pytest.approx([far] * 4, abs=1e-5)


def test_fastvid_cuts_at_the_least_similar_and_below_the_threshold():
    similarity = torch.tensor([0.99, 0.5, 0.95, 0.95, 0.7])
    assert fastvid.segments(similarity, 1, 0.9).parts == [[0, 1], [2, 3, 4], [5]]
    # Of equal ones the earlier is cut; more segments than frames are as many as frames.
    assert fastvid.segments(similarity, 4, 0.4).cuts == [1, 2, 4]
    assert fastvid.segments(similarity, 99, 0.4).parts == [[0], [1], [2], [3], [4], [5]]
    found = fastvid.segments(similarity, 1, 0.9)
    assert fastvid.kept_frames([2, 3, 4], found, 0.96) == [2, 3, 4]
    assert fastvid.kept_frames([2, 3, 4], found, 0.9) == [4]
    assert fastvid.anchors([0, 1, 2, 3, 4, 5], 4) == [1, 5]
    assert fastvid.split(7, 3) == [3, 2, 2] and fastvid.split(7, 3, from_last=True) == [2, 2, 3]


@pytest.mark.parametrize(
    ("variant", "sources", "expected"),
    # The centre is token 0. In OneVision's code it is its own source: 0.6 * 3 + 0.4 * (3 + 1 + 2) / 3.
    [("onevision", [0, 1, 2], 2.6), ("video", [1, 2], 2.4)],
)
def test_fastvid_merges_what_is_not_salient(variant, sources, expected):
    features = torch.tensor([[[3.0], [1], [2], [9]]])
    salient = [torch.tensor([3])]
    (found,) = fastvid.merge(
        features, salient, [1], [[0]], variant, 4, 0.6, noise={0: torch.tensor([1.0, 0, 0])}
    )
    assert found.place.tolist() == [0] and found.source.tolist() == sources
    assert found.features.item() == pytest.approx(expected)
