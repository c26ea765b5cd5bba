"""The selection functions of the vision place against outputs recorded from their authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import recorded
from stsimdiff.compressors import fastervlm
from stsimdiff.conformance import still_images


def load(path: Path) -> dict:
    """Arrays as tensors (indices as int64), scalars as Python numbers."""
    data = np.load(path, allow_pickle=False)
    fields = {}
    for name in data.files:
        value = data[name]
        if value.ndim == 0:
            fields[name] = value.item()
        else:
            fields[name] = torch.from_numpy(value.astype(np.int64) if value.dtype == np.int32 else value)
    return fields


@pytest.mark.parametrize("path", recorded("visionzip"))
def test_visionzip(path):
    want = load(path)
    rows, *chosen = still_images.zip_images(
        want["hidden"], want["metric"], want["attn_cls"], want["dominant_num"], want["contextual_num"]
    )
    names = ("dominant_idx_sorted", "contextual_target_idx", "merged_source_idx", "assignment")
    for index, name in zip(chosen, names, strict=True):
        assert torch.equal(index, want[name]), name
    torch.testing.assert_close(rows, want["hidden_out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", recorded("fastervlm"))
def test_fastervlm(path):
    """The recorded mosaics of tiles are a layout of still images; their selection is the same."""
    want = load(path)
    keep = fastervlm.select(still_images.scores(want["attn_cls"]), want["visual_token_num"])
    assert torch.equal(keep, want["keep_idx"])
    torch.testing.assert_close(still_images.scores(want["attn_cls"]), want["attn_mean"], atol=1e-6, rtol=0)
    if not want["tile_grid"].any():
        rows = want["hidden"][:, 1:].gather(1, keep[:, :, None].expand(-1, -1, want["hidden"].shape[2]))
        assert torch.equal(rows.flatten(0, 1), want["tokens_out"])


@pytest.mark.parametrize("path", recorded("prumerge*"))
def test_prumerge(path):
    want = load(path)
    attention = still_images.cls_attention(want["q_cls"], want["k"])
    torch.testing.assert_close(attention, want["cls_attn"], atol=0, rtol=1e-5)
    ratio = want["reduction_ratio"]
    if want["if_adaptive"]:
        ratio = still_images.adaptive_ratio(attention)
        assert ratio == want["ratio"]
    index = still_images.kept_patches(attention, ratio)
    assert torch.equal(index, want["topk_idx"])
    if "idx" in want:
        index = still_images.sampled_patches(index, ratio, want["if_adaptive"], want["sample_end"])
        assert torch.equal(index, want["idx"])
    rows, rest, cluster = still_images.merge_images(want["hidden"][:, 1:], want["k"][:, 1:], attention, index)
    assert torch.equal(rest, want["compl_idx"])
    assert torch.equal(cluster.sort(2).values, want["cluster_idx"])
    torch.testing.assert_close(rows, want["tokens_out"], atol=1e-5, rtol=0)


def test_wrong_counts_are_refused():
    attention = torch.rand(2, 3, 10)
    with pytest.raises(ValueError, match="10 patches to keep; allowed: 1 to 9"):
        fastervlm.select(still_images.scores(attention), 10)
    with pytest.raises(ValueError, match="0 patches to keep; allowed: 1 to 9"):
        fastervlm.select(still_images.scores(attention), 0)
    assert fastervlm.select(still_images.scores(attention), 9).tolist() == [list(range(9))] * 2
    hidden = torch.rand(2, 10, 4)
    with pytest.raises(ValueError, match="8 dominant and 2 contextual tokens do not fit 9 patches"):
        still_images.zip_images(hidden, hidden, attention, 8, 2)
    with pytest.raises(ValueError, match="more patches than 10"):
        still_images.merge_images(hidden, hidden, torch.rand(2, 10), torch.zeros(2, 1, dtype=torch.int64))
    kept = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="one image at a time, got 2"):
        still_images.sampled_patches(kept, 0.1, True, 575)
    with pytest.raises(ValueError, match="57 samples for 3 kept patches"):
        still_images.sampled_patches(kept, 0.1, False, 575)
    with pytest.raises(ValueError, match="no patch stands out"):
        still_images.sampled_patches(kept[:1], 0.0, True, 575)


def test_a_tie_goes_to_the_lower_index():
    """On more patches than what a sort of small arrays keeps in order by chance."""
    attention = torch.ones(2, 1, 101)
    attention[1, 0, 51:] = 2
    assert fastervlm.select(still_images.scores(attention), 30).tolist() == [
        list(range(30)),
        list(range(50, 80)),
    ]
    assert still_images.kept_patches(attention[:, 0, 1:], 0.3).tolist() == [
        list(range(30)),
        list(range(50, 80)),
    ]
    hidden = torch.ones(2, 101, 4)
    # The class token stands in front, so that patch 0 is row 1.
    dominant = still_images.zip_images(hidden, hidden, attention, 30, 1)[1]
    assert dominant.tolist() == [list(range(31)), [0, *range(51, 81)]]


def test_kept_patches_are_rounded_down():
    assert still_images.kept_patches(torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0]]), 0.5).tolist() == [[1, 3]]


def test_prumerge_compares_keys_by_their_angle():
    """By hand: patch 1 has the larger product with patch 0, patch 2 the smaller angle."""
    key = torch.tensor([[[1.0, 0.0], [10.0, 10.0], [1.0, 0.1]]])
    hidden = torch.tensor([[[1.0], [10.0], [100.0]]])
    weight, kept = torch.tensor([[0.5, 0.2, 0.1]]), torch.tensor([[0]])
    rows, rest, cluster = still_images.merge_images(hidden, key, weight, kept, neighbours=1)
    assert cluster.tolist() == [[[2]]] and rest.tolist() == [[1, 2]]
    # 1 + 0.1 * 100, and what was not kept: 0.2 * 10 + 0.1 * 100.
    assert rows.flatten().tolist() == pytest.approx([11.0, 12.0])


def test_visionzip_takes_any_split_of_the_patches():
    hidden, attention = torch.rand(1, 5, 3), torch.rand(1, 2, 5)
    rows, dominant, target, source, _ = still_images.zip_images(hidden, hidden, attention, 1, 3)
    assert source.shape == (1, 0)
    order = torch.cat((dominant, target), 1)[0]
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4] and torch.equal(rows[0], hidden[0, order])
    assert still_images.zip_images(hidden, hidden, attention, 0, 1)[1].tolist() == [[0]]
    for few, many in ((-1, 1), (1, 0), (1, 4), (4, 1)):
        with pytest.raises(ValueError, match="do not fit 4 patches"):
            still_images.zip_images(hidden, hidden, attention, few, many)


def test_tiles_are_put_in_the_order_of_their_mosaic():
    """By hand: a plain image, and one of an overview and two tiles side by side, of 2 x 2 patches each."""
    keep = torch.tensor([[1, 2], [0, 3], [0, 3], [1, 2]])
    source, sizes = still_images.output_order(keep, torch.tensor([[0, 0], [1, 2]]), 2, 2)
    # Upper row: the left tile's patch 0, the right tile's patch 1; lower row: the left one's 3, the right one's 2.
    assert source.tolist() == [1, 2, 4, 7, 8, 13, 11, 14] and sizes.tolist() == [2, 6]


def test_prumerge_s_outliers_and_samples_by_hand():
    attention = torch.tensor([[0.0, 1.0, 2.0], [3.0, 10.0, 6.0]])
    # Quartiles of 0, 1, 2, 3, 6, 10 are 1.25 and 5.25; the bound is 5.25 + 1.5 * 4.
    assert still_images.outlier_bounds(attention).tolist() == [1.25, 5.25, 11.25]
    assert still_images.adaptive_ratio(attention) == 0
    assert still_images.adaptive_ratio(torch.tensor([[0.0, 1.0, 2.0, 3.0, 7.0]])) == 0.2
    assert (
        still_images.adaptive_ratio(torch.tensor([[0.0, 1.0, 2.0, 3.0, 6.0]])) == 0
    )  # the bound itself is none above it
    assert still_images.sample_range(0.125, False, 575) == (4, 575, 8)
    assert still_images.sample_range(0.125, True, 575) == (0, 575, 2)
    assert still_images.sample_range(0.5, True, 575) == (0, 575, 1)
    # Every second patch, of which patch 2 is kept anyway.
    assert still_images.sampled_patches(torch.tensor([[2]]), 1 / 6, True, 7).tolist() == [[2, 0, 4, 6]]
    assert still_images.sampled_patches(torch.tensor([[5], [1]]), 0.25, False, 6).tolist() == [[5, 2], [1, 2]]
