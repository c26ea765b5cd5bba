"""A compressor run on a synthetic video without any model: how many tokens would enter each layer.

For plans, and for tests of methods: the engine itself runs it, on layers that change nothing. Counts that a budget
fixes are exact; where a method's count follows the video's content (ST-SimDiff's first stage, FrameFusion's merging)
they are those of a scene with some motion.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Run
from stsimdiff.engine import Compression, Decoder, lent
from stsimdiff.engine.prefix import shared_layers
from stsimdiff.tokens import Grid, Layout, VisionSignals
from stsimdiff.trace import Trace

WIDTH, HEADS, HEAD = 64, 4, 16
SHOT = 16
"""Frames until the picture changes."""


def dry_run(
    compressor: Compressor,
    budget: Budget,
    grid: Grid,
    text: int,
    layers: int,
    features: Tensor | None = None,
) -> Trace:
    """The trace that a method leaves on a synthetic video; its times mean nothing.

    Args:
        compressor: the method.
        budget: what it must keep.
        grid: of the video.
        text: tokens of the prompt that are not video tokens.
        layers: decoder layers of the model.
        features: ``(N, D)`` of the video, on any device; those of :func:`synthetic_video` if not given.

    Raises:
        Exception: whatever the method raises, and what the engine does (:class:`~stsimdiff.engine.Compression`).
    """
    features = synthetic_video(grid) if features is None else features
    generator = torch.Generator().manual_seed(0)
    layout = _layout(grid, text, layers, generator, features.device)
    return without_model(lent.start(compressor, layout, budget), layout, features, generator)


def layers_shared(compressor: Compressor, budget: Budget, grid: Grid, text: int, layers: int) -> int:
    """How many of the first layers a method prefills once for all questions about a video; raises as its start does."""
    if compressor.reads_question or compressor.remembers:
        return 0
    layout = _layout(grid, text, layers, torch.Generator().manual_seed(0), torch.device("cpu"))
    return shared_layers(lent.start(compressor, layout, budget), layout, layers)


def _layout(grid: Grid, text: int, layers: int, generator: torch.Generator, device: torch.device) -> Layout:
    """That of a prompt with half of its text before the video."""
    signals = VisionSignals(
        torch.rand(grid.tokens, generator=generator).to(device),
        torch.randn(grid.tokens, HEADS, HEAD, generator=generator).to(device),
        head=torch.rand(grid.tokens, generator=generator).to(device),
    )
    before = text // 2
    video = torch.arange(before, before + grid.tokens)
    return with_frames(Layout(grid, video, grid.tokens + text, layers, "plan", signals))


def with_frames(layout: Layout) -> Layout:
    """The layout with a small frame of noise for each row of the grid in time."""
    generator = torch.Generator().manual_seed(2)
    shape = layout.grid.frames, 28, 28, 3
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    seconds = tuple(0.5 * number for number in range(layout.grid.frames))
    return replace(layout, frames=frames, seconds=seconds)


def synthetic_video(grid: Grid, width: int = WIDTH) -> Tensor:
    """``(N, width)`` features: a picture for each shot, and noise that differs by place."""
    generator = torch.Generator().manual_seed(1)
    amount = 0.2 + 0.8 * torch.rand(grid.per_frame, 1, generator=generator)
    shots = -(-grid.frames // SHOT)
    pictures = torch.randn(shots, grid.per_frame, width, generator=generator)
    noise = torch.randn(grid.frames, grid.per_frame, width, generator=generator)
    return (pictures.repeat_interleave(SHOT, 0)[: grid.frames] + amount * noise).flatten(0, 1)


@torch.no_grad()
def without_model(run: Run, layout: Layout, features: Tensor, generator: torch.Generator) -> Trace:
    """The trace of a run in the engine, over layers that change nothing and whose attention is drawn.

    Args:
        run: of one video.
        layout: that it was started with; it says how many layers there are.
        features: ``(N, D)`` of the video tokens; text tokens are zero.
        generator: of the attention.
    """
    layers = nn.ModuleList(_Layer(generator) for _ in range(layout.layers))
    decoder = _Stack(layers)
    embeds = features.new_zeros(1, layout.length, features.shape[1])
    embeds[0, layout.video] = features
    with Compression(Decoder(decoder, layers), run, layout) as trace:
        decoder(inputs_embeds=embeds)
    return trace


class _Stack(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers, self.norm = layers, nn.Identity()

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds)
        return inputs_embeds


class _Layer(nn.Module):
    """A decoder layer by its parts, each of which adds nothing."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.input_layernorm = self.post_attention_layernorm = nn.Identity()
        self.self_attn, self.mlp = _Attention(generator), torch.zeros_like

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.self_attn(hidden_states)[0]


class _Config:
    """What :func:`~stsimdiff.engine.attention.probe` leaves in place of it says who reads the attention."""

    stsimdiff_receive = None


class _Attention(nn.Module):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.generator = _Config(), generator

    def forward(self, hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, None]:
        if self.config.stsimdiff_receive is not None:
            drawn = torch.randn(2, 1, HEADS, hidden_states.shape[1], 1, generator=self.generator)
            query, key = drawn.to(hidden_states)
            self.config.stsimdiff_receive(query, key, key, 1.0, {})
        return torch.zeros_like(hidden_states), None
