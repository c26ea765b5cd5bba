"""Tiny random models of stock classes, each with a prompt, and a reference that masks tokens and drops none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from stsimdiff.engine import Decoder
from stsimdiff.models.base import EncodedVideo, Family, Prompt
from stsimdiff.models.kit.running import NEW_TOKENS
from stsimdiff.models.qwen2_5_vl import Qwen25VL
from stsimdiff.models.qwen_vl import QwenVL
from stsimdiff.tokens import Grid, Layout

WIDTH, LAYERS = 48, 4
GRID = Grid(4, 3, 4)
VIDEO_TOKEN, IMAGE_TOKEN, VISION_START, VISION_END = 90, 91, 92, 93
TEXT = dict(
    vocab_size=96,
    hidden_size=WIDTH,
    intermediate_size=80,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.12,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=95,
    pad_token_id=0,
)
QWEN = dict(
    text_config={
        **TEXT,
        "rope_parameters": dict(rope_type="default", rope_theta=1000.0, mrope_section=[2, 2, 2]),
    },
    image_token_id=IMAGE_TOKEN,
    video_token_id=VIDEO_TOKEN,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
)
"""What the configurations of the Qwen-VL families share."""


@dataclass
class Case:
    """A family with one prompt, and what a plain run of its decoder needs: ``(1, S, D)`` and positions."""

    family: Family
    prompt: Prompt
    embeds: Tensor
    positions: Tensor

    @property
    def model(self) -> Any:
        return self.family.model

    @property
    def decoder(self) -> Decoder:
        return self.family.decoder

    @property
    def inputs(self) -> dict[str, Any]:
        """For ``generate``, a batch of one."""
        return self.prompt.inputs

    @property
    def layout(self) -> Layout:
        return self.prompt.layout


def text_ids() -> tuple[Tensor, Tensor]:
    return torch.randint(1, 80, (5,)), torch.randint(1, 80, (7,))


def of_qwen(family: QwenVL, grid: Grid, **inputs: Tensor) -> Case:
    """A prompt of a Qwen-VL family; random video features stand in for the tower's output."""
    before, after = text_ids()
    middle = [VISION_START, *[VIDEO_TOKEN] * grid.tokens, VISION_END]
    ids = torch.cat((before, torch.tensor(middle), after))[None]
    inputs["video_grid_thw"] = torch.tensor([[grid.frames, grid.height * 2, grid.width * 2]])
    video = EncodedVideo(torch.randn(grid.tokens, WIDTH), grid, inputs)
    prompt = family.prompt_from_ids(video, ids, sample="q0")
    embeds = family.model.get_input_embeddings()(ids).detach().clone()
    embeds[0, prompt.layout.video] = video.features
    kinds = prompt.inputs["mm_token_type_ids"]
    positions, _ = family.model.model.get_rope_index(ids, mm_token_type_ids=kinds, **inputs)
    return Case(family, prompt, embeds, positions)


def qwen2_5_vl(seed: int, attention: str = "sdpa", grid: Grid = GRID) -> Case:
    """Four query heads on two key heads, M-RoPE as the stock model has it."""
    torch.manual_seed(seed)
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=WIDTH)
    config = Qwen2_5_VLConfig(**QWEN, vision_config={**vision, "fullatt_block_indexes": [0]})
    config._attn_implementation = attention
    family = Qwen25VL(Qwen2_5_VLForConditionalGeneration(config), None, "tiny")
    family.positions = "stock"
    return of_qwen(family, grid, second_per_grid_ts=torch.tensor([1.0]))


def masked_reference(case: Case, drops: dict[tuple[str, int], set[int]], tokens: Tensor) -> Tensor:
    """Logits ``(NEW_TOKENS, V)``: the whole sequence again for every token, dropped keys masked from their layer on.

    No cache and no engine; only the generated ``tokens`` are those of the run that it is compared with.
    """
    decoder, rows = case.decoder, []
    for step in range(NEW_TOKENS):
        embeds = torch.cat((case.embeds, case.model.get_input_embeddings()(tokens[None, :step])), dim=1)
        later = torch.arange(1, step + 1) + case.positions[..., -1:]
        length = embeds.shape[1]
        handles = []
        for number, layer in enumerate(decoder.layers):
            hidden = set()
            for (place, at), dropped in drops.items():
                if at < number or (at == number and place != "between"):
                    hidden |= {int(case.layout.video[i]) for i in dropped}
            allowed = torch.ones(length, length).tril().bool()
            allowed[:, sorted(hidden)] = False
            # A dropped token may see itself, so that its row is no row of -inf; nobody else reads it.
            allowed |= torch.eye(length, dtype=torch.bool)
            mask = torch.zeros(length, length).masked_fill(~allowed, float("-inf"))[None, None]
            handles.append(
                layer.register_forward_pre_hook(
                    lambda m, a, k, mask=mask: (a, {**k, "attention_mask": mask}), with_kwargs=True
                )
            )
        positions = torch.cat((case.positions, later), dim=-1)
        states = decoder.module(
            inputs_embeds=embeds, position_ids=positions, use_cache=False
        ).last_hidden_state
        for handle in handles:
            handle.remove()
        rows.append(case.model.lm_head(states[0, -1]))
    return torch.stack(rows)
