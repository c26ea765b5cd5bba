"""Qwen2.5-VL on stock transformers classes. The embedded model is a miniature of this family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from stsimdiff.models.qwen_vl import QwenVL
from stsimdiff.models.released import QWEN2_7B


class Qwen25VL(QwenVL):
    """Its temporal positions follow the clock, so each grid's length in seconds goes with the prompt."""

    released_files = {
        "config.json": {
            **QWEN2_7B,
            "model_type": "qwen2_5_vl",
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "out_hidden_size": 3584,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
        "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 12845056},
    }

    model_class = Qwen2_5_VLForConditionalGeneration
    model_type = "qwen2_5_vl"

    def _of_batch(self, batch: Any) -> dict[str, Any]:
        return {"second_per_grid_ts": torch.tensor([float(v) for v in batch["second_per_grid_ts"]])}

    def _tower_order(self, grid_thw: Tensor) -> Tensor:
        # Most of its layers attend within windows, for which the tower sorts the merged tokens.
        tower = self.model.model.visual
        order, _ = get_vision_window_index(
            grid_thw,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        return order
