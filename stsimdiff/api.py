"""The Python API: load a model, compress the video tokens it sees, ask, and read what a run stored.

>>> from stsimdiff import STSimDiff, load
>>> model = load("qwen2_5_vl", "Qwen2.5-VL-7B-Instruct")  # doctest: +SKIP
>>> with model.compress(STSimDiff(), retention=0.3) as trace:  # doctest: +SKIP
...     model.answer("clip.mp4", "What happens?")

:func:`compress` does the same to a stock transformers model that you loaded yourself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from torch import Tensor, nn

from stsimdiff import models
from stsimdiff.budget import Budget, Kind
from stsimdiff.compressors.base import Compressor, signals_for
from stsimdiff.config.checks import expanded
from stsimdiff.config.settings import Settings
from stsimdiff.config.words import options, quoted
from stsimdiff.engine import Compression, lent
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.overlays import reasons
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.evaluate.session import load_model
from stsimdiff.launchers.base import configurations
from stsimdiff.models.base import EncodedVideo, Family
from stsimdiff.report import film, rows
from stsimdiff.report.overlays import OverlayArm
from stsimdiff.schema import one_of
from stsimdiff.tokens import Signals, covers
from stsimdiff.trace import Trace
from stsimdiff.video import Sampling, check_file
from stsimdiff.video import read as read_video

STOCK = tuple(name for name, row in models.FAMILIES.items() if not row.original)
"""Families whose stock transformers class answers from the stock processor's inputs; the others read a checkpoint of
the authors', which :func:`load` takes."""
_PIXELS = {"pixel_values": "pixel_values", "pixel_values_videos": "pixel_values"}
"""What the stock classes call a video's pixels."""


def load(model: str = "embedded", path: str | Path | None = None, **settings: Any) -> Model:
    """Load a model, with the settings of ``configs/model/<model>.yaml``.

    Args:
        model: a name of ``configs/model``: ``qwen2_5_vl``, ``llava_video``, ``embedded`` ...
        path: the checkpoint's folder; ``None``: what the settings say.
        settings: any of the model's settings: ``frames=64``, ``dtype="bfloat16"``, ``device="cuda:1"`` ...

    Raises:
        UserError: for a name or a setting that is wrong, and for a checkpoint that is missing or of another family.
    """
    one_of("model", model, options("model"))
    model_settings = {**settings, **({} if path is None else {"path": expanded("path", str(path))})}
    words = [
        f"model={model}",
        "compressor=none",
        "logger=none",
        *(f"model.{name}={_written(value)}" for name, value in model_settings.items()),
    ]
    (run_pass,) = passes_of(configurations(words))
    return Model(load_model(run_pass.settings), run_pass.settings)


def _written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else quoted(value) if isinstance(value, str) else str(value)


class Model:
    """A loaded model that answers questions about videos; made by :func:`load`.

    Attributes:
        family: the loaded checkpoint; ``family.model`` is the stock transformers model.
    """

    def __init__(self, family: Family, settings: Settings) -> None:
        self.family = family
        self._settings = settings
        self._method: tuple[Compressor, Budget, Trace] | None = None
        self._encoded: tuple[Path, Signals, EncodedVideo] | None = None
        self._memories: dict[str, dict[str, Any]] = {}

    def answer(self, video: str | Path, question: str, max_new_tokens: int = 64) -> str:
        """The greedy answer to a question about a video, as a run asks it.

        Within :meth:`compress` the method chooses the video tokens that the model sees. The latest video stays encoded,
        so that further questions and methods do not decode it again.

        Args:
            video: a file.
            question: text after the video.
            max_new_tokens: the longest answer.

        Raises:
            VideoError: when the file cannot be read.
            ValueError: for a question that holds the model's video token.
            MethodFault: when the method changes what is not its own.
        """
        if self._method is None:
            return self.family.answer(
                self.family.prompt(self._encode(video, False), question), max_new_tokens
            )
        method, budget, trace = self._method
        encoded = self._encode(video, signals_for([method]))
        prompt = self.family.prompt(encoded, question, sample=Path(video).name)
        memory = self._memories.setdefault(str(video), {})
        run = lent.start(method, prompt.layout, budget, frames=encoded.frames, memory=memory)
        with Compression(self.family.decoder, run, prompt.layout, trace):
            return self.family.answer(prompt, max_new_tokens)

    @contextmanager
    def compress(
        self, compressor: Compressor, retention: float, *, budget: Kind = "tokens"
    ) -> Iterator[Trace]:
        """Let a method choose the video tokens of every answer within ``with``.

        Args:
            compressor: the method with its parameters.
            retention: share of the video tokens that stays, above 0 and at most 1.
            budget: what the retention counts: ``tokens`` or ``compute``.

        Yields:
            What happened to the tokens of the latest answer.

        Raises:
            BudgetError: when the method cannot meet the budget on this model.
        """
        if self._method is not None:
            raise ValueError("compress() within compress(): end the first `with` before the second one")
        limit = Budget(budget, retention)
        compressor.check(limit, len(self.family.decoder))
        trace = Trace(len(self.family.decoder), 0, 0)
        self._method = compressor, limit, trace
        self._memories = {}
        try:
            yield trace
        finally:
            self._method = None

    def overlay(self, video: str | Path, trace: Trace, title: str = "") -> list[Image.Image]:
        """The frames that the model saw, with each token coloured by the reason why it stayed or was dropped.

        Args:
            video: the file that the trace's answer was about.
            trace: of the latest answer within :meth:`compress`.
            title: the line below each frame, above the counts of the reasons.

        Returns:
            A picture for each frame, all of one size.

        Raises:
            ValueError: for a trace without an answer, or of a video with another number of tokens.
            VideoError: when the file cannot be read.
        """
        if trace.reason is None:
            raise ValueError("the trace holds no answer yet; call answer() within compress() first")
        encoded = self._encode(video, False)
        grid, frames = encoded.grid, encoded.frames
        assert frames is not None
        if trace.video != grid.tokens:
            raise ValueError(
                f"the trace is of a video of {trace.video} tokens, {video} has {grid.tokens}; give the answer's video"
            )
        shown = OverlayArm("", title, "", None, None, **reasons(trace, grid, self.family.picture(grid)))
        return film.stills(frames.pixels, shown, frames.times)

    def _encode(self, video: str | Path, signals: Signals) -> EncodedVideo:
        file = check_file(Path(expanded("video", str(video))))
        known = self._encoded if self._encoded and self._encoded[0] == file else None
        if known is None or not covers(known[1], signals):
            frames = read_video(file, Sampling.of(self._settings.model), self._settings.benchmark.decoder)
            known = self._encoded = file, signals, self.family.encode(frames, signals=signals)
            known[2].frames = frames
        return known[2]


