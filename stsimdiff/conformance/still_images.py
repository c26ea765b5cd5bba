"""What published methods do with still images and no video goes through; recorded cases need it.

FasterVLM: the mean over the heads and the order of tiles in the prompt, checked against the recorded ``attn_mean``,
``out_source_idx`` and ``out_sizes``. PruMerge: attention without heads, the outlier rule by which it finds its ratio,
and the samples of PruMerge+, checked against ``cls_attn``, ``outlier_*``, ``ratio``, ``topk_idx``, ``sample_*`` and
``idx``. A video has no tiles, and its budget says how many tokens a frame keeps.

:func:`zip_images` and :func:`merge_images` put a batch of images through what each frame of a video goes through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stsimdiff.compressors import prumerge, visionzip


def zip_images(
    hidden: Tensor, metric: Tensor, attention: Tensor, dominant: int, contextual: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """VisionZip: ``(B, 1 + dominant + contextual, d)``, dominant rows and then contextual ones, and what was chosen.

    Args:
        hidden: ``(B, N, d)`` hidden states, CLS first.
        metric, attention, dominant, contextual: as of :func:`~stsimdiff.compressors.visionzip.choose`, which gives the
            other values returned.
    """
    kept, target, source, assignment = visionzip.choose(metric, attention, dominant, contextual)
    first = torch.stack([image[index] for image, index in zip(hidden, kept, strict=True)])
    rows = torch.cat((first, visionzip.merge(hidden, target, source, assignment)), 1)
    return rows, kept, target, source, assignment


def merge_images(
    hidden: Tensor, key: Tensor, attention: Tensor, index: Tensor, neighbours: int = prumerge.NEIGHBOURS
) -> tuple[Tensor, Tensor, Tensor]:
    """PruMerge: add to each kept patch its most similar others, weighted by their attention, and sum up the rest.

    Args:
        hidden: ``(B, N, d)`` features of the patches, without CLS.
        key: ``(B, N, d)`` keys by which patches are compared (cosine).
        attention: ``(B, N)`` of each patch.
        index: ``(B, n)`` kept patches, in the order of the rows; it may hold a patch twice.
        neighbours: patches merged into each; 32 as published.

    Returns:
        ``(B, n + 1, d)``, the last row that of the rest; ``(B, N - n)`` int64, the rest; ``(B, n, 32)`` int64, patches
        merged into each row.

    Raises:
        ValueError: for images that have no more patches than that.
    """
    patches = hidden.shape[1]
    if patches <= neighbours:
        raise ValueError(
            f"PruMerge merges {neighbours} neighbours, so an image needs more patches than {patches}"
        )
    order = torch.arange(index.shape[1] + 1, device=index.device)
    images = []
    for features, its_key, weight, kept in zip(hidden, key, attention, index, strict=True):
        rest, cluster = prumerge.alike(its_key, kept, neighbours)
        sums = prumerge.sums(weight, kept, rest, cluster, order)
        images.append((sums.of(features), rest, cluster))
    rows, rest, cluster = (torch.stack(part) for part in zip(*images, strict=True))
    return rows, rest, cluster


def scores(attention: Tensor) -> Tensor:
    """``(B, N)`` mean over the heads of the CLS query's attention ``(B, heads, 1 + N)``, its own column left out."""
    return attention.mean(1)[:, 1:]


