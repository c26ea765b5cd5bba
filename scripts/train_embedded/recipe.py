"""Every number of the training run, in full and as the two-minute smoke run `--quick`."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TowerRecipe:
    """Vision tower: classification of each token, on two grids of each video."""

    steps: int = 1400
    videos: int = 24  # a step, two grids each
    validation_videos: int = 48
    decay_from: float = 0.6
    report_every: int = 50


@dataclass(frozen=True)
class LanguageRecipe:
    """Language model on symbolic videos or on cached features.

    sizes: (from which part of the steps, choices of (video tokens, videos a step)); one choice is drawn
    each step, since a model that has seen one number of tokens cannot count with another.
    """

    steps: int
    sizes: tuple[tuple[float, tuple[tuple[int, int], ...]], ...]
    questions: int = 8  # for each video of a step
    open_share: float = 0.15  # answered by the word instead of the letter
    caption_share: float = 0.3  # of questions about a color: list shapes and colors instead
    copy_share: float = 0.1  # "What is red?", at least; more until it is learned
    choice_from: int = 0  # step from which attention to the right option is supervised
    no_video_every: int = 25  # steps between those that show no video at all
    validation_videos: int = 48
    warmup: int = 20
    decay_from: float = 0.6
    decay_to: float = 0.03
    validate_every: int = 100


@dataclass(frozen=True)
class Recipe:
    """All stages of a training."""

    tower: TowerRecipe
    symbolic: LanguageRecipe
    video: LanguageRecipe
    pool_videos: int = 5200  # cached, after validation videos
    pool_shards: int = 13


FULL = Recipe(
    tower=TowerRecipe(),
    symbolic=LanguageRecipe(
        steps=700,
        choice_from=300,
        sizes=(
            (0.0, ((80, 16), (112, 16))),
            (0.43, ((80, 16), (160, 10), (320, 6), (512, 4))),
        ),
        decay_from=0.8,
        decay_to=0.4,
        validate_every=150,
        validation_videos=32,
    ),
    video=LanguageRecipe(
        steps=2200,
        sizes=((0.0, ((128, 7), (256, 5), (512, 4))),),  # in each of two processes
    ),
)

QUICK = Recipe(
    tower=replace(FULL.tower, steps=8, videos=4, validation_videos=4, report_every=4),
    symbolic=replace(FULL.symbolic, steps=8, validation_videos=4, validate_every=4, no_video_every=3),
    video=replace(FULL.video, steps=8, validation_videos=4, validate_every=4, no_video_every=3),
    pool_videos=40,
    pool_shards=2,
)
