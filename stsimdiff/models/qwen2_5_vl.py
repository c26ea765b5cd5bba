"""Qwen2.5-VL on stock transformers classes. The embedded model is a miniature of this family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from stsimdiff.models.qwen_vl import QwenVL


class Qwen25VL(QwenVL):
    """Its temporal positions follow the clock, so each grid's length in seconds goes with the prompt."""

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
