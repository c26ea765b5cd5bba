"""The vision tower's signals against the tower's own eager attention weights."""

from __future__ import annotations

import pytest
import torch

from stsimdiff.engine.attention import received_attention
from stsimdiff.models import resolve
from stsimdiff.models.base import LoadOptions
from stsimdiff.resources import embedded_checkpoint


@pytest.fixture(scope="module")
def family():
    options = LoadOptions(device="cpu", dtype="float32", attn_implementation="eager")
    return resolve("qwen2_5_vl").load(str(embedded_checkpoint()), options)


@torch.no_grad()
@pytest.mark.parametrize("windowed", [False, True])
def test_signals_are_the_eager_weights_in_raster_order(family, windowed: bool) -> None:
    tower, grid = family.model.model.visual, torch.tensor([[2, 16, 12]])
    torch.manual_seed(0)
    patches = torch.randn(2 * 16 * 12, 294)
    full = tower.fullatt_block_indexes
    tower.fullatt_block_indexes = [0, 1] if windowed else full
    weights, given, last = [], [], tower.blocks[-1].attn
    try:
        signals = family.encode_patches(patches, grid, signals=True)
        eager = __import__(type(last).__module__, fromlist=["x"]).eager_attention_forward

        def recording(module, *args, **kwargs):
            output, attention = eager(module, *args, **kwargs)
            if module is last:
                weights.append(attention[0])
                given.append((args[0][0].transpose(0, 1), args[1][0].transpose(0, 1)))
            return output, attention

        patch = pytest.MonkeyPatch()
        patch.setattr(f"{type(last).__module__}.eager_attention_forward", recording)
        plain = family.encode_patches(patches, grid)
        patch.undo()
    finally:
        tower.fullatt_block_indexes = full
    assert plain.signals is None
    assert torch.equal(plain.features, signals.features), "reading the attention changes nothing"
    # A merged token's features are their own label: find each in the tower's order by its position in the windows.
    received = torch.cat([w.mean((0, 1)) for w in weights]).view(-1, 4).mean(1)
    assert sum(w.shape[-1] for w in weights) == 2 * 16 * 12
    assert (len(weights) > 2) == windowed, "one call for each frame, or for each window"
    order = family._tower_order(grid)
    expected = torch.empty_like(received)
    for place, raster in enumerate(order.tolist()):
        expected[raster] = received[place]
    assert torch.allclose(signals.signals.received, expected, atol=1e-6)
    # The mean query of a frame looks at all of it, in windows too; a merged token has the mean of its patches' keys.
    query, key = (torch.cat(parts).view(2, -1, 2, 32) for parts in zip(*given, strict=True))
    keys = key.unflatten(1, (-1, 4)).mean(2)
    scores = torch.einsum("thd,tnhd->thn", query.mean(1), keys) * 32**-0.5
    paid = scores.softmax(-1).mean(1).flatten()
    assert torch.allclose(signals.signals.mean_query()[order], paid, atol=1e-6)
    assert signals.signals.keys.shape == (96, 2, 32)
    total = signals.signals.received.view(2, -1).sum(1) * 4
    if not windowed:
        assert torch.allclose(total, torch.ones(2), atol=1e-5), (
            "each frame's queries give all their attention to it"
        )


def test_received_attention_in_chunks_equals_the_dense_form() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 3, 150, 8), torch.randn(1, 3, 150, 8)
    dense = ((query @ key.transpose(-1, -2)) * 0.4).softmax(-1).mean((0, 1, 2))
    assert torch.allclose(received_attention(query, key, 0.4), dense, atol=1e-6)


@torch.no_grad()
def test_nothing_is_left_on_the_tower(family) -> None:
    before = [block.attn.config for block in family.model.model.visual.blocks]
    with pytest.raises(IndexError):
        family.encode_patches(torch.randn(5, 294), torch.tensor([[2, 16, 12]]), signals=True)
    assert all(b.attn.config is c for b, c in zip(family.model.model.visual.blocks, before, strict=True))
