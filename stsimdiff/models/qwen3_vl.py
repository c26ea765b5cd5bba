"""Qwen3-VL on stock transformers classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from typing_extensions import override

from stsimdiff.engine import Decoder
from stsimdiff.models.base import EncodedVideo
from stsimdiff.models.qwen_shape import QWEN3_LIMITS, Qwen3Shape
from stsimdiff.models.qwen_vl import QwenVL
from stsimdiff.tokens import Signals
from stsimdiff.video import Frames


class Qwen3VL(QwenVL):
    """A time in words stands before each grid, so the video tokens are a block for each; times are never dropped.

    Features of earlier layers of the vision tower (deepstack) are added to the video tokens after the first layers of
    the decoder: a token that was dropped before gets none. All layers of the tower attend within a frame pair.
    """

    released_files = {
        "config.json": {
            "model_type": "qwen3_vl",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "tie_word_embeddings": False,
            },
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "out_hidden_size": 4096,
                "patch_size": 16,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        },
        "video_preprocessor_config.json": {"size": {"shortest_edge": 4096, "longest_edge": 25165824}},
    }

    model_class = Qwen3VLForConditionalGeneration
    model_type = "qwen3_vl"
    shape_class = Qwen3Shape
    limits = QWEN3_LIMITS
    # Each grid is a video of its own to the positions: the text after it follows its last moment in any case.
    positions = "stock"

    @property
    @override
    def decoder(self) -> Decoder:
        language_model = self.model.model.language_model
        return Decoder(language_model, language_model.layers, added=_deepstack, mrope=self.mrope)

    @override
    def encode(self, frames: Frames, *, signals: Signals = False) -> EncodedVideo:
        if len(frames.indices) % 2:
            # The stock processor fills an odd number up with the last frame too, but only after it has chosen the size
            # for the odd number, and it refuses a single frame.
            pixels = np.concatenate((frames.pixels, frames.pixels[-1:]))
            frames = dataclasses.replace(frames, pixels=pixels, indices=(*frames.indices, frames.indices[-1]))
        return super().encode(frames, signals=signals)

    def _size(self, frames: int) -> dict[str, Any]:
        size = super()._size(frames)
        if "size" in size:
            # Its stock processor counts the pixels of the whole video.
            size["size"] = {name: frames * pixels for name, pixels in size["size"].items()}
        return size

    def _of_batch(self, batch: Any) -> dict[str, Any]:
        # The stock processor's own words: the time of each grid and its video tokens.
        inputs = {name: batch[name] for name in ("video_grid_thw", "video_metadata")}
        return {"placeholder": self._processor().replace_video_token(inputs, 0)}

    def _of_tower(self, outputs: Any) -> dict[str, Any]:
        if not outputs.deepstack_features:
            return {}
        return {"deepstack": torch.stack([torch.cat(tuple(parts)) for parts in outputs.deepstack_features])}

    def _placeholder(self, video: EncodedVideo) -> str:
        return video.inputs["placeholder"]

    def _for_generate(self, video: EncodedVideo) -> dict[str, Any]:
        encoded = BaseModelOutputWithDeepstackFeatures(
            pooler_output=(video.features,),
            deepstack_features=[(features,) for features in video.inputs.get("deepstack", ())],
        )
        return {
            "mm_encoder_outputs": {"video": encoded},
            "video_grid_thw": video.inputs["video_grid_thw"],
        }


def _deepstack(kwargs: dict[str, Any]) -> Sequence[Tensor]:
    kwargs.pop("visual_pos_masks", None)
    return kwargs.pop("deepstack_visual_embeds", None) or ()
