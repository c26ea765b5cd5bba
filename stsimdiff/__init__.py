"""Training-free video-token compression for multimodal LLMs: reproduction and comparison at matched budgets.

The Python API (:mod:`stsimdiff.api`) and the methods' classes are attributes of the package: ``from stsimdiff import
load, STSimDiff``. They are imported when they are first used, so that commands that need no model start at once.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
API = ("Model", "compress", "load", "read")


def __getattr__(name: str) -> Any:
    if name in API:
        return getattr(importlib.import_module("stsimdiff.api"), name)
    # Python asks for a submodule here before it imports it; their names are in small letters, those of classes are not.
    module = _methods().get(name) if name[:1].isupper() else None
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *API, *_methods()])


def _methods() -> dict[str, str]:
    """Class name to module of the built-in methods."""
    targets = importlib.import_module("stsimdiff.compressors").BUILTIN.values()
    return {target.rpartition(".")[2]: target.rpartition(".")[0] for target in targets}
