"""Where a row came from: versions, device, git revision. Written beside every arm's answers."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("stsimdiff", "torch", "transformers", "lmms_eval", "numpy", "decord", "av", "torchcodec")


def provenance(
    model: dict[str, str], seed: int, data: str | None, generation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Versions, device and revisions.

    Args:
        model: what the family says of itself after loading.
        seed: of everything random.
        data: revision of the data.
        generation: what of the checkpoint and of the task decides greedy answers and their length.
    """
    settings = ", ".join(f"{name}={value}" for name, value in (generation or {}).items() if value)
    return {
        "versions": versions(PACKAGES) | {"python": platform.python_version()},
        "device": model["device"],
        "dtype": model["dtype"],
        "attention": model["attention"],
        "device_map": model.get("device_map"),
        "git": git_revision(),
        "seed": seed,
        "data": data,
        "generation": settings or None,
    }


def git_revision() -> str | None:
    """Short revision of the repository that this package lies in, ``+`` behind it if files differ; else ``None``."""
    here = Path(__file__).resolve().parent
    try:
        # The nearest repository may be a stranger's, with the package installed somewhere below it.
        tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        if tracked is None:
            return None
        revision, changes = _git(here, "rev-parse", "--short", "HEAD"), _git(here, "status", "--porcelain")
    except FileNotFoundError:
        return None
    return f"{revision}+" if changes else revision


def _git(folder: Path, *words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Version of each package, ``None`` where it is not installed."""
    return {name: _version(name) for name in packages}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
