"""Model families by name, ours and those of other packages; each is imported only when it is used.

A package adds families by the entry point group ``stsimdiff.families``; a user's own file needs no name at all
(``model.family=my_module.MyFamily``). What a family is made of: ``docs/families.md``; what is known of ours before they
are imported: :mod:`stsimdiff.models.info`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stsimdiff.errors import ConfigError
from stsimdiff.models.info import FAMILIES, Info, info
from stsimdiff.registry import Registry

if TYPE_CHECKING:
    from stsimdiff.models.base import Family

__all__ = ["FAMILIES", "Info", "info", "is_own", "names", "options_of", "resolve"]

REGISTRY = Registry(
    "model.family",
    "stsimdiff.families",
    {name: row.cls for name, row in FAMILIES.items()},
    own="my_module.MyFamily",
)
names = REGISTRY.names


def is_own(name: str) -> bool:
    """Whether a family is the user's own: registered by another package, or a dotted path to a class."""
    return name not in FAMILIES


def resolve(name: str) -> type[Family]:
    """The class of a family.

    Args:
        name: a built-in name, one that a package registered, or the dotted path of a class.

    Raises:
        ConfigError: for a name that is unknown, or whose class cannot be imported or is no family.
    """
    cls = REGISTRY.resolve(name)
    from stsimdiff.models.base import Family

    if not (isinstance(cls, type) and issubclass(cls, Family)):
        raise ConfigError(
            f"model.family={name} is no model family; it must be a class derived from stsimdiff.models.base.Family"
        )
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(
            f"model.family={name} lacks {', '.join(missing)}; docs/families.md says what they do"
        )
    return cls


def options_of(name: str) -> Mapping[str, tuple[Any, ...]]:
    """A family's own options in the configuration, and their values: its row's, or what a user's class says."""
    return resolve(name).options if is_own(name) else info(name).options