@contextmanager
def compress(
    model: nn.Module, compressor: Compressor, retention: float, *, budget: Kind = "tokens"
) -> Iterator[Trace]:
    """Let a method choose the video tokens of a stock transformers model within ``with``.

    ``model.generate(**inputs)`` works as always, on inputs of the stock processor: one prompt with one video. Nothing
    of the model is changed, and every hook is gone at the end.

    Args:
        model: of one of the classes that :data:`STOCK` names, in eval mode.
        compressor: the method with its parameters.
        retention: share of the video tokens that stays, above 0 and at most 1.
        budget: what the retention counts: ``tokens`` or ``compute``.

    Yields:
        What happened to the tokens of the latest prompt.

    Raises:
        ConfigError: for a model of another class.
        BudgetError: when the method cannot meet the budget on this model.
        ValueError: from ``generate``, for a batch and for several videos.
        MethodFault: from ``generate``, when the method changes what is not its own.
    """
    family = _around(model)
    limit = Budget(budget, retention)
    compressor.check(limit, len(family.decoder))
    trace = Trace(len(family.decoder), 0, 0)
    with _Stock(family, compressor, limit, trace):
        yield trace


class _Stock:
    """Compresses each prompt that a stock model gets, once its video is encoded and its tokens are known.

    ``generate`` encodes the video before it calls the model, and the model encodes one that it is given itself.
    """

    def __init__(self, family: Any, compressor: Compressor, budget: Budget, trace: Trace) -> None:
        self.family, self.compressor, self.budget, self.trace = family, compressor, budget, trace
        self._ids: Tensor | None = None
        self._video: EncodedVideo | None = None
        self._undo = ExitStack()
        self._compression = ExitStack()

    def __enter__(self) -> None:
        body, name = self.family.model.model, self.family.encoder
        encode = getattr(body, name)

        # generate() reads the names of its arguments.
        @functools.wraps(encode)
        def encoder(*args: Any, **kwargs: Any) -> Any:
            with self.family.tower(signals_for([self.compressor])) as reader:
                outputs = encode(*args, **kwargs)
            arguments = inspect.signature(encode).bind(*args, **kwargs).arguments
            self._video = self.family.encoded(
                outputs, reader, {_PIXELS.get(n, n): v for n, v in arguments.items()}
            )
            self._begin()
            return outputs

        setattr(body, name, encoder)
        self._undo.callback(delattr, body, name)
        handle = self.family.model.register_forward_pre_hook(self._prompt, with_kwargs=True)
        self._undo.callback(handle.remove)

    def __exit__(self, *exc: object) -> None:
        self._compression.close()
        self._undo.close()

    def _prompt(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A generated token comes without what was encoded.
        if any(kwargs.get(name) is not None for name in ("mm_encoder_outputs", *_PIXELS)):
            self._compression.close()
            self._ids = kwargs["input_ids"]
            self._begin()

    def _begin(self) -> None:
        if self._ids is None or self._video is None:
            return
        ids, video, self._ids, self._video = self._ids, self._video, None, None
        if ids.shape[0] != 1:
            raise ValueError(f"compression runs on a batch of one prompt, got {ids.shape[0]}")
        layout = self.family.prompt_from_ids(video, ids, sample=str(ids.tolist())).layout
        run = lent.start(self.compressor, layout, self.budget)
        self._compression.enter_context(Compression(self.family.decoder, run, layout, self.trace))


def _around(model: nn.Module) -> Any:
    """The family of a stock model, with nothing of the model changed."""
    classes = {name: models.resolve(name) for name in STOCK}
    matching = [cls for cls in classes.values() if type(model) is cls.model_class]  # type: ignore[attr-defined]
    if not matching:
        names = ", ".join(sorted(cls.model_class.__name__ for cls in classes.values()))  # type: ignore[attr-defined]
        raise ConfigError(
            f"a {type(model).__name__} cannot be compressed by itself; allowed: {names}; stsimdiff.load() loads the "
            "checkpoints of the other families"
        )
    if model.training:
        raise ConfigError(f"the {type(model).__name__} is in training mode; call model.eval() first")
    settings = model.generation_config
    family: Any = matching[0](model, None, "")
    model.generation_config = settings
    # The positions are those that the stock model computes itself.
    family.positions = "stock"
    return family


def read(run: str | Path) -> pd.DataFrame:
    """All stored answers of a run's folder, a row each, with the arm's method, budget and parameters.

    Raises:
        DataError: when there is no run, or its files cannot be read.
    """
    return rows.read_samples(Path(expanded("run", str(run))))


__all__ = ["Model", "compress", "load", "read"]
