"""Sizes of the families whose vision tower sees each frame as one square of patches, whatever the video's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from stsimdiff.cost import ModelShape, TowerShape, TowerWork
from stsimdiff.tokens import Grid


@dataclass(frozen=True, kw_only=True)
class FrameShape(ModelShape):
    """A model with a square of patches for each frame.

    Attributes:
        side: patches along a frame's side.
        rows: rows of a frame that go through the projector.
        height, width: of the grid of one frame, or of a group of frames; a newline column included.
        group: frames that are pooled into one grid.
        pooling: FLOPs of pooling one frame.
    """

    side: int
    rows: int
    height: int
    width: int
    group: int = 1
    pooling: int = 0

    @override
    def grid(self, frames: int, height: int, width: int) -> Grid:
        return Grid(-(-frames // self.group), self.height, self.width)

    @override
    def tower_work(self, grid: Grid) -> TowerWork:
        frames, patches = grid.frames * self.group, self.side**2
        return TowerWork(
            sequences={patches + self.tower.class_token: frames},
            embedded=patches * frames,
            rows=self.rows * frames,
            pooling=self.pooling * frames,
        )


def siglip_tower(vision: Any, layers: int, projector: tuple[int, ...]) -> TowerShape:
    """The tower's sizes from a ``SiglipVisionConfig``, of which the first ``layers`` layers run."""
    return TowerShape(
        patch=vision.num_channels * vision.patch_size**2,
        width=vision.hidden_size,
        intermediate=vision.intermediate_size,
        heads=vision.num_attention_heads,
        layers=layers,
        projector=projector,
        head=vision.vision_use_head,
    )


def bilinear_flops(values: int) -> int:
    """FLOPs of a bilinear interpolation that gives so many values, each from four."""
    return 8 * values


def dtype_of(given: Mapping[str, Any]) -> str:
    """The dtype that a configuration file names, ``float32`` where it names none."""
    return str(given.get("dtype") or given.get("torch_dtype") or "float32").removeprefix("torch.")
