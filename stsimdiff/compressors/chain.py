"""One method after another: each takes its share of what the budget drops."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff import compressors
from stsimdiff.budget import Budget, share_for
from stsimdiff.compressors.base import Compressor, Hidden, Places, Run
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Layout, Selection, VideoTokens, VisionSignals


@dataclass(frozen=True)
class Chain(Compressor):
    """Methods that act at different places of one forward pass, in their order.

    Of a retention r, the first method leaves r to the power of its share, and the next ones go on from there; with
    equal shares each leaves the same part of what it is given.

    Fidelity: a chain is nobody's published method; each of its methods is what it is alone.

    Attributes:
        methods: names of methods, or mappings of a ``name`` and its parameters; a name with a dot is a class of a
            user's own.
        shares: ``equal``, or the shares of the methods, positive numbers that sum up to 1.

    Raises:
        ConfigError: for an unknown method or parameter, methods that act at one place, and shares that do not fit.
    """

    fidelity: ClassVar[str] = "adapted"

    methods: Sequence[Any] = ("evs", "fastv")
    shares: Sequence[float] | str = "equal"

    def __post_init__(self) -> None:
        if isinstance(self.methods, str) or len(self.methods) < 2:
            raise ConfigError(
                f"compressor.methods={self.methods!r} is no chain; allowed: a list of at least 2 methods; for example "
                "[evs,fastv] or [evs,{name:fastv,layer:3}]"
            )
        object.__setattr__(self, "methods", tuple(self.methods))
        if self.shares != "equal":
            object.__setattr__(self, "shares", tuple(self.shares))
            good = all(
                isinstance(share, (int, float)) and not isinstance(share, bool) and share > 0
                for share in self.shares
            )
            if (
                not good
                or len(self.shares) != len(self.methods)
                or abs(sum(map(float, self.shares)) - 1) > 1e-9
            ):
                raise ConfigError(
                    f"compressor.shares={self.shares!r} do not fit; allowed: equal, or {len(self.methods)} positive "
                    "numbers that sum up to 1"
                )
        parts = tuple(_built(given) for given in self.methods)
        object.__setattr__(self, "parts", parts)
        for name in ("needs_vision", "needs_frames", "remembers"):
            object.__setattr__(self, name, any(getattr(part, name) for part in parts))
        layers = tuple(sorted({number for part in parts for number in part.tower_layers}))
        object.__setattr__(self, "tower_layers", layers)
        named = [type(part).__name__ for part in parts if part.reasons]
        if len(named) > 1:
            raise ConfigError(
                f"compressor.methods: {' and '.join(named)} have reasons of their own; a chain can have one such method"
            )
        object.__setattr__(self, "reasons", next((part.reasons for part in parts if part.reasons), {}))
        renumbered = any(part.positions == "renumbered" for part in parts)
        object.__setattr__(self, "positions", "renumbered" if renumbered else "kept")

    @property
    @override
    def reads_question(self) -> bool:  # type: ignore[override]
        return any(part.reads_question for part in self.parts)

    def _after(self, retention: float) -> list[float]:
        """The share of the tokens that is left after each method."""
        count = len(self.parts)
        shares = [1 / count] * count if self.shares == "equal" else [float(share) for share in self.shares]
        return [*(retention ** sum(shares[: i + 1]) for i in range(count - 1)), retention]

    def _budgets(self, budget: Budget, layers: int, depths: Sequence[int], tokens: int) -> list[Budget]:
        """A budget of tokens for each method, which together meet the one of the chain.

        Args:
            budget: of the chain.
            layers: of the model.
            depths: the first layer that sees fewer tokens, by method; needed for a budget of compute.
            tokens: N.
        """
        if budget.kind == "tokens":
            return [Budget("tokens", share) for share in self._after(budget.retention)]

        def spent(left: Sequence[float]) -> float:
            """Share of the compute before the last method's layers."""
            edges = [0, *depths]
            return sum(
                share * (b - a) / layers for share, a, b in zip([1.0, *left], edges, edges[1:], strict=False)
            )

        def used(share: float) -> float:
            left = self._after(share)
            return spent(left) + left[-1] * (layers - depths[-1]) / layers

        after = self._after(share_for(used, budget.retention))
        counts = [Budget("tokens", share).keep(tokens, layers) / tokens for share in after[:-1]]
        last = (budget.retention - spent(counts)) * layers / (layers - depths[-1])
        return [
            *(Budget("tokens", share) for share in counts),
            Budget("tokens", min(1.0, max(last, 0.5 / tokens))),
        ]

    def _depths(self, runs: Sequence[Run], budget: Budget) -> list[int]:
        """The first layer that sees fewer tokens, by method."""
        found = []
        for part, run in zip(self.parts, runs, strict=True):
            acts = [0] * run.places.input + [*run.places.before] + [layer + 1 for layer in run.places.between]
            if budget.kind == "compute" and len(acts) != 1:
                raise BudgetError(
                    f"budget.kind=compute cannot be met by a chain with {type(part).__name__}, which acts at "
                    f"{len(acts)} places; use budget.kind=tokens"
                )
            found.append(max(acts, default=0))
        if found != sorted(found):
            raise ConfigError(
                f"compressor.methods={list(self.methods)!r} are not in the order in which they act (layers {found})"
            )
        return found

    @override
    def check(self, budget: Budget, layers: int | None = None) -> None:
        if layers is None:
            return
        for part in self.parts:
            part.check(Budget(), layers)
        # A video of no size that matters shows where the methods act.
        grid = Grid(4, 4, 4)
        signals = VisionSignals(torch.ones(grid.tokens), torch.ones(grid.tokens, 1, 2))
        layout = Layout(grid, torch.arange(grid.tokens), grid.tokens + 2, layers, "", signals)
        runs = [part.start(layout, Budget()) for part in self.parts]
        depths = self._depths(runs, budget)
        ChainRun(runs)
        if budget.kind == "compute" and depths[0] / layers >= budget.retention:
            raise BudgetError(
                f"budget.retention={budget.retention:g} of kind compute cannot be met: all video tokens enter the "
                f"first {depths[0]} of {layers} layers; allow more, or use budget.kind=tokens"
            )
        for part, own in zip(self.parts, self._budgets(budget, layers, depths, 10**6), strict=True):
            part.check(own, layers)

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        depths = self._depths([part.start(layout, Budget()) for part in self.parts], budget)
        budgets = self._budgets(budget, layout.layers, depths, layout.grid.tokens)
        return ChainRun([part.start(layout, own) for part, own in zip(self.parts, budgets, strict=True)])


