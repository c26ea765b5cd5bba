"""InternVL3 on stock transformers classes, from a converted checkpoint (``OpenGVLab/InternVL3-*-hf``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typing_extensions import override

from stsimdiff.cost import DecoderShape, TowerShape
from stsimdiff.engine import Decoder
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import (
    EncodedVideo,
    Family,
    LoadOptions,
    Prompt,
    Stopwatch,
    require_folder,
    worded,
)
from stsimdiff.models.checkpoint import (
    expect_type,
    load_processor,
    load_weights,
    read_config,
    refuse_sliding_window,
)
from stsimdiff.models.frame_shape import FrameShape, dtype_of
from stsimdiff.models.released import QWEN2_7B
from stsimdiff.models.tower import TowerReader, pooled_signals, reading
from stsimdiff.tokens import Grid, Signals
from stsimdiff.video import Frames

FILES = ("config.json", "tokenizer_config.json", "processor_config.json")


class InternVL(Family):
    """Each frame is an image of its own behind its number in words; the words and the image's marks are never dropped.

    Two by two patches (by the checkpoint's ``downsample_ratio``) become one token. InternViT has a class token, so the
    vision signals are its attention and not the one that patches receive of each other; nobody trained that token for
    a task of its own.
    """

    released_files = {
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
    }

    model_class = InternVLForConditionalGeneration
    encoder = "get_image_features"

    @classmethod
    def load(cls, path: str, options: LoadOptions) -> InternVL:
        """Load a checkpoint folder; safetensors only.

        Raises:
            ConfigError: for a folder that is missing or holds another family, for features of another kind than the
                patches of one layer, for sliding-window attention, and when weights do not fit.
        """
        options.check()
        folder = require_folder(path, FILES)
        given = read_config(folder / "config.json")
        _check(path, given)
        layer = given.get("vision_feature_layer", -1)
        if type(layer) is not int or layer >= 0:
            raise ConfigError(
                f"model.path={path!r} has vision_feature_layer={layer!r} in its config.json; this family reads one, "
                "counted from the end (-1)"
            )
        strategy = given.get("vision_feature_select_strategy", "default")
        if strategy != "default":
            raise ConfigError(
                f"model.path={path!r} has vision_feature_select_strategy={strategy!r} in its config.json; this family "
                "implements 'default' only"
            )
        model = load_weights(InternVLForConditionalGeneration, folder, options)
        refuse_sliding_window(model.config.get_text_config(), path)
        return cls(model, load_processor(folder, options), str(path))

    @property
    @override
    def placeholders(self) -> tuple[str, ...]:
        return (self.processor.video_token, self.processor.image_token)

    @property
    @override
    def decoder(self) -> Decoder:
        language_model = self.model.model.language_model
        return Decoder(language_model, language_model.layers)

    @classmethod
    @override
    def shape_from(cls, files: Mapping[str, Mapping[str, Any]], options: LoadOptions) -> FrameShape:
        given = files["config.json"]
        _check("", given)
        return _shape(InternVLConfig.from_dict(dict(given)), dtype_of(given))

    @property
    @override
    def shape(self) -> FrameShape:
        return _shape(self.model.config, self.dtype_name)

    @torch.inference_mode()
    @override
    def encode(self, frames: Frames, *, signals: Signals = False) -> EncodedVideo:
        watch = Stopwatch(self.device)
        pixels = torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)
        batch = self.processor.video_processor(videos=[pixels], do_sample_frames=False, return_tensors="pt")
        preprocess = watch.lap()
        encoded = self.encode_pixels(batch["pixel_values_videos"][0], signals=signals)
        # The stock processor's own words: each frame's number and its tokens.
        encoded.inputs["placeholder"] = self.processor.replace_video_token(batch, 0)
        encoded.seconds = {"preprocess": preprocess, "vision": watch.lap()}
        return encoded

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor, *, signals: Signals = False) -> EncodedVideo:
        """Video tokens of normalised frames ``(T, 3, H, W)``; ``signals``: also read the class token's attention."""
        with self.tower(signals) as reader:
            outputs = self.model.model.get_image_features(pixels.to(self.device), return_dict=True)
        return self.encoded(outputs, reader, {"pixel_values": pixels})

    def tower(self, signals: Signals) -> Any:
        """Reads the tower that runs within ``with``; gives ``None`` where no signals are asked for."""
        layers = self.model.model.vision_tower.encoder.layer
        return reading(
            layers, "attention", signals, last=self.model.config.vision_feature_layer, class_token=True
        )

    def encoded(self, outputs: Any, reader: TowerReader | None, inputs: Mapping[str, Any]) -> EncodedVideo:
        """The video of the stock ``get_image_features``, which takes frames and images alike: all are frames of one.

        Args:
            outputs: what it returned.
            reader: of the tower that ran.
            inputs: its arguments by name.
        """
        features, frames = outputs.pooler_output, len(inputs["pixel_values"])
        side = round(features.shape[1] ** 0.5)
        return EncodedVideo(
            features=features.flatten(0, 1),
            grid=Grid(frames, side, side),
            inputs={},
            signals=pooled_signals(reader, frames, self._pool) if reader else None,
        )

    def _pool(self, values: Tensor) -> Tensor:
        """``(T, h, w, C)``: means of values ``(T, patches, C)`` over the patches that become one token."""
        side = round(values.shape[1] ** 0.5)
        maps = values.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        cell = round(1 / self.model.config.downsample_ratio)
        return nn.functional.avg_pool2d(maps, cell).permute(0, 2, 3, 1)

    @override
    def prompt(self, video: EncodedVideo, text: str, sample: str = "") -> Prompt:
        self.refuse_placeholders(text)

        def words_of(text: str) -> str:
            return self.chat(text).replace(self.processor.video_token, video.inputs["placeholder"])

        ids, asked = worded(self.processor.tokenizer, words_of, text)
        return self.prompt_from_ids(video, ids, sample).asking(text, asked)

    def prompt_from_ids(self, video: EncodedVideo, ids: Tensor, sample: str = "") -> Prompt:
        """The prompt of given token ids ``(1, S)``, in which the image token stands once for each video feature."""
        positions = (ids[0] == self.model.config.image_token_id).nonzero(as_tuple=True)[0].cpu()
        encoded: Any = BaseModelOutputWithPooling(
            pooler_output=video.features.view(video.grid.frames, video.grid.per_frame, -1)
        )
        inputs = {
            "input_ids": ids.to(self.device),
            "attention_mask": torch.ones_like(ids, device=self.device),
            "mm_encoder_outputs": {"image": encoded},
        }
        return Prompt(inputs, self.layout(video, positions, ids.shape[1], sample))


def _check(path: str, given: Mapping[str, Any]) -> None:
    expect_type(
        path, given, "internvl", "'internvl', the converted form (OpenGVLab/InternVL3-8B-hf, with -hf)"
    )


def _shape(config: InternVLConfig, dtype: str) -> FrameShape:
    """Sizes from the configuration; the stock tower runs all its layers, and so many words stand before a frame."""
    vision, text = config.vision_config, config.get_text_config()
    side, cell = vision.image_size[0] // vision.patch_size[0], round(1 / config.downsample_ratio)
    tower = TowerShape(
        patch=vision.num_channels * vision.patch_size[0] * vision.patch_size[1],
        width=vision.hidden_size,
        intermediate=vision.intermediate_size,
        heads=vision.num_attention_heads,
        layers=vision.num_hidden_layers,
        projector=(vision.hidden_size * cell**2, text.hidden_size, text.hidden_size),
        class_token=True,
    )
    return FrameShape(
        decoder=DecoderShape.from_config(text, config.tie_word_embeddings),
        tower=tower,
        dtype=dtype,
        timestamp_tokens=6,
        side=side,
        rows=(side // cell) ** 2,
        height=side // cell,
        width=side // cell,
    )
