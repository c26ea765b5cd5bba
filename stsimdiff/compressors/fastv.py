"""FastV: before a shallow layer, keep the video tokens that the text looked at most in the layer before.

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (ECCV 2024); :func:`~stsimdiff.cost.closed_form` is its
formula of the cost, section 4.1. Its cut was checked against recorded outputs of the authors' ``LlamaModel.forward``
(pkunlp-icler/FastV d165972, the branch that drops tokens in place), with ``queries: last``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run, top
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Layout, Reason, Selection, VideoTokens


@dataclass(frozen=True)
class FastV(Compressor):
    """Prune once, by attention.

    Fidelity: selections equal recorded outputs of the authors' code, and whole answers those of its wiring into
    LLaVA-Video by FrameFusion's authors. The number of tokens follows from the budget.

    Attributes:
        layer: the first layer that sees fewer tokens, at least 1; the attention is that of ``layer - 1``.
        queries: whose attention counts: that of the ``last`` prompt token, as published, or the mean over
            ``all``.
    """

    fidelity: ClassVar[str] = "official"
    reads_question: ClassVar[bool] = False

    layer: Annotated[int, Field(ge=1, examples=[2])] = 2
    queries: Literal["last", "all"] = "last"

    flops = Compressor.no_flops

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
        return _Run(self, layout, budget)


def select(attention: Tensor, count: int) -> Selection:
    """The ``count`` tokens with the highest attention, mean over the heads; a tie goes to the lower index.

    Args:
        attention: ``(heads, n)`` attention to the video tokens present.
        count: tokens to keep.
    """
    return Selection.from_mask(top(attention.float().mean(0), count), Reason.IMPORTANT)


class _Run(Run):
    def __init__(self, method: FastV, layout: Layout, budget: Budget) -> None:
        self.places = Places(
            before=frozenset({method.layer}),
            attention=frozenset({method.layer - 1}),
            queries=method.queries,
        )
        tokens = layout.grid.tokens
        self.count = budget.keep(tokens, layout.layers, [tokens] * method.layer)

    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
        tokens.check_finite(f"FastV, before layer {layer}")
        if attention is None:
            raise ValueError(f"FastV needs the attention of layer {layer - 1}")
        return select(attention, self.count)
