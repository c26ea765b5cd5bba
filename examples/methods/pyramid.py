"""A pyramid over three layers that meets a budget of compute: each stage leaves the same share of what it is given."""

from dataclasses import dataclass
from typing import ClassVar

from stsimdiff.budget import share_for
from stsimdiff.compressors.base import Compressor, Places, Run, top
from stsimdiff.errors import BudgetError
from stsimdiff.tokens import Read, Reason, Selection


def plan(tokens, layers, at, budget):
    """Tokens that each stage leaves; the last one meets the budget to a token."""

    def left(share):
        return [max(1, round(tokens * share ** (stage + 1))) for stage in range(len(at))]

    def entering(counts):
        return [([tokens, *counts])[sum(layer >= place for place in at)] for layer in range(layers)]

    if budget.kind == "tokens":
        share = budget.retention ** (1 / len(at))
    else:
        share = share_for(lambda s: sum(entering(left(s))), budget.retention * tokens * layers)
    counts = left(share)
    counts[-1] = budget.keep(tokens, layers, entering(counts)[: at[-1]])
    return [max(count, counts[-1]) for count in counts]


@dataclass(frozen=True)
class Pyramid(Compressor):
    """Drops at a quarter, a half and three quarters of the depth, by the last prompt token's attention."""

    reads_question: ClassVar[bool] = False

    def at(self, layers):
        return [layers * part // 4 for part in (1, 2, 3)]

    def check(self, budget, layers=None):
        if layers is None:
            return
        if self.at(layers)[0] < 1:
            raise BudgetError(f"Pyramid needs a model of at least 4 layers; this one has {layers}")
        plan(10_000, layers, self.at(layers), budget)  # raises for what no video can meet

    def start(self, layout, budget):
        at = self.at(layout.layers)
        return PyramidRun(dict(zip(at, plan(layout.grid.tokens, layout.layers, at, budget), strict=True)))


class PyramidRun(Run):
    def __init__(self, counts):
        self.counts = counts
        read = Read("last", heads="mean", coming=True)
        self.places = Places(before=frozenset(counts), attention=frozenset(counts), queries=read)

    def before_layer(self, layer, tokens, attention):
        tokens.check_finite("Pyramid")
        return Selection.from_mask(top(attention, self.counts[layer]), Reason.IMPORTANT)
