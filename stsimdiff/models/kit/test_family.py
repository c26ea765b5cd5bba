"""The checks as tests; collected by ``pytest --family NAME``, see :mod:`stsimdiff.models.kit`."""

from __future__ import annotations

import pytest

from stsimdiff.models.kit import checks
from stsimdiff.models.kit.running import FamilyCase


@pytest.mark.parametrize("name", checks.CHECKS)
def test_family(name: str, family_case: FamilyCase) -> None:
    """One check on the family that was asked for; skipped where it has not what the check is about."""
    try:
        checks.CHECKS[name](family_case)
    except checks.CheckSkipped as reason:
        pytest.skip(str(reason))
