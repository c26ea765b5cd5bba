"""The engine without a model and synthetic videos, for the tests of the compression methods."""

import torch

from stsimdiff.compressors.base import Compressor, Run
from stsimdiff.compressors.dycoke import DyCoke
from stsimdiff.plan.dry_run import without_model
from stsimdiff.tokens import Grid, Layout, VisionSignals

LAYERS = 28


def video(kind: str, grid: Grid, dim: int = 16, seed: int = 0) -> torch.Tensor:
    """``(N, dim)`` features: mixed, static (all frames equal), different (unrelated tokens), or constant."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(grid.frames, grid.per_frame, dim, generator=generator)
    if kind == "different":
        x = noise
    elif kind == "constant":
        x = torch.ones_like(noise)
    else:
        x = torch.randn(1, grid.per_frame, dim, generator=generator).expand_as(noise)
        if kind == "mixed":
            amount = torch.rand(grid.frames, grid.per_frame, 1, generator=generator) ** 2
            x = x + amount * 1.5 * noise
    return x.reshape(grid.tokens, dim).contiguous()


def layout_for(grid: Grid, layers: int = LAYERS, sample: str = "q1") -> Layout:
    generator = torch.Generator().manual_seed(1)
    received = torch.rand(grid.tokens, generator=generator) / grid.per_frame
    signals = VisionSignals(received, torch.randn(grid.tokens, 2, 4, generator=generator))
    return Layout(grid, torch.arange(5, 5 + grid.tokens), grid.tokens + 12, layers, sample, signals)


def drive(run: Run, features: torch.Tensor, layout: Layout, seed: int = 0) -> tuple[list[int], list[int]]:
    """The engine without a model, with random attention: tokens that enter each layer, and what stays."""
    trace = without_model(run, layout, features, torch.Generator().manual_seed(seed))
    kept = trace.stages[-1].kept if trace.stages else torch.arange(layout.grid.tokens)
    return trace.entering, kept.tolist()


def reach(method: Compressor, grid: Grid) -> int:
    """The fewest tokens that a method can leave of a video; 0 for one that meets every budget."""
    return -(-grid.frames // 4) * grid.per_frame if isinstance(method, DyCoke) else 0
