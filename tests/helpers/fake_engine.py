"""The engine without a model and synthetic videos, for the tests of the compression methods."""

from dataclasses import replace

import torch

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Run
from stsimdiff.compressors.dycoke import DyCoke
from stsimdiff.kit.running import LAYERS, layout_for, video
from stsimdiff.plan.dry_run import without_model
from stsimdiff.tokens import Grid, Layout, Picture, Selection, VideoTokens

__all__ = ["LAYERS", "drive", "layout_for", "video"]


def drive(run: Run, features: torch.Tensor, layout: Layout, seed: int = 0) -> tuple[list[int], list[int]]:
    """The engine without a model, with random attention: tokens that enter each layer, and what stays."""
    trace = without_model(run, layout, features, torch.Generator().manual_seed(seed))
    kept = trace.stages[-1].kept if trace.stages else torch.arange(layout.grid.tokens)
    return trace.entering, kept.tolist()


def at_input(method: Compressor, features: torch.Tensor, layout: Layout, retention: float) -> Selection:
    """What a method makes of a video at the input for a budget of tokens."""
    run = method.start(layout, Budget("tokens", retention))
    return run.at_input(VideoTokens.full(features, layout.grid)).check(layout.grid.tokens)


def with_newlines(grid: Grid) -> Layout:
    """A layout whose last column is newline tokens."""
    return replace(layout_for(grid), picture=Picture(1, grid.height, grid.width - 1, grid.width))


def reach(method: Compressor, grid: Grid) -> int:
    """The fewest tokens that a method can leave of a video; 0 for one that meets every budget."""
    return -(-grid.frames // 4) * grid.per_frame if isinstance(method, DyCoke) else 0
