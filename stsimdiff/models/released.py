"""Sizes of a model without its weights: from its configuration files, or from those of the released checkpoint.

Of the released checkpoints each family writes down what decides sizes, as their ``config.json`` on the hub says it. A
plan that rests on them says so; nothing is loaded from them.
"""

from __future__ import annotations

from pathlib import Path

from stsimdiff.cost import ModelShape
from stsimdiff.errors import ConfigError
from stsimdiff.models import info, resolve
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.checkpoint import read_config

QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""Qwen/Qwen2-7B, the language model of most released checkpoints."""
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
"""google/siglip-so400m-patch14-384."""


def planned_shape(name: str, path: str | None, options: LoadOptions) -> tuple[ModelShape, str]:
    """Sizes of a model of a family without its weights, and what they rest on.

    Args:
        name: of the family.
        path: a folder with at least its configuration files; ``None`` or a folder without: the released checkpoint's.
        options: those of the family count.

    Raises:
        ConfigError: for files of another family, and for a family whose released sizes are not known here.
    """
    family = resolve(name)
    folder = Path(path).expanduser() if path else None
    if folder and (folder / family.CONFIGURATIONS[0]).is_file():
        files = {
            file: read_config(folder / file) for file in family.CONFIGURATIONS if (folder / file).is_file()
        }
        try:
            return family.shape_from(files, options), f"the configuration in {folder}"
        except ConfigError as error:
            raise ConfigError(str(error).replace("model.path=''", f"model.path={path!r}")) from error
    if not family.released_files:
        raise ConfigError(
            f"no configuration at model.path={path}, and the sizes of a released {name} are not known here: "
            f"`hf download {info(name).released} --include '*.json' --local-dir DIR`, then "
            "model.path=DIR"
        )
    why = f", as there is no configuration at model.path={path}" if path else ""
    return family.shape_from(family.released_files, options), f"the released {info(name).released}{why}"
