"""LLaVA-Video from the original lmms-lab checkpoint, on stock transformers classes.

The weights fit ``LlavaOnevisionForConditionalGeneration`` one to one. What differs is how a video is laid out:
each row of the pooled grid ends with the newline feature, which therefore counts as one more column. That is done
here, outside the model, and the model gets the finished embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from typing_extensions import override

from stsimdiff.cost import DecoderShape
from stsimdiff.engine import Decoder
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import EncodedVideo, LoadOptions, Prompt, Stopwatch, require_folder
from stsimdiff.models.checkpoint import load_weights, read_config, refuse_sliding_window, weight_names
from stsimdiff.models.frame_shape import FrameShape, bilinear_flops, dtype_of, siglip_tower
from stsimdiff.models.info import info
from stsimdiff.models.presence import is_of, tower_file
from stsimdiff.models.released import QWEN2_7B, SIGLIP_SO400M
from stsimdiff.models.siglip_qwen2 import SiglipQwen2, frame_pixels, optional_tokenizer, siglip_features
from stsimdiff.models.tower import pooled_signals, reading
from stsimdiff.tokens import Grid, Picture, Signals
from stsimdiff.video import Frames

POOLINGS = ("bilinear", "average")
KEYS = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
"""Names of the original checkpoint, and those of the stock class."""
FIXED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_newline_position": "grid",
    "mm_resampler_type": None,
    "add_faster_video": False,
    "use_pos_skipping": False,
    "rope_scaling": None,
}
"""Values of the original configuration that this family implements; any other is refused, not ignored."""
ABSENT = {"mm_newline_position": "one_token"}
"""What the original code takes a missing value for, where that is not the one above."""
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
"""The conversation template ``qwen_1_5`` around one message; the video and a line break come first in it."""


class LlavaVideo(SiglipQwen2):
    """Frames of SigLIP patches, pooled by two in each direction, each row ended by a newline token.

    Options (``model.*`` of the configuration): ``pooling``, one of :data:`POOLINGS` or ``None`` for the checkpoint's
    own; ``time_instruction``, whether the question is preceded by the sentence on the video's length and the
    frames' times.
    """

    released_files = {
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
    }

    CONFIGURATIONS = ("config.json", "vision_tower_config.json")

    def __init__(self, model: Any, processor: Any, path: str, pooling: str, stride: int, timed: bool) -> None:
        super().__init__(model, processor, path)
        self.pooling, self.stride, self.time_instruction = pooling, stride, timed

    @classmethod
    def load(cls, path: str, options: LoadOptions) -> LlavaVideo:
        """Load the original checkpoint folder; safetensors only, no code from the checkpoint is run.

        Raises:
            ConfigError: for a folder that is missing or of another family, for a setting that this family does not
                implement, when the vision tower's configuration is not there, and when a weight is missing or
                unexpected.
        """
        options.check()
        folder = require_folder(path)
        given = read_config(folder / "config.json")
        _check(path, given)
        pooling = _pooling(given, options)
        head = any(name.endswith("vision_model.head.probe") for name in weight_names(folder))
        config = _stock_config(given, tower_config(folder, given), head)
        refuse_sliding_window(config.text_config, path)
        model = load_weights(LlavaOnevisionForConditionalGeneration, folder, options, config, KEYS)
        timed = bool(options.family.get("time_instruction", False))
        stride = int(given.get("mm_spatial_pool_stride", 2))
        return cls(model, optional_tokenizer(folder, config.text_config), str(path), pooling, stride, timed)

    @property
    @override
    def placeholders(self) -> tuple[str, ...]:
        return ("<image>",)

    @property
    @override
    def decoder(self) -> Decoder:
        language_model = self.model.model.language_model
        return Decoder(language_model, language_model.layers)

    @classmethod
    @override
    def shape_from(cls, files: Mapping[str, Mapping[str, Any]], options: LoadOptions) -> FrameShape:
        given, tower = dict(files["config.json"]), files.get("vision_tower_config.json")
        _check("", given)
        if tower is None:
            # The released checkpoint does not hold it either; a local folder may be named instead.
            tower = tower_config(Path(str(given.get("mm_vision_tower"))), given)
        config = _stock_config(given, dict(tower.get("vision_config", tower)))
        stride = int(given.get("mm_spatial_pool_stride", 2))
        return _shape(config, _pooling(given, options), stride, dtype_of(given))

    @property
    @override
    def shape(self) -> FrameShape:
        dtype = self.dtype_name
        return _shape(self.model.config, self.pooling, self.stride, dtype)

    @torch.inference_mode()
    @override
    def encode(self, frames: Frames, *, signals: Signals = False) -> EncodedVideo:
        watch = Stopwatch(self.device)
        pixels = frame_pixels(frames, self.model.config.vision_config.image_size)
        preprocess = watch.lap()
        encoded = self.encode_pixels(pixels, signals=signals)
        encoded.inputs["time_instruction"] = time_instruction(frames)
        encoded.seconds = {"preprocess": preprocess, "vision": watch.lap()}
        return encoded

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor, *, signals: Signals = False) -> EncodedVideo:
        """Video tokens of normalised frames ``(T, 3, S, S)``; ``signals``: also read the tower's attention."""
        vision = self.model.model.vision_tower
        with reading(vision.encoder.layers, "self_attn", signals, tower=vision) as reader:
            tower = self.tower_features(pixels)
        pooled = self.pool(self.project(tower))
        frames, height, width = pooled.shape[:3]
        return EncodedVideo(
            features=end_rows(pooled, self.model.model.image_newline),
            grid=Grid(frames, height, width + 1),
            inputs={},
            signals=pooled_signals(reader, frames, self.pool, newline=True) if reader else None,
        )

    def tower_features(self, pixels: Tensor) -> Tensor:
        """``(T, patches, C)`` of normalised frames ``(T, 3, S, S)``."""
        return siglip_features(self.model.model.vision_tower, pixels)

    def project(self, features: Tensor) -> Tensor:
        """``(T, patches, D)``: the features in the language model's width."""
        return self.model.model.multi_modal_projector(features)

    def pool(self, features: Tensor) -> Tensor:
        """``(T, h, w, D)``: see :func:`pool_frames`."""
        return pool_frames(features, self.pooling, self.stride)

    @override
    def picture(self, grid: Grid) -> Picture:
        return Picture(1, grid.height, grid.width - 1, grid.width)

    @override
    def prompt(self, video: EncodedVideo, text: str, sample: str = "") -> Prompt:
        self.refuse_placeholders(text)
        timed = f"{video.inputs['time_instruction']}\n" if self.time_instruction else ""
        return self._prompt(video, BEFORE, lambda text: f"\n{timed}{text}{AFTER}", text, sample)