def _built(given: Any) -> Compressor:
    """A method of the chain, from its name or from a mapping."""
    parameters = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = str(parameters.pop("name", ""))
    cls = compressors.resolve(name)
    if not (isinstance(cls, type) and issubclass(cls, Compressor)) or issubclass(cls, Chain):
        raise ConfigError(f"compressor.methods names {name}, which is no method that a chain can have")
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    unknown = sorted(parameters.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"compressor.methods: {name} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    return cls(**parameters)


class ChainRun(Run):
    """The runs of the methods, each asked where it acts.

    Args:
        runs: in their order.

    Raises:
        ConfigError: when two act at one place, or read attention in ways that one pass cannot give both.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        places = [run.places for run in self.runs]
        for name in ("before", "between", "decoding"):
            layers = [layer for each in places for layer in getattr(each, name)]
            if len(layers) != len(set(layers)) or (name == "decoding" and len(layers) > 1):
                raise ConfigError(f"two methods of the chain act {name} one layer; a place is for one method")
        if sum(each.input for each in places) > 1:
            raise ConfigError("two methods of the chain act at the input; a place is for one method")
        reading = [each for each in places if each.attention]
        if any(each.queries != reading[0].queries for each in reading):
            raise ConfigError(
                "methods of the chain read attention of different queries; let them read the same"
            )
        every = sorted(frozenset().union(*(each.attention for each in places)))
        for each in reading:
            for place in [*each.before, *each.between]:
                own = max((layer for layer in each.attention if layer <= place), default=None)
                if own != max((layer for layer in every if layer <= place), default=None):
                    raise ConfigError(
                        f"a method of the chain reads attention of layer {own} at layer {place}, after another has "
                        "read a later layer's; put them in the other order"
                    )

        def union(name: str) -> frozenset[int]:
            return frozenset().union(*(getattr(each, name) for each in places))

        self.places = Places(
            input=any(each.input for each in places),
            before=union("before"),
            between=union("between"),
            attention=union("attention"),
            queries=reading[0].queries if reading else "last",
            reads=union("reads"),
            decoding=union("decoding"),
            watched=union("watched"),
        )
        self.may_be_empty = any(run.may_be_empty for run in self.runs)

    @property
    @override
    def finished(self) -> bool:
        return all(run.finished for run in self.runs)

    def _at(self, name: str, layer: int) -> Run | None:
        """The run that acts at a place, unless it is done."""
        run = next(run for run in self.runs if layer in getattr(run.places, name))
        return None if run.finished and name != "decoding" else run

    @override
    def at_input(self, tokens: VideoTokens) -> Selection | None:
        return next(run for run in self.runs if run.places.input).at_input(tokens)

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        run = self._at("before", layer)
        return run.before_layer(layer, tokens, attention) if run else None

    @override
    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        run = self._at("between", layer)
        return run.between(layer, tokens, attention) if run else None

    @override
    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor | None) -> Hidden | None:
        run = self._at("decoding", layer)
        return run.at_token(layer, step, cached, attention) if run else None
