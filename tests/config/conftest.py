"""Shared by the tests of settings and arms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from stsimdiff.resources import folder


@pytest.fixture
def configure(checkpoint: Path) -> Iterator[Callable[..., DictConfig]]:
    """Composes words into the configuration, with the checkpoint as the model's."""
    with initialize_config_dir(str(folder("configs")), version_base="1.3"):
        yield lambda *words: compose("config", overrides=[f"model.path={checkpoint}", *words])
