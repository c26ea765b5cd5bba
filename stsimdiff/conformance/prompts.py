"""The prompts of recorded runs: checkpoints by their format, recorded pixels and token ids, no tokenizer needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stsimdiff.conformance.cases import Arrays, Fields
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.models import resolve
from stsimdiff.models.base import EncodedVideo, Family, LoadOptions, Prompt
from stsimdiff.models.checkpoint import read_config
from stsimdiff.models.info import info
from stsimdiff.models.llava_video import LlavaVideo
from stsimdiff.models.nvila import NVILA, VIDEO_TOKEN
from stsimdiff.models.presence import is_of

FAMILIES = ("llava_video", "nvila", "qwen2_vl")
"""Families that have recordings."""
IMAGE_TOKEN_INDEX = -200
"""Stands for the whole video in the token ids of LLaVA."""


def load_family(checkpoint: Path) -> Family:
    """The checkpoint on the CPU in float32, as the recordings were made.

    Raises:
        ConfigError: for a checkpoint of a family that has no recordings, or that does not load.
    """
    config = checkpoint / "config.json"
    if not config.is_file():
        raise ConfigError(f"no checkpoint at {checkpoint}: config.json is missing")
    content = read_config(config)
    name = next((name for name in FAMILIES if is_of(name, content)), None)
    if name is None:
        # LLaVA-Video's type says too little.
        others = sorted(info("nvila").types + info("qwen2_vl").types)
        raise ConfigError(
            f"{config} has model_type {content.get('model_type')!r}; runs can be replayed for LLaVA-Video, "
            f"{', '.join(others)}"
        )
    family = resolve(name)
    return family.load(str(checkpoint), LoadOptions(device="cpu", dtype="float32"))


@torch.inference_mode()
def given_prompt(family: Family, inputs: Fields, folder: Path, recorded: Fields) -> tuple[Prompt, Arrays]:
    """The prompt of recorded inputs, and the recorded intermediate results on the way to it.

    Args:
        family: the loaded checkpoint.
        inputs: ``input.npz``.
        folder: the folder of the case.
        recorded: the run's own file; ``prefill_position_ids`` in it are an input.
    """
    ids = torch.from_numpy(inputs["input_ids"])
    if ids.shape[0] != 1 or not inputs.get("attention_mask", np.True_).all():
        raise DataError(f"{inputs.file}: one prompt without padding is needed")
    if isinstance(family, LlavaVideo):
        return _llava_video(family, inputs, ids[0])
    if isinstance(family, NVILA):
        return _nvila(family, inputs, ids[0], folder)
    return _qwen2_vl(family, inputs, ids, recorded)


def _spliced(
    family: Any, inputs: Fields, video: EncodedVideo, ids: Tensor, token: int
) -> tuple[Prompt, Arrays]:
    at = (ids == token).nonzero()[:, 0].tolist()
    if len(at) != 1:
        raise DataError(
            f"{inputs.file}: the token {token} must stand once in input_ids, it stands {len(at)} times"
        )
    prompt = family.prompt_from_ids(video, ids[: at[0]], ids[at[0] + 1 :])
    return prompt, {
        "video_tokens": _array(video.features),
        "inputs_embeds": _array(prompt.inputs["inputs_embeds"]),
    }


def _llava_video(family: LlavaVideo, inputs: Fields, ids: Tensor) -> tuple[Prompt, Arrays]:
    pixels = torch.from_numpy(inputs["pixel_values"])
    tower = family.tower_features(pixels)
    projected = family.project(tower)
    out = {
        "tower_features": _array(tower),
        "projected_features": _array(projected),
        "pooled_features": _array(family.pool(projected).flatten(1, 2)),
    }
    prompt, spliced = _spliced(family, inputs, family.encode_pixels(pixels), ids, IMAGE_TOKEN_INDEX)
    return prompt, out | spliced


def _nvila(family: NVILA, inputs: Fields, ids: Tensor, folder: Path) -> tuple[Prompt, Arrays]:
    pixels = torch.from_numpy(inputs["pixel_values"])
    tower = family.tower_features(pixels)
    meta = folder / "meta.json"
    token = read_config(meta).get("video_token_id") if meta.is_file() else None
    if token is None:
        token = family.tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    video = family.encode_pixels(pixels, torch.from_numpy(inputs["newline_ids"]))
    prompt, spliced = _spliced(family, inputs, video, ids, token)
    return prompt, {
        "tower_features": _array(tower),
        "projected_features": _array(family.projector(tower)),
        **spliced,
    }


def _qwen2_vl(family: Any, inputs: Fields, ids: Tensor, recorded: Fields) -> tuple[Prompt, Arrays]:
    grid = torch.from_numpy(inputs["video_grid_thw"])
    video = family.encode_patches(torch.from_numpy(inputs["pixel_values_videos"]), grid)
    prompt = family.prompt_from_ids(video, ids)
    positions = prompt.inputs["position_ids"]
    stored = recorded.get("prefill_position_ids")
    prompt.inputs["position_ids"] = positions if stored is None else torch.from_numpy(stored)
    return prompt, {
        "video_tokens": _array(video.features),
        "prefill_position_ids": _array(positions),
        "rope_deltas": np.array([[int(positions.max()) + 1 - positions.shape[2]]]),
    }


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
