"""The contract of a model family: where its video tokens are, how its vision tower is read, how it is loaded.

A family knows no compression method. The next family is one file with a subclass of :class:`Family`; the kit in
``stsimdiff.models.kit`` says whether it keeps the contract, and ``docs/families.md`` shows one.
"""

from __future__ import annotations

import copy
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from stsimdiff.cost import ModelShape
from stsimdiff.engine import Decoder, synchronise
from stsimdiff.errors import ConfigError
from stsimdiff.ranks import local_rank, world_size
from stsimdiff.tokens import Grid, Layout, Picture, Signals, VisionSignals
from stsimdiff.video import Frames

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
GREEDY = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "min_length",
    "min_new_tokens",
    "renormalize_logits",
    "stop_strings",
)
"""What of a checkpoint's generation settings holds: what decides which token is best, and where an answer ends.

Others are ways of decoding that are not greedy (sampling, beams, guidance, watermarks), caches that cannot hold layers
of different lengths, a clock, outputs that nobody reads, or would hide NaN (``remove_invalid_values``).
"""


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is put on a device.

    Attributes:
        device: ``auto`` (an accelerator if there is one, else the CPU) or any torch device.
        dtype: ``auto`` (the checkpoint's own) or a name of :data:`DTYPES`.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` ...
        family: options of one family alone, see ``stsimdiff.models.options_of``.
        device_map: how transformers spreads the model's parts over several devices: a name (``auto``, ``balanced`` ...)
            or devices by module; ``None`` puts the whole model on ``device``. Tried on CPUs only, with accelerate's
            hooks and with pretended devices; nobody has run it on several accelerators.
        trust_remote_code: whether a checkpoint's own Python code may run; off unless a user says so.
    """

    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    family: Mapping[str, Any] = field(default_factory=dict)
    device_map: str | Mapping[str, str | int] | None = None
    trust_remote_code: bool = False

    def resolved_device(self) -> torch.device:
        """The torch device; raises :class:`ConfigError` for a name that torch does not know or does not have."""
        if self.device == "auto":
            found = torch.accelerator.current_accelerator(check_available=True)
            if found is None:
                return torch.device("cpu")
            # One process drives one device; torch.distributed.run says which.
            return torch.device(found.type, local_rank() % torch.accelerator.device_count())
        return _usable(f"model.device={self.device!r}", self.device)

    def check(self) -> None:
        """Raise :class:`ConfigError` for options that cannot be used here: said before a file is opened."""
        self.resolved_dtype()
        if self.device_map is None:
            self.resolved_device()
            return
        if (world := world_size()) > 1:
            raise ConfigError(
                f"model.device_map={self.device_map!r} spreads one model over the devices, and "
                f"{world} processes each want one: leave model.device_map out, or start one process"
            )
        if isinstance(self.device_map, Mapping):
            for module, device in self.device_map.items():
                _usable(f"model.device_map: {module!r} on {device!r}", device)

    def place(self, model: nn.Module) -> nn.Module:
        """Put a loaded model on the device, unless transformers has spread it over several already."""
        return model.to(self.resolved_device()) if self.device_map is None else model

    def resolved_dtype(self) -> torch.dtype | str:
        """A torch dtype, or ``auto`` for the checkpoint's own."""
        if self.dtype == "auto":
            return "auto"
        if self.dtype not in DTYPES:
            raise ConfigError(f"model.dtype={self.dtype!r} is unknown; allowed: auto, {', '.join(DTYPES)}")
        return DTYPES[self.dtype]


def _usable(name: str, device: str | int) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{name} cannot be used here: {error}") from error
    return found


@dataclass
class EncodedVideo:
    """What the vision tower made of one video; all questions and all arms answer from it.

    Attributes:
        features: ``(N, D)`` projected video tokens in raster order, on the model's device.
        grid: their grid.
        inputs: what else the family's prompt needs (for example ``video_grid_thw``).
        signals: what the vision tower's attention says, where it was asked for.
        seconds: time of preprocessing and of the vision tower.
        origin: ``encoded``, or where features of an earlier pass or run came from: ``memory``, ``disk``.
        frames: what it was made of, where a method reads them.
        times: when each of the frames is shown, in seconds from the file's beginning.
    """

    features: Tensor
    grid: Grid
    inputs: dict[str, Any]
    signals: VisionSignals | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    origin: str = "encoded"
    frames: Frames | None = None
    times: tuple[float, ...] = ()


@dataclass
class Prompt:
    """One question about one video, ready for ``generate``.

    Attributes:
        inputs: keyword arguments for ``generate``, batch of one.
        layout: where the video tokens are.
    """

    inputs: dict[str, Any]
    layout: Layout

    def asking(self, question: str, asked: Tensor | None) -> Prompt:
        """The prompt, whose layout says where the question is; arguments as in :class:`~stsimdiff.tokens.Layout`."""
        return Prompt(self.inputs, replace(self.layout, question=question, asked=asked))


_MARK = "the question stands here"


def worded(
    tokenizer: Any, words_of: Callable[[str], str], text: str, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Token ids ``(1, S)`` of a text within its template, and the rows of those that hold any of it.

    Args:
        tokenizer: of the model.
        words_of: the template: gives a text with all that stands around it.
        text: the question.
        options: of the tokenizer.

    Returns:
        The rows are ``(q,)`` int64, ascending; ``None`` where the template changes the text, or the tokenizer does not
        say which characters a token holds.
    """
    words, marked = words_of(text), words_of(_MARK)
    start = marked.find(_MARK)
    known = start >= 0 and getattr(tokenizer, "is_fast", False)
    batch = tokenizer(words, return_tensors="pt", return_offsets_mapping=known, **options)
    if not known:
        return batch["input_ids"], None
    end = len(words) - (len(marked) - start - len(_MARK))
    first, last = batch["offset_mapping"][0].unbind(-1)
    inside = (first < end) & (last > start) & (first < last)
    return batch["input_ids"], inside.nonzero(as_tuple=True)[0]


class Family(ABC):
    """A loaded model of one family.

    Attributes:
        model: the stock transformers model, in eval mode.
        processor: its stock processor.
        path: where it was loaded from.
        options: of a user's own family: its keys ``model.*`` in the configuration, and the values of each. They reach
            :meth:`load` as ``LoadOptions.family``.
    """

    options: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    CONFIGURATIONS: ClassVar[tuple[str, ...]] = ("config.json",)
    """The configuration files that :meth:`shape_from` reads where a checkpoint has them; the first one it must have."""
    released_files: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What of those files of a released checkpoint decides sizes, for a plan without the weights."""
    mrope: ClassVar[bool] = False
    """Whether a token's position is more than one number (M-RoPE); :attr:`decoder` says it too."""

    def __init__(self, model: Any, processor: Any, path: str) -> None:
        self.model, self.processor, self.path = model.eval(), processor, path
        self.model.generation_config = greedy(self.model.generation_config)

    @classmethod
    @abstractmethod
    def load(cls, path: str, options: LoadOptions) -> Family:
        """Load a checkpoint folder (or hub id). Raises :class:`ConfigError` if it is not of this family."""

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """The decoder that the engine works on."""

    @property
    @abstractmethod
    def placeholders(self) -> tuple[str, ...]:
        """Texts that stand for a video in this family's prompts; a question that holds one is refused."""

    @classmethod
    def shape_from(cls, files: Mapping[str, Mapping[str, Any]], options: LoadOptions) -> ModelShape:
        """Sizes of a model from its configuration files alone, for what must be known before weights are there.

        Args:
            files: contents of those of :attr:`CONFIGURATIONS` that there are.
            options: the family's own options are read.

        Raises:
            ConfigError: for a family that does not say them, and for files of another family.
        """
        raise ConfigError(f"{cls.__name__} does not say a model's sizes without its weights")

    @property
    def shape(self) -> ModelShape | None:
        """Sizes of the loaded model; ``None``: its vision tower's cost is not counted."""
        return None

    @abstractmethod
    def encode(self, frames: Frames, *, signals: Signals = False) -> EncodedVideo:
        """Preprocess the frames and run the vision tower once.

        Args:
            frames: of one video.
            signals: also read the tower's attention (:class:`~stsimdiff.tokens.VisionSignals`), and layers by number.
        """

    @abstractmethod
    def prompt(self, video: EncodedVideo, text: str, sample: str = "") -> Prompt:
        """The chat prompt of one user message: the video, then ``text``. ``sample`` is the video's name.

        :func:`worded` and :meth:`Prompt.asking` say in its layout where the question is.
        """

    def picture(self, grid: Grid) -> Picture:
        """Where in the frames the tokens of an encoded video's grid lie: one frame a row, every token a cell.

        A family that joins frames, or whose grid holds tokens that are no part of a frame, says so here.
        """
        return Picture(frames=1, height=grid.height, width=grid.width, stride=grid.width)

    def chat(self, text: str) -> str:
        """The words of one user message by the processor's chat template, the question open: the video, then a text."""
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}
        return str(self.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True))

    def layout(self, video: EncodedVideo, positions: Tensor, length: int, sample: str) -> Layout:
        """That of a prompt about an encoded video.

        Args:
            video: as encoded.
            positions: ``(N,)`` of its tokens in the prompt.
            length: tokens of the prompt.
            sample: the video's name.
        """
        return Layout(
            grid=video.grid,
            video=positions,
            length=length,
            layers=len(self.decoder),
            sample=sample,
            vision=video.signals,
            picture=self.picture(video.grid),
        )

    def refuse_placeholders(self, text: str) -> None:
        """Raise ``ValueError`` for a question's text that would be taken for a video."""
        for placeholder in self.placeholders:
            if placeholder in text:
                raise ValueError(f"the question's text holds the model's video token {placeholder!r}")

    @property
    def device(self) -> torch.device:
        """Device of the decoder's input."""
        return execution_device(self.model.get_input_embeddings())

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that turns an answer's ids into text."""
        return self.processor.tokenizer

    @property
    def text_config(self) -> Any:
        """Configuration of the language model (depth, widths, heads)."""
        return self.model.config.get_text_config()

    @torch.inference_mode()
    def generate(self, prompt: Prompt, max_new_tokens: int, **options: Any) -> Tensor:
        """Greedy token ids ``(1, S)`` of one prompt; ``options`` are further ones of the stock ``generate``.

        Of the checkpoint's generation settings those of :data:`GREEDY` hold. Where they say no end of an answer, it is
        the tokenizer's, and the one that its chat template writes.

        Raises:
            ConfigError: when nothing says where an answer ends.
            FloatingPointError: when the model's logits are NaN or infinite: what it says then is no answer.
        """
        settings = copy.copy(self.model.generation_config)
        if settings.eos_token_id is None:
            settings.eos_token_id = self._ends
        if settings.stop_strings is not None:
            options = {"tokenizer": self.tokenizer, **options}
        others = settings.update(max_new_tokens=max_new_tokens, **options)
        watch = _FiniteLogits()
        processors = LogitsProcessorList([*others.pop("logits_processor", ()), watch])
        ids = self.model.generate(
            **prompt.inputs, generation_config=settings, logits_processor=processors, **others
        )
        self._check_finite(watch)
        return ids

    def _check_finite(self, watch: _FiniteLogits) -> None:
        wrong = [number for number, top in enumerate(watch.tops, start=1) if not math.isfinite(top)]
        if wrong:
            advice = "try model.dtype=float32; if that changes nothing, look at the weights and the method"
            if self.dtype_name == "float16":
                advice = "float16 overflows in many models: try model.dtype=bfloat16 or float32"
            raise FloatingPointError(
                f"the model's logits are NaN or Inf at new token {wrong[0]} (model.dtype={self.dtype_name}); {advice}"
            )

    @cached_property
    def _ends(self) -> list[int] | None:
        """Ids of the tokens that end an answer, as the tokenizer and the chat template know them."""
        if self.processor is None:
            return None  # no text is asked or answered
        tokenizer = self.tokenizer
        ends = {tokenizer.eos_token_id} - {None}
        template = getattr(self.processor, "chat_template", None) or tokenizer.chat_template
        if template is not None:
            talk = [
                {"role": role, "content": [{"type": "text", "text": "a"}]} for role in ("user", "assistant")
            ]
            # A template that takes no such talk says nothing of how a turn ends.
            with suppress(TemplateError, TypeError):
                chat = tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False)
                ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
                ends.update([id_ for id_ in ids if id_ in tokenizer.all_special_ids][-1:])
        if not ends:
            raise ConfigError(
                f"model.path={self.path!r} names no token that ends an answer: set eos_token_id in its "
                "generation_config.json, or eos_token in its tokenizer_config.json"
            )
        return sorted(ends)

    def answer(self, prompt: Prompt, max_new_tokens: int) -> str:
        """Greedy answer to one prompt, special tokens stripped; a sample never depends on another."""
        ids = self.generate(prompt, max_new_tokens)
        # A prompt given as embeddings has no ids that ``generate`` could repeat before the new ones.
        prompted = prompt.inputs["input_ids"].shape[1] if "input_ids" in prompt.inputs else 0
        return self.tokenizer.decode(ids[0, prompted:], skip_special_tokens=True).strip()

    @property
    def dtype_name(self) -> str:
        """Name of the dtype that the model was loaded in, such as ``bfloat16``."""
        return str(self.model.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, str]:
        """Provenance: class, device, dtype, attention backend and where each part lies, as loaded."""
        # Set by transformers where the model was really spread.
        placed = getattr(self.model, "hf_device_map", None) or {"": self.device}
        return {
            "class": type(self.model).__name__,
            "device": str(self.device),
            "dtype": self.dtype_name,
            "attention": str(self.model.config._attn_implementation),
            "layers": str(len(self.decoder)),
            "device_map": json.dumps({name: str(device) for name, device in placed.items()}),
        }


