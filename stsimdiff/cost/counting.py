"""Counts the arithmetic of code as it runs: what a compressor of a user's own costs, and a check of our formulas.

``torch.utils.flop_counter`` knows products of matrices alone; the selections of compressors are mostly elementwise
products and sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

from stsimdiff.compressors.base import Hidden, Run, WrappedRun
from stsimdiff.cost.decoder import DecoderShape
from stsimdiff.cost.tower import TowerShape, TowerWork, signal_flops
from stsimdiff.tokens import Selection, VideoTokens, View
from stsimdiff.trace import Trace

ELEMENTWISE = (
    "add",
    "sub",
    "mul",
    "div",
    "addcmul",
    "addcdiv",
    "square",
    "pow",
    "reciprocal",
    "rsqrt",
    "sqrt",
)
"""Operations that cost 1 FLOP for each value they give."""
REDUCING = {
    "sum": 1,
    "mean": 1,
    "linalg_vector_norm": 2,
    "norm": 2,
    "prod": 1,
    "cumsum": 1,
    "var": 3,
    "std": 3,
}
"""Operations that cost so many FLOPs for each value they take."""
WITH_VECTOR = {"mv": 0, "dot": 0, "vdot": 0, "addmv": 1}
"""Products with a vector, which the registry of torch lacks: 2 FLOPs for each value of this argument."""
ADDING = {"index_add": 3, "scatter_add": 3, "_index_put_impl_": 2, "index_put": 2}
"""Operations that add the values of one argument, at this place, to others."""


class ArithmeticCounter(TorchDispatchMode):
    """``with ArithmeticCounter() as counter: ...``; ``counter.flops`` is what ran inside on floating-point tensors.

    Products of matrices and convolutions count as in ``torch.utils.flop_counter``, elementwise arithmetic and
    reductions by the number of their values; comparisons, sorting, copies and special functions count nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function._overloadpacket not in flop_registry:
            # In inference mode operations that consist of others come here whole.
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        packet = function._overloadpacket
        # In-place operations share the name of the others but for the underscore.
        name = packet.__name__.removesuffix("_") if not packet.__name__.startswith("_") else packet.__name__
        if packet in flop_registry:
            self.flops += int(flop_registry[packet](*args, **kwargs, out_val=result))
        elif name == "_cdist_forward":
            self.flops += 2 * _floating(result) * args[0].shape[-1]
        elif name.startswith("_embedding_bag"):
            self.flops += 2 * args[1].numel() * args[0].shape[1]
        elif name in WITH_VECTOR:
            self.flops += 2 * _floating(args[WITH_VECTOR[name]])
        elif name in ELEMENTWISE:
            self.flops += _floating(result)
        elif name in REDUCING:
            self.flops += REDUCING[name] * _floating(args[0])
        elif name in ADDING and (name != "index_put" or (len(args) > 3 and args[3])):
            self.flops += _floating(args[ADDING[name]])
        return result


class _Uncounted:
    """A view whose reads, which the trace has, are not counted a second time.

    Args:
        view: of a place.
        counter: of what the method computes itself.
    """

    def __init__(self, view: View, counter: ArithmeticCounter) -> None:
        self._view, self._counter = view, counter

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._view, name)
        if name not in ("keys", "values", "attention"):
            return method

        def read(*given: Any, **named: Any) -> Any:
            before = self._counter.flops
            try:
                return method(*given, **named)
            finally:
                self._counter.flops = before

        return read


class CountedRun(WrappedRun):
    """A run whose selections are counted as they are made; slower than the run itself, so never used while timing.

    Args:
        run: the run of one video.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.counter = ArithmeticCounter()

    @override
    def at_input(self, tokens: VideoTokens) -> Selection | None:
        with self.counter:
            return self.run.at_input(self._uncounted(tokens))

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        with self.counter:
            return self.run.before_layer(layer, self._uncounted(tokens), attention)

    @override
    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        with self.counter:
            return self.run.between(layer, self._uncounted(tokens), attention)

    def _uncounted(self, tokens: VideoTokens) -> VideoTokens:
        view: Any = tokens.view and _Uncounted(tokens.view, self.counter)
        return replace(tokens, view=view)

    @override
    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor | None) -> Hidden | None:
        # After the first token: no part of what is counted.
        return self.run.at_token(layer, step, cached, attention)

    def flops(
        self,
        trace: Trace,
        decoder: DecoderShape,
        needs_vision: bool = False,
        tower: TowerShape | None = None,
        work: TowerWork | None = None,
    ) -> int | None:
        """What was counted, and the attention that was read for the run; ``None`` where its tower is not known."""
        signals = 0
        if needs_vision:
            if tower is None or work is None:
                return None
            signals = signal_flops(tower, work)
        return self.counter.flops + read_flops(trace, decoder) + signals


def read_flops(trace: Trace, decoder: DecoderShape) -> int:
    """FLOPs of the attention scores that the engine read for a run, and of projections made for that."""
    scores = sum(2 * rows * keys for rows, keys in trace.reads) * decoder.heads * decoder.head_dim
    widths = (decoder.heads + 2 * decoder.key_heads) * decoder.head_dim
    return scores + sum(trace.projected) * 2 * decoder.hidden * widths


def _floating(values: Any) -> int:
    return sum(
        leaf.numel()
        for leaf in tree_leaves(values)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    )
