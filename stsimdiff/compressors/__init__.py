"""The list of compression methods by name, ours and those that other packages register.

Nothing is imported until a method is asked for. A package adds methods by the entry point group
``stsimdiff.compressors``; a user's own file needs no name at all
(``compressor._target_=my_module.MyMethod``).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from stsimdiff.errors import ConfigError

GROUP = "stsimdiff.compressors"
BUILTIN: dict[str, str] = {
    "none": "stsimdiff.compressors.controls.NoCompression",
    "no_video": "stsimdiff.compressors.controls.NoVideo",
    "random": "stsimdiff.compressors.controls.RandomTokens",
    "uniform_frames": "stsimdiff.compressors.controls.UniformFrames",
    "spatial_pool": "stsimdiff.compressors.spatial_pool.SpatialPool",
    "temporal_difference": "stsimdiff.compressors.temporal_difference.TemporalDifference",
    "st_simdiff": "stsimdiff.compressors.st_simdiff.STSimDiff",
    "fastv": "stsimdiff.compressors.fastv.FastV",
    "framefusion": "stsimdiff.compressors.framefusion.FrameFusion",
    "visionzip": "stsimdiff.compressors.visionzip.VisionZip",
    "fastervlm": "stsimdiff.compressors.fastervlm.FasterVLM",
    "prumerge": "stsimdiff.compressors.prumerge.PruMerge",
}
"""Name to dotted class path."""
_SHARED = ("stsimdiff.graph", "stsimdiff.compressors.")
"""Modules of ours (a name, or a prefix) that decide what a method keeps."""


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Names of all methods, built-in ones first."""
    return [*BUILTIN, *sorted(set(_registered()) - set(BUILTIN))]


def resolve(name: str) -> type:
    """The class of a method.

    Raises:
        ConfigError: for an unknown name (it lists the right ones and the closest), or one that cannot be
            imported.
    """
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].rpartition(".")
        return getattr(importlib.import_module(module), attribute)
    point = _registered().get(name)
    if point is None:
        close = difflib.get_close_matches(name, names(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"compressor {name!r} is unknown{hint}; allowed: {', '.join(names())}")
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"compressor {name!r} is registered as {point.value} but cannot be imported: {error}"
        ) from error


def code_version(cls: type) -> str:
    """Twelve hex digits that change with the source a method relies on, so that its old answers are not
    reused.

    Hashed are the module of the class, those of its base classes, and what they use, directly or through one
    another, of our ``graph`` and compressors and of the package of the class.

    Raises:
        ConfigError: when the source of the class cannot be read (typed at a prompt, for example).
    """
    prefixes = _SHARED
    if (package := cls.__module__.partition(".")[0]) != "stsimdiff":
        prefixes += (f"{package}.",)
    pending = {base.__module__ for base in cls.__mro__ if base.__module__ not in sys.stdlib_module_names}
    sources: dict[str, str] = {}
    while pending:
        name = pending.pop()
        module = sys.modules[name]
        sources[name] = _source(module, cls)
        pending |= _used_modules(module, prefixes) - set(sources)
    text = "\0".join(f"{name}\0{sources[name]}" for name in sorted(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _source(module: ModuleType, cls: type) -> str:
    """Source of a module, or where it has none (a notebook), of the class in it."""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        pass
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"the source of {cls.__qualname__} cannot be read, so its answers could not be "
            "told from those of another version; put it in a file"
        ) from error


def _used_modules(module: ModuleType, prefixes: tuple[str, ...]) -> set[str]:
    """Names of the modules, of those with such a prefix, that the globals of ``module`` come from."""
    used = {
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        for value in vars(module).values()
    }
    return {
        name for name in used if isinstance(name, str) and name.startswith(prefixes) and name in sys.modules
    }
