"""Methods of the vision place on towers without a class token, against what their definitions say."""

from __future__ import annotations

import pytest
import torch

from helpers.fake_engine import at_input, layout_for, video
from stsimdiff.budget import Budget
from stsimdiff.compressors.fastervlm import FasterVLM
from stsimdiff.compressors.per_frame import frame_shares
from stsimdiff.compressors.prumerge import PruMerge
from stsimdiff.compressors.visionzip import VisionZip
from stsimdiff.tokens import Grid, Layout, Reason

GRID = Grid(4, 6, 8)


def selected(method, retention: float):
    layout = layout_for(GRID)
    features = video("mixed", GRID)
    return features.view(4, 48, -1), layout.vision, at_input(method, features, layout, retention)


@pytest.mark.parametrize(("count", "frames"), [(0, 3), (1, 5), (7, 3), (12, 4), (3, 8), (191, 4)])
def test_shares_are_even_and_add_up(count: int, frames: int) -> None:
    shares = frame_shares(count, frames)
    assert sum(shares) == count and max(shares) - min(shares) <= 1


def test_the_larger_shares_stand_at_equal_distance() -> None:
    assert frame_shares(2, 8) == [0, 0, 0, 1, 0, 0, 0, 1]


def test_fastervlm_keeps_what_receives_most_attention() -> None:
    _, vision, selection = selected(FasterVLM(), 0.25)
    assert selection.features is None
    for frame in range(4):
        best = vision.received.view(4, 48)[frame].argsort(descending=True)[:12].sort().values
        kept = selection.keep[(selection.keep >= 48 * frame) & (selection.keep < 48 * (frame + 1))]
        assert torch.equal(kept - 48 * frame, best)


def test_visionzip_merges_each_token_into_the_most_similar_target() -> None:
    features, vision, selection = selected(VisionZip(dominant=3, contextual=1), 0.25)
    for frame in range(4):
        rows = (selection.keep // 48 == frame).nonzero(as_tuple=True)[0]
        keep = (selection.keep[rows] % 48).tolist()
        reason = dict(zip(keep, selection.reason.view(4, 48)[frame][keep].tolist(), strict=True))
        dominant = [i for i in keep if reason[i] == Reason.IMPORTANT]
        contextual = [i for i in keep if reason[i] == Reason.CONTEXTUAL]
        received = vision.received.view(4, 48)[frame]
        assert sorted(received.argsort(descending=True)[:9].tolist()) == dominant and len(contextual) == 3
        metric = vision.keys.view(4, 48, 2, 4)[frame].mean(1)
        unit = metric / metric.norm(dim=1, keepdim=True)
        members = {target: [] for target in contextual}
        for i in sorted(set(range(48)) - set(keep)):
            members[max(contextual, key=lambda t: float(unit[i] @ unit[t]))].append(i)
        for row, i in zip(rows.tolist(), keep, strict=True):
            expected = features[frame, i]
            if i in members and members[i]:
                expected = expected + features[frame, members[i]].mean(0)
            assert torch.allclose(selection.features[row], expected, atol=1e-5)


def test_prumerge_adds_neighbours_and_sums_up_the_rest() -> None:
    features, vision, selection = selected(PruMerge(), 0.25)
    for frame in range(4):
        rows = (selection.keep // 48 == frame).nonzero(as_tuple=True)[0]
        keep = (selection.keep[rows] % 48).tolist()
        received = vision.received.view(4, 48)[frame]
        order = received.argsort(descending=True).tolist()
        assert sorted(keep) == sorted(order[:12]), "the sum stands at the best of those not kept, the twelfth"
        weighted = features[frame] * received[:, None]
        keys = torch.nn.functional.normalize(vision.keys.view(4, 48, 8)[frame], dim=1)
        for row, i in zip(rows.tolist(), keep, strict=True):
            if i == order[11]:
                expected = weighted[order[11:]].sum(0)
                assert selection.reason.view(4, 48)[frame, i] == Reason.MERGED
            else:
                likeness = keys @ keys[i]
                likeness[i] = -2
                expected = features[frame, i] + weighted[likeness.topk(32).indices].sum(0)
            assert torch.allclose(selection.features[row], expected, atol=1e-5)


def test_prumerge_leaves_frames_without_a_cut_as_they_are() -> None:
    features, _, selection = selected(PruMerge(), 190 / 192)
    cut = [frame for frame in range(4) if int((selection.keep // 48 == frame).sum()) < 48]
    assert cut == [0, 2] and len(selection.keep) == 190
    for frame in (1, 3):
        assert torch.equal(selection.features[selection.keep // 48 == frame], features[frame])
    assert not torch.equal(selection.features[:47], features[0][selection.keep[:47]])


def test_prumerge_plus_samples_half() -> None:
    _, vision, selection = selected(PruMerge(plus=True), 0.25)
    for frame in range(4):
        codes = selection.reason.view(4, 48)[frame]
        counts = [int((codes == r).sum()) for r in (Reason.IMPORTANT, Reason.UNIFORM, Reason.MERGED)]
        assert counts == [6, 5, 1]
        # Of the 42 tokens not kept for their attention, those a sixth of the way from the first to the last, and so on.
        received = vision.received.view(4, 48)[frame]
        left = sorted(received.argsort(descending=True)[6:].tolist())
        sampled = (codes == Reason.UNIFORM).nonzero().flatten().tolist()
        assert sampled == [left[41 * i // 6] for i in range(1, 6)]


def test_a_family_without_signals_is_named() -> None:
    layout = Layout(GRID, torch.arange(GRID.tokens), GRID.tokens + 3, 4)
    with pytest.raises(ValueError, match="FasterVLM reads the vision tower's attention"):
        FasterVLM().start(layout, Budget("tokens", 0.5))
