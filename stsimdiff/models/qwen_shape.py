"""Sizes of the Qwen-VL families: their tower sees a video at its own aspect ratio, within limits of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stsimdiff.cost import DecoderShape, ModelShape, TowerLoad, TowerShape
from stsimdiff.tokens import Grid

PROCESSORS = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
"""Where a checkpoint may say its limits of pixels; the first one that does is read, as transformers does."""


@dataclass(frozen=True)
class PixelLimits:
    """How the stock video processor chooses a video's size; its own defaults where a checkpoint says nothing.

    Attributes:
        least, most: pixels of a frame.
        tokens: the context length of which 90 % are shared out among the frames.
    """

    least: int = 128 * 28 * 28
    most: int = 768 * 28 * 28
    tokens: int = 128_000

    @classmethod
    def of(cls, processor: Any) -> PixelLimits:
        """Those of a stock video processor."""
        size = processor.size
        return cls(size["shortest_edge"], size["longest_edge"], processor.max_video_tokens)

    @classmethod
    def from_files(cls, files: Mapping[str, Mapping[str, Any]]) -> PixelLimits:
        """Those that the processor's files of a checkpoint say."""
        for name in PROCESSORS:
            found = files.get(name, {})
            found = found.get("video_processor", {}) if name == PROCESSORS[0] else found
            if not found:
                continue
            size, own = found.get("size") or {}, cls()
            return cls(
                found.get("min_pixels") or size.get("shortest_edge") or own.least,
                found.get("max_pixels") or size.get("longest_edge") or own.most,
                found.get("max_video_tokens") or own.tokens,
            )
        return cls()


@dataclass(frozen=True)
class QwenShape(ModelShape):
    """A model whose grid follows the video's size.

    Attributes:
        side: pixels of a patch.
        merge: patches joined into a token, along each side.
        temporal: frames of a patch.
        window: tokens along a window's side, 0 without windows.
        limits: of a frame's pixels.
    """

    side: int
    merge: int
    temporal: int
    window: int
    limits: PixelLimits

    @classmethod
    def from_config(cls, config: Any, dtype: str, limits: PixelLimits) -> QwenShape:
        """The sizes of a ``Qwen2VLConfig`` or ``Qwen2_5_VLConfig``."""
        vision, text = config.vision_config, config.get_text_config()
        full = getattr(vision, "fullatt_block_indexes", None)
        windowed = vision.depth - len({i for i in full if i < vision.depth}) if full is not None else 0
        gated = full is not None
        width = vision.hidden_size if gated else vision.embed_dim
        out = vision.out_hidden_size if gated else vision.hidden_size
        joined = width * vision.spatial_merge_size**2
        tower = TowerShape(
            patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            width=width,
            intermediate=vision.intermediate_size if gated else width * vision.mlp_ratio,
            heads=vision.num_heads,
            layers=vision.depth,
            projector=(joined, joined, out),
            gated=gated,
            windowed=windowed,
            ends_windowed=full is not None and vision.depth - 1 not in full,
        )
        return cls(
            decoder=DecoderShape.from_config(text, config.tie_word_embeddings),
            tower=tower,
            dtype=dtype,
            side=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
            window=vision.window_size // vision.spatial_merge_size // vision.patch_size if windowed else 0,
            limits=limits,
        )

    def grid(self, frames: int, height: int, width: int) -> Grid:
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        factor = self.side * self.merge
        # The cap that this package asks the stock processor for: a frame has its share of the context.
        shared = int(self.limits.tokens * factor**2 * 0.9) * self.temporal // frames
        most = max(min(self.limits.most, shared), int(self.limits.least * 1.05))
        rows, columns = smart_resize(height, width, factor, self.limits.least, most)
        return Grid(-(-frames // self.temporal), rows // factor, columns // factor)

    def load(self, grid: Grid) -> TowerLoad:
        unit = self.merge**2
        frame = grid.per_frame * unit
        windows: Counter[int] = Counter()
        if self.window:
            for rows in _pieces(grid.height, self.window):
                for columns in _pieces(grid.width, self.window):
                    windows[rows * columns * unit] += grid.frames
        return TowerLoad(
            sequences={frame: grid.frames},
            embedded=frame * grid.frames,
            rows=grid.tokens,
            windows=dict(windows),
        )


def _pieces(length: int, size: int) -> list[int]:
    """A side cut into windows: whole ones, and what is left."""
    whole, rest = divmod(length, size)
    return [size] * whole + ([rest] if rest else [])
