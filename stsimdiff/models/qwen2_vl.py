"""Qwen2-VL on stock transformers classes."""

from __future__ import annotations

from transformers import Qwen2VLForConditionalGeneration

from stsimdiff.models.qwen_vl import QwenVL


class Qwen2VL(QwenVL):
    """Its temporal positions count grids, whatever their length in seconds."""

    model_class = Qwen2VLForConditionalGeneration
    model_type = "qwen2_vl"
