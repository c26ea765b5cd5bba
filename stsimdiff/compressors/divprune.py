"""DivPrune: tokens as far from each other as possible, chosen one after the other over the whole video.

Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models" (CVPR 2025, arXiv
2503.02175), its greedy solution of the max-min diversity problem. :func:`choose` was checked against recorded outputs
of the authors' ``LlavaMetaForCausalLM.DivPrune`` (vbdi/divprune 799e2d9), which was given all tokens of a video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Positions, Run
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens

AHEAD = 128
"""Tokens among which choices are made before all distances are brought up to date."""


@dataclass(frozen=True)
class DivPrune(Compressor):
    """Begin with the most isolated token, and add the one that is farthest, by cosine, from all chosen ones.

    There is no budget for each frame: frames with little that is new get few tokens. Newline tokens, being equal, count
    as one token until all others are chosen.

    Fidelity: choices equal recorded outputs of the authors' code, whose release has no video path: it was given all
    tokens of a video. Their code may choose a token again once the others are all alike, and puts it into the prompt
    twice; here chosen tokens are out. Theirs numbers positions anew.

    Attributes:
        positions: ``kept``, or ``renumbered`` as released.
        as_released: a token may be chosen again. It stands once in the prompt all the same, so fewer tokens are kept.

    Raises:
        ConfigError: when ``as_released`` is neither true nor false.
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    positions: Positions = "kept"
    as_released: bool = False

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, budget.keep(layout.grid.tokens, layout.layers))


@dataclass(frozen=True)
class Choice:
    """Which tokens were chosen, and why.

    Attributes:
        order: ``(K,)`` int64 in the order of choice.
        first: ``(n,)`` distance of each token to the nearest other one, of which the largest is chosen first.
        step: ``(K,)`` winning distance of each step.
        last: ``(n,)`` distances to the nearest chosen token, of which the largest was chosen last.
    """

    order: Tensor
    first: Tensor
    step: Tensor
    last: Tensor


def choose(features: Tensor, count: int, as_released: bool = False) -> Choice:
    """The ``count`` most diverse tokens (the paper's algorithm 1); the lower index wins a tie.

    Args:
        features: ``(n, D)``, compared in float32 at least.
        count: how many; at most n, unless a token may be chosen again.
        as_released: do not leave chosen tokens out, and normalise zero tokens to NaN.

    Raises:
        ValueError: as released, for a single token, which has no nearest other.
    """
    unit = graph.unit(features, guarded=not as_released)
    n = len(unit)
    if n == 1:
        if as_released:
            raise ValueError("DivPrune as released needs two tokens: one has no nearest other")
        nothing = unit.new_zeros(1)
        return Choice(
            torch.zeros(count, dtype=torch.int64, device=unit.device), nothing, nothing[:count], nothing
        )
    first = unit.new_empty(n)
    for start, block in graph.products(unit):
        nearest = torch.topk(block.neg_().add_(1), 2, dim=1, largest=False).values[:, 1]
        first[start : start + len(block)] = nearest
    order: list[int] = []
    steps: list[float] = []
    score, applied = first, 0

    def applied_up_to(end: int) -> Tensor:
        chosen = torch.tensor(order[applied:end], dtype=torch.int64, device=unit.device)
        distance = 1 - (unit @ unit[chosen].T).amax(1)
        distance = torch.minimum(score, distance) if applied else distance
        return distance if as_released else distance.index_fill(0, chosen, -torch.inf)

    while len(order) < count:
        if len(order) > applied:
            score, applied = applied_up_to(len(order)), len(order)
        order.append(int(score.argmax()))
        steps.append(float(score[order[-1]]))
        if applied:
            _choose_ahead(unit, score, order, steps, count, as_released)
    last = score if len(order) <= applied + 1 else applied_up_to(len(order) - 1)
    chosen = torch.tensor(order, dtype=torch.int64, device=unit.device)
    return Choice(chosen, first, first.new_tensor(steps), last)


def _choose_ahead(
    unit: Tensor, score: Tensor, order: list[int], steps: list[float], count: int, as_released: bool
) -> None:
    """After the last choice, those that follow it among the farthest tokens, as long as no other token can be farther.

    Distances only fall: that of the farthest other token, when all were up to date, is an upper bound. So products
    with all tokens are made for many choices at once, which the result does not show.
    """
    size = min(AHEAD, unit.shape[1], len(unit) - 1)
    values, near = torch.topk(score, size + 1)
    group = torch.cat((near[:-1], near.new_tensor([order[-1]]))).unique()
    # On the host, which would otherwise wait for a GPU at every choice.
    apart, distance = (1 - unit[group] @ unit[group].T).cpu().numpy(), score[group].cpu().numpy()
    bound, tokens = float(values[-1]), group.tolist()
    at, end = tokens.index(order[-1]), min(count, len(order) + size - 1)
    while len(order) < end:
        distance = np.minimum(distance, apart[at])
        if not as_released:
            distance[at] = -np.inf
        at = int(distance.argmax())
        if not distance[at] > bound:
            return
        order.append(tokens[at])
        steps.append(float(distance[at]))


class _Run(Run):
    places = Places(input=True)

    def __init__(self, method: DivPrune, count: int) -> None:
        self.method, self.count = method, count

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite("DivPrune, input of layer 0")
        mask = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.features.device)
        if self.count == len(tokens) and not self.method.as_released:
            return Selection.from_mask(~mask, Reason.ALL)
        mask[choose(tokens.features, self.count, self.method.as_released).order] = True
        return Selection.from_mask(mask, Reason.REPRESENTATIVE)
