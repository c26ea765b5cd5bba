"""LLaVA-Scissor: components of both steps, means, reassignment, and the token in whose place each row stands."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stsimdiff.compressors import scissor
from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.conformance.replays import Replay
from stsimdiff.tokens import Grid


class Draws:
    """The recorded orders of sampled tokens, or those that NumPy's generator gives from the recorded seed."""

    def __init__(self, data: Fields) -> None:
        self.drawn: list[np.ndarray] = []
        self.epsilon = float(data["epsilon"])
        self.recorded: list[np.ndarray] = []
        if "spatial_sample_order" in data and "temporal_sample_order" in data:
            self.recorded = [*data["spatial_sample_order"], data["temporal_sample_order"]]
        self.random = np.random.RandomState(data.meta.get("numpy_seed", 0))

    def __call__(self, n: int) -> Tensor:
        """The next order, of a graph of n tokens."""
        if self.recorded:
            order = self.recorded[len(self.drawn)].astype(np.int64)
        else:
            order = self.random.choice(n, scissor.sample_size(n, self.epsilon), replace=False)
        self.drawn.append(order)
        return torch.from_numpy(order)


def replay(data: Fields) -> Arrays:
    """Our outputs: exact components where every token is sampled, else those of the recorded sample."""
    grid = Grid(*data.grid)
    features, tau = torch.from_numpy(data["features"]), float(data["tau"])
    draws = Draws(data)
    steps = scissor.steps(features, grid, tau, False, draws)
    assert steps is not None, "no least number of rows was asked for"
    sampled = len(draws.drawn[0]) < grid.per_frame or len(draws.drawn[-1]) < len(steps.spatial.key)
    if not sampled:
        steps = scissor.steps(features, grid, tau, False) or steps
    owner, out = scissor.reassigned(features, steps.rows, guarded=False)
    rows = len(steps.keep)
    outputs = {
        "spatial_degree": steps.spatial.degree,
        "spatial_component_of": steps.spatial.member,
        "spatial_counts": torch.bincount(steps.spatial.key // grid.per_frame, minlength=grid.frames),
        "spatial_key_idx": steps.spatial.key,
        "spatial_features": steps.spatial_means,
        "temporal_degree": steps.temporal.degree,
        "temporal_component_of": steps.temporal.member,
        "temporal_key": steps.temporal.key,
        "temporal_features": steps.rows,
        "token_to_out": owner,
        "out_members": torch.bincount(owner, minlength=rows),
        "keep_idx": steps.keep,
        "out_features": out,
    }
    arrays = {name: value.numpy() for name, value in outputs.items()}
    return arrays | {
        "spatial_sample_order": np.stack(draws.drawn[:-1]),
        "temporal_sample_order": draws.drawn[-1],
    }


REPLAY = Replay(
    replay,
    inputs="features|n_frames|height|width|tau|epsilon",
    skipped={"token_lead": "says how clear each assignment is"},
)
