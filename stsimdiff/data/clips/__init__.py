"""The embedded benchmark `clips`: generated videos with questions, and a tiny model trained to answer them.

Everything is made from seeds; nothing is downloaded. `build` writes the evaluation set, `questions` lists it. What is
known of the data of a task whose `metadata` names this module: `CATEGORIES`, `revision`, `planned`, `moment`
and `truth`; `categories` of a world.
"""

from pathlib import Path
from typing import Any

from stsimdiff.data import cache_folder

from .dataset import GENERATOR_VERSION, build, build_long, questions
from .moments import moment, truth
from .questions import CATEGORIES, prompt
from .rows import FILE, content_revision
from .world import FPS, FRAMES, SIZE
from .worlds import WORLDS

__all__ = [
    "CATEGORIES", "GENERATOR_VERSION", "build", "build_long", "categories", "folder", "moment", "planned",
    "questions", "revision", "truth",
]  # fmt: skip


def categories(world: str) -> tuple[str, ...]:
    """The categories of questions of a world of its own."""
    return WORLDS[world].categories


def revision(data: str | None, world: str | None = None) -> str | None:
    """The generator's version, with the world's; of another folder the digest of its questions and videos."""
    if data:
        return content_revision(Path(data))
    return f"{GENERATOR_VERSION}-{world}-{WORLDS[world].version}" if world else GENERATOR_VERSION


def folder(world: str | None = None) -> Path:
    """Where the clips of a world lie, once they are made."""
    return cache_folder() / f"clips-{revision(None, world)}"


def planned(
    task: str, world: str | None = None
) -> tuple[list[tuple[dict[str, Any], str]], tuple[int, float, int, int]] | None:
    """Rows with the text of each, and frames, seconds, height and width of every video, before they are made.

    `None` where they are made already, and for `long_clips`. What a plan says of them needs no video drawn.
    """
    if task != "clips" or (folder(world) / FILE).is_file():
        return None
    rows = [(row, prompt(row["question"], row["options"])) for row in questions(world=world)]
    return rows, (FRAMES, FRAMES / FPS, SIZE, SIZE)
