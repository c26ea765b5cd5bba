"""Optional packages: whether they are here, and which extra of ours brings them. Nothing is imported to find out."""

from __future__ import annotations

import importlib.util

DRAWING = ("matplotlib", "plotly")
"""Packages of the extra ``report``: the figures and the page need them, the tables do not."""


def is_installed(package: str) -> bool:
    """Whether a package could be imported, as far as can be told without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def undrawn() -> str:
    """What a report leaves out here, and how to get it: a sentence, empty where nothing is left out."""
    absent = [package for package in DRAWING if not is_installed(package)]
    if not absent:
        return ""
    return (
        f"figures and report.html are left out, the tables are not: {' and '.join(absent)} "
        f"{'is' if len(absent) == 1 else 'are'} not installed; pip install 'stsimdiff[report]'"
    )
