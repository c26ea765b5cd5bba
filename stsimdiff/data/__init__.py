"""Benchmarks on disk, and where they are kept."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Folder of everything that can be made again: the user's cache folder (``XDG_CACHE_HOME`` is honoured)."""
    return platformdirs.user_cache_path("stsimdiff", appauthor=False)
