"""Packed sequences: several questions share one video prefix, so that a video is read once a step.

A packed sequence is [prefix | row 0 | row 1 | ...]. Every row attends to the prefix and to itself, and its
positions start right after the prefix, so each row gives what it would give in a sequence of its own.
"""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stsimdiff.data.clips.world import CELLS, GRIDS

from .architecture import SYSTEM, VIDEO_TOKENS

ATTENTION = "packed_rows"


@dataclass(frozen=True)
class Packing:
    """Sizes in tokens: the prefix, and `rows` rows of `length` each.

    own_weights takes up the attention of rows to themselves, one [batch, heads, rows, length, length] a layer.
    """

    prefix: int
    rows: int
    length: int
    own_weights: list[torch.Tensor] = field(default_factory=list)


def packed_attention(module, query, key, value, attention_mask=None, scaling=None, packing=None, **kwargs):
    """Attention of a packed sequence, [batch, heads, prefix + rows * length, head size] each.

    Everything is split and not sliced, since a slice's gradient is a whole tensor of zeros, and autocast is
    off, since it would widen the scores to float32: together half of the time of a training step.
    """
    batch, heads, total, width = query.shape
    prefix, rows, length = packing.prefix, packing.rows, packing.length
    shape, flat = (batch, heads, rows, length, width), (batch, heads, rows * length)
    sizes = [prefix, total - prefix]
    with torch.autocast("cpu", enabled=False):
        query = query.to(value.dtype) * scaling
        query_prefix, query_rows = query.split(sizes, 2)
        key_prefix, key_rows = key.to(value.dtype).split(sizes, 2)
        value_prefix, value_rows = value.split(sizes, 2)
        of_prefix = _causal(query_prefix, key_prefix, value_prefix)
        to_prefix = query_rows @ key_prefix.transpose(-1, -2)
        to_row = query_rows.reshape(shape) @ key_rows.reshape(shape).transpose(-1, -2) + _future(
            length, value.dtype
        )
        weights = torch.cat([to_prefix, to_row.reshape(*flat, length)], -1).softmax(-1)
        to_prefix, to_row = weights.split([prefix, length], -1)
        to_row = to_row.reshape(batch, heads, rows, length, length)
        packing.own_weights.append(to_row)
        own = to_row @ value_rows.reshape(shape)
        of_rows = to_prefix @ value_prefix + own.reshape(*flat, width)
        return torch.cat([of_prefix, of_rows], 2).transpose(1, 2).contiguous(), None


def _future(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), -1e4, dtype=dtype).triu_(1)


def _causal(query, key, value):
    """Plain matrices: on a CPU their gradient is faster than that of the fused kernel."""
    scores = query @ key.transpose(-1, -2) + _future(query.shape[2], query.dtype)
    return scores.softmax(-1) @ value


class Prefix:
    """The tokens before a question, [system, user, vision start | video | vision end], and all positions.

    `positions` are those of the stock model for a whole video; dropping tokens keeps the others' positions,
    as compression does.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast):
        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        self.before = torch.tensor(encode(f"{SYSTEM}<|im_start|>user\n<|vision_start|>"))
        self.after = torch.tensor(encode("<|vision_end|>"))
        video = torch.full((VIDEO_TOKENS,), model.config.video_token_id)
        ids = torch.cat([self.before, video, self.after, torch.tensor([0])])[None]
        side = 2 * CELLS
        positions, _ = model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == model.config.video_token_id).int() * 2,
            video_grid_thw=torch.tensor([[GRIDS, side, side]]),
            second_per_grid_ts=torch.tensor([1.0]),
        )
        start, end = len(self.before), len(self.before) + VIDEO_TOKENS
        self.video_positions = positions[:, 0, start:end]  # [3, 512]: time, row, column
        self.before_positions = positions[:, 0, :start]
        self.after_positions = positions[:, 0, end : end + 1]
        self.question_start = int(positions[0, 0, -1])

    def coordinates(self) -> torch.Tensor:
        """Time, row and column of every video token, -1 to 1, float [3, 512]."""
        return (self.video_positions - self.video_positions[:, :1]).float() / 3.5 - 1

    def packed_positions(self, kept: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        """[3, batch, prefix + rows * length] for kept video tokens [batch, tokens] (indices)."""
        batch = len(kept)
        video = self.video_positions[:, kept]
        before = self.before_positions[:, None].expand(3, batch, -1)
        after = self.after_positions[:, None].expand(3, batch, -1)
        question = (torch.arange(length) + self.question_start).repeat(rows).expand(3, batch, -1)
        return torch.cat([before, video, after, question], 2)


def use_packed_attention(language_model: torch.nn.Module) -> None:
    """Make a language model attend within its rows and to their shared prefix."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
    language_model.config._attn_implementation = ATTENTION
