"""Running a method without a model: synthetic videos, the engine over layers that change nothing, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff import source
from stsimdiff.budget import TOLERANCE, Budget
from stsimdiff.compressors.base import Compressor, Hidden, Run, WrappedRun
from stsimdiff.engine import lent
from stsimdiff.errors import BudgetError
from stsimdiff.latency.measure import PeakMemory
from stsimdiff.plan.dry_run import with_frames, without_model
from stsimdiff.tokens import Grid, Layout, Selection, VideoTokens, VisionSignals
from stsimdiff.trace import Trace

LAYERS = 28
GRID = Grid(8, 12, 14)
KINDS = ("mixed", "static", "different", "constant")


def video(kind: str, grid: Grid, dim: int = 16, seed: int = 0) -> Tensor:
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
    """A prompt of 12 text tokens around the video, 3 of them the question's, with signals of a vision tower."""
    generator = torch.Generator().manual_seed(1)
    received = torch.rand(grid.tokens, generator=generator) / grid.per_frame
    signals = VisionSignals(received, torch.randn(grid.tokens, 2, 4, generator=generator))
    layout = Layout(
        grid,
        video=torch.arange(5, 5 + grid.tokens),
        length=grid.tokens + 12,
        layers=layers,
        sample=sample,
        vision=signals,
        question="what is shown",
        asked=torch.arange(grid.tokens + 7, grid.tokens + 10),
    )
    return with_frames(layout)


@dataclass(frozen=True)
class CompressorCase:
    """A method to check.

    Attributes:
        compressor: with its parameters.
        tolerance: relative miss of a budget that is excused beside the rounding to whole tokens.
    """

    compressor: Compressor
    tolerance: float = TOLERANCE

    @cached_property
    def budget(self) -> Budget:
        """Half of the tokens, or the least of a few larger shares that the method does not refuse."""
        for retention in (0.5, 0.75, 0.9):
            budget = Budget("tokens", retention)
            with suppress(BudgetError):
                self.compressor.check(budget, LAYERS)
                self.compressor.start(layout_for(GRID), budget)
                return budget
        return Budget("tokens", 1.0)

    def drive(
        self, features: Tensor, layout: Layout, budget: Budget, wrap: Callable[[Run], Run] | None = None
    ) -> Trace:
        """The trace that the method leaves, in the engine without a model; attention is drawn, the same each time.

        Args:
            features: ``(N, D)`` of the video.
            layout: of the prompt.
            budget: to be met.
            wrap: puts something around the run.
        """
        self.compressor.check(budget, layout.layers)
        run = lent.start(self.compressor, layout, budget)
        run = wrap(run) if wrap else run
        return without_model(run, layout, features, torch.Generator().manual_seed(0))

    @property
    def place(self) -> str:
        """File and line of the method's code: of its ``score`` or ``start``, or of its class."""
        cls = type(self.compressor)
        return source.place_of(
            next((vars(cls)[name] for name in ("score", "start") if name in vars(cls)), cls)
        )


def fates(trace: Trace) -> list[tuple[str, int, list[int]]]:
    """What was kept where, comparable."""
    return [(stage.place, stage.layer, stage.kept.tolist()) for stage in trace.stages]


class InterceptedRun(WrappedRun):
    """A run around whose calls a subclass does something: :meth:`intercept` calls it."""

    def intercept(self, call: Callable[[], Selection | None]) -> Selection | None:
        """What the run's place returns."""
        return call()

    @override
    def at_input(self, tokens: VideoTokens) -> Selection | None:
        return self.intercept(lambda: self.run.at_input(tokens))

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        return self.intercept(lambda: self.run.before_layer(layer, tokens, attention))

    @override
    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        return self.intercept(lambda: self.run.between(layer, tokens, attention))

    @override
    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor | None) -> Hidden | None:
        return self.run.at_token(layer, step, cached, attention)


class InterruptedRun(InterceptedRun):
    """A run after whose first selection something else is done."""

    def __init__(self, run: Run, then: Callable[[], None]) -> None:
        super().__init__(run)
        self.then = then

    @override
    def intercept(self, call: Callable[[], Selection | None]) -> Selection | None:
        selection = call()
        then, self.then = self.then, lambda: None
        then()
        return selection


class DropsAlone(InterceptedRun):
    """A run whose merged features are left out: what it drops can be told from a mask, what it merges cannot."""

    @override
    def intercept(self, call: Callable[[], Selection | None]) -> Selection | None:
        selection = call()
        if not isinstance(selection, Selection):
            return selection  # which the engine judges
        return Selection(selection.keep, selection.reason)


# Time and memory -----------------------------------------------------------------------------------------------


class MeasuredRun(InterceptedRun):
    """A run whose calls are measured: seconds of all of them, and the largest peak of one in bytes (0 where the system
    does not say)."""

    seconds, peak = 0.0, 0

    def __init__(self, run: Run, device: str = "cpu") -> None:
        super().__init__(run)
        self.device = torch.device(device)

    @override
    def intercept(self, call: Callable[[], Selection | None]) -> Selection | None:
        with PeakMemory(self.device) as before:
            pass
        with PeakMemory(self.device) as memory:
            started = time.perf_counter()
            selection = call()
            self.seconds += time.perf_counter() - started
        self.peak = max(self.peak, (memory.peak or 0) - (before.peak or 0))
        return selection


def copy_seconds(features: Tensor) -> float:
    """Median time, of five, of a copy of the token matrix into memory that is there already."""
    there, times = torch.empty_like(features), []
    for _ in range(5):
        started = time.perf_counter()
        there.copy_(features)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
