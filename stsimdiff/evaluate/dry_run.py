"""A compressor run on a synthetic video without any model: how many tokens would enter each layer.

For plans. Counts that a budget fixes are exact; where a method's count follows the video's content (ST-SimDiff's first
stage, FrameFusion's merging) they are those of a scene with some motion.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Run
from stsimdiff.engine import Stage, Trace
from stsimdiff.tokens import Grid, Layout, Selection, VideoTokens, VisionSignals

WIDTH, HEADS, HEAD = 64, 4, 16
SHOT = 16
"""Frames until the picture changes."""


def dry_run(compressor: Compressor, budget: Budget, grid: Grid, text: int, layers: int) -> Trace:
    """The trace that a method leaves on a synthetic video; its times mean nothing.

    Args:
        compressor: the method.
        budget: what it must keep.
        grid: of the video.
        text: tokens of the prompt that are not video tokens.
        layers: decoder layers of the model.

    Raises:
        Exception: whatever the method raises.
    """
    generator = torch.Generator().manual_seed(0)
    signals = VisionSignals(
        torch.rand(grid.tokens, generator=generator),
        torch.randn(grid.tokens, HEADS, HEAD, generator=generator),
    )
    before = text // 2
    video = torch.arange(before, before + grid.tokens)
    layout = Layout(grid, video, grid.tokens + text, layers, "plan", signals)
    return _Drive(compressor.start(layout, budget), layout, synthetic_video(grid), generator).trace


def synthetic_video(grid: Grid) -> Tensor:
    """``(N, WIDTH)`` features: a picture for each shot, and noise that differs by place."""
    generator = torch.Generator().manual_seed(1)
    amount = 0.2 + 0.8 * torch.rand(grid.per_frame, 1, generator=generator)
    shots = -(-grid.frames // SHOT)
    pictures = torch.randn(shots, grid.per_frame, WIDTH, generator=generator)
    noise = torch.randn(grid.frames, grid.per_frame, WIDTH, generator=generator)
    return (pictures.repeat_interleave(SHOT, 0)[: grid.frames] + amount * noise).flatten(0, 1)


class _Drive:
    """What the engine does at each layer, with random attention."""

    def __init__(self, run: Run, layout: Layout, features: Tensor, generator: torch.Generator) -> None:
        self.run, self.layout, self.features, self.generator = run, layout, features, generator
        self.trace = Trace(layout.layers, layout.grid.tokens, layout.text)
        self.raster = torch.arange(layout.grid.tokens)
        self.attention: Tensor | None = None
        places = run.places
        for layer in range(layout.layers):
            if layer == 0 and places.input:
                self._select("input", 0, run.at_input)
            if layer in places.before:
                self._select(
                    "before", layer, lambda tokens, n=layer: run.before_layer(n, tokens, self.attention)
                )
            self.trace.entering.append(len(self.raster))
            if layer in places.attention and not run.finished and len(self.raster):
                self._read(places.queries)
            if layer in places.between:
                self._select("between", layer, lambda tokens, n=layer: run.between(n, tokens, self.attention))
            self.trace.mlp.append(len(self.raster))

    def _read(self, queries: str | int) -> None:
        keys = self.layout.text + len(self.raster)
        rows = keys if queries == "all" else 1 if queries == "last" else int(queries)
        self.trace.reads.append((rows, keys))
        self.attention = torch.rand(HEADS, len(self.raster), generator=self.generator)

    def _select(self, place: str, layer: int, decide: Callable[[VideoTokens], Selection | None]) -> None:
        if self.run.finished or not len(self.raster):
            return
        self.trace.asked.append((place, layer, len(self.raster)))
        selection = decide(VideoTokens(self.features, self.layout.grid, self.raster))
        if selection is None:
            return
        selection.check(len(self.raster), width=WIDTH, may_be_empty=self.run.may_be_empty)
        keep = selection.keep
        self.features = self.features[keep] if selection.features is None else selection.features
        self.raster = self.raster[keep]
        if self.attention is not None:
            self.attention = self.attention[:, keep]
        self.trace.stages.append(Stage(place, layer, self.raster, 0.0))
