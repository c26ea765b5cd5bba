"""NVILA from its original checkpoint: the folders ``llm``, ``vision_tower`` and ``mm_projector``.

The language model and the vision tower are stock classes; the projector, which transformers lacks, is here. The
tokens of a group of frames are one row of the grid, since the tokens that end it fill no row of their square.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel
from typing_extensions import override

from stsimdiff.cost import DecoderShape
from stsimdiff.engine import Decoder
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import (
    EncodedVideo,
    LoadOptions,
    Prompt,
    Stopwatch,
    execution_device,
    require_folder,
)
from stsimdiff.models.checkpoint import account, load_weights, read_config, refuse_sliding_window
from stsimdiff.models.frame_shape import FrameShape, dtype_of, siglip_tower
from stsimdiff.models.info import info
from stsimdiff.models.presence import is_of
from stsimdiff.models.released import QWEN2_7B, SIGLIP_SO400M
from stsimdiff.models.siglip_qwen2 import SiglipQwen2, frame_pixels, optional_tokenizer, siglip_features
from stsimdiff.models.tower import pooled_signals, reading
from stsimdiff.tokens import Grid, Picture, Signals
from stsimdiff.video import Frames

PARTS = info("nvila").parts
PROJECTORS = ("mlp_downsample", "mlp_downsample_2x2_fix")
"""Two names of one projector: the same weights and, in the code that NVILA was released with, the same arithmetic."""
VIDEO_TOKEN = "<vila/video>"
FIXED = {"mm_vision_select_feature": "cls_patch", "s2": False, "dynamic_s2": False}
"""Values of the original configuration that this family implements; any other is refused, not ignored. ``null`` is a
value that the configuration's class leaves unset."""
ENCODERS = ("BasicVideoEncoder", "TSPVideoEncoder")


