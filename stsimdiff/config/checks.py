"""Checks of single values of the configuration; each message says the value and what is allowed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, Field, ValidationInfo

from stsimdiff.errors import ConfigError
from stsimdiff.schema import MOST_WHOLE
from stsimdiff.terminal import UNPRINTABLE

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
MOST_NAME, MOST_PATH = 255, 4000
"""Bytes that file systems allow for a name, and Linux for a path, what is added below it left room for."""
ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_]\w*)")
"""A variable of the environment in a value of the configuration."""


def group(cfg: DictConfig, key: str) -> dict[str, Any]:
    """A group of the configuration as plain values.

    Raises:
        ConfigError: where it is no group.
        omegaconf.errors.OmegaConfBaseException: for a value that is missing or refers to one that is.
    """
    if not isinstance(cfg[key], DictConfig):
        raise ConfigError(
            f"{key}={cfg[key]!r} is out of range; allowed: keys with values, such as {key}.KEY=VALUE"
        )
    return cast(dict[str, Any], OmegaConf.to_container(cfg[key], resolve=True, throw_on_missing=True))


def _expanded_path(value: str, info: ValidationInfo) -> str:
    return expanded(str(info.context), value)


Folder = Annotated[
    str, Field(pattern=r"\S", description="the path of a folder"), AfterValidator(_expanded_path)
]
"""The path of a folder; ``~`` and environment variables are filled in."""
Name = Annotated[
    str, Field(pattern=r"^\w[\w.-]{0,127}$", description="a name of letters, digits, and . _ - within")
]
Seconds = Annotated[int | float, Field(gt=0, description="a number above 0")]


def expanded(name: str, path: str) -> str:
    """A path with ``~`` and ``$VARIABLES`` filled in.

    Raises:
        ConfigError: for an unknown user or variable, and for what can be no path.
    """
    for match in VARIABLE.finditer(path):
        variable = match[1] or match[2]
        if not os.environ.get(variable):
            raise ConfigError(f"{name}={path}: the environment variable {variable} is not set, or empty")
    place = os.path.expanduser(os.path.expandvars(path))
    if place.startswith("~"):
        raise ConfigError(
            f"{name}={path}: there is no user {place.partition('/')[0][1:]}; write the whole path"
        )
    if UNPRINTABLE.search(place):
        raise ConfigError(
            f"{name}={path}: the path holds characters that cannot be shown or stored; use another"
        )
    longest = max(len(os.fsencode(part)) for part in place.split("/"))
    if longest > MOST_NAME or len(os.fsencode(place)) > MOST_PATH:
        raise ConfigError(
            f"{name}={path}: the path is too long; allowed: {MOST_PATH} bytes, {MOST_NAME} for each folder"
        )
    return place


def failure_limit(value: Any) -> int | str:
    """What ``max_failures`` may be: a number, or a share of the videos as ``2%``.

    Raises:
        ConfigError: for anything else.
    """
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?) ?%", value) if isinstance(value, str) else None
    if share and float(share[1]) <= 100:
        return f"{share[1]}%"
    if type(value) is int and 0 <= value <= MOST_WHOLE:
        return value
    raise ConfigError(
        f"max_failures={value!r} is out of range; allowed: a whole number from 0, or a share of the videos from 0% to "
        "100%, such as 2%"
    )


def told(cfg: DictConfig, group: str) -> dict[str, Any]:
    """A group's values as they may be stored: a text taken from the environment stands there as it was written.

    It may be a password or a token. ``"x${oc.env:KEY}"`` stays that, whatever else it refers to is filled in.
    """
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    names = set(ENVIRONMENT.findall(str(written)))
    values = {os.environ[name]: f"${{oc.env:{name}}}" for name in names if os.environ.get(name)}
    filled_in: Any = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
    return {
        key: _hidden(value, values) if "${" in str(written[group][key]) else value
        for key, value in filled_in.items()
    }


def _hidden(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item, values) for item in value]
    if isinstance(value, str):
        for secret in sorted(values, key=len, reverse=True):
            value = value.replace(secret, values[secret])
    return value


def obstacle(folder: Path) -> str | None:
    """Why files cannot be written into a folder that may not be there yet; ``None``: nothing is in the way.

    Nothing is made; a disk that is full, or forbids what it says to allow, shows only when it is written.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        return (
            f"{place} is {'a link to nothing' if place.is_symlink() and not place.exists() else 'no folder'}"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written"
    return None
