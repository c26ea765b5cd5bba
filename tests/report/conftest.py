"""Shared by the tests of reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.synthetic_run import make
from stsimdiff.report.table import Table


@pytest.fixture(scope="module")
def table(run: Path) -> Table:
    """The table of the file's own ``run``, with the files that a report writes beside it."""
    return make(run, None)
