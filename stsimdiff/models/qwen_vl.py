"""What the Qwen-VL families share: merged patches, M-RoPE positions, the stock processor.

The families themselves are :mod:`qwen2_vl`, :mod:`qwen2_5_vl` and :mod:`qwen3_vl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.video_utils import VideoMetadata
from typing_extensions import override

from stsimdiff.cost import ModelShape
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
from stsimdiff.models.frame_shape import dtype_of
from stsimdiff.models.qwen_shape import PROCESSORS, PixelLimits, QwenShape, TokenLimits
from stsimdiff.models.tower import TowerReader, reading
from stsimdiff.tokens import Grid, Picture, Signals, VisionSignals
from stsimdiff.video import Frames

VIDEO_TYPE = 2
"""Code of video tokens in transformers' ``mm_token_type_ids``."""
POSITIONS = ("released", "stock")
"""Where the text after a video starts: see :func:`released_positions`."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


class QwenVL(Family):
    """Video tokens are ``<|video_pad|>``: ``frames / 2`` grids of merged patches, M-RoPE positions; one block here.

    Options (``model.*`` of the configuration): ``positions``, one of :data:`POSITIONS`; ``min_frame_tokens``,
    ``max_frame_tokens`` and ``max_video_tokens``, see :class:`~stsimdiff.models.qwen_shape.TokenLimits`. The file on
    the hub has the limits of an image, under which a video costs several times the tokens of the reference.
    """

    CONFIGURATIONS = ("config.json", *PROCESSORS)

    model_class: Any
    model_type: str
    encoder = "get_video_features"
    mrope = True
    positions = POSITIONS[0]
    shape_class: type[QwenShape] = QwenShape
    limits = PixelLimits()
    token_limits: TokenLimits | None = None

    @classmethod
    def load(cls, path: str, options: LoadOptions) -> QwenVL:
        """Load a checkpoint folder; safetensors only, no code from the checkpoint is run.

        A folder without a tokenizer loads too, but :meth:`encode` and :meth:`prompt` then refuse to work.

        Raises:
            ConfigError: for a folder that is missing or holds another family, and for sliding-window attention.
        """
        options.check()
        token_limits = TokenLimits.of_options(options.family)
        folder = require_folder(path)
        expect_type(path, read_config(folder / "config.json"), cls.model_type)
        model = load_weights(cls.model_class, folder, options)
        refuse_sliding_window(model.config.get_text_config(), path)
        processor = None
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            processor = load_processor(folder, options)
        family = cls(model, processor, str(path))
        family.token_limits = token_limits
        family.positions = options.family.get("positions", cls.positions)
        if family.positions not in POSITIONS:
            raise ConfigError(
                f"model.positions={family.positions!r} is unknown; allowed: {', '.join(POSITIONS)}"
            )
        return family

    @property
    @override
    def placeholders(self) -> tuple[str, ...]:
        return (self._processor().video_token,)

    @property
    @override
    def decoder(self) -> Decoder:
        language_model = self.model.model.language_model
        return Decoder(language_model, language_model.layers, mrope=self.mrope)

    @classmethod
    @override
    def shape_from(cls, files: Mapping[str, Mapping[str, Any]], options: LoadOptions) -> ModelShape:
        given = files["config.json"]
        expect_type("", given, cls.model_type)
        config = cls.model_class.config_class.from_dict(dict(given))
        limits = TokenLimits.of_options(options.family) or cls.limits.of_files(files)
        return cls.shape_class.from_config(config, dtype_of(given), limits)

    @property
    @override
    def shape(self) -> ModelShape:
        dtype = self.dtype_name
        limits: PixelLimits | TokenLimits = self.token_limits or self.limits
        if self.processor is not None and self.token_limits is None:
            limits = PixelLimits.of_processor(self.processor.video_processor)
        return self.shape_class.from_config(self.model.config, dtype, limits)

    @torch.inference_mode()
    @override
    def encode(self, frames: Frames, *, signals: Signals = False) -> EncodedVideo:
        watch = Stopwatch(self.device)
        processor = self._processor()
        pixels = torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)
        metadata = VideoMetadata(
            total_num_frames=frames.total,
            fps=frames.fps,
            frames_indices=list(frames.indices),
            duration=frames.duration,
        )
        batch = processor(
            text=[processor.video_token],
            videos=[pixels],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_metadata=True,
            return_tensors="pt",
            **self._size(len(pixels)),
        )
        preprocess = watch.lap()
        encoded = self.encode_patches(batch["pixel_values_videos"], batch["video_grid_thw"], signals=signals)
        encoded.inputs.update(self._of_batch(batch))
        encoded.seconds = {"preprocess": preprocess, "vision": watch.lap()}
        return encoded

    def _size(self, frames: int) -> dict[str, Any]:
        """The stock processor's arguments that decide to what size the frames are brought."""
        if self.token_limits is None:
            # As the reference implementation (qwen-vl-utils) does; else a large video costs far more tokens than there.
            return {"cap_pixels_per_frame": True}
        vision = self.model.config.vision_config
        factor = vision.patch_size * vision.spatial_merge_size
        least, most = self.token_limits.pixels(frames, factor, vision.temporal_patch_size)
        return {"size": {"shortest_edge": least, "longest_edge": most}, "cap_pixels_per_frame": False}

    @torch.inference_mode()
    def encode_patches(self, patches: Tensor, grid_thw: Tensor, *, signals: Signals = False) -> EncodedVideo:
        """Run the vision tower on preprocessed patches.

        Args:
            patches: ``(P, C)`` flattened patches, ``pixel_values_videos`` of the stock processor.
            grid_thw: ``(1, 3)`` int64: temporal patches, rows and columns of patches before merging.
            signals: also read the attention of the tower's last layer.
        """
        with self.tower(signals) as reader:
            outputs = self.model.model.get_video_features(
                patches.to(self.device), grid_thw.to(self.device), return_dict=True
            )
        return self.encoded(outputs, reader, {"video_grid_thw": grid_thw})

    def tower(self, signals: Signals) -> Any:
        """Reads the tower that runs within ``with``; gives ``None`` where no signals are asked for."""
        return reading(self.model.model.visual.blocks, "attn", signals)

    def encoded(self, outputs: Any, reader: TowerReader | None, inputs: Mapping[str, Any]) -> EncodedVideo:
        """The video of the stock ``get_video_features``.

        Args:
            outputs: what it returned.
            reader: of the tower that ran.
            inputs: its arguments by name.

        Raises:
            ValueError: for several videos.
        """
        grid_thw = inputs["video_grid_thw"]
        if len(grid_thw) != 1:
            raise ValueError(f"compression runs on one prompt with one video, got {len(grid_thw)} videos")
        merge = self.model.config.vision_config.spatial_merge_size
        time_steps, height, width = (int(v) for v in grid_thw[0])
        return EncodedVideo(
            features=torch.cat(tuple(outputs.pooler_output)),
            grid=Grid(time_steps, height // merge, width // merge),
            inputs={"video_grid_thw": grid_thw.to(self.device), **self._of_tower(outputs)},
            signals=self._signals(reader, grid_thw) if reader else None,
        )

    def _signals(self, reader: TowerReader, grid_thw: Tensor) -> VisionSignals:
        """Mean over the patches that the merger joins, in raster order."""
        unit = self.model.config.vision_config.spatial_merge_size**2
        order, time_steps = self._tower_order(grid_thw), int(grid_thw[0, 0])
        place = None if order is None else torch.argsort(order).to(reader.received.device)

        def merged(values: Tensor) -> Tensor:
            means = values.view(-1, unit, *values.shape[1:]).mean(1)
            return means if place is None else means[place]

        return VisionSignals(
            merged(reader.received),
            merged(reader.keys),
            reader.query(time_steps),
            reader.others(merged, time_steps),
        )

    def _tower_order(self, grid_thw: Tensor) -> Tensor | None:
        """``(N,)`` raster index of each merged token in the order of the tower's layers; ``None`` if it is raster."""
        return None

    @override
    def picture(self, grid: Grid) -> Picture:
        joined = self.model.config.vision_config.temporal_patch_size
        return Picture(joined, grid.height, grid.width, grid.width)

    @override
    def prompt(self, video: EncodedVideo, text: str, sample: str = "") -> Prompt:
        processor = self._processor()
        self.refuse_placeholders(text)

        def words_of(text: str) -> str:
            return self.chat(text).replace(processor.video_token, self._placeholder(video))

        ids, asked = worded(processor.tokenizer, words_of, text, add_special_tokens=False)
        return self.prompt_from_ids(video, ids, sample).asking(text, asked)

    def prompt_from_ids(self, video: EncodedVideo, ids: Tensor, sample: str = "") -> Prompt:
        """The prompt of given token ids ``(1, S)``, in which the video token stands once for each video feature."""
        is_video = ids == self.model.config.video_token_id
        inputs = {
            "input_ids": ids.to(self.device),
            "attention_mask": torch.ones_like(ids, device=self.device),
            "mm_token_type_ids": (is_video.int() * VIDEO_TYPE).to(self.device),
            **self._for_generate(video),
        }
        if self.positions == "released":
            inputs["position_ids"] = released_positions(self.model.model, inputs)
        positions = is_video[0].nonzero(as_tuple=True)[0].cpu()
        return Prompt(inputs, self.layout(video, positions, ids.shape[1], sample))

    def _of_batch(self, batch: Any) -> dict[str, Any]:
        """What else of the processed batch the prompt depends on."""
        return {}

    def _of_tower(self, outputs: Any) -> dict[str, Any]:
        """What else of the tower's outputs the prompt depends on."""
        return {}

    def _placeholder(self, video: EncodedVideo) -> str:
        """What stands for the video in the prompt, where the chat template has one video token."""
        return self._processor().video_token * video.grid.tokens

    def _for_generate(self, video: EncodedVideo) -> dict[str, Any]:
        """The arguments of ``generate`` that the video gives."""
        encoded = BaseModelOutputWithPooling(pooler_output=(video.features,))
        return {"mm_encoder_outputs": {"video": encoded}, **video.inputs}

    def _processor(self) -> Any:
        if self.processor is None:
            raise ConfigError(
                f"model.path={self.path!r} has no tokenizer or processor files ({', '.join(TOKENIZER_FILES)} ...): "
                "without them there is no text prompt and no preprocessing; add them from the released checkpoint"
            )
        return self.processor


def released_positions(body: Any, inputs: dict[str, Any]) -> Tensor:
    """``(3, 1, S)`` M-RoPE positions of a prompt with one video, as the model was trained and released.

    Text after the video continues from the largest position of the video plus one (Qwen2-VL, section 2.1, and
    transformers before 5). transformers 5 starts it at the video's first position plus the larger side of its grid: for
    a video of more grids than rows and columns, the question would stand before most of the frames it asks about.

    Args:
        body: the stock model's body, whose ``get_rope_index`` gives the positions of the video itself.
        inputs: the prompt's ``input_ids`` ``(1, S)``, ``mm_token_type_ids`` and what the positions depend on.
    """
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    positions, _ = body.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
    video = inputs["mm_token_type_ids"][0] == VIDEO_TYPE
    end = int(video.nonzero()[-1]) + 1
    if end < positions.shape[2]:
        text = positions[:, :, end:]
        text += positions[:, 0, video].max() + 1 - text[:, :, :1].clone()
    return positions
