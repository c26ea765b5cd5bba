"""PyramidDrop: at a few depths of the decoder, keep the video tokens that the last prompt token is about to look at.

Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction"
(CVPR 2025, arXiv 2410.17247). Every stage and whole runs were checked against recorded outputs of the authors' code
(Cooperx521/PyramidDrop 6444f30). Its ratios 0.5, 0.25, 0.125 after 8, 16 and 24 of 32 layers are a budget of 12.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stsimdiff.budget import Budget, share_for
from stsimdiff.compressors.base import POSITIONS, Compressor, Places, Run, top
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Layout, Read, Reason, Selection, VideoTokens

QUERIES = ("last", "question")


@dataclass(frozen=True)
class PyramidDrop(Compressor):
    """Drop in stages, each time by the attention of the layer to come, read before that layer runs.

    Each stage leaves the same share of the tokens before it, which follows from the budget.

    Fidelity: with ``positions: renumbered``, selections and whole answers equal recorded outputs of the authors' code,
    which is for images. By default tokens keep their positions, as models with M-RoPE need it. The authors' cut of
    prompts longer than 2,048 tokens, which loses the question, is left out.

    Attributes:
        stages: how many drops there are; they part the decoder into equal pieces.
        layers: ``auto``, or the layers before which tokens are dropped, ascending, as many as there are stages.
        queries: whose attention counts: that of the ``last`` prompt token, as published, or the mean over the
            tokens of the ``question``.
        positions: of the tokens that stay: ``kept``, or ``renumbered`` as published.

    Raises:
        ConfigError: for any value that is unknown or out of range.
    """

    fidelity: ClassVar[str] = "official, adapted"
    reads_question: ClassVar[bool] = False

    stages: Annotated[int, Field(ge=1, description="1, 2, ...", examples=[3])] = 3
    layers: Sequence[int] | str = "auto"
    queries: str = "last"
    positions: str = "kept"

    flops = Compressor.no_flops

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("queries", QUERIES), ("positions", POSITIONS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"compressor.{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}"
                )
        if self.layers == "auto":
            return
        given: Any = self.layers
        whole = isinstance(given, (list, tuple)) and all(_is_int(layer) and layer > 0 for layer in given)
        if not whole or not given or list(given) != sorted(set(given)):
            raise ConfigError(
                f"compressor.layers={given!r} is out of range; allowed: auto, or a list of layers from 1, ascending; "
                "for example [8,16,24]"
            )
        if len(given) != self.stages:
            raise ConfigError(
                f"compressor.layers={list(given)} names {len(given)} layers for compressor.stages={self.stages}; write "
                f"compressor.stages={len(given)}"
            )
        object.__setattr__(self, "layers", tuple(given))

    def at(self, depth: int) -> tuple[int, ...]:
        """Layers before which tokens are dropped in a model of so many layers."""
        if self.layers != "auto":
            return tuple(int(layer) for layer in self.layers)
        return tuple(depth * stage // (self.stages + 1) for stage in range(1, self.stages + 1))

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is None:
            return
        at = self.at(layers)
        if at[0] < 1 or at[-1] >= layers:
            raise ConfigError(
                f"compressor.stages={self.stages} at layers {', '.join(map(str, at))} do not fit a model of {layers} "
                f"layers; allowed: at most {layers - 1} stages, at layers 1 to {layers - 1}"
            )
        used = at[0] / layers
        if budget.kind == "compute" and used >= budget.retention:
            raise BudgetError(
                f"budget.retention={budget.retention:g} of kind compute cannot be met: all video tokens enter the "
                f"first {at[0]} of {layers} layers, which alone costs {used:.3f}; use earlier compressor.layers, a "
                f"retention above {used:.3f}, or budget.kind=tokens"
            )

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        at = self.at(layout.layers)
        return PyramidRun(dict(zip(at, counts(layout, budget, at), strict=True)), self.queries)


def counts(layout: Layout, budget: Budget, at: Sequence[int]) -> list[int]:
    """Tokens that each stage leaves: equal shares of those before it, rounded down; the last meets the budget.

    Args:
        layout: of the prompt.
        budget: to be met.
        at: layers before which the stages are.
    """
    tokens, depth = layout.grid.tokens, layout.layers
    stages = len(at)

    def plan(share: float) -> list[int]:
        # The share is found to rounding alone.
        return [max(1, int(tokens * share**stage + 1e-6)) for stage in range(1, stages + 1)]

    def entering(left: Sequence[int]) -> list[int]:
        """Tokens that enter each layer before the last stage's."""
        present = [tokens, *left]
        return [present[sum(layer >= k for k in at)] for layer in range(at[-1])]

    share = budget.retention ** (1 / stages)
    if budget.kind == "compute":
        share = share_for(
            lambda share: sum(entering(plan(share))) + (depth - at[-1]) * tokens * share**stages,
            budget.retention * tokens * depth,
        )
    left = plan(share)
    last = budget.keep(tokens, depth, entering(left))
    return [max(last, count) for count in left[:-1]] + [last]


class PyramidRun(Run):
    """Leaves so many tokens before each of some layers.

    Args:
        counts: tokens to keep by layer.
        queries: of :class:`~stsimdiff.tokens.Read`.
    """

    def __init__(self, counts: dict[int, int], queries: str) -> None:
        layers = frozenset(counts)
        read = Read(queries, heads="mean", over="mean", coming=True)
        self.places = Places(before=layers, attention=layers, queries=read)
        self.counts = counts

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        tokens.check_finite(f"PyramidDrop, before layer {layer}")
        if attention is None:
            raise ValueError(f"PyramidDrop needs the coming attention of layer {layer}")
        if self.counts[layer] >= len(tokens):
            return None
        return Selection.from_mask(top(attention, self.counts[layer]), Reason.IMPORTANT)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
