"""DyCoke: which frames stay whole, what cut frames keep, which budgets can be met, and what decoding sees."""

import numpy as np
import pytest
import torch

from helpers.fake_engine import LAYERS, at_input, drive, layout_for, video
from helpers.paths import GOLDEN
from stsimdiff.budget import Budget
from stsimdiff.compressors.dycoke import DyCoke, most_seen, references
from stsimdiff.conformance import replay
from stsimdiff.conformance.cases import read_fields
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Reason


@pytest.mark.parametrize(
    ("frames", "by_default", "as_released"),
    [
        (5, [None, 0, 0, 2, None], [None, 0, 0, 2]),
        (7, [None, 0, 0, 2, None, 4, 4], [None, 0, 0, 2, None, 4]),
        # The window of the last four frames is cut, and not as released.
        (8, [None, 0, 0, 2, None, 4, 4, 6], [None, 0, 0, 2, None, 4, None, 6]),
    ],
)
def test_which_frames_are_compared(frames, by_default, as_released):
    assert references(frames) == by_default
    assert references(frames, as_released=True) == as_released


def test_short_videos():
    assert [references(frames) for frames in (1, 2, 3, 4)] == [
        [None],
        [None, 0],
        [None, 0, 0],
        [None, 0, 0, 2],
    ]
    with pytest.raises(ValueError, match="as released fails on a video of 4 frames"):
        references(4, as_released=True)


def test_a_cut_frame_keeps_what_differs():
    grid = Grid(3, 1, 3)
    x, y = torch.tensor([1.0, 0]), torch.tensor([0, 1.0])
    # Frame 1 turns at place 2; frame 2 is compared with frame 0, from which it differs at places 0 and 2.
    features = torch.stack((x, x, x, x, x, y, y, x, y))
    selection = at_input(DyCoke(), features, layout_for(grid), 6 / 9)
    assert selection.keep.tolist() == [0, 1, 2, 5, 6, 8] and selection.features is None
    assert selection.reason[selection.keep].tolist() == [Reason.UNIFORM] * 3 + [Reason.EVENT] * 3


def test_equal_tokens_lower_place_stays():
    grid = Grid(2, 2, 2)
    kept = at_input(DyCoke(), video("constant", grid), layout_for(grid), 0.75).keep
    assert kept.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("frames", "as_released", "least", "most"),
    [
        (16, False, 0.25, 1),
        (6, False, 2 / 6, 1),
        (1, False, 1, 1),
        (8, True, 3 / 8, 1),
        (9, True, 2 / 9, 8 / 9),
    ],
)
def test_the_refusal_says_what_can_be_reached(frames, as_released, least, most):
    grid, method = Grid(frames, 10, 10), DyCoke(as_released)
    for retention in {least, most}:
        _, kept = drive(
            method.start(layout_for(grid), Budget("tokens", retention)),
            video("mixed", grid),
            layout_for(grid),
        )
        assert len(kept) == round(retention * grid.tokens)
    said = rf"on a video of {frames} frames.*reaches {least:.3f} to {most:.3f}"
    for retention in {least - 0.01, min(1, most + 0.01)} - {1}:
        with pytest.raises(BudgetError, match=said):
            method.start(layout_for(grid), Budget("compute", retention))


def test_less_than_a_frame_in_four_is_refused_before_loading():
    with pytest.raises(BudgetError, match=r"retention=0.2 cannot be met by DyCoke.*allowed: 0.25 to 1"):
        DyCoke().check(Budget("tokens", 0.2))
    DyCoke().check(Budget("compute", 0.25), LAYERS)


def test_a_generated_token_sees_the_keys_it_looks_at_most():
    attention, before = torch.tensor([0.1, 0.4, 0.1, 0.3, 0.2]), torch.tensor([0.4, 0.0, 0.1, 0.0, 0.0])
    similarity, seen = most_seen(attention, None, DyCoke())
    # int(5 * 0.3), and there is no token before the first.
    assert similarity == 0 and seen.tolist() == [1]
    similarity, seen = most_seen(attention, before, DyCoke(dycoke_p=0.4))
    assert similarity == pytest.approx(0.05 / (0.31**0.5 * 0.17**0.5)) and seen.tolist() == [1, 3, 4]
    assert most_seen(attention, attention, DyCoke()) == (pytest.approx(1), None)


def test_decoding_begins_anew_with_each_video_and_ends_where_asked():
    grid, attention = Grid(1, 1, 5), torch.tensor([[0.1, 0.4, 0.1, 0.3, 0.2]])
    index = torch.arange(5)
    for released, hidden in ((False, [0, 2, 3, 4]), (True, [0, 2, 3])):
        # As released, the last token of the video counts as text; each video begins without a token before.
        method = DyCoke()
        run = method.start(layout_for(grid), Budget("tokens", 1.0))
        run.method = DyCoke(as_released=released)
        assert run.at_token(3, 0, index, attention).index.tolist() == hidden
        assert run.at_token(3, 1, index, attention) is None
    assert (run.places.decoding, run.places.watched) == ({3}, {2})
    off = DyCoke(dycoke_p=0.0).start(layout_for(grid), Budget("tokens", 1.0)).places
    assert (off.decoding, off.watched) == (frozenset(), frozenset())
    with pytest.raises(ConfigError, match=r"dycoke_l=3 does not exist in a model of 3 layers.*dycoke_p=0"):
        DyCoke().check(Budget("tokens", 0.5), 3)
    DyCoke(dycoke_p=0.0).check(Budget("tokens", 0.5), 3)


def test_a_question_about_a_longer_video_stops_the_authors_code(tmp_path):
    file = GOLDEN / "dycoke_09_kv_p08_floor_two_questions.npz"
    arrays = dict(read_fields(file))
    for step in range(4, 8):
        arrays[f"step{step}_attn"] = np.delete(arrays[f"step{step}_attn"], [20, 30], axis=3)
    np.savez(tmp_path / file.name, **arrays)
    found = replay(tmp_path / file.name)
    assert found["error_step"] == 4 and str(found["official_error"]).startswith("RuntimeError: ")
    assert set(found) == {"error_step", "official_error"}
