"""Shared by all tests: one thread a process, so that two cores are enough for two of them and what they start."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.forked_commands import Forks
from stsimdiff import models

if TYPE_CHECKING:
    from stsimdiff.models.kit.running import FamilyCase

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_configure() -> None:
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow.txt, which take 1.5 seconds or more together on two cores."""
    slow = set(Path(__file__).with_name("slow.txt").read_text().split())
    for item in items:
        if f"{item.path.stem}::{getattr(item, 'originalname', item.name)}" in slow:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of the embedded benchmark and their questions, to be read and not written."""
    from stsimdiff.data import clips

    return clips.build(tmp_path_factory.mktemp("data"), videos=2)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's miniature, written once; to be read and not written."""
    from stsimdiff.models.kit import miniatures

    root = tmp_path_factory.mktemp("miniatures")
    return functools.cache(lambda family: miniatures.make(family, root / family))


@pytest.fixture(scope="module", params=sorted(models.FAMILIES))
def case(request: pytest.FixtureRequest) -> FamilyCase:
    """Each family's miniature with a video, the tower's signals and a prompt; loaded once, and left as it was."""
    from stsimdiff.kit import checks

    return checks.miniature(request.param)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts commands without their imports, each in a process of its own."""
    with Forks(tmp_path_factory.mktemp("commands")) as forks:
        yield forks
