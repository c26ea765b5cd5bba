"""Tiny checkpoints in the layouts that the authors of LLaVA-Video and NVILA released."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from stsimdiff.models.base import LoadOptions
from stsimdiff.models.nvila import Projector
from stsimdiff.video import Frames

OPTIONS = LoadOptions(device="cpu", dtype="float32")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<vila/video>"]


def tokenizer(folder: Path, **config) -> None:
    """A tokenizer of single bytes, all ids below the tiny vocabularies."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))


def frames(count: int) -> Frames:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 30, 40, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(0, 10 * count, 10)), 10 * count, 5.0)


def write_nvila(folder: Path) -> Path:
    """A tiny NVILA checkpoint: seven by seven patches, groups of two frames."""
    torch.manual_seed(0)
    llm = Qwen2Config(
        vocab_size=264,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=257,
    )
    vision = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=4,
        vision_use_head=False,
    )
    Qwen2ForCausalLM(llm).save_pretrained(folder / "llm")
    SiglipVisionModel(vision).save_pretrained(folder / "vision_tower")
    message = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    tokenizer(folder / "llm", chat_template="{% for m in messages %}" + message + "{% endfor %}<|im_start|>")
    (folder / "mm_projector").mkdir()
    save_file(Projector(8, 16).state_dict(), folder / "mm_projector" / "model.safetensors")
    (folder / "mm_projector" / "config.json").write_text('{"mm_projector_type": "mlp_downsample_2x2_fix"}')
    config = {
        "model_type": "llava_llama",
        "mm_vision_select_layer": -2,
        "video_encoder": {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[2, 1, 1]]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
