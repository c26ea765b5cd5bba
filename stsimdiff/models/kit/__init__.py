"""A pytest plug-in that says whether a model family keeps the contract: ``pytest --family my_module.MyFamily``.

With ``--family`` the kit's checks take the place of the tests that pytest would collect by itself; files named on the
command line run too. Without it the plug-in does nothing, and it imports nothing heavy before it is asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stsimdiff import models
from stsimdiff.errors import UserError

if TYPE_CHECKING:
    from stsimdiff.models.kit.running import FamilyCase

TESTS = Path(__file__).with_name("test_family.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--family`` and its companions; see :mod:`stsimdiff.models.kit`."""
    group = parser.getgroup("stsimdiff", "conformance of a model family")
    group.addoption(
        "--family",
        metavar="NAME",
        help="a family's name, or my_module.MyFamily: check whether it keeps the contract",
    )
    group.addoption(
        "--family-path",
        metavar="FOLDER",
        help="its checkpoint; left out: a built-in family's miniature, or what the class's miniature(folder) makes",
    )
    group.addoption("--family-device", default="auto", help="as model.device (default: auto)")
    group.addoption("--family-dtype", default="float32", help="as model.dtype (default: float32)")
    group.addoption(
        "--family-attention",
        default="sdpa",
        choices=("sdpa", "eager"),
        help="attention backend; the masks of the reference need one that takes them (default: sdpa)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check ``--family`` before anything is collected, and add the checks to what is."""
    name = config.getoption("--family")
    if name is None:
        if config.getoption("--family-path") is not None:
            raise pytest.UsageError("--family-path without --family: which family is it of?")
        return
    find_own_modules()
    try:
        cls = models.resolve(name)
    except UserError as error:
        raise pytest.UsageError(str(error)) from error
    if config.getoption("--family-path") is None and models.is_own(name) and not hasattr(cls, "miniature"):
        raise pytest.UsageError(
            f"--family {name} needs a checkpoint: give --family-path FOLDER, or give {cls.__name__} a static method "
            "miniature(folder) that writes one"
        )
    collect(config, TESTS)


def find_own_modules() -> None:
    """Let modules of the current folder be imported, where a user's lie, as for ``python -m stsimdiff``."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def collect(config: pytest.Config, tests: Path) -> None:
    """Have pytest collect a kit's tests in place of those that it finds by itself; files that were named run too."""
    named = config.args if config.args_source == pytest.Config.ArgsSource.ARGS else []
    config.args = [*named, str(tests)]


@pytest.fixture(scope="session")
def family_case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FamilyCase]:
    """The family that ``--family`` names, loaded, with a video and a prompt."""
    from stsimdiff.models.kit import running

    option = request.config.getoption
    name, path = option("--family"), option("--family-path")
    if name is None:
        raise pytest.UsageError("these tests are about a model family: run them with pytest --family NAME")
    try:
        cls = models.resolve(name)
        if path is None:
            path = str(_miniature(name, tmp_path_factory.mktemp("miniature") / "checkpoint"))
        settings = (option(f"--family-{key}") for key in ("device", "dtype", "attention"))
        family = running.load(cls, path, *settings)
    except UserError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    yield running.FamilyCase.of(family)


def _miniature(name: str, folder: Path) -> Path:
    if not models.is_own(name):
        from stsimdiff.models.kit import miniatures

        return miniatures.make(name, folder)
    folder.mkdir()
    family: Any = models.resolve(name)
    family.miniature(folder)
    return folder
