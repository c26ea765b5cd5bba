"""DART: keep what is least like a few pivots, and so no token twice.

Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More" (EMNLP 2025,
arXiv 2502.11494). Selections and whole runs were checked against recorded outputs of the authors' code (ZichenWen1/DART
5a19452).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Layout, Reason, Selection, VideoTokens
from stsimdiff.trace import Trace


@dataclass(frozen=True)
class DART(Compressor):
    """Before a shallow layer: pivots are the tokens with the largest keys; each takes the tokens least like it.

    Pivots are tokens of the video, which stay, and of the text after it. How many tokens each takes follows from the
    budget; the first ones take the rest of the division.

    Fidelity: with ``as_released=true`` selections equal recorded outputs of the authors' code, which rounds down to
    the same number for each pivot, and takes the pivots in the order of a hash table, so that the place of the video
    in the prompt decides. Here, by default, they come by the size of their keys, those of the video first.

    Attributes:
        layer: the first layer that sees fewer tokens, at least 1; the keys are those of ``layer - 1``.
        pivot_image_token: pivots of the video, at least 1.
        pivot_text_token: pivots of the text after it.
        as_released: the authors' order of the pivots, and their number of tokens for each.

    Raises:
        ConfigError: for any value that is unknown or out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    layer: Annotated[int, Field(ge=1, description="1, 2, ...", examples=[2])] = 2
    pivot_image_token: Annotated[int, Field(ge=1, description="1, 2, ...", examples=[4])] = 4
    pivot_text_token: Annotated[int, Field(ge=0, description="0, 1, ...", examples=[4])] = 4
    as_released: bool = False

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is None:
            return
        if self.layer >= layers:
            raise ConfigError(
                f"compressor.layer={self.layer} does not exist in a model of {layers} layers; "
                f"allowed: 1 to {layers - 1}"
            )
        used = self.layer / layers
        if budget.kind == "compute" and used >= budget.retention:
            raise BudgetError(
                f"budget.retention={budget.retention:g} of kind compute cannot be met: all video tokens enter "
                f"the first {self.layer} of {layers} layers, which alone costs {used:.3f}; use a "
                f"lower compressor.layer, a retention above {used:.3f}, or budget.kind=tokens"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return DARTRun(
            self, layout, budget.keep(layout.grid.tokens, layout.layers, [layout.grid.tokens] * self.layer)
        )

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """All tokens and the pivots through the layer's norm, their lengths, and products with the pivots.

        Of the keys, which are few values beside a token's, nothing.
        """
        if trace.final == grid.tokens:
            return 0
        pivots = min(self.pivot_image_token, trace.final) + min(self.pivot_text_token, trace.text)
        return width * (2 * pivots * grid.tokens + 6 * (grid.tokens + pivots))


def key_norms(keys: Tensor) -> Tensor:
    """``(n,)`` float32 sums of the absolute values of keys ``(n, heads, d)``."""
    return keys.float().abs().sum((1, 2))


def largest(norms: Tensor, count: int) -> Tensor:
    """Rows of the ``count`` largest, the largest first; of equal ones the lower row."""
    return torch.sort(norms, descending=True, stable=True).indices[:count]


def cosines(states: Tensor, pivots: Tensor) -> Tensor:
    """``(P, n)`` float32 cosines of pivots ``(P, D)`` and tokens ``(n, D)``."""
    states, pivots = states.float(), pivots.float()
    dots = pivots @ states.T
    lengths = pivots.norm(dim=1).clamp(min=1e-8)[:, None] * states.norm(dim=1).clamp(min=1e-8)
    return dots / lengths


def take(similarity: Tensor, shares: Sequence[int], free: Tensor) -> list[Tensor]:
    """Rows that each pivot takes in its turn: the least similar that are left, the least first.

    Args:
        similarity: ``(P, n)``.
        shares: how many tokens each takes.
        free: ``(n,)`` bool, the tokens that may be taken.
    """
    free, taken = free.clone(), []
    for row, share in zip(similarity, shares, strict=True):
        order = torch.sort(row.masked_fill(~free, torch.inf), stable=True).indices[:share]
        free[order] = False
        taken.append(order)
    return taken


def released_order(places: Sequence[int]) -> list[int]:
    """Turns of the pivots at these places of the prompt in the authors' code: those of a set of the places."""
    return [list(places).index(place) for place in set(places)]


class DARTRun(Run):
    """Keeps so many tokens.

    Args:
        method: with its parameters.
        layout: of the prompt.
        count: tokens to keep.
    """

    def __init__(self, method: DART, layout: Layout, count: int) -> None:
        self.method, self.layout, self.count = method, layout, count
        self.places = Places(before=frozenset({method.layer}), reads=frozenset({method.layer - 1}))

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        tokens.check_finite(f"DART, before layer {layer}")
        if self.count >= len(tokens):
            return None
        method, view = self.method, tokens.view
        if view is None:
            raise ValueError(f"DART needs the keys of layer {layer - 1}")
        text = self.layout.places("after")
        image = largest(key_norms(view.keys(layer - 1)), min(method.pivot_image_token, self.count))
        words = text.to(image.device)[largest(key_norms(view.keys(layer - 1, text)), method.pivot_text_token)]
        states = view.normed(tokens.features)
        pivots = torch.cat((states[image], view.normed(view.states(words)).to(states)))
        return self.select(states, pivots, image, words)

    def select(self, states: Tensor, pivots: Tensor, image: Tensor, words: Tensor) -> Selection:
        """The image pivots, and the tokens that all pivots take.

        Args:
            states: ``(n, D)`` of the video tokens.
            pivots: ``(P, D)``, those of the video first.
            image: rows of the image pivots.
            words: places in the prompt of the text pivots.
        """
        number = len(pivots)
        each, rest = divmod(self.count - len(image), number)
        turns = list(range(number))
        if self.method.as_released:
            rest = 0
            turns = released_order([*self.layout.video[image.cpu()].tolist(), *words.tolist()])
        reason = torch.zeros(len(states), dtype=torch.uint8, device=states.device)
        reason[image] = int(Reason.REPRESENTATIVE)
        shares = [each + (turn < rest) for turn in range(number)]
        for rows in take(cosines(states, pivots)[turns], shares, reason == 0):
            reason[rows] = int(Reason.CONTEXTUAL)
        return Selection.from_mask(reason > 0, reason)
