"""The code of a visual token: a fixed vector that says what the token shows.

The vision tower learns to produce it from pixels, and the language model first learns from the code itself,
so that both can be trained at the same time and fit together afterwards.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stsimdiff.data.clips.labels import (
    COLOR_CLASSES,
    DIRECTION_CLASSES,
    PLACE_CLASSES,
    SHAPE_CLASSES,
    TokenLabels,
)

from .architecture import PATCH, WIDTH

CODED = ("shape", "color", "direction", "place")


@dataclass(frozen=True)
class Codebook:
    """embeddings: initial word embeddings [vocabulary, WIDTH]; parts: one table [classes, WIDTH] a label.

    A token's code is the sum of one row of each part. Rows of classes that have a word are that word's
    initial embedding; clutter, which has none, gets rows of its own, and "none" is zero (except for shapes).
    """

    embeddings: torch.Tensor
    parts: dict[str, torch.Tensor]

    def code(self, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """[..., WIDTH] of labels [...]."""
        return sum(self.parts[name][labels[name]] for name in CODED)


def build_codebook(tokenizer: PreTrainedTokenizerFast) -> Codebook:
    """The codes of all labels: a word's is its embedding, which is drawn here too."""
    generator = torch.Generator().manual_seed(123)
    embeddings = torch.randn(len(tokenizer), WIDTH, generator=generator) * 0.1
    wordless = torch.randn(len(SHAPE_CLASSES), WIDTH, generator=generator) * 0.1

    def row(word: str) -> torch.Tensor | None:
        ids = tokenizer.encode(f" {word}", add_special_tokens=False)
        return embeddings[ids[0]] if len(ids) == 1 else None

    parts = {}
    for name, classes in (
        ("color", COLOR_CLASSES),
        ("direction", DIRECTION_CLASSES),
        ("place", PLACE_CLASSES),
    ):
        parts[name] = torch.stack([torch.zeros(WIDTH), *(row(word) for word in classes[1:])])
    rows = [None if word == "none" else row(word) for word in SHAPE_CLASSES]
    parts["shape"] = torch.stack(
        [own if row is None else row for own, row in zip(wordless, rows, strict=True)]
    )
    return Codebook(embeddings, parts)


def label_tensors(labels: TokenLabels) -> dict[str, torch.Tensor]:
    """Labels of all tokens in the order of the model, int64 [tokens] each."""
    return {name: torch.from_numpy(values.reshape(-1)) for name, values in vars(labels).items()}


_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1) * 255
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1) * 255


def patchify(frames: np.ndarray) -> torch.Tensor:
    """uint8 RGB [frames, 112, 112, 3] to [frames / 2 * 256, 294], as `Qwen2VLVideoProcessor` does.

    Written out because the processor itself would take longer than the tower's forward pass.
    """
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() - _MEAN) / _STD
    count, channels, height, width = pixels.shape
    rows, columns = height // (2 * PATCH), width // (2 * PATCH)
    pixels = pixels.view(count // 2, 2, channels, rows, 2, PATCH, columns, 2, PATCH)
    # grid, row, column, row and column inside the merged token, channel, frame, pixel row and column
    return pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(count // 2 * rows * columns * 4, -1)
