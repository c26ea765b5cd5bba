"""A whole model's sizes, and what one sample costs: FLOPs split by part, bytes of the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from stsimdiff.compressors.base import Compressor
from stsimdiff.cost.compressor import compressor_flops
from stsimdiff.cost.decoder import DecoderShape, closed_form, decoder_flops, head_flops, kv_bytes
from stsimdiff.cost.tower import TowerLoad, TowerShape, projector_flops, vision_flops
from stsimdiff.engine import Trace
from stsimdiff.tokens import Grid


@dataclass(frozen=True, kw_only=True)
class ModelShape(ABC):
    """Sizes of a model, from its configuration alone; each family says how a video is laid out in it.

    Attributes:
        decoder: the language model.
        tower: the vision tower and the projector.
        dtype: of the checkpoint's weights, as its configuration names it.
        words: tokens of text, about, that the prompt has for each frame of the grid, such as its time.
    """

    decoder: DecoderShape
    tower: TowerShape
    dtype: str
    words: int = 0

    @abstractmethod
    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Grid of the video tokens of so many frames of so many pixels."""

    @abstractmethod
    def load(self, grid: Grid) -> TowerLoad:
        """What the tower computed for a video of this grid."""

    @property
    def parameters(self) -> int:
        """Weights of the matrices of both parts."""
        return self.decoder.parameters + self.tower.parameters


def sample_flops(
    shape: ModelShape | None, decoder: DecoderShape, trace: Trace, grid: Grid, compressor: Compressor
) -> dict[str, int | None]:
    """FLOPs of one sample up to its first token, by part.

    Args:
        shape: sizes of the whole model, or ``None`` where its family does not say them.
        decoder: sizes of the language model.
        trace: of the sample.
        grid: of its video.
        compressor: the method; see :func:`~stsimdiff.cost.compressor.compressor_flops`.

    Returns:
        ``vision``, ``projector`` (with the pooling), ``compressor``, ``decoder`` and ``head``. A part that is not
        counted is ``None``, never 0.
    """
    load = shape.load(grid) if shape else None
    return {
        "vision": vision_flops(shape.tower, load) if shape else None,
        "projector": projector_flops(shape.tower, load) if shape else None,
        "compressor": compressor_flops(
            compressor, trace, grid, decoder, shape.tower if shape else None, load
        ),
        "decoder": decoder_flops(decoder, trace.text, trace.entering, trace.mlp),
        "head": head_flops(decoder),
    }


def sample_cost(
    shape: ModelShape | None,
    decoder: DecoderShape,
    trace: Trace,
    grid: Grid,
    compressor: Compressor,
    element: int,
) -> dict[str, Any]:
    """What a stored line says of a sample's cost.

    Args:
        shape, decoder, trace, grid, compressor: as in :func:`sample_flops`.
        element: bytes of one number in the cache's dtype.

    Returns:
        ``flops`` by part, ``flops_closed_form`` and ``flops_closed_form_all`` (FastV's formula for this sample and for
        all its tokens), and ``kv_bytes``.
    """
    return {
        "flops": sample_flops(shape, decoder, trace, grid, compressor),
        "flops_closed_form": closed_form(decoder, trace.text, trace.entering),
        "flops_closed_form_all": closed_form(decoder, trace.text, [trace.video] * decoder.layers),
        "kv_bytes": kv_bytes(decoder, trace.text, trace.entering, element),
    }
