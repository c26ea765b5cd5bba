"""What LLaVA-Video and NVILA share: a SigLIP vision tower, Qwen2, and a prompt joined from embeddings.

Neither has a placeholder token of the video's length: the features stand between two pieces of text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from typing_extensions import override

from stsimdiff.errors import ConfigError
from stsimdiff.models.base import EncodedVideo, Family, Prompt, execution_device, worded
from stsimdiff.video import Frames


def siglip_features(tower: nn.Module, pixels: Tensor) -> Tensor:
    """``(T, patches, C)`` output of the tower's last encoder layer, before its final norm.

    Args:
        tower: a stock ``SiglipVisionModel`` that holds only the layers that count.
        pixels: ``(T, 3, S, S)`` normalised frames.
    """
    first = tower.embeddings.patch_embedding
    patches = tower.embeddings(pixels.to(execution_device(first), first.weight.dtype))
    return tower.encoder(inputs_embeds=patches).last_hidden_state


def frame_pixels(frames: Frames, size: int) -> Tensor:
    """``(T, 3, size, size)`` float32: frames resized (bicubic) and normalised as SigLIP expects them."""
    processor = SiglipImageProcessorPil(size={"height": size, "width": size})
    return processor(list(frames.pixels), return_tensors="pt", input_data_format="channels_last")[
        "pixel_values"
    ]


def optional_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer of a folder, or ``None`` where its files are not there; ``config`` is the language model's."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    # Without a configuration, the original one of the folder would be read, which transformers does not know.
    return AutoTokenizer.from_pretrained(
        folder, config=config, trust_remote_code=False, local_files_only=True
    )


class SiglipQwen2(Family):
    """A family whose prompt is text, video features, text. The processor is the tokenizer alone, or ``None``."""

    @property
    @override
    def tokenizer(self) -> Any:
        if self.processor is None:
            raise ConfigError(
                f"model.path={self.path!r} has no tokenizer files (tokenizer.json or vocab.json): there is no text "
                "prompt without them; add them from the released checkpoint"
            )
        return self.processor

    def prompt_from_ids(self, video: EncodedVideo, before: Tensor, after: Tensor, sample: str = "") -> Prompt:
        """The prompt of given token ids ``(n,)`` before and after the video.

        Its inputs are embeddings, so that no token of the vocabulary has to stand for a video feature.
        """
        embed = self.model.get_input_embeddings()
        text = [embed(ids.to(self.device)) for ids in (before, after)]
        embeds = torch.cat((text[0], video.features.to(text[0]), text[1]))[None]
        positions = torch.arange(video.grid.tokens) + before.shape[0]
        layout = self.layout(video, positions, embeds.shape[1], sample)
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=self.device)
        return Prompt({"inputs_embeds": embeds, "attention_mask": mask}, layout)

    def _prompt(
        self, video: EncodedVideo, before: str, after: Callable[[str], str], text: str, sample: str
    ) -> Prompt:
        """The prompt of the words before the video and of those after it, which hold the question's text."""
        first = self._ids(before)
        ids, asked = worded(self.tokenizer, after, text, add_special_tokens=False)
        if asked is not None:
            asked = asked + len(first) + video.grid.tokens
        return self.prompt_from_ids(video, first, ids[0], sample).asking(text, asked)

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
