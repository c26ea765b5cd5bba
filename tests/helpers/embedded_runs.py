"""Runs of the embedded benchmark in the tests' own process: settings and arms from overrides, and stored rows."""

from __future__ import annotations

import json
from pathlib import Path

from hydra import compose, initialize_config_dir

from stsimdiff.config.arms import arm_from_config
from stsimdiff.config.settings import settings_from_config
from stsimdiff.resources import folder

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
    settings, arms = None, []
    with initialize_config_dir(str(folder("configs")), version_base="1.3"):
        for line in lines:
            config = compose("config", [*common, *line.split()])
            settings = settings_from_config(config)
            arms.append(arm_from_config(config, settings))
    return settings, arms


def stored(settings, arm) -> list[dict]:
    path = settings.folder / arm.folder / "answers.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
