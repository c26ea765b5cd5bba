"""Shared by the tests of videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.numbered_clips import write
from stsimdiff.video.process import VideoProcess


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 60 frames that carry their number, to be read and not written."""
    return write(tmp_path_factory.mktemp("clip") / "a.mp4")


@pytest.fixture
def process() -> Iterator[VideoProcess]:
    """A process that reads videos, of the test's own."""
    opened = VideoProcess()
    yield opened
    opened.close()
