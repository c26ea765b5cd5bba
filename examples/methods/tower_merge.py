"""Tower attention with merging: what is dropped goes on in the token of its frame that is most like it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from stsimdiff.compressors.base import Compressor, Places, Run, top
from stsimdiff.tokens import Reason, Selection


@dataclass(frozen=True)
class TowerMerge(Compressor):
    """Keeps the tokens that the vision tower attends to, and averages the others into them."""

    needs_vision: ClassVar[bool] = True
    reads_question: ClassVar[bool] = False

    def start(self, layout, budget):
        return MergeRun(layout, budget.keep(layout.grid.tokens, layout.layers))


class MergeRun(Run):
    places = Places(input=True)

    def __init__(self, layout, count):
        self.layout, self.count = layout, count

    def at_input(self, tokens):
        tokens.check_finite("TowerMerge")
        kept = top(self.layout.vision.received, self.count)
        features, keys = tokens.features.float(), normalize(self.layout.vision.keys.float().flatten(1))
        total, weight = features.clone(), torch.ones_like(features[:, :1])
        # A frame at a time: no matrix of all pairs of tokens.
        for frame in torch.arange(len(features)).view(self.layout.grid.frames, -1):
            stays, goes = frame[kept[frame].cpu()], frame[~kept[frame].cpu()]
            if len(stays) and len(goes):
                nearest = stays.to(keys.device)[(keys[goes] @ keys[stays].T).argmax(dim=1)]
                total.index_add_(0, nearest, features[goes])
                weight.index_add_(0, nearest, torch.ones_like(weight[goes]))
        merged = (total / weight)[kept].to(tokens.features.dtype)
        reason = torch.full_like(kept, Reason.IMPORTANT, dtype=torch.uint8)
        reason[weight.flatten() > 1] = Reason.MERGED
        return Selection.from_mask(kept, reason, merged)
