"""Shared by the tests of the engine."""

from __future__ import annotations

import pytest

from stsimdiff import models
from stsimdiff.models.kit import running


@pytest.fixture(scope="module", params=sorted(models.FAMILIES))
def eager_case(request: pytest.FixtureRequest, miniature) -> running.FamilyCase:
    """Each family's miniature with a video and a prompt, its attention eager: a stock layer gives its weights."""
    folder = str(miniature(request.param))
    return running.FamilyCase.of(
        running.load(models.resolve(request.param), folder, "cpu", "float32", "eager")
    )
