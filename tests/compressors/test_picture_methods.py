"""Methods that act on the picture's tokens alone: newline tokens, budgets, and rules worked out by hand."""

import pytest
import torch

from helpers.fake_engine import at_input, drive, layout_for, video, with_newlines
from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors import density, fastvid, flashvid, holitom, prunevid
from stsimdiff.compressors.picture import PictureCompressor
from stsimdiff.tokens import Grid, VideoTokens

METHODS = [name for name in compressors.BUILTIN if issubclass(compressors.resolve(name), PictureCompressor)]


def with_inner_off(name: str) -> PictureCompressor:
    """The method with its part at the input alone."""
    return compressors.resolve(name)(**({"merge_ratio": 0} if name == "holitom" else {}))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["mixed", "static"])
@pytest.mark.parametrize("retention", [0.1, 0.3, 0.8])
def test_newline_tokens_stay_with_their_rows_and_count(name, kind, retention):
    grid = Grid(12, 6, 8)
    features, layout = video(kind, grid), with_newlines(grid)
    run = with_inner_off(name).start(layout, Budget("tokens", retention))
    selection = run.at_input(VideoTokens.full(features, grid)).check(grid.tokens)
    keep = selection.keep
    if run.places.before:
        _, kept = drive(with_inner_off(name).start(layout, Budget("tokens", retention)), features, layout)
        assert len(kept) == pytest.approx(retention * grid.tokens, rel=0.02)
    else:
        assert len(keep) == pytest.approx(retention * grid.tokens, rel=0.02)
    newline = keep % grid.width == grid.width - 1
    rows = set((keep[~newline] // grid.width).tolist())
    ends = (keep[newline] // grid.width).tolist()
    assert set(ends) <= rows and ends and (kind == "static" or len(ends) >= 0.8 * len(rows))
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
        found.append(at_input(with_inner_off(name), given, layout, 0.4))
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


def test_holitom_windows_save_the_most():
    # Place 0 stays the same in frames 0 to 2, place 1 in 0 and 1 and in 3 and 4.
    similarity = torch.tensor([[0.9, 0.9], [0.9, 0.1], [0.1, 0.1], [0.1, 0.9]])
    gain = holitom.window_gains(similarity, 0.8)
    # Of frames 0 to 2 one place, twice; of 0 and 1 both places, once: a tie, which the shorter window wins.
    assert gain[0].tolist() == [0, 2, 2, 0, 0] and gain[3].tolist() == [0, 0, 0, 0, 1]
    assert holitom.windows(gain, 5) == [(0, 1), (2, 2), (3, 4)]
    assert holitom.windows(gain, 1) == [(i, i) for i in range(5)]
    one = holitom.window(similarity, 0.8, 0, 2)
    assert one.static.tolist() == [0] and one.dynamic.tolist() == [1] and one.frames == 3
    # 0.4 of one static place rounds to none; of one other place in each of three frames, up to one.
    assert holitom.by_ratio([one], 0.4) == [(0, [1, 1, 1])]
    ((clusters, dynamic),) = holitom.shared_out([one], 2, 2)
    assert clusters + sum(dynamic) == 2 and clusters <= 1 and max(dynamic) <= 1


def test_holitom_static_places_are_means_over_their_window():
    features = torch.tensor([[1.0], [5], [3], [5]])  # two frames of two places
    one = holitom.Window(0, 1, torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64))
    found = holitom.merge_static(features, one, 2, 1, 7, 0.6)
    assert found.mean.flatten().tolist() == [2, 5]
    assert found.centre.tolist() == [0] and found.target.tolist() == [0]
    assert found.features.item() == pytest.approx(0.6 * 2 + 0.4 * 5)
    assert holitom.merge_static(features, one, 2, 1, 7, None).features.item() == pytest.approx(3.5)


def test_holitom_folds_later_tokens_with_more_weight():
    states = torch.tensor([[8.0, 0], [4, 0], [0, 3], [2, 0]])
    found = holitom.fold(states, torch.tensor([0.9, 0.1, 0.8, 0.2]), 2)
    assert (
        found.keep.tolist() == [0, 2] and found.target.tolist() == [0, 0] and found.taken.tolist() == [2, 0]
    )
    # ((8 + 4) / 2 + 2) / 2
    assert found.features.tolist() == [[4, 0], [0, 3]]


@pytest.mark.parametrize(
    ("kind", "retention", "outer", "final"),
    [
        # The inner part halves: twice the budget stays at the input.
        ("tokens", 0.3, 252, 126),
        # More than half: everything stays at the input, and the inner part takes less away.
        ("tokens", 0.8, 420, 336),
        # 18 of 28 layers with x, 10 with x / 2: 0.3 * 420 * 28 / 23.
        ("compute", 0.3, 153, 77),
    ],
)
def test_holitom_shares_its_budget_between_its_parts(kind, retention, outer, final):
    grid = Grid(10, 6, 7)
    features, layout = video("mixed", grid), layout_for(grid)
    entering, kept = drive(holitom.HoliTom().start(layout, Budget(kind, retention)), features, layout)
    assert entering == [outer] * 18 + [final] * 10 and len(kept) == final


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        # The stray frame of 1 goes to the longer run beside it, the left one of equal ones.
        ([0, 0, 1, 2, 2, 2], [0, 0, 2, 2, 2, 2]),
        ([0, 0, 1, 2, 2], [0, 0, 0, 2, 2]),
        # The shorter run of 0 is free too, and counts with what was taken over before it.
        ([0, 0, 0, 1, 0, 0, 2, 2], [0, 0, 0, 0, 0, 0, 2, 2]),
        # Nothing stays: one window.
        ([3, 1, 2], [0, 0, 0]),
        ([5], [0]),
    ],
)
def test_prunevid_refines_labels_of_frames(label, expected):
    assert prunevid.refined(label) == expected


