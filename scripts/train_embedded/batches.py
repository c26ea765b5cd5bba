"""Batches of the language model: clips with dropped tokens, and rows of questions about them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stsimdiff.data.clips.questions import ask
from stsimdiff.data.clips.vocabulary import PLACES

from .architecture import WIDTH
from .clips import Clip
from .packing import Prefix
from .recipe import LanguageRecipe
from .rows import COLOR_CATEGORIES, Row, RowBuilder
from .symbols import Codebook

SYMBOLIC_NOISE = 0.04  # of the code, standard deviation


@dataclass
class Batch:
    """video [batch, tokens, 128]; kept [batch, tokens]; ids [batch, rows a clip * length]; the rest a row.

    labels and coordinates (time, row, column, -1 to 1) are those of the kept tokens. options, colors and
    fades are columns of (row, position, target ...), see `rows.Row`.
    """

    video: torch.Tensor
    kept: torch.Tensor
    labels: dict[str, torch.Tensor]
    coordinates: torch.Tensor
    main_place: torch.Tensor
    ids: torch.Tensor
    final: torch.Tensor
    target: torch.Tensor
    word: torch.Tensor
    mark: torch.Tensor
    choice: torch.Tensor
    options: torch.Tensor
    colors: torch.Tensor
    fades: torch.Tensor
    categories: list[str]
    kinds: list[str]

    @property
    def rows(self) -> int:
        """How many questions the batch holds."""
        return len(self.final)


class Batcher:
    """Puts clips and questions about them together into batches."""

    def __init__(self, rows: RowBuilder, prefix: Prefix, codebook: Codebook):
        self.rows, self.prefix, self.codebook = rows, prefix, codebook

    def training_rows(
        self,
        clip: Clip,
        categories: Sequence[str],
        recipe: LanguageRecipe,
        copy_share: float,
        rng: random.Random,
    ) -> list[Row]:
        """A row for each category, some of which are replaced by captions or copy questions."""
        rows = []
        for category in categories:
            if rng.random() < copy_share:
                rows.append(self.rows.copy(rng))
            elif category in COLOR_CATEGORIES and rng.random() < recipe.caption_share:
                rows.append(self.rows.caption(clip.plan, category, rng))
            else:
                open_ = rng.random() < recipe.open_share
                rows.append(self.rows.question(ask(clip.plan, category, rng), clip.plan, open_))
        return rows

    def batch(
        self, clips: Sequence[Clip], tokens: int, rows_of: Callable[[Clip], list[Row]], blind: bool = False
    ) -> Batch:
        """`tokens` visual tokens of each clip survive; with 0 there is no video at all."""
        kept = torch.stack([clip.keep(tokens, blind) if tokens else torch.zeros(0).long() for clip in clips])
        video = [
            clip.tokens(own, self.codebook, SYMBOLIC_NOISE) if tokens else torch.zeros(0, WIDTH)
            for clip, own in zip(clips, kept, strict=True)
        ]
        rows = [row for clip in clips for row in rows_of(clip)]
        length = self.rows.length
        padded = [row.tokens + [0] * (length - len(row.tokens)) for row in rows]

        def columns(name: str, width: int) -> torch.Tensor:
            listed = [(i, *item) for i, row in enumerate(rows) for item in getattr(row, name)]
            return torch.tensor(listed).T if listed else torch.zeros(width, 0, dtype=torch.long)

        return Batch(
            video=torch.stack(video),
            kept=kept,
            labels={
                name: torch.stack(
                    [clip.labels[name][own].long() for clip, own in zip(clips, kept, strict=True)]
                )
                for name in ("insert", "nth")
            },
            coordinates=self.prefix.coordinates()[:, kept].permute(1, 2, 0),
            main_place=torch.tensor([PLACES.index(clip.plan.place) for clip in clips]),
            ids=torch.tensor(padded).view(len(clips), -1),
            final=torch.tensor([row.final for row in rows]),
            target=torch.tensor([row.target for row in rows]),
            word=torch.tensor([row.word for row in rows]),
            mark=torch.tensor([row.mark for row in rows]),
            choice=torch.tensor([row.choice for row in rows]),
            options=columns("options", 3),
            colors=columns("colors", 3),
            fades=columns("fades", 4),
            categories=[row.category for row in rows],
            kinds=[row.kind for row in rows],
        )
