"""Sizes of the Qwen-VL families: their tower sees a video at its own aspect ratio, within limits of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from stsimdiff.cost import DecoderShape, ModelShape, TowerShape, TowerWork
from stsimdiff.errors import ConfigError
from stsimdiff.tokens import Grid

PROCESSORS = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
"""Where a checkpoint may say its limits of pixels; the first one that does is read, as transformers does."""


@dataclass(frozen=True)
class PixelLimits:
    """How the stock video processor of Qwen2-VL and Qwen2.5-VL chooses a video's size, with its defaults.

    Attributes:
        least, most: pixels of a frame; of a whole video for Qwen3-VL.
        tokens: the context length of which 90 % are shared out among the frames; for Qwen3-VL the most of a frame.
    """

    least: int = 128 * 28 * 28
    most: int = 768 * 28 * 28
    tokens: int = 128_000

    @classmethod
    def of_processor(cls, processor: Any) -> PixelLimits:
        """Those of a stock video processor."""
        size = processor.size
        return cls(size["shortest_edge"], size["longest_edge"], processor.max_video_tokens)

    def of_files(self, files: Mapping[str, Mapping[str, Any]]) -> PixelLimits:
        """Those that the processor's files of a checkpoint say; these where they do not."""
        for name in PROCESSORS:
            found = files.get(name, {})
            found = found.get("video_processor", {}) if name == PROCESSORS[0] else found
            if not found:
                continue
            size = found.get("size") or {}
            return PixelLimits(
                found.get("min_pixels") or size.get("shortest_edge") or self.least,
                found.get("max_pixels") or size.get("longest_edge") or self.most,
                found.get("max_video_tokens") or self.tokens,
            )
        return self


@dataclass(frozen=True)
class TokenLimits:
    """The limits of the reference implementation (qwen-vl-utils 0.0.14, ``vision_process.py``), given explicitly.

    A token is a square of merged patches, and counts for one frame here: two frames share the tokens of a grid.

    Attributes:
        least, most: tokens of a frame (``VIDEO_MIN_TOKEN_NUM``, ``VIDEO_MAX_TOKEN_NUM``).
        total: video tokens of the whole video (0.9 times ``MODEL_SEQ_LEN``).
    """

    least: int
    most: int
    total: int

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> TokenLimits | None:
        """Those of the family's options; ``None`` where the checkpoint's own files decide.

        Raises:
            ConfigError: when only some are given, and for a minimum above the maximum.
        """
        names = ("min_frame_tokens", "max_frame_tokens", "max_video_tokens")
        values: list[Any] = [options.get(name) for name in names]
        keys = ", ".join(f"model.{name}={value}" for name, value in zip(names, values, strict=True))
        if all(value is None for value in values):
            return None
        if any(value is None for value in values):
            raise ConfigError(
                f"{keys.replace('None', 'null')}: give all three, or null for all to take the checkpoint's own limits"
            )
        if values[0] > values[1]:
            raise ConfigError(f"{keys}: a frame's minimum is above its maximum; lower model.min_frame_tokens")
        return cls(*values)

    def pixels(self, frames: int, factor: int, temporal: int) -> tuple[int, int]:
        """The least and the most pixels of a frame.

        Args:
            frames: of the video.
            factor: side of a token in pixels.
            temporal: frames that share a token.
        """
        square = factor**2
        least = self.least * square
        share = self.total * square * temporal // max(frames, temporal)
        return least, max(min(self.most * square, share), int(least * 1.05))


@dataclass(frozen=True, kw_only=True)
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
    limits: PixelLimits | TokenLimits

    @classmethod
    def from_config(cls, config: Any, dtype: str, limits: PixelLimits | TokenLimits) -> QwenShape:
        """The sizes of a ``Qwen2VLConfig``, ``Qwen2_5_VLConfig`` or ``Qwen3VLConfig``."""
        vision, text = config.vision_config, config.get_text_config()
        # Qwen2-VL calls the tower's width embed_dim; of the others, Qwen2.5-VL alone has windows and gates.
        first = hasattr(vision, "embed_dim")
        full = getattr(vision, "fullatt_block_indexes", None)
        windowed = vision.depth - len({i for i in full if i < vision.depth}) if full is not None else 0
        deep = [i for i in getattr(vision, "deepstack_visual_indexes", ()) if i < vision.depth]
        width = vision.embed_dim if first else vision.hidden_size
        out = vision.hidden_size if first else vision.out_hidden_size
        joined = width * vision.spatial_merge_size**2
        tower = TowerShape(
            patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            width=width,
            intermediate=width * vision.mlp_ratio if first else vision.intermediate_size,
            heads=vision.num_heads,
            layers=vision.depth,
            projector=(joined, joined, out),
            gated=full is not None,
            projectors=1 + len(deep),
            rotary=True,
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

    @override
    def grid(self, frames: int, height: int, width: int) -> Grid:
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        factor = self.side * self.merge
        if isinstance(self.limits, TokenLimits):
            least, most = self.limits.pixels(frames, factor, self.temporal)
        else:
            # The cap that this package asks the stock processor for: a frame has its share of the context.
            least, shared = (
                self.limits.least,
                int(self.limits.tokens * factor**2 * 0.9) * self.temporal // frames,
            )
            most = max(min(self.limits.most, shared), int(least * 1.05))
        rows, columns = smart_resize(height, width, factor, least, most)
        return Grid(-(-frames // self.temporal), rows // factor, columns // factor)

    @override
    def tower_work(self, grid: Grid) -> TowerWork:
        unit = self.merge**2
        frame = grid.per_frame * unit
        windows: Counter[int] = Counter()
        if self.window:
            for rows in _pieces(grid.height, self.window):
                for columns in _pieces(grid.width, self.window):
                    windows[rows * columns * unit] += grid.frames
        return TowerWork(
            sequences={frame: grid.frames},
            embedded=frame * grid.frames,
            rows=grid.tokens,
            windows=dict(windows),
        )


@dataclass(frozen=True, kw_only=True)
class Qwen3Shape(QwenShape):
    """Qwen3-VL's own limits are those of the whole video, and a time in words stands before each grid."""

    timestamp_tokens: int = 9

    @override
    def grid(self, frames: int, height: int, width: int) -> Grid:
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        if isinstance(self.limits, TokenLimits):
            return super().grid(frames, height, width)
        factor = self.side * self.merge
        each = max(
            min(self.limits.tokens * factor**2, self.limits.most // frames), int(self.limits.least * 1.05)
        )
        # The stock function refuses a single frame; a plan must not stop there.
        count = max(frames, self.temporal)
        rows, columns = smart_resize(
            count, height, width, self.temporal, factor, self.limits.least, each * frames
        )
        return Grid(-(-frames // self.temporal), rows // factor, columns // factor)


QWEN3_LIMITS = PixelLimits(128 * 32 * 32, 768 * 32 * 32, 768)
"""The defaults of Qwen3-VL's stock video processor."""


def _pieces(length: int, size: int) -> list[int]:
    """A side cut into windows: whole ones, and what is left."""
    whole, rest = divmod(length, size)
    return [size] * whole + ([rest] if rest else [])
