"""LLaVA-OneVision on stock transformers classes, from a converted checkpoint (``llava-hf/llava-onevision-*``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typing_extensions import override

from stsimdiff.cost import DecoderShape
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
from stsimdiff.models.frame_shape import FrameShape, bilinear_flops, dtype_of, siglip_tower
from stsimdiff.models.released import QWEN2_7B, SIGLIP_SO400M
from stsimdiff.models.tower import TowerReader, pooled_signals, reading
from stsimdiff.tokens import Grid, Signals
from stsimdiff.video import Frames

FILES = ("config.json", "tokenizer_config.json", "processor_config.json")


class LlavaOnevision(Family):
    """Frames of pooled SigLIP patches, without newlines between rows; one newline token ends the whole video.

    That last token marks the end and holds nothing of the video: it is no token of the grid and always stays.
    """

    released_files = {
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
    }

    model_class = LlavaOnevisionForConditionalGeneration
    encoder = "get_video_features"

    @classmethod
    def load(cls, path: str, options: LoadOptions) -> LlavaOnevision:
        """Load a checkpoint folder; safetensors only, no code from the checkpoint is run.

        Raises:
            ConfigError: for a folder that is missing or holds another family, for sliding-window attention, and when
                weights do not fit.
        """
        options.check()
        folder = require_folder(path, FILES)
        _check(path, read_config(folder / "config.json"))
        layer = read_config(folder / "config.json").get("vision_feature_layer", -1)
        if not isinstance(layer, int):
            raise ConfigError(
                f"model.path={path!r} has vision_feature_layer={layer!r} in its config.json; this family reads one"
            )
        model = load_weights(LlavaOnevisionForConditionalGeneration, folder, options)
        refuse_sliding_window(model.config.get_text_config(), path)
        processor = load_processor(folder, options)
        return cls(model, processor, str(path))

    @property
    @override
    def placeholders(self) -> tuple[str, ...]:
        return (self.processor.video_token,)

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
        return _shape(LlavaOnevisionConfig.from_dict(dict(given)), dtype_of(given))

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
        encoded = self.encode_pixels(batch["pixel_values_videos"], signals=signals)
        encoded.seconds = {"preprocess": preprocess, "vision": watch.lap()}
        return encoded

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor, *, signals: Signals = False) -> EncodedVideo:
        """Video tokens of normalised frames ``(1, T, 3, S, S)``."""
        with self.tower(signals) as reader:
            outputs = self.model.model.get_video_features(
                pixels.to(self.device, self.model.dtype), return_dict=True
            )
        return self.encoded(outputs, reader, {"pixel_values": pixels})

    def tower(self, signals: Signals) -> Any:
        """Reads the tower that runs within ``with``; gives ``None`` where no signals are asked for."""
        last = self.model.config.vision_feature_layer
        tower = self.model.model.vision_tower
        return reading(self._tower_layers(), "self_attn", signals, last=last, tower=tower)

    def encoded(self, outputs: Any, reader: TowerReader | None, inputs: Mapping[str, Any]) -> EncodedVideo:
        """The video of the stock ``get_video_features``.

        Args:
            outputs: what it returned.
            reader: of the tower that ran.
            inputs: its arguments by name.

        Raises:
            ValueError: for several videos.
        """
        features, (videos, frames) = outputs.pooler_output, inputs["pixel_values"].shape[:2]
        if videos != 1:
            raise ValueError(f"compression runs on one prompt with one video, got {videos} videos")
        side = round(((features.shape[1] - 1) / frames) ** 0.5)
        return EncodedVideo(
            features=features[0, :-1],
            grid=Grid(frames, side, side),
            inputs={"features": features},
            signals=pooled_signals(reader, frames, self.model.model.apply_pooling) if reader else None,
        )

    @override
    def prompt(self, video: EncodedVideo, text: str, sample: str = "") -> Prompt:
        pad = self.processor.video_token
        self.refuse_placeholders(text)

        def words_of(text: str) -> str:
            return self.chat(text).replace(pad, pad * (video.grid.tokens + 1))

        ids, asked = worded(self.processor.tokenizer, words_of, text)
        return self.prompt_from_ids(video, ids, sample).asking(text, asked)

    def prompt_from_ids(self, video: EncodedVideo, ids: Tensor, sample: str = "") -> Prompt:
        """The prompt of given token ids ``(1, S)``: the video token for each video feature, and once for the end."""
        positions = (ids[0] == self.model.config.video_token_id).nonzero(as_tuple=True)[0].cpu()
        encoded = BaseModelOutputWithPooling(pooler_output=video.inputs["features"])
        inputs = {
            "input_ids": ids.to(self.device),
            "attention_mask": torch.ones_like(ids, device=self.device),
            "mm_encoder_outputs": {"video": encoded},
        }
        return Prompt(inputs, self.layout(video, positions[:-1], ids.shape[1], sample))

    def _tower_layers(self) -> Any:
        """Layers of the tower such that index ``vision_feature_layer`` made ``hidden_states[vision_feature_layer]``."""
        return self.model.model.vision_tower.encoder.layers


def _check(path: str, given: Mapping[str, Any]) -> None:
    expect_type(path, given, "llava_onevision", "'llava_onevision' (llava-hf/llava-onevision-qwen2-7b-ov-hf)")


def _shape(config: LlavaOnevisionConfig, dtype: str) -> FrameShape:
    """Sizes from the configuration; the stock tower runs all its layers, whichever one is read."""
    vision, text = config.vision_config, config.text_config
    side = vision.image_size // vision.patch_size
    pooled = math.ceil(side / 2)
    return FrameShape(
        decoder=DecoderShape.from_config(text, config.tie_word_embeddings),
        tower=siglip_tower(
            vision, vision.num_hidden_layers, (vision.hidden_size, text.hidden_size, text.hidden_size)
        ),
        dtype=dtype,
        side=side,
        rows=side**2,
        height=pooled,
        width=pooled,
        pooling=bilinear_flops(pooled**2 * text.hidden_size),
    )
