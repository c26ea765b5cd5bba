"""Names that stand for classes: those of this package, those that others register, and dotted paths.

Methods, families and video decoders (functions) each have a :class:`Registry`; nothing is imported before it is asked
for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stsimdiff.errors import ConfigError
from stsimdiff.source import own_frame

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
"""The path of a class, as ``my_module.Mine``."""


def imported(setting: str, path: str, hint: Callable[[BaseException], str] = lambda error: "") -> Any:
    """What stands at a dotted path: an attribute of a module, or a module.

    Args:
        setting: the one that names it, for the message.
        path: such as ``my_module.Mine``, of the current folder or an installed package.
        hint: further words of the message about an error.

    Raises:
        ConfigError: when it cannot be imported, whatever the module does on import.
    """
    module, _, name = path.rpartition(".")
    try:
        if not module:
            return importlib.import_module(name)
        around = importlib.import_module(module)
        return getattr(around, name) if hasattr(around, name) else _inner(path, around, name)
    except (Exception, SystemExit) as error:
        where = own_frame(error) or "looked in the current folder and among the installed packages"
        raise ConfigError(
            f"{setting} cannot be imported: {type(error).__name__}: {error}{hint(error)} ({where})"
        ) from error


def _inner(path: str, around: Any, name: str) -> Any:
    spec = importlib.util.find_spec(path) if hasattr(around, "__path__") else None
    return importlib.import_module(path) if spec else getattr(around, name)


@dataclass(frozen=True)
class Registry:
    """Classes of one kind by name.

    Attributes:
        key: the setting that names one, for messages.
        group: entry points by which other packages add theirs.
        builtin: dotted path of each of ours.
        renamed: former names, which stored results may have, and what they are called now.
        own: how the name of a class of the user's own is written, for messages.
    """

    key: str
    group: str
    builtin: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)
    own: str = "my_module.Mine"

    def registered(self) -> dict[str, EntryPoint]:
        """Those of other packages; a name of ours stays ours."""
        return {
            entry.name: entry for entry in entry_points(group=self.group) if entry.name not in self.builtin
        }

    def names(self) -> list[str]:
        """All names, built-in ones first."""
        return [*self.builtin, *sorted(self.registered())]

    def path(self, name: Any) -> str:
        """The dotted path that a name stands for; a dotted path is its own.

        Raises:
            ConfigError: for an unknown name; it lists the right ones and the closest.
        """
        if name in self.builtin:
            return self.builtin[name]
        if point := self.registered().get(name):
            return point.value.replace(":", ".")
        if isinstance(name, str) and DOTTED.fullmatch(name):
            return name
        if name in self.renamed:
            raise ConfigError(f"{self.key}={name} is now called {self.key}={self.renamed[name]}")
        # Only a message needs it: processes that read videos start without pydantic.
        from stsimdiff.schema import suggestion

        raise ConfigError(
            f"{self.key}={name!r} is unknown; allowed: {', '.join(self.names())}, or a class of your own as {self.own}"
            f"{suggestion(str(name), self.names())}"
        )

    def resolve(self, name: Any) -> Any:
        """The class that a name stands for. Raises as :meth:`path` and :func:`imported`."""
        point = None if name in self.builtin else self.registered().get(name)
        hint = f"; it is registered as {point.value}" if point else ""
        return imported(f"{self.key}={name}", self.path(name), lambda error: hint)

    def name_of(self, cls: type) -> str | None:
        """The name that stands for a class, or ``None``."""
        path = f"{cls.__module__}.{cls.__qualname__}"
        for name, known in self.builtin.items():
            if known == path:
                return name
        for name in self.registered():
            # Another package's class that cannot be imported has no say in the name of this one.
            with contextlib.suppress(ConfigError):
                if self.resolve(name) is cls:
                    return name
        return None