class _FiniteLogits(LogitsProcessor):
    """Keeps the highest logit of every step: NaN and Inf show in it. Read at the end, it costs no wait in between."""

    def __init__(self) -> None:
        self.tops: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.tops.append(scores.amax())
        return scores


def greedy(settings: GenerationConfig) -> GenerationConfig:
    """Settings of ``generate`` for one greedy answer, with what of a checkpoint's own holds: see :data:`GREEDY`."""
    kept = {name: getattr(settings, name) for name in GREEDY}
    return GenerationConfig(do_sample=False, num_beams=1, use_cache=True, **kept)


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: that of its weights, or where accelerate brings weights that are kept elsewhere."""
    hook = getattr(module, "_hf_hook", None)
    for part in (hook, *getattr(hook, "hooks", ())):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


class Stopwatch:
    """Seconds between laps on a device, synchronised."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lap()

    def lap(self) -> float:
        """Seconds since the last lap."""
        synchronise(self.device)
        now = time.perf_counter()
        seconds = now - getattr(self, "_last", now)
        self._last = now
        return seconds


def require_folder(path: str, files: tuple[str, ...] = ("config.json",)) -> Path:
    """The checkpoint folder, or a :class:`ConfigError` that says what is missing and where it was looked for."""
    folder = Path(path).expanduser()
    missing = [name for name in files if not (folder / name).is_file()]
    if not folder.is_dir() or missing:
        what = f"lacks {', '.join(missing)}" if folder.is_dir() else "is no folder"
        raise ConfigError(
            f"model.path={path!r} {what}; give a checkpoint folder, for example one made with "
            "`hf download <org>/<model> --local-dir <folder>`"
        )
    return folder
