"""Where the tests find the repository, its documents and recorded outputs, and the miniatures of benchmarks."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINIATURES = ROOT / "tests" / "benchmarks"
GOLDEN = ROOT / "tests" / "golden"
GOLDEN_RUNS = ROOT / "tests" / "golden_e2e"
CHECKPOINT = GOLDEN_RUNS / "llava_video_grid9" / "checkpoint"
"""A tiny LLaVA-Video in the layout that its authors released."""


def recorded(prefix: str) -> list[Any]:
    """The recorded selections whose names begin so, as parameters of a test."""
    found = sorted(GOLDEN.glob(f"{prefix}_*.npz"))
    assert found, f"no {prefix} case in {GOLDEN}"
    return [pytest.param(path, id=path.stem) for path in found]


def code_blocks(page: str, language: str = "python", after: str = "") -> list[str]:
    """The fenced blocks of a page of ``docs/`` in one language, those behind a heading if one is given."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text[text.index(after) :], re.S)