class Projector(nn.Module):
    """Two by two patches become one token; an odd side is filled up with zeros at its end.

    Args:
        vision: width C of the vision tower.
        text: width D of the language model.
    """

    def __init__(self, vision: int, text: int) -> None:
        super().__init__()
        # The numbers are those of the original sequence, whose first entry has no weights.
        self.layers = nn.Sequential(
            nn.Identity(),
            nn.LayerNorm(4 * vision),
            nn.Linear(4 * vision, text),
            nn.GELU(),
            nn.Linear(text, text),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(T, P, C)`` patches of a square to ``(T, p, D)``."""
        side = math.isqrt(features.shape[1])
        square = features.unflatten(1, (side, side))
        square = nn.functional.pad(square, (0, 0, 0, side % 2, 0, side % 2))
        cells = square.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
        return self.layers(cells.flatten(3).flatten(1, 2))


class NVILA(SiglipQwen2):
    """Frames of SigLIP patches, pooled over groups of frames, each group ended by the tokens of a line break."""

    released_files = {
        "config.json": {
            "model_type": "llava_llama",
            "mm_vision_select_layer": -2,
            "s2": None,
            "text_config": None,
            "video_encoder": '{"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[8, 1, 1]]}',
        },
        "llm/config.json": QWEN2_7B,
        "vision_tower/config.json": {**SIGLIP_SO400M, "image_size": 448},
    }

    CONFIGURATIONS = ("config.json", *(f"{part}/config.json" for part in PARTS))

    def __init__(
        self,
        model: Any,
        processor: Any,
        path: str,
        tower: nn.Module,
        projector: nn.Module,
        encoder: dict[str, Any],
    ) -> None:
        super().__init__(model, processor, path)
        self.tower, self.projector = tower.eval(), projector.eval()
        self.pool_size = tuple(encoder["pool_size"])
        self.end = encoder["end_tokens"]

    @classmethod
    def load(cls, path: str, options: LoadOptions) -> NVILA:
        """Load the original checkpoint folder; safetensors only, no code from the checkpoint is run.

        Raises:
            ConfigError: for a folder that is missing or of another family, for a setting that this family does not
                implement, and when a weight is missing or unexpected.
        """
        options.check()
        folder = require_folder(path, ("config.json", *(f"{part}/config.json" for part in PARTS)))
        given = read_config(folder / "config.json")
        encoder = _video_encoder(path, given)
        llm, vision, projector = (folder / part for part in PARTS)
        model = load_weights(Qwen2ForCausalLM, llm, options)
        refuse_sliding_window(model.config, path, "llm/config.json")
        # A device map is one of the language model; the tower and the projector stand where its input is.
        device = execution_device(model.get_input_embeddings())
        whole = dataclasses.replace(options, device=str(device), device_map=None)
        tower = load_weights(SiglipVisionModel, vision, whole)
        used = _used_layers(given, len(tower.encoder.layers))
        del tower.encoder.layers[used:]
        sizes = tower.config.hidden_size, model.config.hidden_size
        mlp = _projector(projector, *sizes).to(device, model.dtype)
        return cls(model, optional_tokenizer(llm, model.config), str(path), tower, mlp, encoder)

    @property
    @override
    def placeholders(self) -> tuple[str, ...]:
        return (VIDEO_TOKEN,)

    @property
    @override
    def decoder(self) -> Decoder:
        return Decoder(self.model.model, self.model.model.layers)

    @classmethod
    @override
    def shape_from(cls, files: Mapping[str, Mapping[str, Any]], options: LoadOptions) -> FrameShape:
        given = dict(files["config.json"])
        encoder = _video_encoder("", given)
        missing = [name for name in ("llm/config.json", "vision_tower/config.json") if name not in files]
        if missing:
            raise ConfigError(f"the checkpoint lacks {', '.join(missing)}, which say its sizes")
        vision = SiglipVisionConfig.from_dict(dict(files["vision_tower/config.json"]))
        text = dict(files["llm/config.json"])
        layers = _used_layers(given, vision.num_hidden_layers)
        return _shape(Qwen2Config.from_dict(text), vision, layers, encoder, dtype_of(text))

    @property
    @override
    def shape(self) -> FrameShape:
        dtype = self.dtype_name
        encoder = {"pool_size": self.pool_size, "end_tokens": self.end}
        vision = self.tower.config
        return _shape(self.model.config, vision, len(self.tower.encoder.layers), encoder, dtype)

    @torch.inference_mode()
    @override
    def encode(self, frames: Frames, *, signals: Signals = False) -> EncodedVideo:
        watch = Stopwatch(self.device)
        pixels = frame_pixels(frames, self.tower.config.image_size)
        # A video with fewer frames than asked for may leave a group open: its last frame stands in.
        missing = -len(pixels) % self.pool_size[0]
        pixels = torch.cat((pixels, pixels[-1:].expand(missing, -1, -1, -1)))
        preprocess = watch.lap()
        encoded = self.encode_pixels(pixels, self._ids(self.end), signals=signals)
        encoded.seconds = {"preprocess": preprocess, "vision": watch.lap()}
        return encoded

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor, end: Tensor, *, signals: Signals = False) -> EncodedVideo:
        """Video tokens of normalised frames ``(T, 3, S, S)``.

        Args:
            pixels: the frames, a multiple of the pool size.
            end: ids ``(e,)`` of the tokens after each group.
            signals: also read the tower's attention; only with one token after each group.
        """
        if signals and len(end) != 1:
            raise ConfigError(
                f"model.path={self.path!r} ends a group by {len(end)} tokens: no signals of the tower"
            )
        with reading(self.tower.encoder.layers, "self_attn", signals, tower=self.tower) as reader:
            tower = self.tower_features(pixels)
        groups = self.pool(self.projector(tower))
        ending = self.model.get_input_embeddings()(end.to(self.device)).to(groups)
        tokens = torch.cat((groups, ending.expand(len(groups), -1, -1)), dim=1)
        return EncodedVideo(
            features=tokens.flatten(0, 1),
            grid=Grid(len(groups), 1, tokens.shape[1]),
            inputs={},
            signals=pooled_signals(reader, len(pixels), self._pool_patches, newline=True) if reader else None,
        )

    def tower_features(self, pixels: Tensor) -> Tensor:
        """``(T, patches, C)`` of normalised frames ``(T, 3, S, S)``."""
        return siglip_features(self.tower, pixels)

    def pool(self, features: Tensor) -> Tensor:
        """``(groups, p, D)``: means over ``pool_size`` frames, rows and columns of ``(T, p, D)``.

        Raises:
            ValueError: when the frames or the side of the square are no multiple of the pool size.
        """
        side = math.isqrt(features.shape[1])
        pooled = features.unflatten(1, (side, side))
        for dim, size in enumerate(self.pool_size):
            if pooled.shape[dim] % size:
                raise ValueError(
                    f"{pooled.shape[dim]} cannot be pooled by {size} (pool size {self.pool_size})"
                )
            pooled = pooled.unflatten(dim, (-1, size)).mean(dim + 1)
        return pooled.flatten(1, 2)

    def _pool_patches(self, values: Tensor) -> Tensor:
        """``(groups, 1, p, C)``: values ``(T, patches, C)`` of patches, averaged as the projector joins them."""
        side = math.isqrt(values.shape[1])
        maps = values.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        cells = nn.functional.avg_pool2d(maps, 2, ceil_mode=True)
        return self.pool(cells.flatten(2).transpose(1, 2))[:, None]

    @override
    def picture(self, grid: Grid) -> Picture:
        # Behind the tokens of the square stand those that end the group, which need a tokenizer.
        ends = 0 if self.processor is None else self._ids(self.end).shape[0]
        side = math.isqrt(grid.width - ends)
        return Picture(self.pool_size[0], side, side, side)

    @override
    def prompt(self, video: EncodedVideo, text: str, sample: str = "") -> Prompt:
        self.refuse_placeholders(text)

        def around(text: str) -> tuple[str, str]:
            message = {"role": "user", "content": VIDEO_TOKEN + text.strip()}
            chat = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
            before, _, after = chat.partition(VIDEO_TOKEN)
            return before, after

        return self._prompt(video, around(text)[0], lambda text: around(text)[1], text, sample)


def _video_encoder(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """``pool_size`` (frames, rows, columns) and ``end_tokens`` of the original configuration, checked."""
    if not is_of("nvila", given):
        raise ConfigError(
            f"model.path={path!r} holds a {given.get('model_type')!r} checkpoint; this family loads NVILA "
            "('llava_llama' or 'vila' with the folders llm, vision_tower and mm_projector)"
        )
    encoder = _encoder_node(path, given)
    kind = str(encoder.get("_target_", "")).rpartition(".")[2]
    sizes = encoder.get("pool_sizes") or [[1, 1, 1]]
    wrong = [
        f"{name}={given[name]!r}" for name, value in FIXED.items() if given.get(name) not in (None, value)
    ]
    wrong += [
        f"video_encoder.{name}={encoder[name]!r}"
        for name in ("start_tokens", "sep_tokens")
        if encoder.get(name)
    ]
    if kind not in ENCODERS:
        wrong.append(f"video_encoder._target_={encoder.get('_target_')!r}")
    if not (len(sizes) == 1 and len(sizes[0]) == 3 and all(type(n) is int and n > 0 for n in sizes[0])):
        wrong.append(f"video_encoder.pool_sizes={sizes!r}")
    if wrong:
        raise ConfigError(
            f"model.path={path!r} has {', '.join(wrong)} in its config.json, which this family does not implement"
        )
    return {"pool_size": sizes[0], "end_tokens": encoder.get("end_tokens", "\n") or ""}


def _encoder_node(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The node ``video_encoder``: the configuration's class writes it as a JSON string, training as an object."""
    node = given.get("video_encoder")
    if node is None:
        return {"_target_": ENCODERS[0]}
    if isinstance(node, str):
        try:
            node = json.loads(node)
        except ValueError as error:
            raise ConfigError(
                f"model.path={path!r}: video_encoder in config.json is no JSON: {error}"
            ) from error
    if not isinstance(node, dict):
        raise ConfigError(
            f"model.path={path!r}: video_encoder={node!r} in config.json; expected an object with _target_"
        )
    return node


def _used_layers(given: Mapping[str, Any], layers: int) -> int:
    return layers + 1 + int(given.get("mm_vision_select_layer", -2))


def _shape(
    text: Qwen2Config, vision: SiglipVisionConfig, layers: int, encoder: Mapping[str, Any], dtype: str
) -> FrameShape:
    """Sizes; a group's end counts as one token of its grid, which is what a line break is."""
    side = vision.image_size // vision.patch_size
    joined = math.ceil(side / 2)
    pooling, left = 0, joined**2 * text.hidden_size
    for size in encoder["pool_size"]:
        pooling += left if size > 1 else 0
        left /= size
    cells = (joined // encoder["pool_size"][1]) * (joined // encoder["pool_size"][2])
    return FrameShape(
        decoder=DecoderShape.from_config(text),
        tower=siglip_tower(vision, layers, (4 * vision.hidden_size, text.hidden_size, text.hidden_size)),
        dtype=dtype,
        side=side,
        rows=joined**2,
        height=1,
        width=cells + bool(encoder["end_tokens"]),
        group=encoder["pool_size"][0],
        pooling=int(pooling),
    )


def _projector(folder: Path, vision: int, text: int) -> Projector:
    kind = read_config(folder / "config.json").get("mm_projector_type")
    if kind not in PROJECTORS:
        raise ConfigError(
            f"{folder} holds a projector {kind!r}; this family implements {' and '.join(PROJECTORS)} only"
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ConfigError(f"no safetensors weights in {folder}: {file.name} is missing")
    projector, weights = Projector(vision, text), load_file(file)
    own = projector.state_dict()
    shared = own.keys() & weights.keys()
    account(
        folder,
        own.keys() - weights.keys(),
        weights.keys() - own.keys(),
        (name for name in shared if own[name].shape != weights[name].shape),
    )
    projector.load_state_dict(weights)
    return projector
