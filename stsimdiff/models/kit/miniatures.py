"""Miniature checkpoints of the built-in families: random weights in each family's own format, made on the spot.

They answer nothing sensible. They are for trying an installation, and for the kit's checks. ``python -m
stsimdiff.models.kit.miniatures FAMILY FOLDER`` writes one. The tokenizer is that of the embedded model.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from stsimdiff import models
from stsimdiff.errors import ConfigError, UserError
from stsimdiff.models.llava_video import KEYS
from stsimdiff.models.nvila import PROJECTORS, Projector
from stsimdiff.resources import embedded_checkpoint
from stsimdiff.terminal import say

WIDTH, LAYERS = 32, 4
TEXT = dict(
    hidden_size=WIDTH,
    intermediate_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    # The usual 0.02 would make every token much the same, and a wrong one hard to see.
    initializer_range=0.12,
    max_position_embeddings=8192,
    bos_token_id=None,
)
TOWER = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=3)
MROPE = dict(rope_type="default", rope_theta=10000.0)
QWEN_MARK = "<|vision_start|><|video_pad|><|vision_end|>"
"""What the embedded model's chat template writes where a video stands."""


@dataclass(frozen=True)
class Sizes:
    """How large a miniature's parts are, and where its weights are drawn.

    Attributes:
        text: of the language model, as ``Qwen2Config`` calls them.
        tower: of the vision tower, as the family's configuration calls them; empty: tiny ones.
        mrope: M-RoPE sections of the Qwen-VL families, together half of a head.
        dtype, device: of the weights.
    """

    text: Mapping[str, Any] = field(default_factory=lambda: TEXT)
    tower: Mapping[str, Any] = field(default_factory=dict)
    mrope: tuple[int, int, int] = (2, 1, 1)
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @classmethod
    def released(cls, family: str, dtype: torch.dtype, device: str) -> Sizes:
        """The widths of the released checkpoint, with three layers and the small vocabulary."""
        layers = 3
        files = models.resolve(family).released_files
        config = files["config.json"]
        decoder = files.get("llm/config.json") or config.get("text_config") or config
        text = {name: decoder[name] for name in (*TEXT, "head_dim") if name in decoder}
        text |= {"num_hidden_layers": layers, "max_position_embeddings": 131072, "bos_token_id": None}
        vision = files.get("vision_tower_config.json") or files.get("vision_tower/config.json")
        tower = {k: v for k, v in (vision or config["vision_config"]).items() if k != "model_type"}
        tower["depth" if "depth" in tower else "num_hidden_layers"] = layers
        for name, used in (("fullatt_block_indexes", [layers - 1]), ("deepstack_visual_indexes", [0, 1])):
            if name in tower:
                tower[name] = used
        mrope = (24, 20, 20) if family == "qwen3_vl" else (16, 24, 24)
        return cls(text, tower, mrope, dtype, device)


def make(family: str, folder: Path, seed: int = 0, sizes: Sizes | None = None) -> Path:
    """Write the miniature of a built-in family into ``folder``, which is made; the random state stays as it is.

    Args:
        family: the name of a built-in family.
        folder: is made; must not hold anything.
        seed: of the random weights.
        sizes: tiny ones if not given.

    Raises:
        ConfigError: for a family that has none, and for a folder that is not empty.
    """
    if family not in models.FAMILIES:
        raise ConfigError(
            f"there is no miniature of family {family!r}; allowed: {', '.join(models.FAMILIES)}"
        )
    maker = MAKERS.get(family) or models.resolve(family).miniature  # type: ignore[attr-defined]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is no empty folder; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    sizes, dtype = sizes or Sizes(), torch.get_default_dtype()
    drawn = torch.device(sizes.device)
    with (
        torch.random.fork_rng(devices=[] if drawn.type == "cpu" else [drawn], device_type=_forked(drawn)),
        drawn,
    ):
        torch.manual_seed(seed)
        torch.set_default_dtype(sizes.dtype)
        try:
            maker(folder, sizes)
        finally:
            torch.set_default_dtype(dtype)
    return folder


def _forked(device: torch.device) -> str:
    """What ``fork_rng`` calls the kind of device; that of the CPU it keeps anyway."""
    return "cuda" if device.type == "cpu" else device.type


