"""Checks of single values of the configuration; each message says the value and what is allowed."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast, overload

from omegaconf import DictConfig, OmegaConf

from stsimdiff.errors import ConfigError
from stsimdiff.terminal import UNPRINTABLE

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
MOST_NAME, MOST_PATH = 255, 4000
"""Bytes that file systems allow for a name, and Linux for a path, what is added below it left room for."""
MOST_WHOLE, MOST_NUMBER = 2**63 - 1, 1e300
"""Whole numbers and others that fit into what they are counted with."""

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


def text(name: str, value: Any, form: str = r"(?s).*\S.*", allowed: str = "text") -> str:
    """A text of a form.

    Args:
        name: of the setting, for the message.
        value: what was given.
        form: a pattern that all of it must match; by default any text but blanks.
        allowed: the form in words.
    """
    if not isinstance(value, str) or not re.fullmatch(form, value):
        raise ConfigError(f"{name}={value!r} is out of range; allowed: {allowed}")
    return value


@overload
def path(name: str, value: Any) -> str: ...


@overload
def path(name: str, value: Any, nullable: bool) -> str | None: ...


def path(name: str, value: Any, nullable: bool = False) -> str | None:
    """The path of a folder, ``~`` and environment variables filled in; ``None`` where that is allowed."""
    if value is None and nullable:
        return None
    return expanded(name, text(name, value, allowed=f"the path of a folder{', or null' if nullable else ''}"))


def expanded(name: str, given: str) -> str:
    """A path with ``~`` and ``$VARIABLES`` filled in.

    Raises:
        ConfigError: for an unknown user or variable, and for what can be no path.
    """
    for found in VARIABLE.finditer(given):
        variable = found[1] or found[2]
        if not os.environ.get(variable):
            raise ConfigError(f"{name}={given}: the environment variable {variable} is not set, or empty")
    place = os.path.expanduser(os.path.expandvars(given))
    if place.startswith("~"):
        raise ConfigError(
            f"{name}={given}: there is no user {place.partition('/')[0][1:]}; write the whole path"
        )
    if UNPRINTABLE.search(place):
        raise ConfigError(
            f"{name}={given}: the path holds characters that cannot be shown or stored; use another"
        )
    longest = max(len(os.fsencode(part)) for part in place.split("/"))
    if longest > MOST_NAME or len(os.fsencode(place)) > MOST_PATH:
        raise ConfigError(
            f"{name}={given}: the path is too long; allowed: {MOST_PATH} bytes, {MOST_NAME} for each folder"
        )
    return place


def whole(cfg: DictConfig, key: str, least: int, nullable: bool = False, most: int | None = None) -> Any:
    """A whole number within its bounds, or ``None`` where that is allowed."""
    value = cfg[key]
    if value is None and nullable:
        return None
    wrong = isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_WHOLE
    if wrong or (most is not None and value > most):
        also = (f" to {most}" if most is not None else "") + (" or null" if nullable else "")
        raise ConfigError(f"{key}={value!r} is out of range; allowed: a whole number from {least}{also}")
    return value


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
    found: Any = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
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
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST_NUMBER
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
