"""A whole model's sizes, and what one sample costs: FLOPs split by part, bytes of the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from stsimdiff.compressors.base import Compressor
from stsimdiff.cost.counting import read_flops
from stsimdiff.cost.decoder import DecoderShape, closed_form, decoder_flops, kv_bytes, lm_head_flops
from stsimdiff.cost.tower import TowerShape, TowerWork, projector_flops, signal_flops, vision_flops
from stsimdiff.tokens import Grid
from stsimdiff.trace import Trace


@dataclass(frozen=True, kw_only=True)
class ModelShape(ABC):
    """Sizes of a model, from its configuration alone; each family says how a video is laid out in it.

    Attributes:
        decoder: the language model.
        tower: the vision tower and the projector.
        dtype: of the checkpoint's weights, as its configuration names it.
        timestamp_tokens: tokens of text, about, that the prompt has for each frame of the grid, such as its time.
    """

    decoder: DecoderShape
    tower: TowerShape
    dtype: str
    timestamp_tokens: int = 0

    @abstractmethod
    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Grid of the video tokens of so many frames of so many pixels."""

    @abstractmethod
    def tower_work(self, grid: Grid) -> TowerWork:
        """What the tower computed for a video of this grid."""

    @property
    def parameters(self) -> int:
        """Weights of the matrices of both parts."""
        return self.decoder.parameters + self.tower.parameters


def compressor_flops(
    compressor: Compressor,
    trace: Trace,
    grid: Grid,
    decoder: DecoderShape,
    tower: TowerShape | None = None,
    work: TowerWork | None = None,
) -> int | None:
    """FLOPs of one method on one video: its selections, and the attention that was read for it.

    Args:
        compressor: the method with its parameters.
        trace: what it was shown and asked for.
        grid: of the video.
        decoder: sizes of the language model.
        tower: sizes of the vision tower, whose attention some methods read.
        work: what the video asked of the tower.

    Returns:
        ``None`` for a method without a formula, and for one of the vision place where the tower is not known.
    """
    # A class derived from a method is another method.
    if "flops" not in vars(type(compressor)):
        return None
    signals = 0
    if compressor.needs_vision:
        if tower is None or work is None:
            return None
        signals = signal_flops(tower, work)
    keys = (tower.heads, tower.width // tower.heads) if tower else None
    selection = compressor.flops(trace, grid, decoder.hidden, keys)
    if selection is None:
        return None
    return selection + read_flops(trace, decoder) + signals


def sample_flops(
    shape: ModelShape | None, decoder: DecoderShape, trace: Trace, grid: Grid, compressor: Compressor
) -> dict[str, int | None]:
    """FLOPs of one sample up to its first token, by part.

    Args:
        shape: sizes of the whole model, or ``None`` where its family does not say them.
        decoder: sizes of the language model.
        trace: of the sample.
        grid: of its video.
        compressor: the method; see :func:`compressor_flops`.

    Returns:
        ``vision``, ``projector`` (with the pooling), ``compressor``, ``decoder`` and ``head``. A part that is not
        counted is ``None``, never 0.
    """
    work = shape.tower_work(grid) if shape else None
    return {
        "vision": vision_flops(shape.tower, work) if shape and work else None,
        "projector": projector_flops(shape.tower, work) if shape and work else None,
        "compressor": compressor_flops(
            compressor, trace, grid, decoder, shape.tower if shape else None, work
        ),
        "decoder": decoder_flops(decoder, trace.text, trace.entering, trace.mlp),
        "head": lm_head_flops(decoder),
    }


def sample_cost(
    shape: ModelShape | None,
    decoder: DecoderShape,
    trace: Trace,
    grid: Grid,
    compressor: Compressor,
    bytes_per_value: int,
) -> dict[str, Any]:
    """What a stored line says of a sample's cost.

    Args:
        shape, decoder, trace, grid, compressor: as in :func:`sample_flops`.
        bytes_per_value: bytes of one number in the cache's dtype.

    Returns:
        ``flops`` by part, ``flops_closed_form`` and ``flops_closed_form_all`` (FastV's formula for this sample and for
        all its tokens), and ``kv_bytes``.
    """
    return {
        "flops": sample_flops(shape, decoder, trace, grid, compressor),
        "flops_closed_form": closed_form(decoder, trace.text, trace.entering),
        "flops_closed_form_all": closed_form(decoder, trace.text, [trace.video] * decoder.layers),
        "kv_bytes": kv_bytes(decoder, trace.text, trace.entering, bytes_per_value),
    }
