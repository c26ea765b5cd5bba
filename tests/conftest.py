"""Shared by all tests: one thread a process, so that two cores are enough for two of them and what they start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.forked_commands import Forks

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
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts commands without their imports, each in a process of its own."""
    with Forks(tmp_path_factory.mktemp("commands")) as forks:
        yield forks
