"""What the words of a command line make of the configuration, in the tests' own process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from helpers.paths import MINIATURES
from stsimdiff.config.arms import Arm, arm_from_config
from stsimdiff.config.settings import Settings, settings_from_config
from stsimdiff.data.benchmarks import BENCHMARKS
from stsimdiff.evaluate.questions import Question, all_questions, load_task
from stsimdiff.resources import folder


def composed(*words: str, **more: bool) -> DictConfig:
    """The configuration; ``return_hydra_config=True`` keeps Hydra's own part."""
    with initialize_config_dir(str(folder("configs")), version_base="1.3"):
        return compose("config", list(words), **more)


def configured(*words: str) -> tuple[Settings, Arm]:
    """Settings and the arm."""
    config = composed(*words)
    settings = settings_from_config(config)
    return settings, arm_from_config(config, settings)


def on_miniature(benchmark: str, results: Path, *words: str, data: Path = MINIATURES) -> tuple[Settings, Arm]:
    """Settings and an arm of random tokens on the miniature of a public benchmark."""
    common = ["compressor=random", "budget.retention=0.3", "logger=none", f"results={results}", "run=test"]
    return configured(*common, f"benchmark={benchmark}", f"benchmark.data={data / benchmark}", *words)


def public_task(benchmark: str, data: Path) -> tuple[Any, list[Question]]:
    """The task of a public benchmark whose files lie in ``data``, and all its questions."""
    named = {"task": BENCHMARKS[benchmark].task, "tasks": None, "data": str(data)}
    task = load_task(SimpleNamespace(**named, prompt="default", max_new_tokens=None))
    return task, all_questions(task, None, None)
