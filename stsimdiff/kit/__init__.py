"""A pytest plug-in that says whether a method keeps the contract: ``pytest --compressor my_module.Mine``.

With ``--compressor`` the kit's checks take the place of the tests that pytest would collect by itself; files named on
the command line run too. ``python -m stsimdiff check my_module.Mine`` runs the same checks without pytest. Nothing
heavy is imported before it is asked.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stsimdiff.errors import UserError
from stsimdiff.models.kit import collect, find_own_modules

if TYPE_CHECKING:
    from stsimdiff.compressors.base import Compressor
    from stsimdiff.kit.running import CompressorCase

TESTS = Path(__file__).with_name("test_compressor.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--compressor``; see :mod:`stsimdiff.kit`."""
    parser.getgroup("stsimdiff", "conformance of a compression method").addoption(
        "--compressor",
        metavar="'NAME [PARAMETER=VALUE ...]'",
        help="a method's name, or my_module.Mine, with its parameters: check whether it keeps the contract",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check ``--compressor`` before anything is collected, and add the checks to what is."""
    if config.getoption("--compressor") is None:
        return
    find_own_modules()
    try:
        named_compressor(shlex.split(config.getoption("--compressor")))
    except UserError as error:
        raise pytest.UsageError(str(error)) from error
    collect(config, TESTS)


@pytest.fixture(scope="session")
def compressor_case(request: pytest.FixtureRequest) -> CompressorCase:
    """The method that ``--compressor`` names."""
    from stsimdiff.kit.running import CompressorCase

    name = request.config.getoption("--compressor")
    if name is None:
        raise pytest.UsageError("these tests are about a method: run them with pytest --compressor NAME")
    return CompressorCase(named_compressor(shlex.split(name)))


def named_compressor(words: list[str]) -> Compressor:
    """A method from its name and its parameters, such as ``["my_module.Mine", "power=2"]``.

    Raises:
        ConfigError: for a method or a parameter that is wrong, and for words that are neither.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from stsimdiff.config.arms import compressor_from
    from stsimdiff.errors import ConfigError

    named = [word for word in words if "=" not in word]
    if len(named) != 1:
        which = f"{len(named)} methods ({', '.join(named)})" if named else "no method"
        raise ConfigError(
            f"one method is checked at a time, got {which}; write my_module.Mine PARAMETER=VALUE"
        )
    written = [word for word in words if "=" in word]
    try:
        overrides = OverridesParser.create().parse_overrides(
            [word.lstrip("+").removeprefix("compressor.") for word in written]
        )
    except OverrideParseException as error:
        raise ConfigError(f"cannot read {error.override!r}; a parameter is written NAME=VALUE") from error
    return compressor_from(named[0], {override.key_or_group: override.value() for override in overrides})