def output_order(keep: Tensor, tile_grid: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The order in which the released code puts the kept patches into the prompt.

    A plain image keeps patch order. A still image cut into tiles comes as its overview, then its tiles' patches by
    their position in the whole mosaic, row by row.

    Args:
        keep: ``(B, T)`` kept patches of each tower image, ascending.
        tile_grid: ``(I, 2)`` rows and columns of tiles of each prompt image; 0, 0 for a plain one.
        height, width: patches of a tower image.

    Returns:
        ``(R,)`` source of each output row (tower image * N + patch), and ``(I,)`` rows of each prompt image.
    """
    patches, count = height * width, keep.shape[1]
    image, sources, sizes = 0, [], []
    for rows, columns in tile_grid.tolist():
        sources.append(keep[image] + image * patches)
        tiles = keep[image + 1 : image + 1 + rows * columns]
        if len(tiles):
            number = torch.arange(len(tiles), device=keep.device)[:, None]
            y = number // columns * height + tiles // width
            x = number % columns * width + tiles % width
            order = (y * columns * width + x).flatten().argsort()
            sources.append((tiles + (image + 1 + number) * patches).flatten()[order])
        image += 1 + len(tiles)
        sizes.append(count * (1 + len(tiles)))
    return torch.cat(sources), torch.tensor(sizes)


def cls_attention(query: Tensor, key: Tensor) -> Tensor:
    """``(B, N)`` attention of the CLS query ``(B, d)`` to the patches of ``key`` ``(B, 1 + N, d)``, CLS first.

    One softmax at full width, without heads; the CLS column is left out and the rest not normalised again.
    """
    return (torch.einsum("bd,bnd->bn", query, key) / key.shape[2] ** 0.5).softmax(1)[:, 1:]


def outlier_bounds(attention: Tensor) -> Tensor:
    """``(3,)`` quartiles Q1 and Q3 of all values of ``(B, N)`` together, and the bound Q3 + 1.5 (Q3 - Q1)."""
    low, high = torch.quantile(
        attention.flatten().float(), torch.tensor([0.25, 0.75], device=attention.device)
    )
    return torch.stack((low, high, high + 1.5 * (high - low)))


def adaptive_ratio(attention: Tensor) -> float:
    """Share of the patches of all images together whose attention ``(B, N)`` lies above the outlier bound."""
    return int((attention.float() > outlier_bounds(attention)[2]).sum()) / attention.numel()


def kept_patches(attention: Tensor, ratio: float) -> Tensor:
    """``(B, int(N * ratio))`` int64: patches by descending attention; a tie goes to the lower index."""
    return prumerge.strongest(attention, int(attention.shape[1] * ratio))


def sampled_patches(kept: Tensor, ratio: float, adaptive: bool, end: int) -> Tensor:
    """``(B, n)``: the kept patches of PruMerge+, evenly spaced samples of the flat index after ``kept`` ``(B, M)``.

    Adaptive: samples every ``int(1 / ratio) / 3`` patches, without those that are kept anyway. Fixed: every
    ``int(1 / ratio)`` patches from half a step on, in every image, so that a patch may be there twice.

    Args:
        kept: patches of the plain form.
        ratio: the ratio in use.
        adaptive: whether it was found by :func:`adaptive_ratio`.
        end: samples lie below it; 575 as published, whose grid has 576 patches.

    Raises:
        ValueError: for a ratio of 0, for adaptive sampling of several images (each has a number of its own), and
            for fixed sampling that does not give as many samples as kept patches, as the published code demands.
    """
    if ratio <= 0:
        raise ValueError("no patch stands out from the others: PruMerge+ has no ratio to sample by")
    start, stop, stride = sample_range(ratio, adaptive, end)
    samples = torch.arange(start, stop, stride, device=kept.device)
    if adaptive:
        if len(kept) != 1:
            raise ValueError(f"adaptive PruMerge+ takes one image at a time, got {len(kept)}")
        return torch.cat((kept, samples[~torch.isin(samples, kept[0])][None]), 1)
    if len(samples) != kept.shape[1]:
        raise ValueError(
            f"{len(samples)} samples for {kept.shape[1]} kept patches; choose a ratio that gives as many"
        )
    return torch.cat((kept, samples.expand(len(kept), -1)), 1)


def sample_range(ratio: float, adaptive: bool, end: int) -> tuple[int, int, int]:
    """Start, end and stride of the samples of PruMerge+; arguments as in :func:`sampled_patches`."""
    step = int(1 / ratio)
    return (0, end, max(1, int(step / 3))) if adaptive else (int(step / 2), end, step)
