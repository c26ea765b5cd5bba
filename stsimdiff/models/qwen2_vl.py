"""Qwen2-VL on stock transformers classes."""

from __future__ import annotations

from transformers import Qwen2VLForConditionalGeneration

from stsimdiff.models.qwen_vl import QwenVL
from stsimdiff.models.released import QWEN2_7B


class Qwen2VL(QwenVL):
    """Its temporal positions count grids, whatever their length in seconds."""

    released_files = {
        "config.json": {
            **QWEN2_7B,
            "model_type": "qwen2_vl",
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4},
        },
        "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 12845056},
    }

    model_class = Qwen2VLForConditionalGeneration
    model_type = "qwen2_vl"
