"""Quirks of authors' code that harm: repaired by default, and there with ``as_released``."""

from __future__ import annotations

import pytest
import torch

from helpers.fake_engine import at_input, drive, layout_for, video, with_newlines
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor
from stsimdiff.compressors.fastvid import FastVID
from stsimdiff.compressors.holitom import HoliTom
from stsimdiff.compressors.prunevid import PruneVid
from stsimdiff.compressors.sparsevlm import SparseVLM
from stsimdiff.kit import checks
from stsimdiff.kit.running import CompressorCase
from stsimdiff.tokens import Grid

ON_ANY_VIDEO = [
    HoliTom(as_released=True),
    SparseVLM(as_released=True),
    SparseVLM(as_released=True, version="v2", heads=2),
]


def kept(method: Compressor, grid: Grid, retention: float, kind: str = "mixed") -> list[int]:
    layout = layout_for(grid)
    return drive(method.start(layout, Budget("tokens", retention)), video(kind, grid), layout)[1]


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("method", ON_ANY_VIDEO, ids=["holitom", "sparsevlm", "sparsevlm+"])
def test_methods_pass_the_kit_as_released(method: Compressor, check: str) -> None:
    try:
        checks.CHECKS[check](CompressorCase(method, tolerance=float("inf")))
    except checks.CheckSkipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("kind", ["mixed", "static", "constant"])
@pytest.mark.parametrize("method", [HoliTom, FastVID, PruneVid, SparseVLM])
def test_short_and_static_videos_meet_a_budget_by_default(method: type[Compressor], kind: str) -> None:
    for frames in (1, 2, 8):
        grid = Grid(frames, 6, 7)
        assert len(kept(method(), grid, 0.5, kind)) == grid.tokens // 2


def test_holitom_keeps_one_frame_of_a_static_video_as_released() -> None:
    grid = Grid(8, 6, 7)
    assert len(kept(HoliTom(as_released=True, merge_ratio=0), grid, 0.5, "static")) == grid.per_frame
    # At the share of an eighth, and half of it, of which the inner part takes half.
    assert len(kept(HoliTom(as_released=True, merge_ratio=0), grid, 1 / 16, "static")) == 21
    assert len(kept(HoliTom(as_released=True), grid, 1 / 16, "static")) == 21
    for frames, count in ((1, 21), (2, 42)):
        assert (
            len(kept(HoliTom(as_released=True, merge_ratio=0), Grid(frames, 6, 7), 0.5, "different")) == count
        )


@pytest.mark.parametrize("variant", ["onevision", "video", "qwen"])
def test_fastvid_loses_what_it_rounds_down_and_fails_on_few_frames_as_released(variant: str) -> None:
    released = FastVID(as_released=True, variant=variant)
    for frames in (1, 2, 7):
        with pytest.raises(ValueError, match=f"FastVID as released fails on {frames} frames.*dyseg_c=8"):
            kept(released, Grid(frames, 6, 7), 0.25)
    # 10.5 tokens a frame: 10 of each of the 9 frames, and of the codes that round by segment no more.
    grid = Grid(9, 6, 7)
    assert len(kept(FastVID(variant=variant), grid, 0.25)) == 95
    assert len(kept(released, grid, 0.25)) == 90
    assert len(kept(released, grid, 0.25, "static")) <= 90


def test_fastvid_names_other_failures_as_released() -> None:
    for method, retention, reason in (
        (FastVID(as_released=True, variant="onevision"), 1 / 42, "none is a centre"),
        (FastVID(as_released=True, variant="video", stprune_d=1.0), 0.5, "without salient tokens"),
        (FastVID(as_released=True, variant="video", dyseg_c=1, dyseg_tau=-1.0), 0.5, "a single segment"),
        (
            FastVID(as_released=True, variant="onevision", dyseg_c=1, dyseg_tau=-1.0),
            0.9,
            "more tokens to keep",
        ),
    ):
        with pytest.raises(ValueError, match=f"FastVID as released fails on .*{reason}.*as_released=false"):
            kept(method, Grid(8, 6, 7), retention)


def test_prunevid_s_small_groups_vanish_as_released() -> None:
    for frames in (1, 2, 6):
        with pytest.raises(ValueError, match=f"PruneVid as released fails on {frames} frames"):
            kept(PruneVid(as_released=True), Grid(frames, 6, 7), 0.2)
    with pytest.raises(ValueError, match=r"fails on compressor.cluster_ratio=0.01"):
        kept(PruneVid(as_released=True, cluster_ratio=0.01), Grid(8, 6, 7), 0.2)
    # Frames of 2 tokens: 8 groups of 2 of which less than half is kept, nothing each.
    grid = Grid(8, 1, 2)
    with pytest.raises(ValueError, match="kept none of 16 tokens"):
        kept(PruneVid(as_released=True), grid, 0.4, "different")
    assert len(kept(PruneVid(), grid, 0.4, "different")) == 6
    # A static video is one group of 42, of which 21 clusters are left, however many the budget has.
    assert len(kept(PruneVid(as_released=True), Grid(8, 6, 7), 0.5, "static")) == 21


def test_sparsevlm_drops_one_of_a_full_budget_as_released() -> None:
    grid = Grid(4, 6, 7)
    for version, left in (("v1", 168), ("v2", 165)):
        assert len(kept(SparseVLM(version=version), grid, 1.0)) == 168
        assert len(kept(SparseVLM(version=version, as_released=True, heads=2), grid, 1.0)) == left
    with pytest.raises(ValueError, match=r"SparseVLM as released fails on 4 heads.*heads=4"):
        kept(SparseVLM(version="v2", as_released=True), grid, 0.5)


def test_newline_tokens_come_on_top_as_released() -> None:
    grid = Grid(8, 4, 5)
    for method in (HoliTom(as_released=True, merge_ratio=0), FastVID(as_released=True)):
        found = at_input(method, video("different", grid), with_newlines(grid), 0.5)
        newlines = int((found.keep % 5 == 4).sum())
        rows = torch.unique(found.keep[found.keep % 5 != 4] // 5)
        assert newlines == len(rows) and 60 <= len(found.keep) - newlines <= 64
