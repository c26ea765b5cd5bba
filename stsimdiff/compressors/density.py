"""Clustering by density peaks (DPC-kNN), which FastVID, HoliTom, PruneVid and FlashVID share, on a frame's tokens.

The authors' codes add noise to the densities, so that of equal ones one wins by chance. Here the lower index is
denser; where a recorded noise is given, it decides as it did there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Peaks:
    """Densities of ``n`` tokens.

    Attributes:
        distance: ``(n, n)`` Euclidean, over the square root of the width.
        density: ``(n,)`` ``exp(-mean of the squares of the smallest distances)``, the one to itself among them.
        delta: ``(n,)`` distance to the nearest denser token; of the densest, the largest distance there is.
    """

    distance: Tensor
    density: Tensor
    delta: Tensor

    @property
    def score(self) -> Tensor:
        """``(n,)`` what centres are chosen by."""
        return self.delta * self.density

    def centres(self, count: int) -> Tensor:
        """``(count,)`` by descending score; the lower index wins a tie."""
        return torch.sort(self.score, descending=True, stable=True).indices[:count]

    def assigned(self, centres: Tensor) -> Tensor:
        """``(n,)`` number of each token's nearest centre, the lower of equally near ones; a centre has itself."""
        nearest = self.distance[:, centres].argmin(1)
        nearest[centres] = torch.arange(len(centres), device=centres.device)
        return nearest


def peaks(features: Tensor, neighbours: int, noise: Tensor | None = None) -> Peaks:
    """Densities and distances of ``(n, D)`` features in float32.

    Args:
        features: of the tokens.
        neighbours: smallest distances that count, at most n; a token's distance to itself is one of them.
        noise: ``(n,)`` added to the densities, up to 1e-6 as published; equal densities stay equal then.
    """
    x = features.float()
    distance = torch.cdist(x[None], x[None])[0].div_(math.sqrt(x.shape[1]))
    nearest = distance.topk(min(neighbours, len(x)), dim=1, largest=False).values
    density = (-nearest.square().mean(1)).exp()
    if noise is None:
        # The lower index is denser of equal ones.
        rank = torch.sort(density, descending=True, stable=True).indices.argsort()
        denser = rank[None, :] < rank[:, None]
    else:
        density = density + noise
        denser = density[None, :] > density[:, None]
    largest = distance.max() if len(x) else distance.new_zeros(())
    delta = torch.where(denser, distance, largest).amin(1)
    return Peaks(distance, density, delta)
