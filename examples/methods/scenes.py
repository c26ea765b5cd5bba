"""Scenes with budgets of their own: a video is cut where its frames change, and a scene that moves more keeps more."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from stsimdiff.compressors.base import ScoreCompressor


@dataclass(frozen=True)
class Scenes(ScoreCompressor):
    """Keeps of each scene the tokens that differ most from its mean frame, more of a scene that moves more."""

    reads_question: ClassVar[bool] = False
    threshold: float = 0.9

    def score(self, tokens, layout):
        frames = tokens.features.float().view(layout.grid.frames, -1, tokens.features.shape[1])
        means = frames.mean(1)
        cut = cosine_similarity(means[1:], means[:-1]) < self.threshold
        scene = torch.cat([cut.new_zeros(1), cut]).cumsum(0)  # (frames,) number of the scene
        scores = []
        for number in range(int(scene[-1]) + 1):
            own = frames[scene == number]
            change = 1 - cosine_similarity(own, own.mean(0, keepdim=True), dim=-1)  # (frames, tokens of one)
            # The best of each scene come first; how fast they fall off says how much the scene keeps.
            order = change.flatten().argsort(descending=True).argsort().float()
            scores.append(-(order + 1) / (1e-3 + change.mean()) / change.numel())
        return torch.cat(scores)
