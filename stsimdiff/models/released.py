"""Sizes of a model before its weights are here: from its configuration files, or from those of the released checkpoint.

Of the released checkpoints only what decides sizes is written down, as their ``config.json`` on the hub says it. A plan
that rests on them says so; nothing is loaded from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stsimdiff.cost import ModelShape
from stsimdiff.errors import ConfigError
from stsimdiff.models import RELEASED, resolve
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
"""Qwen/Qwen2-7B, the language model of most released checkpoints below."""
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

QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
"""The language model of Qwen/Qwen3-VL-8B-Instruct."""

CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "llava_video": {
        "config.json": {
            **QWEN2_7B,
            "model_type": "llava",
            "architectures": ["LlavaQwenForCausalLM"],
            "mm_patch_merge_type": "spatial_unpad",
            "mm_newline_position": "grid",
            "mm_spatial_pool_stride": 2,
            "mm_spatial_pool_mode": "bilinear",
        },
        "vision_tower_config.json": SIGLIP_SO400M,
    },
    "llava_onevision": {
        "config.json": {
            "model_type": "llava_onevision",
            "text_config": {**QWEN2_7B, "model_type": "qwen2", "vocab_size": 152000},
            "vision_config": {
                **SIGLIP_SO400M,
                "model_type": "siglip_vision_model",
                "num_hidden_layers": 26,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
    },
    "nvila": {
        "config.json": {
            "model_type": "llava_llama",
            "mm_vision_select_layer": -2,
            "s2": None,
            "text_config": None,
            "video_encoder": '{"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[8, 1, 1]]}',
        },
        "llm/config.json": QWEN2_7B,
        "vision_tower/config.json": {**SIGLIP_SO400M, "image_size": 448},
    },
    "qwen2_vl": {
        "config.json": {
            **QWEN2_7B,
            "model_type": "qwen2_vl",
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4},
        },
        "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 12845056},
    },
    "qwen2_5_vl": {
        "config.json": {
            **QWEN2_7B,
            "model_type": "qwen2_5_vl",
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "out_hidden_size": 3584,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
        "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 12845056},
    },
    "qwen3_vl": {
        "config.json": {
            "model_type": "qwen3_vl",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
            "text_config": QWEN3_8B,
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "out_hidden_size": 4096,
                "patch_size": 16,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        },
        "video_preprocessor_config.json": {"size": {"shortest_edge": 4096, "longest_edge": 25165824}},
    },
    "internvl": {
        "config.json": {
            "model_type": "internvl",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
            "text_config": {**QWEN2_7B, "model_type": "qwen2", "vocab_size": 151674},
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "image_size": [448, 448],
                "patch_size": [14, 14],
            },
        },
    },
}
"""Contents of the configuration files that :meth:`~stsimdiff.models.base.Family.shape_from` reads, by family."""


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
    if name not in CONFIGURATIONS:
        raise ConfigError(
            f"no configuration at model.path={path}, and the sizes of a released {name} are not known here: "
            f"`hf download {RELEASED.get(name, '<org>/<model>')} --include '*.json' --local-dir DIR`, then "
            "model.path=DIR"
        )
    why = f", as there is no configuration at model.path={path}" if path else ""
    return family.shape_from(CONFIGURATIONS[name], options), f"the released {RELEASED[name]}{why}"
