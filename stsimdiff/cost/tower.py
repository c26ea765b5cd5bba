"""The vision tower, the projector and the pooling: FLOPs from their sizes and from what one video asks of them.

What a family's video looks like (which patches attend to one another, how many rows the projector sees) is said by the
family, as a :class:`TowerWork`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision transformer and of the projector behind it.

    Attributes:
        patch: values of one patch (channels x frames x height x width), the input of its embedding.
        width: C.
        intermediate: width of the MLP.
        gated: whether the MLP has a gate, and so three matrices instead of two.
        heads: of the attention.
        layers: transformer layers that run for the features; layers behind these are not counted.
        windowed: of them, layers whose attention stays within windows.
        ends_windowed: whether the last one does; its attention is what methods of the vision place read.
        projector: widths of the linear layers that follow one another, such as ``(1152, 3584, 3584)``.
        class_token: whether a class token stands first in each sequence; its attention alone is read then.
        projectors: how many such run over the video (Qwen3-VL has one for each of its deep features too).
        rotary: whether queries and keys are rotated, which stock classes do in float32.
        head: whether it has SigLIP's pooling head, which runs where the tower's attention is read.
    """

    patch: int
    width: int
    intermediate: int
    heads: int
    layers: int
    projector: tuple[int, ...]
    gated: bool = False
    windowed: int = 0
    ends_windowed: bool = False
    class_token: bool = False
    projectors: int = 1
    rotary: bool = False
    head: bool = False

    @property
    def parameters(self) -> int:
        """Weights of the matrices; biases, norms and position tables are left out."""
        layer = 4 * self.width**2 + (3 if self.gated else 2) * self.width * self.intermediate
        return self.patch * self.width + self.layers * layer + self.projectors * _linear(self.projector)


@dataclass(frozen=True)
class TowerWork:
    """What one video asks of the tower.

    Attributes:
        sequences: length in patches (a class token included) to the number of sequences that attend among
            themselves: one for each frame or temporal patch.
        embedded: patches whose embedding is computed.
        rows: rows that go through the projector.
        pooling: FLOPs of the pooling.
        windows: as ``sequences``, for layers with windows; empty where there are none.
    """

    sequences: Mapping[int, int]
    embedded: int
    rows: int
    pooling: int = 0
    windows: Mapping[int, int] = field(default_factory=dict)

    @property
    def patches(self) -> int:
        """Patches in the transformer, class tokens included."""
        return sum(length * count for length, count in self.sequences.items())


def vision_flops(shape: TowerShape, work: TowerWork) -> int:
    """Patch embedding and transformer layers; attention is not causal there."""
    matrices = 4 * shape.width**2 + (3 if shape.gated else 2) * shape.width * shape.intermediate
    full, windowed = shape.layers - shape.windowed, shape.windowed
    pairs = full * _pairs(work.sequences) + windowed * _pairs(work.windows)
    return (
        2 * work.embedded * shape.patch * shape.width
        + 2 * work.patches * matrices * shape.layers
        + 4 * pairs * shape.width
    )


def projector_flops(shape: TowerShape, work: TowerWork) -> int:
    """The projector's linear layers and the pooling."""
    return 2 * work.rows * _linear(shape.projector) * shape.projectors + work.pooling


def signal_flops(shape: TowerShape, work: TowerWork) -> int:
    """Reading the last layer's attention for methods of the vision place: its scores once more, and their sums.

    A pooling head has keys and values of all patches, scores and sums of one query for each frame, and its projections.
    """
    pairs = _pairs(work.windows if shape.ends_windowed else work.sequences)
    head = 0
    if shape.head:
        frame = 2 * shape.width**2 + 2 * shape.width * shape.intermediate
        head = 2 * (work.patches * 2 * (shape.width**2 + shape.width) + sum(work.sequences.values()) * frame)
    return 2 * (work.patches if shape.class_token else pairs) * shape.width + head


def _pairs(sequences: Mapping[int, int]) -> int:
    return sum(length * length * count for length, count in sequences.items())


def _linear(widths: tuple[int, ...]) -> int:
    return sum(a * b for a, b in pairwise(widths))