def pool_frames(features: Tensor, pooling: str, stride: int) -> Tensor:
    """``(T, h, w, D)`` pooled from ``(T, patches, D)``; the patches are a square, a remainder counts in full
    (bilinear) or is left out (average)."""
    side = math.isqrt(features.shape[1])
    maps = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if pooling == "average":
        pooled = torch.nn.functional.avg_pool2d(maps, stride)
    else:
        size = math.ceil(side / stride)
        pooled = torch.nn.functional.interpolate(maps.contiguous(), size=(size, size), mode="bilinear")
    return pooled.permute(0, 2, 3, 1)


def end_rows(pooled: Tensor, newline: Tensor) -> Tensor:
    """``(T * h * (w + 1), D)`` in raster order: each row of ``(T, h, w, D)`` ended by ``newline`` ``(D,)``."""
    column = newline.to(pooled).expand(*pooled.shape[:2], 1, -1)
    return torch.cat((pooled, column), dim=2).flatten(0, 2)


def time_instruction(frames: Frames) -> str:
    """The sentence of LLaVA-Video's training on the video's length in seconds and the times of its frames."""
    times = ",".join(f"{time:.2f}s" for time in frames.times)
    return (
        f"The video lasts for {frames.duration:.2f} seconds, and {len(frames.indices)} frames are uniformly sampled "
        f"from it. These frames are located at {times}.Please answer the following questions related to this video."
    )


