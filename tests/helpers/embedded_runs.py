"""Runs of the embedded benchmark in the tests' own process: settings and arms from overrides, and stored rows."""

from __future__ import annotations

from pathlib import Path

from helpers.configured import configured
from helpers.written import json_lines
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.launchers.base import configurations

LIMIT = 10

ARMS = (
    "compressor=none budget.retention=1",
    "compressor=no_video budget.retention=1",
    "compressor=random budget.retention=0.3",
    "compressor=uniform_frames budget.retention=0.1",
    "compressor=st_simdiff budget.retention=0.3",
    "compressor=fastv budget.retention=0.5",
    "compressor=fastv budget=compute budget.retention=0.5",
)


def prepared(tmp_path: Path, data: Path, *lines: str, **overrides):
    """Settings and arms, one arm for each line of overrides."""
    common = [f"results={tmp_path}", "run=test", "logger=none", f"benchmark.data={data}", f"limit={LIMIT}"]
    common += [f"{key}={value}" for key, value in overrides.items()]
    made = [configured(*common, *line.split()) for line in lines]
    return made[-1][0], [arm for _, arm in made]


def expanded(tmp_path: Path, data: Path, limit: int, *lines: str, **overrides):
    """Settings and arms of lines that may be sweeps and name classes by dotted paths."""
    words = [f"results={tmp_path}", "run=test", "logger=none", f"benchmark.data={data}", f"limit={limit}"]
    words += [f"{key}={value}" for key, value in overrides.items()]
    listed = ",".join(f"'{line}'" for line in lines)
    (one,) = passes_of(configurations([*words, f"arms=[{listed}]"]))
    return one.settings, list(one.arms.values())


def stored(settings, arm) -> list[dict]:
    path = settings.folder / arm.folder / "answers.jsonl"
    return json_lines(path)
