"""The controls of every table: methods that use no insight, or none of the video, at the same budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from typing_extensions import override

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run, generator_for
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens


@dataclass(frozen=True)
class NoCompression(Compressor):
    """All tokens stay, whatever the budget says: the upper reference.

    Fidelity: the stock model. All-token outputs of the authors' code are recorded for LLaVA-Video, NVILA and
    Qwen2-VL, and equal ours.
    """

    fidelity: ClassVar[str] = "official"
    reads_question: ClassVar[bool] = False

    flops = Compressor.no_flops

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return Run()


@dataclass(frozen=True)
class NoVideo(Compressor):
    """No video token stays, whatever the budget says: what the question alone gives away.

    Fidelity: a control of this harness, the usual text-only baseline; there is no released code to be equal to.
    """

    fidelity: ClassVar[str] = "adapted"
    reads_question: ClassVar[bool] = False

    flops = Compressor.no_flops

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _NoVideoRun()


class _NoVideoRun(Run):
    places = Places(input=True)
    may_be_empty = True

    def at_input(self, tokens: VideoTokens) -> Selection:
        return Selection.from_mask(_no_tokens(tokens), Reason.DROPPED)


@dataclass(frozen=True)
class RandomTokens(Compressor):
    """Tokens drawn without replacement; the draw depends on the video and the seed alone, not on the question.

    Fidelity: a control of this harness. It follows the usual random baseline, cut to any budget; there is no
    released code to be equal to.

    Attributes:
        seed: of the draw.
    """

    fidelity: ClassVar[str] = "adapted"
    reads_question: ClassVar[bool] = False

    seed: Annotated[int, Field(ge=0, examples=[0])] = 0

    flops = Compressor.no_flops

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        count = budget.keep(layout.grid.tokens, layout.layers)
        order = torch.randperm(layout.grid.tokens, generator=generator_for(layout.sample, self.seed))
        return _FixedRun("RandomTokens", order[:count], Reason.RANDOM)


@dataclass(frozen=True)
class UniformFrames(Compressor):
    """Whole frames at equal distance, as if fewer frames had been sampled (see :func:`uniform_frames`).

    Fidelity: a control of this harness. It follows the usual baseline of fewer frames, cut to any budget; there is
    no released code to be equal to.
    """

    fidelity: ClassVar[str] = "adapted"
    reads_question: ClassVar[bool] = False

    flops = Compressor.no_flops

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        count = budget.keep(layout.grid.tokens, layout.layers)
        keep = torch.from_numpy(uniform_frames(layout.grid, count))
        return _FixedRun("UniformFrames", keep, Reason.UNIFORM)


def spread(total: int, count: int) -> np.ndarray:
    """``(count,)`` ascending int64: the middles of ``count`` equal parts of ``range(total)``."""
    return (2 * np.arange(count) + 1) * total // (2 * count)


def uniform_frames(grid: Grid, count: int) -> np.ndarray:
    """Raster indices of ``count`` tokens in ``ceil(count / per_frame)`` frames at equal distance.

    Where the count is no multiple of a frame, the last of these frames keeps evenly spaced tokens only, so
    that the budget is met exactly.
    """
    frames = spread(grid.frames, -(-count // grid.per_frame))
    rest = count - (len(frames) - 1) * grid.per_frame
    whole = (frames[:-1, None] * grid.per_frame + np.arange(grid.per_frame)).ravel()
    return np.concatenate((whole, frames[-1] * grid.per_frame + spread(grid.per_frame, rest)))


class _FixedRun(Run):
    """Keeps tokens that were known before the video was seen."""

    places = Places(input=True)

    def __init__(self, name: str, keep: torch.Tensor, reason: Reason) -> None:
        self.name, self.keep, self.reason = name, keep, reason

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite(f"{self.name}, input of layer 0")
        mask = _no_tokens(tokens)
        mask[self.keep.to(mask.device)] = True
        return Selection.from_mask(mask, self.reason)


def _no_tokens(tokens: VideoTokens) -> torch.Tensor:
    return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.features.device)
