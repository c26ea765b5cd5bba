"""Typed values: what a field of a dataclass takes is said by its annotation, and one function checks it.

A type, ``Literal`` words, the bounds of a number as in ``Annotated[float, Field(gt=0)]``. ``Field(description=...)``
says in words what is allowed where type and bounds do not; ``Field(examples=[0.8])`` shows a value. A validator that
raises :class:`ConfigError` itself finds the name of the setting in ``info.context``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo

from stsimdiff.errors import ConfigError

T = TypeVar("T")
COLOUR = re.compile("#[0-9A-Fa-f]{6}")
MOST_WHOLE, MOST_NUMBER = 2**63 - 1, 1e300
"""Whole numbers and others that fit into what they are counted with."""
FOUND = {"found": True}
"""Metadata of a field that the configuration does not set: its value is found out."""
WORDS = {bool: "true, false", int: "a whole number", float: "a number", str: "a word", NoneType: "null"}
"""How messages name types."""
RENAMED_KEYS = {"benchmark.families": "benchmark.categories"}
"""Former names of settings, and what they are called now."""
CHECKED = {*WORDS, Any, list, dict, Union, UnionType}
"""What annotations are made of that YAML's values are checked by; a value of any other is taken as it is."""


def _folder(value: str, info: ValidationInfo) -> str:
    path = Path(value).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"{info.context}={value} is no folder that is there; name the folder with the files"
        )
    return str(path.resolve())


Folder = Annotated[str, AfterValidator(_folder)]
"""The annotation of a method's parameter that names a folder whose files it reads, such as weights of its own. What is
in the files, and not where they lie, is part of an arm's identity."""


def folders(cls: type) -> list[str]:
    """The fields of a dataclass that are a :data:`Folder`."""
    return [name for name, (hint, _) in _hints(cls).items() if hint == Folder]


def build(cls: type[T], values: Mapping[str, Any], group: str, **found: Any) -> T:
    """A dataclass from a group of the configuration.

    Args:
        cls: the dataclass.
        values: the group, which has all keys that are not :data:`FOUND`, and no others.
        group: name of the group, for messages.
        found: values of other fields.

    Raises:
        ConfigError: for a key that is unknown or missing, or a value that is not allowed.
    """
    only(group, values, settable(cls))
    return cls(**checked(cls, values, group), **found)


def settle(instance: Any, group: str) -> None:
    """Check a frozen dataclass while it is made, and set each value as its type has it; as :func:`checked`."""
    values = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    for name, value in checked(type(instance), values, group).items():
        object.__setattr__(instance, name, value)


def settable(cls: Any) -> list[str]:
    """The fields of a dataclass that a configuration sets."""
    return [field.name for field in dataclasses.fields(cls) if field.init and not field.metadata.get("found")]


def checked(cls: Any, values: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Values of a dataclass's fields as their types have them: 1 is 1.0 where any number is allowed.

    Raises:
        ConfigError: naming the value and what is allowed.
    """
    hints, prefix = _hints(cls), f"{group}." if group else ""
    return {name: _checked(f"{prefix}{name}", value, *hints[name]) for name, value in values.items()}


def check(name: str, value: Any, hint: Any) -> Any:
    """One value by an annotation, as :func:`checked`."""
    return _checked(name, value, hint, _adapter(hint))


def only(group: str, keys: Iterable[str], allowed: Iterable[str]) -> None:
    """Check that a group has these keys, all of them and no others."""
    keys, allowed = list(keys), list(allowed)
    prefix = f"{group}." if group else ""
    for key in keys:
        if key not in allowed:
            if now := RENAMED_KEYS.get(f"{prefix}{key}"):
                raise ConfigError(f"{prefix}{key} is now called {now}")
            raise ConfigError(
                f"{prefix}{key} is unknown; allowed: {', '.join(allowed)}{suggestion(key, allowed)}"
            )
    for key in allowed:
        if key not in keys:
            raise ConfigError(f"{prefix}{key} is missing; leave out ~{prefix}{key}")


def said(hint: Any) -> str:
    """What an annotation allows, in words."""
    words = _words(hint)
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check that a value is one of those allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(
            f"{name}={value} is unknown; allowed: {', '.join(allowed)}{suggestion(str(value), allowed)}"
        )


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """``"; did you mean x?"`` for the closest of the right names, or an empty string."""
    close = difflib.get_close_matches(wrong, list(right), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _hints(cls: type) -> dict[str, tuple[Any, TypeAdapter[Any] | None]]:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"{cls.__module__}.{cls.__qualname__} has an annotation that cannot be read: {error}"
        ) from error
    return {field.name: (hints[field.name], _adapter(hints[field.name])) for field in dataclasses.fields(cls)}


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False)) if _plain(hint) else None


def _plain(hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(inner[0])
    return origin is Literal or ((origin or hint) in CHECKED and all(map(_plain, inner)))


def _checked(name: str, value: Any, hint: Any, adapter: TypeAdapter[Any] | None) -> Any:
    if adapter is None:
        return value
    most = {int: MOST_WHOLE, float: MOST_NUMBER}.get(type(value))
    if most is not None and most < abs(value) < math.inf:
        raise ConfigError(f"{name}={value!r} is out of range; allowed: at most {most}")
    try:
        return adapter.validate_python(value, context=name)
    except ValidationError:
        pass
    for part in _parts(hint):
        if get_origin(part) is dict and isinstance(value, dict):
            for key, item in value.items():
                check(f"{name}.{key}", item, get_args(part)[1])
    if _chooses(hint):
        one_of(name, written(value), _words(hint))
    shown = [str(example) for mark in _marks(hint) for example in mark.examples or ()]
    example = f"; for example {' or '.join(shown)}" if shown else ""
    raise ConfigError(f"{name}={value!r} is out of range; allowed: {said(hint)}{example}")


def written(value: Any) -> str:
    """A value as YAML spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _marks(hint: Any) -> list[FieldInfo]:
    inner = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return [mark for mark in inner if isinstance(mark, FieldInfo)]


def _parts(hint: Any) -> tuple[Any, ...]:
    """The annotations that a union is made of; any other alone."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(hint) in (Union, UnionType):
        return tuple(inner for part in get_args(hint) for inner in _parts(part))
    return (hint,)


def _chooses(hint: Any) -> bool:
    """Whether an annotation allows names alone, or null."""
    return all(get_origin(part) is Literal or part is NoneType for part in _parts(hint))


def _words(hint: Any) -> list[str]:
    """What an annotation allows."""
    marks = _marks(hint)
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if described := [mark.description for mark in marks if mark.description]:
        return described
    if get_origin(hint) in (Union, UnionType):
        return [word for part in get_args(hint) for word in _words(part)]
    if get_origin(hint) is Literal:
        return [written(value) for value in get_args(hint)]
    bounds = {
        name: getattr(bound, name)
        for mark in marks
        for bound in mark.metadata
        for name in ("gt", "ge", "lt", "le")
        if hasattr(bound, name)
    }
    many = "a list" if get_origin(hint) in (list, Sequence) else str(hint)
    return [_range(hint, bounds) if bounds else WORDS.get(hint, many)]


def _range(kind: type, bounds: Mapping[str, Any]) -> str:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if kind is int:
        least, most = low + ("gt" in bounds), None if high is None else high - ("lt" in bounds)
        return f"a whole number from {least}" + ("" if most is None else f" to {most}")
    if high is None:
        return f"a number {'from' if 'ge' in bounds else 'above'} {low}"
    return f"a number in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"
