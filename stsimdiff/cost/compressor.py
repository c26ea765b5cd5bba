"""FLOPs of the compressors themselves: a formula for each built-in method, over what the trace says it was shown.

A multiply-add is 2 FLOPs, an addition or multiplication alone 1. Counted are operations on features, on keys and on
attention scores; what works with one number a token (norms' reciprocals, sums over heads, sorting, the graph search on
the host) is a thousandth of that and left out. :class:`~stsimdiff.cost.counting.ArithmeticCounter` counts the
operations as they run; the formulas are tested against it, and it counts a user's own method in the latency protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from stsimdiff.compressors.base import Compressor
from stsimdiff.compressors.controls import NoCompression, NoVideo, RandomTokens, UniformFrames
from stsimdiff.compressors.fastervlm import FasterVLM
from stsimdiff.compressors.fastv import FastV
from stsimdiff.compressors.framefusion import FrameFusion
from stsimdiff.compressors.per_frame import frame_shares
from stsimdiff.compressors.prumerge import NEIGHBOURS, PruMerge
from stsimdiff.compressors.spatial_pool import SpatialPool
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.compressors.temporal_difference import TemporalDifference
from stsimdiff.compressors.visionzip import VisionZip
from stsimdiff.cost.counting import read_flops
from stsimdiff.cost.decoder import DecoderShape
from stsimdiff.cost.tower import TowerLoad, TowerShape, signal_flops
from stsimdiff.engine import Trace
from stsimdiff.tokens import Grid

COSINE = 6
"""FLOPs a feature value of a cosine: the product of two features and their squares, each summed up."""


def compressor_flops(
    compressor: Compressor,
    trace: Trace,
    grid: Grid,
    decoder: DecoderShape,
    tower: TowerShape | None = None,
    load: TowerLoad | None = None,
) -> int | None:
    """FLOPs of one method on one video: its selections, and the attention that was read for it.

    Args:
        compressor: the method with its parameters.
        trace: what it was shown and asked for.
        grid: of the video.
        decoder: sizes of the language model.
        tower: sizes of the vision tower, whose attention some methods read.
        load: what the video asked of the tower.

    Returns:
        ``None`` for a method without a formula, and for one of the vision place where the tower is not known.
    """
    formula = FORMULAS.get(type(compressor))
    if formula is None or (compressor.needs_vision and (tower is None or load is None)):
        return None
    signals = signal_flops(tower, load) if compressor.needs_vision else 0
    return read_flops(trace, decoder) + signals + formula(compressor, trace, grid, decoder.hidden, tower)


Formula = Callable[[Any, Trace, Grid, int, TowerShape | None], int]
"""Method, trace, grid, width D of the features, vision tower; without the attention that is read."""


def _nothing(method: Any, trace: Trace, grid: Grid, width: int, tower: TowerShape | None) -> int:
    """Methods that compute nothing with features: fixed choices, and choices by attention alone."""
    return 0


def _st_simdiff(method: STSimDiff, trace: Trace, grid: Grid, width: int, tower: TowerShape | None) -> int:
    """Norms, a product for each pair of neighbours, and at most two passes over all features for centrality.

    The last is exact when every token is in a community: scaling, adding up, one product with the sum.
    """
    t, h, w = grid.frames, grid.height, grid.width
    neighbours = (t - 1) * h * w + t * h * (w - 1) + t * (h - 1) * w
    centrality = 4 * grid.tokens if method.similarity else 0
    return width * (2 * grid.tokens + 2 * neighbours + centrality)


def _temporal_difference(
    method: TemporalDifference, trace: Trace, grid: Grid, width: int, tower: TowerShape | None
) -> int:
    """A cosine for each token and its predecessor; none where the budget ends within the first frame."""
    return COSINE * width * (grid.tokens - grid.per_frame) if trace.final > grid.per_frame else 0


def _spatial_pool(method: SpatialPool, trace: Trace, grid: Grid, width: int, tower: TowerShape | None) -> int:
    """Adding up the tokens of every cell, and a division for each cell."""
    kept = trace.final
    if kept == grid.tokens:
        return 0
    return width * (min(grid.frames, kept) * grid.per_frame + kept)


def _framefusion(method: FrameFusion, trace: Trace, grid: Grid, width: int, tower: TowerShape | None) -> int:
    """At each merging place a cosine for each token with a predecessor, and the means where tokens were merged."""
    layers = trace.layers if method.released_layers == "auto" else int(method.released_layers)
    total, merging = 0, True
    counts = [*(count for _, _, count in trace.asked), trace.final]
    for (place, layer, present), (_, left) in zip(trace.asked, pairwise(counts), strict=True):
        if place != "input" and not (merging and layer < layers - 2):
            break
        total += COSINE * width * (present - grid.per_frame)
        if left < present:
            total += width * (present + left)
        merging = 1 - left / present >= method.ratio_lower_bound
    return total


def _visionzip(method: VisionZip, trace: Trace, grid: Grid, width: int, tower: TowerShape | None) -> int:
    """Frame by frame: keys averaged over heads, their norms, sources compared with targets, and added to them."""
    total, patches, head = 0, grid.per_frame, tower.width // tower.heads
    for share in frame_shares(trace.final, grid.frames):
        contextual = round(share * method.contextual / (method.dominant + method.contextual))
        if share in (0, patches) or contextual == 0:
            continue
        sources = patches - share
        total += patches * (tower.width + 3 * head) + 2 * sources * contextual * head
        total += (sources + 2 * contextual) * width
    return total


def _prumerge(method: PruMerge, trace: Trace, grid: Grid, width: int, tower: TowerShape | None) -> int:
    """Frame by frame: keys normalised, kept ones compared with all, neighbours and the rest added up by weight."""
    total, patches = 0, grid.per_frame
    neighbours = min(NEIGHBOURS, patches - 1)
    for share in frame_shares(trace.final, grid.frames):
        if share in (0, patches):
            continue
        rows = share - 1
        total += patches * 3 * tower.width + 2 * rows * patches * tower.width
        total += width * (patches + rows * (neighbours + 1) + patches - rows)
    return total


FORMULAS: dict[type[Compressor], Formula] = {
    NoCompression: _nothing,
    NoVideo: _nothing,
    RandomTokens: _nothing,
    UniformFrames: _nothing,
    FastV: _nothing,
    FasterVLM: _nothing,
    SpatialPool: _spatial_pool,
    TemporalDifference: _temporal_difference,
    STSimDiff: _st_simdiff,
    FrameFusion: _framefusion,
    VisionZip: _visionzip,
    PruMerge: _prumerge,
}
"""Built-in methods by class; a class derived from one of them is another method and has no formula."""
