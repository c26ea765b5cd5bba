"""An external scorer with state for each video: a model of its own looks at the frames once for all questions."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import adaptive_avg_pool2d

from stsimdiff.compressors.base import ScoreCompressor


def sharpness(frames):
    """``(T, height, width)``: how much each pixel differs from those beside it. Put a model of your own here."""
    grey = frames.float().mean(-1)
    return grey.diff(dim=1, prepend=grey[:, :1]).abs() + grey.diff(dim=2, prepend=grey[:, :, :1]).abs()


@dataclass(frozen=True)
class ExternalScorer(ScoreCompressor):
    """Keeps the tokens whose part of the frames a scorer outside of the model finds rich."""

    needs_frames: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def score(self, tokens, layout):
        if "scores" not in layout.memory:  # the first question of this video
            layout.memory["scores"] = self.rate(layout)
        return layout.memory["scores"].to(tokens.features.device)

    def rate(self, layout):
        cells, grid = layout.cells(), layout.grid
        picture = layout.picture
        size = (picture.height, picture.width) if picture else (grid.height, grid.width)
        rated = adaptive_avg_pool2d(sharpness(layout.frames)[:, None], size).flatten(1)  # (T, cells)
        # One row of the grid may stand for several frames.
        rows = torch.stack([part.mean(0) for part in rated.tensor_split(grid.frames)])
        scores = torch.zeros(grid.frames, grid.per_frame)
        scores[:, cells] = rows
        return scores.flatten()
