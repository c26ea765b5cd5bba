"""How large the public benchmarks are, as their authors say: what a plan rests on before the data is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSize:
    """The size of one benchmark.

    Attributes:
        questions: how many.
        videos: how many they are about.
        hours: length of all videos together.
        source: who says so.
    """

    questions: int
    videos: int
    hours: float
    source: str


PUBLISHED = {
    "videomme": PublishedSize(2700, 900, 254.0, "arXiv 2405.21075"),
    "longvideobench": PublishedSize(1337, 752, 98.8, "arXiv 2407.15754, at its mean of 473 s"),
    "egoschema": PublishedSize(500, 500, 25.0, "arXiv 2308.09126, 180 s each"),
    "egoschema_full": PublishedSize(5031, 5031, 251.55, "arXiv 2308.09126, 180 s each"),
}
"""By name. Of MLVU's splits no number of videos was found, so a plan for them needs the data."""
FRAME = (720, 1280)
"""Height and width that a plan assumes of their frames; it matters to models that keep a video's shape only."""
FPS = 30
CHARACTERS = 400
"""Characters that a plan assumes of a question with its options."""
