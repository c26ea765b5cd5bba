"""Running a family: a video and a prompt about it, the compressed model, and the stock model with masks in its layers.

The masks go into the stock model's own ``generate``, so the reference shares nothing with the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList
from typing_extensions import override

from stsimdiff.compressors.base import Places, Run
from stsimdiff.engine import Compression
from stsimdiff.models.base import EncodedVideo, Family, LoadOptions, Prompt
from stsimdiff.tokens import Reason, Selection, VideoTokens
from stsimdiff.trace import Trace
from stsimdiff.video import Frames

NEW_TOKENS = 4
TEXT = "What is in the video?\nA. a cat\nB. a dog\nAnswer with the letter."
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits that counts as rounding, relative to the largest logit."""


@dataclass
class FamilyCase:
    """A loaded family with one video and one prompt about it."""

    family: Family
    frames: Frames
    video: EncodedVideo
    prompt: Prompt

    @classmethod
    def of(cls, family: Family) -> FamilyCase:
        """A case with synthetic frames, an even number since some families take them in pairs."""
        frames = synthetic_frames(6)
        video = family.encode(frames)
        return cls(family, frames, video, family.prompt(video, TEXT, sample="kit"))

    @property
    def tolerance(self) -> float:
        """Largest difference of logits that the model's dtype excuses."""
        return TOLERANCE[self.family.model.dtype]


def load(cls: type[Family], path: str, device: str, dtype: str, attention: str) -> Family:
    """The family as the checks want it: by default on any device in float32, where rounding is small."""
    options = {name: values[0] for name, values in cls.options.items()}
    return cls.load(path, LoadOptions(device, dtype, attention, options))


def synthetic_frames(count: int, seed: int = 0) -> Frames:
    """Noise on a gradient: every frame, and every part of it, differs from the others."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:48, 0:64]
    gradient = (rows * 2 + columns)[None, :, :, None] + 20 * np.arange(count)[:, None, None, None]
    pixels = (gradient + generator.integers(0, 120, (count, 48, 64, 3))) % 256
    return Frames(pixels.astype(np.uint8), tuple(range(count)), count, 2.0)


class ScriptedRun(Run):
    """Drops given raster indices at given places, and reads attention where it is told to."""

    def __init__(
        self, drops: dict[tuple[str, int], set[int]], attention: frozenset[int] = frozenset()
    ) -> None:
        self.drops = drops
        self.places = Places(
            input=("input", 0) in drops,
            before=frozenset(n for place, n in drops if place == "before"),
            between=frozenset(n for place, n in drops if place == "between"),
            attention=attention,
        )

    def _drop(self, place: str, layer: int, tokens: VideoTokens) -> Selection:
        dropped = torch.tensor(sorted(self.drops[place, layer]), dtype=torch.int64).to(tokens.index)
        return Selection.from_mask(~torch.isin(tokens.index, dropped), Reason.RANDOM)

    @override
    def at_input(self, tokens: VideoTokens) -> Selection:
        return self._drop("input", 0, tokens)

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
        return self._drop("before", layer, tokens)

    @override
    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
        return self._drop("between", layer, tokens)


class _Forced(LogitsProcessor):
    """Makes ``generate`` choose given tokens; the logits that it returns stay as they are."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.tokens[self.step]] = 0
        self.step += 1
        return forced


@torch.no_grad()
def generate(
    case: FamilyCase, run: Run | Compression | None = None, forced: Tensor | None = None
) -> tuple[Tensor, Tensor, Trace | None]:
    """Logits ``(NEW_TOKENS, V)`` float32 and the tokens of greedy decoding, with a compression or without."""
    family, prompt = case.family, case.prompt
    options: dict[str, Any] = dict(
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    if forced is not None:
        options["logits_processor"] = LogitsProcessorList([_Forced(forced)])
    if isinstance(run, Run):
        run = Compression(family.decoder, run, prompt.layout)
    with run or nullcontext() as trace:
        output = family.model.generate(**prompt.inputs, **options)
    return torch.cat(output.logits).float(), output.sequences[0, -NEW_TOKENS:], trace


def masked(
    case: FamilyCase, drops: dict[tuple[str, int], set[int]], tokens: Tensor, renumbered: bool = False
) -> Tensor:
    """Logits of the stock model, led along ``tokens``, with the dropped keys masked from their layer on.

    ``renumbered``: the tokens that are left in a layer have the positions 0, 1, ... there.
    """
    decoder, layout = case.family.decoder, case.prompt.layout
    seen = 0

    def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal seen
        embeds = kwargs.get("inputs_embeds")
        seen += layout.length if seen == 0 else (1 if embeds is None else embeds.shape[1])

    def hook_of(number: int) -> Callable:
        gone = sorted(
            int(layout.video[i])
            for (place, at), dropped in drops.items()
            if at < number or (at == number and place != "between")
            for i in dropped
        )

        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = args[0] if args else kwargs["hidden_states"]
            rows = hidden.shape[1]
            allowed = torch.ones(rows, seen, dtype=torch.bool, device=hidden.device).tril(seen - rows)
            allowed[:, gone] = False
            # A dropped token may see itself, so that its row is no row of -inf; nobody else reads it.
            itself = torch.arange(seen - rows, seen, device=hidden.device)
            allowed[torch.arange(rows, device=hidden.device), itself] = True
            mask = torch.zeros_like(allowed, dtype=hidden.dtype)
            mask = mask.masked_fill(~allowed, torch.finfo(hidden.dtype).min)[None, None]
            kwargs = {**kwargs, "attention_mask": mask}
            if renumbered and gone:
                left = torch.ones(seen, dtype=torch.int64, device=hidden.device)
                left[gone] = 0
                position = (left.cumsum(0) - 1).clamp(min=0)[None, seen - rows :]
                kwargs |= {
                    "position_ids": position,
                    "position_embeddings": decoder.module.rotary_emb(hidden, position),
                }
            return args, kwargs

        return hook

    handles = [decoder.module.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [
        layer.register_forward_pre_hook(hook_of(number), with_kwargs=True)
        for number, layer in enumerate(decoder.layers)
    ]
    try:
        return generate(case, forced=tokens)[0]
    finally:
        for handle in handles:
            handle.remove()
