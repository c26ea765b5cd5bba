"""The loaded model that arms answer with: a video is decoded and encoded once for all of them.

The loop over videos and questions stands in :mod:`answering`, a run's beginning and end in :mod:`run`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from typing_extensions import override

from stsimdiff.compressors.base import Compressor, Places, Run, signals_for
from stsimdiff.config.arms import Arm
from stsimdiff.config.settings import Settings
from stsimdiff.cost import DecoderShape, prefill_flops, prefill_flops_all, sample_cost
from stsimdiff.engine import Compression, lent
from stsimdiff.engine.prefix import Prefix, SharedPrefix
from stsimdiff.evaluate.failures import identity
from stsimdiff.evaluate.features import FeatureCache
from stsimdiff.evaluate.guard import Guard
from stsimdiff.evaluate.limits import TimeLimit
from stsimdiff.evaluate.moments import entry
from stsimdiff.evaluate.overlays import Overlays
from stsimdiff.evaluate.questions import Judgement, Question, judge
from stsimdiff.evaluate.reading import Reader
from stsimdiff.evaluate.shared import SharedModel
from stsimdiff.models import resolve
from stsimdiff.models.base import EncodedVideo, Family, LoadOptions, Prompt, Stopwatch
from stsimdiff.tokens import Signals
from stsimdiff.trace import Trace


@dataclass
class PreparedQuestion:
    """A question put to the model: the encoded video and the prompt about it."""

    video: EncodedVideo
    prompt: Prompt


@dataclass
class TimedAnswer:
    """An answer, what the engine wrote down of it, and its times in seconds.

    Attributes:
        prefill: ``whole``, or ``continued`` from the prefix that an earlier question of the video left.
    """

    text: str
    trace: Trace
    times: dict[str, float]
    prefill: str = "whole"


class _BeginsOtherwise(Exception):
    """A prompt does not begin as the one did whose prefix it was to continue from."""


class _AskedBefore(lent.LentRun):
    """The run of an earlier question, whose selections are in the prefix that it left: it must not be asked again."""

    def __init__(self, run: Run) -> None:
        vars(self).update(vars(run))
        self._places = run.places

    @property
    @override
    def places(self) -> Places:  # type: ignore[override]
        return self._places

    @property
    @override
    def finished(self) -> bool:
        return False  # with what it selected from the earlier prompt, not from another

    @override
    def _ask(self, *asked: Any) -> NoReturn:
        raise _BeginsOtherwise


@dataclass
class _Left:
    """What a question left for the next one of the same arm and video.

    Attributes:
        arm: its id.
        run: for a prompt that asks it nothing, in any layer or while decoding; ``None`` where it would.
    """

    arm: str
    video: EncodedVideo
    prefix: Prefix
    run: _AskedBefore | None


class Session:
    """A loaded model that answers questions with any arm.

    Args:
        settings: what the arms share.
        family: the loaded model; made from the settings if not given.
        shared: the model and the vision features that other sessions of this process share.

    Attributes:
        overlays: what of the answers is stored for the report's overlays; nothing if not set.

    Raises:
        DataError: when the folder of the feature cache cannot be used; before the model is loaded.
    """

    def __init__(
        self, settings: Settings, family: Family | None = None, shared: SharedModel | None = None
    ) -> None:
        shared = shared or SharedModel()
        self.settings = settings
        self.features = FeatureCache(settings, shared.memory)
        self.family = family or shared.family(settings, load_model)
        self.shape, self.model_shape = DecoderShape.from_config(self.family.text_config), self.family.shape
        self.guard = Guard(self.family)
        self._built: dict[str, Compressor] = {}
        self._memory: dict[str, tuple[str, dict[str, Any]]] = {}
        self.overlays = Overlays(settings, ())
        self.reader = Reader(settings)
        self._left: _Left | None = None
        self._judged: dict[tuple[str, str], Judgement] = {}
        """Of the video's answers: arms often give the same."""

    def check(self, arms: Iterable[Arm]) -> None:
        """Check every arm's budget against the model's depth, before the first answer."""
        for arm in arms:
            self.compressor(arm).check(arm.budget, len(self.family.decoder))

    def compressor(self, arm: Arm) -> Compressor:
        """The arm's compressor, built once: it holds parameters only."""
        if arm.id not in self._built:
            self._built[arm.id] = arm.build()
        return self._built[arm.id]

    def signals(self, arms: Iterable[Arm]) -> Signals:
        """What these arms read of the vision tower."""
        return signals_for(self.compressor(arm) for arm in arms)

    def encode(self, path: str, arms: Iterable[Arm]) -> EncodedVideo:
        """Frames and vision features of one video, and the tower's attention where one of the arms reads it.

        Features that an earlier pass or run left in the cache are used instead, without the times that it took.
        """
        self._judged.clear()
        arms = list(arms)
        signals = self.signals(arms)
        shown = any(self.compressor(arm).needs_frames for arm in arms)
        kept = self.features.get(self.family, path, signals)
        if kept is not None:
            if shown or self.overlays.lack_frames(path):
                frames = self.reader.frames(path)
                self.overlays.keep_frames(path, frames)
                kept.frames = frames if shown else None
            return kept
        frames = self.reader.frames(path)
        encoded = self.family.encode(frames, signals=signals)
        self.guard.catch_up()
        encoded.seconds["decode"], encoded.times = frames.seconds, frames.times
        self.features.put(self.family, path, encoded)
        self.overlays.keep_frames(path, frames)
        encoded.frames = frames if shown else None
        return encoded

    def lacks(self, path: str, arms: Iterable[Arm]) -> bool:
        """Whether :meth:`encode` needs the frames of this video."""
        arms = list(arms)
        methods = [self.compressor(arm) for arm in arms]
        if self.overlays.lack_frames(path) or any(method.needs_frames for method in methods):
            return True
        return not self.features.holds(self.family, path, self.signals(arms))

    def free(self) -> None:
        """Give back the memory that answers can do without: features of other videos, and a prefix."""
        self.features.forget()
        self.forget_prefix()

    def forget_prefix(self) -> None:
        """Let go what the next question of an arm would continue from."""
        self._left = None

    def ask(self, question: Question, encoded: EncodedVideo) -> PreparedQuestion:
        """The prompt of a question, which all arms answer."""
        return PreparedQuestion(
            encoded, self.family.prompt(encoded, question.text, sample=question.video_name)
        )

    def answer(self, arm: Arm, question: Question, asked: PreparedQuestion) -> TimedAnswer:
        """One arm's answer to one question.

        With ``reuse_prefix`` an arm that reads nothing of the question continues from what the question before it, of
        the same arm and video, left; it then has no times of its own. Where that asks the method nothing, its run is
        not started again.

        Raises:
            SampleTimeout: when it takes longer than ``sample_seconds``.
            MethodFault: when the method changes what is not its own.
        """
        compressor, layout = self.compressor(arm), asked.prompt.layout
        shares = self.settings.reuse_prefix and not (compressor.reads_question or compressor.remembers)
        left = self._left_of(arm, asked.video) if shares else None
        if left is not None and left.run is not None:
            # None of the method's code runs, so there is nothing to start and nothing to watch over.
            try:
                return self._answer(arm, question, asked, left.run, left.prefix)
            except _BeginsOtherwise:
                pass  # it is answered as a first question is
            finally:
                self.guard.forget_sample()
        # Of another video than the one before, it is empty; what an unanswered question put into it is left out.
        known = self._memory.get(arm.id, ("", {}))
        memory = dict(known[1]) if known[0] == layout.sample else {}
        try:
            with self.guard.sample(compressor, prompt=asked.prompt, video=asked.video):
                if not compressor.reads_question:
                    layout = replace(layout, question="", asked=None)
                run = lent.start(compressor, layout, arm.budget, frames=asked.video.frames, memory=memory)
                prefix = left.prefix if left else None
                answered = self._answer(arm, question, asked, run, prefix, shares=shares)
        except BaseException:
            # What a method at fault left is no prefix to go on from.
            self.forget_prefix()
            raise
        self._memory[arm.id] = layout.sample, memory
        return answered

    def _answer(
        self,
        arm: Arm,
        question: Question,
        asked: PreparedQuestion,
        run: Run,
        prefix: Prefix | None,
        *,
        shares: bool = True,
    ) -> TimedAnswer:
        """The answer of a run; one that shares continues from the prefix given, and leaves one."""
        prompt, decoder = asked.prompt, self.family.decoder
        engine = (
            SharedPrefix(decoder, run, prompt.layout, prefix)
            if shares
            else Compression(decoder, run, prompt.layout)
        )
        limit, watch = TimeLimit(decoder, self.settings.sample_seconds), Stopwatch(self.family.device)
        with limit, engine as trace:
            text = self.family.answer(prompt, question.max_new_tokens)
        seconds = watch.lap()
        for stop in self.settings.benchmark.generation.get("until", ()):
            text = text.partition(stop)[0]
        if isinstance(engine, SharedPrefix):
            self._left = None
            if engine.prefix is not None:
                again = None if engine.asks_later else _AskedBefore(run)
                self._left = _Left(arm.id, asked.video, engine.prefix, again)
            if engine.continued:
                return TimedAnswer(text, trace, dict(asked.video.seconds), "continued")
        times = {
            "answer": seconds,
            "prefill": trace.prefill_seconds,
            "compressor": trace.compressor_seconds,
            **asked.video.seconds,
        }
        if trace.decoded:
            times["token"] = (times["answer"] - trace.prefill_seconds) / trace.decoded
        return TimedAnswer(text, trace, times)

    def _left_of(self, arm: Arm, video: EncodedVideo) -> _Left | None:
        """What an earlier question of this arm about this video left; that of another is let go."""
        if self._left is None or self._left.arm != arm.id or self._left.video is not video:
            self.forget_prefix()
        return self._left

    def row(self, task: Any, arm: Arm, question: Question, asked: PreparedQuestion) -> dict[str, Any]:
        """The stored line of one sample: answer, score, tokens, cost and times."""
        answered = self.answer(arm, question, asked)
        text, trace = answered.text, answered.trace
        key = question.id, text
        if key not in self._judged:
            self._judged[key] = judge(task, question, text)
        judgement = self._judged[key]
        retention = trace.retention()
        grid = asked.prompt.layout.grid
        picture = self.family.picture(grid)
        return {
            **identity(question),
            "answer": text,
            "parsed": judgement.parsed,
            "target": judgement.target,
            "correct": judgement.correct,
            "stock_parsed": judgement.stock_parsed,
            "stock_correct": judgement.stock_correct,
            "stock_error": judgement.stock_error,
            "video_tokens": trace.video,
            "text_tokens": trace.text,
            "tokens_per_layer": trace.entering,
            "retention_tokens": retention["tokens"],
            "retention_compute": retention["compute"],
            "llm_flops": prefill_flops(self.shape, trace.text, trace.entering, trace.mlp),
            "llm_flops_all": prefill_flops_all(self.shape, trace.text, trace.video),
            "kv_kept": trace.kv_kept,
            **self.cost(arm, asked, trace),
            "reasons": trace.reasons(),
            "features": asked.video.origin,
            "prefill": answered.prefill,
            "times": answered.times,
            "error": None,
            **entry(question, trace, grid, picture, asked.video.times),
            **self.overlays.entry(question, trace, grid, picture),
        }

    def cost(self, arm: Arm, asked: PreparedQuestion, trace: Trace) -> dict[str, Any]:
        """FLOPs by part and bytes of the cache; see :func:`stsimdiff.cost.sample_cost`."""
        grid, bytes_per_value = asked.prompt.layout.grid, self.family.model.dtype.itemsize
        return sample_cost(self.model_shape, self.shape, trace, grid, self.compressor(arm), bytes_per_value)


def load_model(settings: Settings) -> Family:
    """Load the model that the settings name, and seed torch."""
    from transformers.utils import logging

    # A bar of its own would tear the progress bar apart.
    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    model = settings.model
    if model.threads is not None:
        torch.set_num_threads(model.threads)
    options = LoadOptions(
        model.device,
        model.dtype,
        model.attn_implementation,
        model.options,
        model.device_map,
        model.trust_remote_code,
    )
    return resolve(model.family).load(str(model.path), options)
