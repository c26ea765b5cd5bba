"""The control that lowers the resolution: average pooling inside each frame, with no look at the content."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.compressors.controls import spread
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace


@dataclass(frozen=True)
class SpatialPool(Compressor):
    """Every frame becomes a coarser picture by average pooling, so that the budget is met exactly.

    A cell's mean takes the place of the token in its middle. Where the budget is below one token a frame, frames
    at equal distance keep one. A newline column is pooled like any other column of the grid.

    Fidelity: a control of this harness. It follows the usual baseline of a lower resolution, cut to any budget;
    there is no released code to be equal to.
    """

    fidelity: ClassVar[str] = "adapted"
    reads_question: ClassVar[bool] = False

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(layout.grid, budget.keep(layout.grid.tokens, layout.layers))

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """Adding up the tokens of every cell, and a division for each cell."""
        kept = trace.final
        if kept == grid.tokens:
            return 0
        return width * (min(grid.frames, kept) * grid.per_frame + kept)


def frame_cells(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a frame into ``count`` cells of nearly equal shape: bands of rows, and in each band runs of columns.

    Returns:
        ``(height * width,)`` int64 cell of each token, cells in raster order; ``(count,)`` int64 middle token of
        each cell, ascending.
    """
    bands = min(max(round(math.sqrt(count * height / width)), -(-count // width)), height, count)
    cell = np.empty((height, width), dtype=np.int64)
    middle = []
    for band in range(bands):
        top, bottom = band * height // bands, (band + 1) * height // bands
        first, last = band * count // bands, (band + 1) * count // bands
        edges = np.arange(last - first + 1) * width // (last - first)
        cell[top:bottom] = first + np.repeat(np.arange(last - first), np.diff(edges))
        middle.append((top + bottom - 1) // 2 * width + (edges[:-1] + edges[1:] - 1) // 2)
    return cell.ravel(), np.concatenate(middle)


def cells(grid: Grid, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of the whole video, as :func:`frame_cells`; -1 for tokens of frames that keep nothing."""
    cell = np.full((grid.frames, grid.per_frame), -1, dtype=np.int64)
    middle, done = [], 0
    shares = np.diff(np.arange(grid.frames + 1) * count // grid.frames)
    if count < grid.frames:
        shares = np.bincount(spread(grid.frames, count), minlength=grid.frames)
    for frame in np.flatnonzero(shares):
        inside, centre = frame_cells(grid.height, grid.width, int(shares[frame]))
        cell[frame] = inside + done
        middle.append(centre + frame * grid.per_frame)
        done += len(centre)
    return cell.ravel(), np.concatenate(middle)


class _Run(Run):
    places = Places(input=True)

    def __init__(self, grid: Grid, count: int) -> None:
        self.cell, self.middle = cells(grid, count)

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite("SpatialPool, input of layer 0")
        device = tokens.features.device
        mask = torch.zeros(len(tokens), dtype=torch.bool, device=device)
        mask[torch.from_numpy(self.middle).to(device)] = True
        if len(self.middle) == len(tokens):
            return Selection.from_mask(mask, Reason.UNIFORM)
        cell = torch.from_numpy(self.cell).to(device)
        if bool((self.cell < 0).any()):
            inside = (cell >= 0).nonzero(as_tuple=True)[0]
            features, cell = tokens.features.index_select(0, inside), cell[inside]
        else:
            features = tokens.features
        means = graph.group_means(features, cell, len(self.middle))
        return Selection.from_mask(mask, Reason.MERGED, means)