def test_prunevid_groups_static_and_other_tokens():
    features = torch.tensor([[[1.0, 0], [1, 0]], [[3, 0], [0, 1]], [[2, 0], [1, 0]]])
    similarity = prunevid.window_similarity(features, [0, 1, 2])
    # Place 1: of three pairs one is alike and two are at right angles.
    assert similarity.tolist() == pytest.approx([1, 1 / 3])
    found = list(prunevid.groups(features, [0, 1, 2], prunevid.static(features, [0, 1, 2], 0.8)))
    assert [(one.frame, one.place.tolist(), one.frames) for one in found] == [
        (None, [0], 3),
        (0, [1], 1),
        (1, [3], 1),
        (2, [5], 1),
    ]
    assert found[0].features.tolist() == [[2, 0]]
    # Groups hold no copy of the tokens.
    assert all(one.video is features for one in found)
    assert prunevid.window_similarity(features, [1]).tolist() == [-1, -1]


def test_prunevid_counts():
    assert [prunevid.clusters_of(size, 0.5) for size in (14, 15, 40)] == [14, 7, 20]
    # 6 of 10, in shares of 1.2, 3 and 1.8: what is left goes to the largest remainder.
    assert prunevid.scaled([0, 0, 0], [2, 5, 3], 6) == [1, 3, 2]
    assert prunevid.scaled([1, 5], [1, 9], 8) == [1, 7]
    score = torch.tensor([0.1, 0.3, 0.3, 0.9])
    kept = prunevid.best_of_groups(score, torch.tensor([0, 0, 0, 1]), [1, 0])
    assert kept.tolist() == [False, True, False, False]


def test_flashvid_cuts():
    similarity = torch.tensor([0.95, 0.5, 0.97, 0.96])
    assert flashvid.segment_cuts(similarity, 0.9, 1) == [1]
    assert flashvid.segment_cuts(similarity, 0.9, 3) == [0, 1]
    # Too few others: the cut that is there comes again, which leaves an empty segment in the authors' code.
    assert flashvid.segment_cuts(similarity, 0.9, 8) == [0, 1, 1, 2, 3]
    assert flashvid.segment_cuts(similarity, 0.9, 8, complementary=False) == [1]


def test_flashvid_picks_what_is_attended_to_and_different():
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])

    def picked(weight: torch.Tensor, *given, **options) -> torch.Tensor:
        # Beside a frame of other weights, which has no say.
        frames, weights = torch.stack((x, x.flip(0))), torch.stack((weight, torch.ones(4)))
        return flashvid.pick(frames, weights, *given, **options)[0]

    # Distances of the columns to others: 0 has a twin; 2 is at 1 of all; 3 at 2, 2, 1, but attended to a tenth as much.
    weight = torch.tensor([1.0, 1, 1, 0.1])
    assert picked(weight, 2, "attn_div").tolist() == [2, 0]
    assert picked(weight, 4, "attn_div").tolist() == [2, 0, 3, 1]
    assert picked(torch.ones(4), 2, "div").tolist() == [2, 0]
    assert picked(weight, 2, "attn").tolist() == [0, 1]
    # Negative weights: as released, a token that is used up beats the others and is picked again.
    weight = torch.tensor([-1.0, -1, 1, -1])
    assert sorted(picked(weight, 4, "attn_div_v2").tolist()) == [0, 1, 2, 3]
    assert picked(weight, 3, "attn_div_v2", again=True).tolist() == [2, 2, 2]


def test_flashvid_trees():
    a, b = [1.0, 0.0], [0.0, 1.0]
    # Three frames of two tokens; token 1 of each is picked. Token 0 is a chain through the frames.
    features = torch.tensor([[a, b], [[3.0, 0], b], [[5.0, 0], b]])
    picked = [torch.tensor([1])] * 3
    found = flashvid.merge_trees(features, picked, 0.8, 4)
    assert found.merged.tolist() == [[False, False], [True, False], [True, False]]
    assert [one.tolist() for one in found.place] == [[0], [], []]
    # The mean of the tree; the authors' code divides by the root's one child and itself.
    assert found.features[0].tolist() == [[3, 0]]
    released = flashvid.merge_trees(features, picked, 0.8, 4, as_released=True)
    assert released.features[0].tolist() == [[4.5, 0]] and released.divisor[:, 0].tolist() == [2, 2, 1]
    # All six must stay: nothing merges.
    assert not flashvid.merge_trees(features, picked, 0.8, 6).merged.any()
    # A segment of one frame leaves the picked token too, as released.
    alone = flashvid.merge_trees(features[:1], picked[:1], 0.8, 2, as_released=True)
    assert alone.place[0].tolist() == [0, 1]
    assert flashvid.merge_trees(features[:1], picked[:1], 0.8, 2).place[0].tolist() == [0]


@pytest.mark.parametrize(
    ("kind", "entering"),
    # 20 of 28 layers with x, 8 with 0.3 x: 0.3 * 420 * 28 / 22.4.
    [("tokens", [126] * 28), ("compute", [158] * 20 + [46] * 8)],
)
def test_flashvid_cuts_inside_the_model_for_a_budget_of_compute(kind, entering):
    grid = Grid(10, 6, 7)
    features, layout = video("mixed", grid), layout_for(grid)
    assert drive(flashvid.FlashVID().start(layout, Budget(kind, 0.3)), features, layout)[0] == entering
