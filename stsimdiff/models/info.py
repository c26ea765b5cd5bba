"""What has to be known of each built-in family before its file, and with it torch, is imported: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Info:
    """A family's row; the defaults are what is known of a user's own family.

    Attributes:
        cls: dotted path of the class.
        released: a released checkpoint, for the message that says how to get one.
        types: ``model_type`` of the checkpoints that it reads.
        architecture: what ``architectures`` must name besides, where the type alone does not tell.
        options: its own keys ``model.*`` and their values; a ``range`` stands for every whole number in it.
        parts: folders within a checkpoint that it reads too.
        original: whether it reads an original checkpoint by code of ours; ``trust_remote_code`` has no meaning then,
            and no stock class answers.
        needed: files that it reads besides those that all do.
        templated: whether the checkpoint's chat template makes the prompt, and not the family's own code.
        tower: whose the configuration of the vision tower is, where the released checkpoint does not hold it.
    """

    cls: str = ""
    released: str = "<org>/<model>"
    types: tuple[str, ...] = ()
    architecture: str | None = None
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    original: bool = False
    needed: tuple[str, ...] = ()
    templated: bool = True
    tower: str | None = None


_PROCESSED = ("tokenizer_config.json", "processor_config.json")
_POSITIONS = {"positions": ("released", "stock")}
_TOKENS = dict.fromkeys(("min_frame_tokens", "max_frame_tokens", "max_video_tokens"), (None, range(1, 2**31)))
FAMILIES = {
    "internvl": Info(
        "stsimdiff.models.internvl.InternVL",
        "OpenGVLab/InternVL3-8B-hf",
        ("internvl",),
        needed=_PROCESSED,
    ),
    "llava_onevision": Info(
        "stsimdiff.models.llava_onevision.LlavaOnevision",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        ("llava_onevision",),
        needed=_PROCESSED,
    ),
    "llava_video": Info(
        "stsimdiff.models.llava_video.LlavaVideo",
        "lmms-lab/LLaVA-Video-7B-Qwen2",
        # The released file says "llava", as LLaVA-1.5 does; files saved by its authors' code say "llava_qwen".
        ("llava_qwen", "llava"),
        architecture="LlavaQwenForCausalLM",
        options={"pooling": (None, "bilinear", "average"), "time_instruction": (False, True)},
        original=True,
        templated=False,
        tower="google/siglip-so400m-patch14-384",
    ),
    "nvila": Info(
        "stsimdiff.models.nvila.NVILA",
        "Efficient-Large-Model/NVILA-8B-Video",
        ("llava_llama", "vila"),
        parts=("llm", "vision_tower", "mm_projector"),
        original=True,
    ),
    "qwen2_5_vl": Info(
        "stsimdiff.models.qwen2_5_vl.Qwen25VL",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        ("qwen2_5_vl",),
        options={**_POSITIONS, **_TOKENS},
    ),
    "qwen2_vl": Info(
        "stsimdiff.models.qwen2_vl.Qwen2VL",
        "Qwen/Qwen2-VL-7B-Instruct",
        ("qwen2_vl",),
        options={**_POSITIONS, **_TOKENS},
    ),
    "qwen3_vl": Info(
        "stsimdiff.models.qwen3_vl.Qwen3VL",
        "Qwen/Qwen3-VL-8B-Instruct",
        ("qwen3_vl",),
        options=_TOKENS,
    ),
}
"""By name, as ``model.family``."""


def info(name: str) -> Info:
    """The row of a family; of a user's own one that says nothing."""
    return FAMILIES.get(name, Info())
