"""A stand-in for the engine and synthetic videos, for the tests of the compression methods."""

import torch

from stsimdiff.compressors.base import Run
from stsimdiff.tokens import Grid, Layout, Reason, VideoTokens, VisionSignals

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
    """What the engine does, with random attention: tokens that enter each layer, and what stays."""
    generator = torch.Generator().manual_seed(seed)
    tokens, entering, read = VideoTokens.full(features, layout.grid), [], None

    def after(selection, tokens, attention):
        if selection is None:
            return tokens, attention
        selection.check(len(tokens), may_be_empty=run.may_be_empty)
        kept = torch.zeros(len(tokens), dtype=torch.bool)
        kept[selection.keep] = True
        assert torch.equal(selection.reason != Reason.DROPPED, kept)
        rows = tokens.features[selection.keep] if selection.features is None else selection.features
        left = VideoTokens(rows.to(features.dtype), layout.grid, tokens.index[selection.keep])
        return left, None if attention is None else attention[:, selection.keep]

    if run.places.input:
        tokens, _ = after(run.at_input(tokens), tokens, None)
    for layer in range(layout.layers):
        if layer in run.places.before:
            tokens, read = after(run.before_layer(layer, tokens, read), tokens, read)
        entering.append(len(tokens))
        if layer in run.places.attention:
            read = torch.rand(4, len(tokens), generator=generator)
        if layer in run.places.between and not run.finished:
            tokens, read = after(run.between(layer, tokens, read), tokens, read)
    return entering, tokens.index.tolist()
