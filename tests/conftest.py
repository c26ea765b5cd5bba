"""Shared by all tests: one thread a process, so that two cores are enough for two of them and what they start."""

from __future__ import annotations

import functools
import importlib
import linecache
import os
import shutil
import sys
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
def four_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``data``, of four clips with seven questions each."""
    from stsimdiff.data import clips

    return clips.build(tmp_path_factory.mktemp("four"), videos=4)


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """A copy of ``data`` that a test may change."""
    return Path(shutil.copytree(data, tmp_path / "own_data"))


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's miniature, written once; to be read and not written."""
    from stsimdiff.models.kit import miniatures

    root = tmp_path_factory.mktemp("miniatures")
    return functools.cache(lambda family: miniatures.make(family, root / family))


@pytest.fixture
def own_miniature(miniature: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a family's miniature into ``tmp_path``, where a test may change it."""
    return lambda family: Path(shutil.copytree(miniature(family), tmp_path / family))


@pytest.fixture(scope="module", params=sorted(models.FAMILIES))
def case(request: pytest.FixtureRequest) -> FamilyCase:
    """Each family's miniature with a video, the tower's signals and a prompt; loaded once, and left as it was."""
    from stsimdiff.kit import checks

    return checks.miniature(request.param)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that passes for a checkpoint where none is loaded; a test may change it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"text_config": {"num_hidden_layers": 6}}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded fails the test."""
    from stsimdiff.evaluate import session

    monkeypatch.setattr(session, "load_model", lambda settings: pytest.fail("a model was loaded"))


@pytest.fixture
def digest_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory of digests of its own, and files that count as settled at once."""
    from stsimdiff.data import digests

    monkeypatch.setattr(digests, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(digests, "SETTLED", 0)
    monkeypatch.setattr(digests, "_known", {})
    return tmp_path / "cache"


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module of the user's into ``tmp_path``, the current folder, for this test alone to import."""
    written = []

    def forget() -> None:
        for name in written:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        forget()

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    forget()


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | int | None]:
    """Gives the exit code of ``stsimdiff WORDS`` in this process, in ``tmp_path``."""
    from stsimdiff.commands import cli

    def run(*words: str) -> str | int | None:
        monkeypatch.setattr(sys, "argv", ["stsimdiff", *words])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts commands without their imports, each in a process of its own."""
    with Forks(tmp_path_factory.mktemp("commands")) as forks:
        yield forks
