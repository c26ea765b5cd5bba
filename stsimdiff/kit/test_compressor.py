"""The checks as tests; collected by ``pytest --compressor NAME``, see :mod:`stsimdiff.kit`."""

from __future__ import annotations

import pytest

from stsimdiff.kit import checks
from stsimdiff.kit.running import CompressorCase


@pytest.mark.parametrize("name", checks.CHECKS)
def test_compressor(name: str, compressor_case: CompressorCase) -> None:
    """One check on the method that was asked for; skipped where it has not what the check is about."""
    try:
        checks.CHECKS[name](compressor_case)
    except checks.CheckSkipped as reason:
        pytest.skip(str(reason))
