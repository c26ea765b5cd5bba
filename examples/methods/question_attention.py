"""A question-guided method in fifteen lines: attention that the question's own tokens pay in a layer."""

from dataclasses import dataclass

from stsimdiff.compressors.base import Compressor, Places, Run, top
from stsimdiff.tokens import Read, Reason, Selection

READ = Read("question", heads="mean", over="max", coming=True)


@dataclass(frozen=True)
class QuestionAttention(Compressor):
    """Keeps, at a quarter of the depth, the tokens that a token of the question attends to most."""

    def start(self, layout, budget):
        return AskedRun(layout.layers // 4, layout, budget)


class AskedRun(Run):
    def __init__(self, layer, layout, budget):
        self.places = Places(before={layer}, attention={layer}, queries=READ)
        self.count = budget.keep(layout.grid.tokens, layout.layers, [layout.grid.tokens] * layer)

    def before_layer(self, layer, tokens, attention):  # attention (n,)
        tokens.check_finite("QuestionAttention")
        return Selection.from_mask(top(attention, self.count), Reason.IMPORTANT)