def tower_config(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The vision tower's configuration, which the original checkpoint does not hold.

    Raises:
        ConfigError: when neither ``vision_tower_config.json`` nor the folder or hub id ``mm_vision_tower`` gives it; of
            the hub only this machine's cache is asked.
    """
    name = str(given.get("mm_vision_tower"))
    if file := tower_file(folder, name):
        found = read_config(file)
        return found.get("vision_config", found)
    raise ConfigError(
        f"the checkpoint {folder} names its vision tower {name!r} but does not hold its configuration: put the "
        f"tower's config.json beside it as vision_tower_config.json (`hf download {name} config.json --local-dir "
        f"<folder>`), fetch it into the hub's cache (`hf download {name} config.json`), or set mm_vision_tower in its "
        "config.json to a local folder that has it"
    )


def _pooling(given: Mapping[str, Any], options: LoadOptions) -> str:
    pooling = options.family.get("pooling") or given.get("mm_spatial_pool_mode", POOLINGS[0])
    if pooling not in POOLINGS:
        raise ConfigError(f"model.pooling={pooling!r} is unknown; allowed: {', '.join(POOLINGS)}, null")
    return pooling


def _shape(config: LlavaOnevisionConfig, pooling: str, stride: int, dtype: str) -> FrameShape:
    """Sizes from the stock configuration, whose tower has the layers that run."""
    vision, text = config.vision_config, config.text_config
    side = vision.image_size // vision.patch_size
    average = pooling == "average"
    height = side // stride if average else math.ceil(side / stride)
    values = height**2 * text.hidden_size
    return FrameShape(
        decoder=DecoderShape.from_config(text, config.tie_word_embeddings),
        tower=siglip_tower(
            vision, vision.num_hidden_layers, (vision.hidden_size, text.hidden_size, text.hidden_size)
        ),
        dtype=dtype,
        side=side,
        rows=side**2,
        height=height,
        width=height + 1,
        pooling=values * stride**2 if average else bilinear_flops(values),
    )


def _check(path: str, given: dict[str, Any]) -> None:
    if not is_of("llava_video", given):
        raise ConfigError(
            f"model.path={path!r} holds a {given.get('model_type')!r} checkpoint with architectures="
            f"{given.get('architectures')!r}; this family loads {info('llava_video').architecture} "
            "(lmms-lab/LLaVA-Video-7B-Qwen2)"
        )
    for name, value in FIXED.items():
        found = given.get(name, ABSENT.get(name, value))
        if found != value:
            raise ConfigError(
                f"model.path={path!r} has {name}={found!r} in its config.json; this family implements {value!r} only"
            )
    merge = given.get("mm_patch_merge_type", "flat")
    if not str(merge).startswith("spatial"):
        raise ConfigError(
            f"model.path={path!r} has mm_patch_merge_type={merge!r} in its config.json; this family implements "
            "spatial and spatial_unpad only"
        )


def _stock_config(given: dict[str, Any], tower: dict[str, Any], head: bool = False) -> LlavaOnevisionConfig:
    """The stock configuration; the tower has one layer less than its own says, as the last is never used.

    ``head``: whether the checkpoint holds SigLIP's pooling head; the released one does not.
    """
    vision = {name: value for name, value in tower.items() if name != "model_type"}
    vision.update(num_hidden_layers=tower["num_hidden_layers"] - 1, vision_use_head=head)
    text = {name: value for name, value in given.items() if name != "rope_scaling"} | {"model_type": "qwen2"}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config.from_dict(text),
        tie_word_embeddings=bool(given.get("tie_word_embeddings", False)),
    )
