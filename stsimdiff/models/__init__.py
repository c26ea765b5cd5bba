"""Model families by name, ours and those of other packages; each is imported only when it is used.

A package adds families by the entry point group ``stsimdiff.families``; a user's own file needs no name at all
(``model.family=my_module.MyFamily``). What a family is made of: ``docs/families.md``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from stsimdiff.errors import ConfigError

if TYPE_CHECKING:
    from stsimdiff.models.base import Family

GROUP = "stsimdiff.families"
FAMILIES = {
    "internvl": "stsimdiff.models.internvl.InternVL",
    "llava_onevision": "stsimdiff.models.llava_onevision.LlavaOnevision",
    "llava_video": "stsimdiff.models.llava_video.LlavaVideo",
    "nvila": "stsimdiff.models.nvila.NVILA",
    "qwen2_5_vl": "stsimdiff.models.qwen2_5_vl.Qwen25VL",
    "qwen2_vl": "stsimdiff.models.qwen2_vl.Qwen2VL",
    "qwen3_vl": "stsimdiff.models.qwen3_vl.Qwen3VL",
}
"""Name to dotted class path."""
_POSITIONS = {"positions": ("released", "stock")}
_TOKENS = dict.fromkeys(("min_frame_tokens", "max_frame_tokens", "max_video_tokens"), (None, range(1, 2**31)))
OPTIONS: dict[str, Mapping[str, tuple[Any, ...]]] = {
    "llava_video": {"pooling": (None, "bilinear", "average"), "time_instruction": (False, True)},
    "qwen2_5_vl": {**_POSITIONS, **_TOKENS},
    "qwen2_vl": {**_POSITIONS, **_TOKENS},
    "qwen3_vl": _TOKENS,
}
"""Options of single built-in families in the configuration, and their values (a ``range`` stands for every whole number
in it); a family not named here has none."""
PARTS = {"nvila": ("llm", "vision_tower", "mm_projector")}
"""Folders within a checkpoint that a family reads too."""
OWN_READERS = ("llava_video", "nvila")
"""Families that read an original checkpoint by code of ours: ``trust_remote_code`` has no meaning for them."""
RELEASED = {
    "internvl": "OpenGVLab/InternVL3-8B-hf",
    "llava_onevision": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "llava_video": "lmms-lab/LLaVA-Video-7B-Qwen2",
    "nvila": "Efficient-Large-Model/NVILA-8B-Video",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
}
"""A released checkpoint of each family, for the message that says how to get one."""


def names() -> list[str]:
    """Names of all families, built-in ones first."""
    return [*sorted(FAMILIES), *sorted(set(_registered()) - set(FAMILIES))]


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
    dotted = isinstance(name, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name)
    if name in FAMILIES:
        return _imported(FAMILIES[name])
    point = _registered().get(name)
    if point is None and not dotted:
        raise ConfigError(
            f"model.family={name!r} is unknown; allowed: {', '.join(names())}, or a class of your own as "
            "my_module.MyFamily"
        )
    try:
        found = point.load() if point else _imported(name)
    except (Exception, SystemExit) as error:
        # A user's module may do anything on import, end the process included.
        raise ConfigError(
            f"model.family={name} cannot be imported: {type(error).__name__}: {error} (looked in the current folder "
            "and among the installed packages)"
        ) from error
    from stsimdiff.models.base import Family

    if not (isinstance(found, type) and issubclass(found, Family)):
        raise ConfigError(
            f"model.family={name} is no model family; it must be a class derived from stsimdiff.models.base.Family"
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(
            f"model.family={name} lacks {', '.join(missing)}; docs/families.md says what they do"
        )
    return found


def options_of(name: str) -> Mapping[str, tuple[Any, ...]]:
    """A family's own options in the configuration, and their values: ``OPTIONS``, or what a user's class says."""
    return resolve(name).options if is_own(name) else OPTIONS.get(name, {})


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _imported(path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