def _tokenizer(*more: str, **named: str) -> Any:
    """The embedded model's tokenizer with more special tokens, some of them under names."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    tokenizer.add_special_tokens({"additional_special_tokens": [*more, *named.values()]})
    for name, token in named.items():
        tokenizer.init_kwargs[name] = token
        tokenizer.extra_special_tokens = [*tokenizer.extra_special_tokens, token]
    if named:
        tokenizer._set_model_specific_special_tokens(named)
    return tokenizer


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _text(tokenizer: Any, sizes: Sizes, **more: Any) -> dict[str, Any]:
    return {
        **more,
        **sizes.text,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _mrope(sizes: Sizes, **more: Any) -> dict[str, Any]:
    return {**MROPE, "mrope_section": list(sizes.mrope), **more}


# Qwen-VL -------------------------------------------------------------------------------------------------------


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def _qwen(folder: Path, model: Any, tokenizer: Any, kinds: tuple[Any, Any]) -> None:
    processor_class, video_processor = kinds
    model.save_pretrained(folder)
    patch = model.config.vision_config.patch_size
    size = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2 * 64}
    processor_class(
        image_processor=Qwen2VLImageProcessor(patch_size=patch),
        tokenizer=tokenizer,
        video_processor=video_processor(do_sample_frames=False, patch_size=patch, size=size),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)


def qwen2_vl(folder: Path, sizes: Sizes) -> None:
    """A Qwen2-VL with stock processor."""
    tokenizer = _tokenizer()
    config = Qwen2VLConfig(
        text_config=_text(tokenizer, sizes, rope_parameters=_mrope(sizes)),
        vision_config=dict(sizes.tower)
        or dict(depth=2, embed_dim=16, hidden_size=WIDTH, num_heads=2, mlp_ratio=2, patch_size=7),
        **_qwen_ids(tokenizer),
    )
    kinds = Qwen2VLProcessor, Qwen2VLVideoProcessor
    _qwen(folder, Qwen2VLForConditionalGeneration(config), tokenizer, kinds)


def qwen2_5_vl(folder: Path, sizes: Sizes) -> None:
    """A Qwen2.5-VL with windows in its tower."""
    tokenizer = _tokenizer()
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, sizes, rope_parameters=_mrope(sizes)),
        vision_config=dict(sizes.tower)
        or dict(
            depth=2,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=WIDTH,
            patch_size=7,
            window_size=28,
            fullatt_block_indexes=[1],
        ),
        **_qwen_ids(tokenizer),
    )
    kinds = Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    _qwen(folder, Qwen2_5_VLForConditionalGeneration(config), tokenizer, kinds)


def qwen3_vl(folder: Path, sizes: Sizes) -> None:
    """A Qwen3-VL whose tower feeds the first layers too (deepstack)."""
    tokenizer = _tokenizer()
    config = Qwen3VLConfig(
        text_config=_text(
            tokenizer, sizes, head_dim=8, rope_parameters=_mrope(sizes, mrope_interleaved=True)
        ),
        vision_config=dict(sizes.tower)
        or dict(
            depth=3,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=WIDTH,
            patch_size=8,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
        **_qwen_ids(tokenizer),
    )
    kinds = Qwen3VLProcessor, Qwen3VLVideoProcessor
    _qwen(folder, Qwen3VLForConditionalGeneration(config), tokenizer, kinds)


# InternVL and LLaVA --------------------------------------------------------------------------------------------


def internvl(folder: Path, sizes: Sizes) -> None:
    """An InternVL3 with a class token in its tower."""
    tokenizer = _tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    tower = dict(sizes.tower) or dict(**TOWER, image_size=[32, 32], patch_size=[4, 4])
    image = tower["image_size"][0]
    seen = (image // tower["patch_size"][0] // 2) ** 2
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer, sizes)},
        vision_config=tower,
        image_seq_length=seen,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    model = InternVLForConditionalGeneration(config)
    # Zero in a fresh model: every frame would be told apart by its pixels only, and patches not by their place.
    for parameter in (model.model.vision_tower.embeddings.cls_token, *_positions(model)):
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    size = {"height": image, "width": image}
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=seen,
        chat_template=tokenizer.chat_template.replace(QWEN_MARK, "<video>\n"),
    ).save_pretrained(folder)


def _positions(model: InternVLForConditionalGeneration) -> list[torch.nn.Parameter]:
    positions = model.model.vision_tower.embeddings.position_embeddings
    return [] if positions is None else [positions]


def llava_onevision(folder: Path, sizes: Sizes) -> None:
    """A LLaVA-OneVision with SigLIP and newline."""
    tokenizer = _tokenizer("<image>", "<video>")
    ids = _ids(tokenizer, image_token_id="<image>", video_token_id="<video>")
    tower = _siglip(sizes, image_size=30, patch_size=5)
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **tower},
        text_config={"model_type": "qwen2", **_text(tokenizer, sizes)},
        image_token_index=ids["image_token_id"],
        video_token_index=ids["video_token_id"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": tower["image_size"], "width": tower["image_size"]}
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(tower["image_size"] // tower["patch_size"]) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template.replace(QWEN_MARK, "<video>"),
    ).save_pretrained(folder)


def _siglip(sizes: Sizes, **small: int) -> dict[str, Any]:
    return {**(sizes.tower or {**TOWER, **small}), "vision_use_head": False}


def llava_video(folder: Path, sizes: Sizes) -> None:
    """A LLaVA-Video in the layout of its original checkpoint."""
    tokenizer = _tokenizer()
    tower = _siglip(sizes, image_size=30, patch_size=5)
    text = _text(tokenizer, sizes)
    stock = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **tower},
        text_config={"model_type": "qwen2", **text},
        tie_word_embeddings=False,
    )
    weights = LlavaOnevisionForConditionalGeneration(stock).state_dict()
    save_file(
        {_original_name(name): value.contiguous() for name, value in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        # As the released file says; files saved by the authors' code say llava_qwen.
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        **text,
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "torch_dtype": str(sizes.dtype).removeprefix("torch."),
    }
    _write(folder / "config.json", config)
    # The tower's own configuration counts the last layer, which LLaVA-Video does not use and does not hold.
    _write(
        folder / "vision_tower_config.json", {**tower, "num_hidden_layers": tower["num_hidden_layers"] + 1}
    )
    tokenizer.save_pretrained(folder)


def _original_name(name: str) -> str:
    """The original checkpoint's name of a weight of the stock class: the family's own table backwards."""
    for original, stock in KEYS.items():
        prefix = re.sub(r"\\(.)", r"\1", original.removeprefix("^"))
        if r"\1" in stock:
            head, _, _ = stock.partition(r"\1")
            if re.match(rf"{re.escape(head)}(embed_tokens|layers|norm)\.", name):
                return "model." + name.removeprefix(head)
        elif name.startswith(stock):
            return prefix + name.removeprefix(stock)
    return name


def nvila(folder: Path, sizes: Sizes) -> None:
    """An NVILA in the layout of its original checkpoint: a folder for each part."""
    tokenizer = _tokenizer()
    text = Qwen2Config(**_text(tokenizer, sizes))
    Qwen2ForCausalLM(text).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    tower = SiglipVisionConfig(**_siglip(sizes, image_size=28, patch_size=4))
    SiglipVisionModel(tower).save_pretrained(folder / "vision_tower")
    (folder / "mm_projector").mkdir()
    projector = Projector(tower.hidden_size, text.hidden_size).state_dict()
    save_file(projector, folder / "mm_projector" / "model.safetensors")
    _write(folder / "mm_projector" / "config.json", {"mm_projector_type": PROJECTORS[0]})
    # As the original configuration's class writes them: the encoder as a JSON string, what is unset as null.
    pool = [8, 1, 1] if sizes.tower else [2, 1, 1]
    encoder = {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [pool]}
    config = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaModel"],
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
        "s2": None,
        "dynamic_s2": None,
        "text_config": None,
        "video_encoder": json.dumps(encoder),
    }
    _write(folder / "config.json", config)


def _write(file: Path, config: dict[str, Any]) -> None:
    file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


MAKERS: dict[str, Callable[[Path, Sizes], None]] = {
    "internvl": internvl,
    "llava_onevision": llava_onevision,
    "llava_video": llava_video,
    "nvila": nvila,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
}
"""The function that writes a family's miniature into an empty folder; another family has its own, ``miniature``."""


def main(arguments: list[str]) -> int:
    """Write one miniature; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m stsimdiff.models.kit.miniatures", description=__doc__)
    parser.add_argument("family", metavar="FAMILY", help=", ".join(models.FAMILIES))
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="is made; must not hold anything")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument(
        "--layers",
        type=int,
        default=8,
        help="of the language model; with 8, every method meets a table's budgets",
    )
    options = parser.parse_args(arguments)
    sizes = Sizes({**TEXT, "num_hidden_layers": options.layers})
    try:
        made = make(options.family, options.folder, options.seed, sizes)
    except UserError as error:
        say(error, error=True)
        return 2
    except BaseException:
        shutil.rmtree(options.folder, ignore_errors=True)
        raise
    say(f"{made}: a {options.family} of random weights; use it with model={options.family} model.path={made}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
