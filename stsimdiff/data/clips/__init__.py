"""The embedded benchmark `clips`: generated videos with questions, and a tiny model trained to answer them.

Everything is made from seeds; nothing is downloaded. `build` writes the evaluation set, `questions` lists it.
"""

from pathlib import Path

from .dataset import GENERATOR_VERSION, build, build_long, questions
from .questions import FAMILIES

MODEL_PATH = Path(__file__).parent / "model"

__all__ = ["FAMILIES", "GENERATOR_VERSION", "MODEL_PATH", "build", "build_long", "questions"]
