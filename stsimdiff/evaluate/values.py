"""Checks of single values of the configuration; each message says the value and what is allowed."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stsimdiff.errors import ConfigError

ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_]\w*)")
"""A variable of the environment in a value of the configuration."""


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """``"; did you mean x?"`` for the closest of the right names, or an empty string."""
    close = difflib.get_close_matches(wrong, list(right), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def only(group: str, given: dict[str, Any], allowed: Iterable[str]) -> None:
    """Check that a group has these keys, all of them and no others."""
    allowed = list(allowed)
    prefix = f"{group}." if group else ""
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"{prefix}{key} is unknown; allowed: {', '.join(allowed)}{suggestion(key, allowed)}"
            )
    for key in allowed:
        if key not in given:
            raise ConfigError(f"{prefix}{key} is missing; leave out ~{prefix}{key}")


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check that a value is one of those allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(
            f"{name}={value} is unknown; allowed: {', '.join(allowed)}{suggestion(str(value), allowed)}"
        )


def whole(cfg: DictConfig, key: str, least: int, nullable: bool = False, most: int | None = None) -> Any:
    """A whole number within its bounds, or ``None`` where that is allowed."""
    value = cfg[key]
    if value is None and nullable:
        return None
    wrong = isinstance(value, bool) or not isinstance(value, int) or value < least
    if wrong or (most is not None and value > most):
        also = (f" to {most}" if most is not None else "") + (" or null" if nullable else "")
        raise ConfigError(f"{key}={value!r} is out of range; allowed: a whole number from {least}{also}")
    return value


def told(cfg: DictConfig, group: str) -> dict[str, Any]:
    """A group's values as they may be stored: a text taken from the environment stands there as it was written.

    It may be a password or a token. ``"x${oc.env:KEY}"`` stays that, whatever else it refers to is filled in.
    """
    written = OmegaConf.to_container(cfg, resolve=False)
    names = set(ENVIRONMENT.findall(str(written)))
    values = {os.environ[name]: f"${{oc.env:{name}}}" for name in names if os.environ.get(name)}
    found = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
    return {
        key: _hidden(value, values) if "${" in str(written[group][key]) else value
        for key, value in found.items()
    }


def _hidden(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item, values) for item in value]
    if isinstance(value, str):
        for said in sorted(values, key=len, reverse=True):
            value = value.replace(said, values[said])
    return value


def number_above(name: str, value: Any, zero: bool = False) -> float:
    """A finite number above 0, or 0 where that is allowed."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise ConfigError(
            f"{name}={value!r} is out of range; allowed: a number {'from' if zero else 'above'} 0"
        )
    return float(value)


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
