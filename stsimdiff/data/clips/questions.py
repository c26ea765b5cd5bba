"""The eight categories of questions about a clip: their stems, answers, distractors and the prompt.

`ask` draws one question at random for training; `dataset` fixes stems and options itself for evaluation.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from stsimdiff.data.parsing import LETTERS

from .vocabulary import (
    ANSWER_WORDS,
    COLOR_NAMES,
    CORNERS,
    DIRECTIONS,
    FLASH_SHAPES,
    NUMBERS,
    PLACES,
    STATIC_SHAPES,
)
from .world import Plan

CATEGORIES = ("attr", "flash", "order", "count", "motion", "scene", "change", "mark")
INSTRUCTION = "Answer with the option's letter from the given choices directly."

# What the options of a category are drawn from.
OPTION_POOLS: dict[str, tuple[str, ...]] = {
    "attr": COLOR_NAMES,
    "flash": COLOR_NAMES,
    "order": FLASH_SHAPES,
    "count": NUMBERS,
    "motion": DIRECTIONS,
    "scene": PLACES,
    "change": COLOR_NAMES,
    "mark": CORNERS,
}


@dataclass(frozen=True)
class ClipQuestion:
    """One question: its category, its text without the options, the options and the right one among them."""

    category: str
    stem: str
    options: tuple[str, ...]
    answer: str

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return LETTERS[self.options.index(self.answer)]


def prompt(question: str, options: Sequence[str]) -> str:
    """The text that follows the video in the user's message, in training and in every evaluation."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, INSTRUCTION])


def attr_stem(shape: str) -> str:
    """What asks for the color of a shape that stays."""
    return f"What color is the {shape}?"


def flash_stem(shape: str) -> str:
    """What asks for the color of a shape that flashes."""
    return f"What color is the {shape} that flashes?"


def order_stem(first: bool) -> str:
    """What asks for the shape that flashes first, or last."""
    return f"Which shape flashes {'first' if first else 'last'}?"


def count_stem(shape: str) -> str:
    """What asks how often a shape flashes."""
    return f"How many times does the {shape} flash?"


def motion_stem() -> str:
    """What asks where the ball moves."""
    return "In which direction does the ball move?"


def scene_stem(brief: bool) -> str:
    """What asks for the place of the insert shot (``brief``), or of the main one."""
    return "Which place is shown briefly?" if brief else "Which place is shown at first?"


def change_stem(shape: str, after: bool) -> str:
    """What asks for the color of a shape after it has turned, or before."""
    return f"What color does the {shape} become?" if after else f"What color is the {shape} at first?"


def mark_stem() -> str:
    """What asks for the corner of the small mark."""
    return "In which corner is the small mark?"


def all_stems() -> list[str]:
    """Every stem that a clip can be asked."""
    stems = [attr_stem(shape) for shape in STATIC_SHAPES]
    stems += [stem(shape) for stem in (flash_stem, count_stem) for shape in FLASH_SHAPES]
    stems += [change_stem(shape, after) for after in (True, False) for shape in STATIC_SHAPES]
    stems += [order_stem(True), order_stem(False), scene_stem(True), scene_stem(False)]
    return [*stems, motion_stem(), mark_stem()]


def ask(plan: Plan, category: str, rng: random.Random) -> ClipQuestion:
    """A random question of a category about a plan; distractors are first of all things that the clip shows."""
    flashing = [shape for shape, _ in plan.flashes]
    colors = (
        [color for _, color in plan.static] + list(plan.changing[1:]) + [color for _, color in plan.flashes]
    )
    if category == "attr":
        shape, answer = rng.choice(plan.static)
        return _question(category, attr_stem(shape), answer, rng, shown=colors)
    if category == "flash":
        shape, answer = rng.choice(sorted(set(plan.flashes)))
        return _question(category, flash_stem(shape), answer, rng, shown=colors)
    if category == "order":
        first = rng.random() < 0.5
        return _question(category, order_stem(first), flashing[0 if first else -1], rng, shown=flashing)
    if category == "count":
        return _question(category, count_stem(plan.counted), str(flashing.count(plan.counted)), rng)
    if category == "motion":
        return _question(category, motion_stem(), plan.direction, rng)
    if category == "scene":
        brief = rng.random() < 0.75
        answer, other = (plan.insert_place, plan.place) if brief else (plan.place, plan.insert_place)
        return _question(category, scene_stem(brief), answer, rng, rival=other)
    if category == "change":
        shape, before, after = plan.changing
        becomes = rng.random() < 0.6
        answer, other = (after, before) if becomes else (before, after)
        return _question(category, change_stem(shape, becomes), answer, rng, shown=colors, rival=other)
    if category == "mark":
        return _question(category, mark_stem(), plan.corner, rng)
    raise ValueError(f"no such category: {category!r}; categories are {CATEGORIES}")


def copy_question(rng: random.Random) -> ClipQuestion:
    """ "What is red?": a question that needs no video, with which training teaches how letters are read."""
    pool = OPTION_POOLS[rng.choice(CATEGORIES)] if rng.random() < 0.7 else ANSWER_WORDS
    options = tuple(rng.sample(pool, 4))
    answer = rng.choice(options)
    return ClipQuestion("copy", f"What is {answer}?", options, answer)


def _question(
    category: str,
    stem: str,
    answer: str,
    rng: random.Random,
    shown: Sequence[str] = (),
    rival: str | None = None,
) -> ClipQuestion:
    """Options: the answer, the rival, then at least two (with the rival) that are shown, then any others."""
    wrong = [] if rival is None else [rival]
    shown = [word for word in dict.fromkeys(shown) if word != answer and word not in wrong]
    rng.shuffle(shown)
    wrong += shown[: max(0, 2 - len(wrong))]
    rest = [word for word in OPTION_POOLS[category] if word != answer and word not in wrong]
    options = [answer, *wrong, *rng.sample(rest, 3 - len(wrong))]
    rng.shuffle(options)
    return ClipQuestion(category, stem, tuple(options), answer)
