"""Model families by name; each is imported only when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from stsimdiff.errors import ConfigError

if TYPE_CHECKING:
    from stsimdiff.models.base import Family

FAMILIES = {
    "llava_onevision": "stsimdiff.models.llava_onevision.LlavaOnevision",
    "llava_video": "stsimdiff.models.llava_video.LlavaVideo",
    "nvila": "stsimdiff.models.nvila.NVILA",
    "qwen2_5_vl": "stsimdiff.models.qwen2_5_vl.Qwen25VL",
    "qwen2_vl": "stsimdiff.models.qwen2_vl.Qwen2VL",
}
"""Name to dotted class path."""
_POSITIONS = {"positions": ("released", "stock")}
OPTIONS = {
    "llava_video": {"pooling": (None, "bilinear", "average"), "time_instruction": (False, True)},
    "qwen2_5_vl": _POSITIONS,
    "qwen2_vl": _POSITIONS,
}
"""Options of single families in the configuration, and their values; a family not named here has none."""
RELEASED = {
    "llava_onevision": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "llava_video": "lmms-lab/LLaVA-Video-7B-Qwen2",
    "nvila": "Efficient-Large-Model/NVILA-8B-Video",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct",
}
"""A released checkpoint of each family, for the message that says how to get one."""


def resolve(name: str) -> type[Family]:
    """The class of a family. Raises :class:`ConfigError` with the right names for an unknown one."""
    if name not in FAMILIES:
        raise ConfigError(f"model.family={name!r} is unknown; allowed: {', '.join(sorted(FAMILIES))}")
    module, _, attribute = FAMILIES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
