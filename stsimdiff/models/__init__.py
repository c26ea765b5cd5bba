"""Model families by name; each is imported only when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from stsimdiff.errors import ConfigError

if TYPE_CHECKING:
    from stsimdiff.models.base import Family

FAMILIES = {
    "llava_video": "stsimdiff.models.llava_video.LlavaVideo",
    "nvila": "stsimdiff.models.nvila.NVILA",
    "qwen2_5_vl": "stsimdiff.models.qwen2_5_vl.Qwen25VL",
    "qwen2_vl": "stsimdiff.models.qwen2_vl.Qwen2VL",
}
"""Name to dotted class path."""
OPTIONS = {"llava_video": ("pooling", "time_instruction")}
"""What else a family's configuration may hold; a family that is not here has no options of its own."""


def resolve(name: str) -> type[Family]:
    """The class of a family. Raises :class:`ConfigError` with the right names for an unknown one."""
    if name not in FAMILIES:
        raise ConfigError(f"model.family={name!r} is unknown; allowed: {', '.join(sorted(FAMILIES))}")
    module, _, attribute = FAMILIES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
