"""DivPrune: tokens as far from each other as possible, chosen one after the other over the whole video.

Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models" (CVPR 2025, arXiv
2503.02175), its greedy solution of the max-min diversity problem. :func:`choose` was checked against recorded outputs
of the authors' ``LlavaMetaForCausalLM.DivPrune`` (vbdi/divprune 799e2d9), which was given all tokens of a video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff import graph
from stsimdiff.budget import Budget
from stsimdiff.compressors import parameters
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace


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

    fidelity: ClassVar[str] = "adapted"

    positions: str = "kept"
    as_released: bool = False

    def __post_init__(self) -> None:
        parameters.switch("as_released", self.as_released)

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _Run(self, budget.keep(layout.grid.tokens, layout.layers))

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """Norms, all pairs once for the first token, and a product with each chosen one."""
        n = grid.tokens
        if trace.final == n and not self.as_released:
            return 0
        return width * (3 * n + 2 * n * n + 2 * n * (trace.final - 1))


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
    first = torch.cat(
        [torch.topk(1 - block, 2, dim=1, largest=False).values[:, 1] for _, block in graph.products(unit)]
    )
    order = torch.zeros(count, dtype=torch.int64, device=unit.device)
    steps, score = unit.new_zeros(count), first
    for step in range(count):
        if step:
            distance = 1 - unit @ unit[order[step - 1]]
            score = distance if step == 1 else torch.minimum(score, distance)
            if not as_released:
                score[order[step - 1]] = -torch.inf
        order[step] = score.argmax()
        steps[step] = score[order[step]]
    return Choice(order, first, steps, score)


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
