"""Tiny random models of stock transformers classes, and prompts for them, for the engine's tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from stsimdiff.engine import Decoder
from stsimdiff.tokens import Grid, Layout

VOCABULARY = 96
VIDEO_TOKEN, IMAGE_TOKEN, VISION_START, VISION_END = 90, 91, 92, 93


@dataclass
class TinyCase:
    """A model with one prompt: ``inputs`` for ``generate``, batch of one."""

    model: Qwen2_5_VLForConditionalGeneration
    inputs: dict
    layout: Layout

    @property
    def decoder(self) -> Decoder:
        language_model = self.model.model.language_model
        return Decoder(language_model, language_model.layers)


def qwen2_5_vl(seed: int, layers: int = 4, attention: str = "sdpa", grid: Grid = Grid(4, 3, 4)) -> TinyCase:
    """Four query heads on two key heads, M-RoPE; random video features stand in for the tower's output."""
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.12,
            max_position_embeddings=512,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0, mrope_section=[2, 2, 2]),
            bos_token_id=None,
            eos_token_id=95,
            pad_token_id=0,
        ),
        vision_config=dict(
            depth=1,
            hidden_size=16,
            intermediate_size=16,
            num_heads=2,
            out_hidden_size=48,
            fullatt_block_indexes=[0],
        ),
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    config._attn_implementation = attention
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    before, after = torch.randint(1, 80, (5,)).tolist(), torch.randint(1, 80, (7,)).tolist()
    ids = torch.tensor([[*before, VISION_START, *[VIDEO_TOKEN] * grid.tokens, VISION_END, *after]])
    is_video = ids == VIDEO_TOKEN
    features = torch.randn(grid.tokens, 48)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": is_video.int() * 2,
        "video_grid_thw": torch.tensor([[grid.frames, grid.height * 2, grid.width * 2]]),
        "second_per_grid_ts": torch.tensor([1.0]),
        "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=(features,))},
    }
    layout = Layout(grid, is_video[0].nonzero(as_tuple=True)[0], ids.shape[1], layers, sample="q0")
    return TinyCase(model, inputs, layout)
