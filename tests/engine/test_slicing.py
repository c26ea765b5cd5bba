"""What a layer was given for the full sequence, cut to the tokens that are left, by value."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stsimdiff.engine.attention import probe
from stsimdiff.engine.slicing import cut_mask, cut_positions

KEPT, LENGTH = torch.tensor([0, 2]), 3


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((1, 3), lambda mask: mask[:, [0, 2]]),
        ((3, 3), lambda mask: mask[:, [0, 2]]),  # a batch of three: its rows are prompts, not tokens
        ((1, 1, 3, 3), lambda mask: mask[:, :, [0, 2]][:, :, :, [0, 2]]),
        ((1, 1, 1, 3), lambda mask: mask[..., [0, 2]]),
    ],
)
def test_a_mask_is_cut_along_tokens_only(shape: tuple[int, ...], cut) -> None:
    mask = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    assert torch.equal(cut_mask(mask, KEPT, LENGTH), cut(mask))


@pytest.mark.parametrize(
    "mask", [torch.ones(3), torch.ones(1, 3, 3), SimpleNamespace(ndim=4), {"full": None}]
)
def test_a_mask_of_another_form_is_refused(mask: object) -> None:
    with pytest.raises(ValueError, match=f"a mask of type {type(mask).__name__} cannot be cut"):
        cut_mask(mask, KEPT, LENGTH)


class Attention(nn.Module):
    """An attention layer that calls its backend with or without a scaling of its own."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa", _attn_implementation_internal="sdpa")
        self.num_key_value_groups = 1
        self.is_causal = True
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        run = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation_internal, None)
        return run(self, query, key, value, None, **self.options)[0]


@pytest.mark.parametrize(
    ("options", "scaling"), [({}, 0.25), ({"scaling": None}, 0.25), ({"scaling": 0.7}, 0.7)]
)
def test_the_probe_hands_over_what_the_layer_hands_to_its_backend(options: dict, scaling: float) -> None:
    attention, given = Attention(**options), []
    query, key, value = torch.randn(3, 1, 2, 5, 16).unbind()
    stock = attention(query, key, value)
    undo = probe(attention, lambda *arguments: given.append(arguments))
    assert torch.equal(attention(query, key, value), stock)
    undo()
    attention(query, key, value)
    ((got_query, got_key, got_value, got_scaling, got_options),) = given
    assert got_query is query and got_key is key and got_value is value
    assert got_scaling == scaling
    assert got_options == options


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1, 3)])
def test_positions_are_cut_along_tokens_whatever_stands_before_them(shape: tuple[int, ...]) -> None:
    positions = torch.arange(torch.tensor(shape).prod()).reshape(shape)
    assert torch.equal(cut_positions(positions, KEPT, LENGTH), positions[..., [0, 2]])
