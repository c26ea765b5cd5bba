"""The embedded benchmark `clips`: generated videos with questions, and a tiny model trained to answer them.

Everything is made from seeds; nothing is downloaded. `build` writes the evaluation set, `questions` lists it. What is
known of the data of a task whose `metadata` names this module: `FAMILIES`, `revision`, `planned` and `moment`.
"""

from pathlib import Path
from typing import Any

from stsimdiff.data import cache_folder

from .dataset import GENERATOR_VERSION, build, build_long, questions
from .moments import moment
from .questions import FAMILIES, prompt
from .rows import FILE, content_revision
from .world import FPS, FRAMES, SIZE

MODEL_PATH = Path(__file__).parent / "model"

__all__ = [
    "FAMILIES", "GENERATOR_VERSION", "MODEL_PATH", "build", "build_long", "moment", "planned", "questions", "revision",
]  # fmt: skip


def revision(data: str | None) -> str | None:
    """The generator's version; of another folder the digest of its questions and videos."""
    return content_revision(Path(data)) if data else GENERATOR_VERSION


def planned(task: str) -> tuple[list[tuple[dict[str, Any], str]], tuple[int, float, int, int]] | None:
    """Rows with the text of each, and frames, seconds, height and width of every video, before they are made.

    `None` where they are made already, and for `long_clips`. What a plan says of them needs no video drawn.
    """
    if task != "clips" or (cache_folder() / f"clips-{GENERATOR_VERSION}" / FILE).is_file():
        return None
    asked = [(row, prompt(row["question"], row["options"])) for row in questions()]
    return asked, (FRAMES, FRAMES / FPS, SIZE, SIZE)
