"""Arms answer questions: every video is decoded and encoded once, and each answer is on disk before the next begins.

Used by the command line (:func:`run_arms`) and by the model that lmms-eval's own command loads.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stsimdiff import lent, video_process
from stsimdiff.compressors.base import Compressor
from stsimdiff.cost import DecoderShape, prefill_flops, prefill_flops_all, sample_cost
from stsimdiff.data.videos import unusable_videos
from stsimdiff.engine import Compression
from stsimdiff.errors import DataError, RunFailed, Stopped
from stsimdiff.evaluate.answering import Work, answer_all, share
from stsimdiff.evaluate.arms import Arm, Settings, arm_record
from stsimdiff.evaluate.changed import withdraw_changed
from stsimdiff.evaluate.failures import identity
from stsimdiff.evaluate.features import FeatureCache
from stsimdiff.evaluate.guard import Guard
from stsimdiff.evaluate.limits import TimeLimit, sigterm_raises
from stsimdiff.evaluate.overlays import Overlays
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.provenance import provenance
from stsimdiff.evaluate.questions import Question, all_questions, judge, load_task
from stsimdiff.evaluate.scoring import score
from stsimdiff.evaluate.shared import Shared
from stsimdiff.evaluate.store import ArmStore, read_answers, write_record
from stsimdiff.models import options_of, resolve
from stsimdiff.models.base import EncodedVideo, Family, LoadOptions, Prompt, Stopwatch
from stsimdiff.trace import Trace
from stsimdiff.video import Frames, Sampling


@dataclass
class Asked:
    """A question put to the model: the encoded video and the prompt about it."""

    video: EncodedVideo
    prompt: Prompt


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
        self, settings: Settings, family: Family | None = None, shared: Shared | None = None
    ) -> None:
        shared = shared or Shared()
        self.settings = settings
        self.features = FeatureCache(settings, shared.memory)
        self.family = family or shared.family(settings, load_model)
        self.shape = DecoderShape.from_config(self.family.text_config)
        self.guard = Guard(self.family)
        self._built: dict[str, Compressor] = {}
        self.overlays = Overlays(settings, ())

    def check(self, arms: Iterable[Arm]) -> None:
        """Check every arm's budget against the model's depth, before the first answer."""
        for arm in arms:
            self.compressor(arm).check(arm.budget, len(self.family.decoder))

    def compressor(self, arm: Arm) -> Compressor:
        """The arm's compressor, built once: it holds parameters only."""
        if arm.id not in self._built:
            self._built[arm.id] = arm.build()
        return self._built[arm.id]

    def encode(self, path: str, arms: Iterable[Arm]) -> EncodedVideo:
        """Frames and vision features of one video, and the tower's attention where one of the arms reads it.

        Features that an earlier pass or run left in the cache are used instead, without the times that it took.
        """
        signals = any(self.compressor(arm).needs_vision for arm in arms)
        kept = self.features.get(self.family, path, signals)
        if kept is not None:
            if self.overlays.lack_frames(path):
                self.overlays.keep_frames(path, self._frames(path))
            return kept
        frames = self._frames(path)
        encoded = self.family.encode(frames, signals=signals)
        self.guard.catch_up()
        encoded.seconds["decode"] = frames.seconds
        self.features.put(self.family, path, encoded)
        self.overlays.keep_frames(path, frames)
        return encoded

    def _frames(self, path: str) -> Frames:
        benchmark = self.settings.benchmark
        sampling, seconds = Sampling.of(self.settings.model), benchmark["video_seconds"]
        return video_process.shared().read(path, sampling, benchmark["decoder"], seconds)

    def free(self) -> None:
        """Give back the memory that answers can do without: features of other videos."""
        self.features.forget()

    def ask(self, question: Question, encoded: EncodedVideo) -> Asked:
        """The prompt of a question, which all arms answer."""
        return Asked(encoded, self.family.prompt(encoded, question.text, sample=question.id))

    def answer(self, arm: Arm, question: Question, asked: Asked) -> tuple[str, Trace, dict[str, float]]:
        """One arm's answer to one question, its trace, and times in seconds.

        Raises:
            SampleTimeout: when it takes longer than ``sample_seconds``.
            MethodFault: when the method changes what is not its own.
        """
        prompt = asked.prompt
        limit = TimeLimit(self.family.decoder, self.settings.sample_seconds)
        with self.guard.sample(self.compressor(arm), prompt=prompt, video=asked.video):
            run = lent.start(self.compressor(arm), prompt.layout, arm.budget)
            watch = Stopwatch(self.family.device)
            with limit, Compression(self.family.decoder, run, prompt.layout) as trace:
                text = self.family.answer(prompt, question.max_new_tokens)
        for stop in self.settings.benchmark.get("generation", {}).get("until", ()):
            text = text.partition(stop)[0]
        times = {
            "answer": watch.lap(),
            "prefill": trace.prefill_seconds,
            "compressor": trace.compressor_seconds,
            **asked.video.seconds,
        }
        return text, trace, times

    def row(self, task: Any, arm: Arm, question: Question, asked: Asked) -> dict[str, Any]:
        """The stored line of one sample: answer, score, tokens, cost and times."""
        text, trace, times = self.answer(arm, question, asked)
        judgement = judge(task, question, text)
        retention = trace.retention()
        grid = asked.prompt.layout.grid
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
            **self.cost(arm, asked, trace),
            "reasons": trace.reasons(),
            "features": asked.video.origin,
            "times": times,
            "error": None,
            **self.overlays.entry(question, trace, grid, self.family.picture(grid)),
        }

    def cost(self, arm: Arm, asked: Asked, trace: Trace) -> dict[str, Any]:
        """FLOPs by part and bytes of the cache; see :func:`stsimdiff.cost.sample_cost`."""
        grid, element = asked.prompt.layout.grid, self.family.model.dtype.itemsize
        return sample_cost(self.family.shape, self.shape, trace, grid, self.compressor(arm), element)


def load_model(settings: Settings) -> Family:
    """Load the model that the settings name, and seed torch."""
    from transformers.utils import logging

    # A bar of its own would tear the progress bar apart.
    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    model = settings.model
    if model["threads"] is not None:
        torch.set_num_threads(model["threads"])
    options = LoadOptions(
        model["device"],
        model["dtype"],
        model["attn_implementation"],
        {name: model[name] for name in options_of(model["family"])},
        model["device_map"],
        model["trust_remote_code"],
    )
    return resolve(model["family"]).load(model["path"], options)


def run_arms(
    settings: Settings,
    arms: Sequence[Arm],
    shared: Shared | None = None,
    *,
    report: bool = True,
    processes: Processes | None = None,
) -> int:
    """Answer what is missing, score it, and write the table; returns how many lines were written.

    Args:
        settings: what the arms share.
        arms: the arms of this pass.
        shared: what the passes of one command share.
        report: whether the table of the run's folder is made; a later pass of the same folder makes it otherwise.
        processes: this process among those of the run, joined; a single one if not given.

    Raises:
        UserError: before a model is loaded, for data that is missing or wrong; later when the run's folder can no
            longer be written.
        RunFailed: at the end, when a sample of these arms has no answer, or most answers of one cannot be read.
    """
    processes = processes or Processes()
    if processes.rank > 0:
        # The first process prepares the data; the others then find it in place.
        processes.wait()
    settings, task, questions, unusable = prepare(settings)
    if processes.rank == 0:
        processes.wait()
    try:
        answered = answer_missing(
            settings,
            task,
            arms,
            share(questions, processes),
            processes,
            unusable,
            open_session=partial(Session, shared=shared),
            overlays=Overlays(settings, questions),
        )
    except RunFailed as failure:
        if processes.world > 1:
            raise Stopped(str(failure)) from failure
        raise
    processes.wait()
    if processes.rank == 0:
        conclude(settings, task, arms, questions, report=report)
    return answered


def prepare(settings: Settings) -> tuple[Settings, Any, list[Question], dict[str, str]]:
    """Settings with what is known of the videos, the task, its questions, and the unusable videos with the reason.

    Raises:
        UserError: for data that is missing or wrong.
    """
    task = load_task(settings.benchmark)
    questions = all_questions(task, settings.limit, settings.benchmark.get("families"))
    settings, unusable = _checked_videos(settings, questions)
    return settings, task, questions, unusable


def conclude(
    settings: Settings,
    task: Any,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    *,
    report: bool = True,
) -> None:
    """Score what all processes stored and write the table: once, when the last of them has come to its end.

    Args:
        settings: what the arms share.
        task: the lmms-eval task.
        arms: those to score.
        questions: all of the run's.
        report: whether the table of the run's folder is made too.

    Raises:
        RunFailed: when a sample of these arms has no answer, or most answers of an arm cannot be read; the table is
            written.
    """
    with _written_or_said(settings.folder):
        scores = score(settings, task, arms, questions)
        unmade = _report(settings) if report else []
    problems = []
    if scores.failed:
        problems.append(
            f"{scores.failed} samples have no answer{_reasons(settings, arms)}\nAll reasons are in "
            f'{settings.folder}/*/answers*.jsonl under "error". Everything else is stored: retry_failed=true asks only '
            "these again."
        )
    problems += scores.unread
    if unmade:
        problems += [*unmade, "All answers are stored; the same command makes the rest again."]
    if problems:
        raise RunFailed("\n".join(problems))


@contextmanager
def _written_or_said(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses while scores and tables are written into a message; the answers are stored by then."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; all answers are stored in {folder}: "
            "free or repair the disk and start the same command again"
        ) from error


def _reasons(settings: Settings, arms: Sequence[Arm]) -> str:
    """The most frequent reasons of failures, a line each, for a message."""
    counts: Counter[str] = Counter()
    for arm in arms:
        for row in read_answers(settings.folder / arm.folder):
            if row["error"] is not None:
                counts[f"{row['error']['type']}: {row['error']['message']}"] += 1
    return "".join(f"\n  {count} times {reason}" for reason, count in counts.most_common(3))


def _checked_videos(settings: Settings, questions: Sequence[Question]) -> tuple[Settings, dict[str, str]]:
    """The videos that cannot be used, and settings whose note, in every arm's record and table, says how many."""
    videos = [question.video for question in questions]
    unusable = unusable_videos(settings.benchmark, videos, settings.max_failures)
    if not unusable:
        return settings, unusable
    lost = sum(question.video in unusable for question in questions)
    note = f"{settings.benchmark['note']}. {lost} of {len(questions)} questions FAILED for lack of a usable video"
    benchmark = {**settings.benchmark, "note": note, "missing_questions": lost}
    return dataclasses.replace(settings, benchmark=benchmark), unusable


def answer_missing(
    settings: Settings,
    task: Any,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    processes: Processes | None = None,
    unusable: Mapping[str, str] | None = None,
    open_session: Callable[[Settings], Session] = Session,
    overlays: Overlays | None = None,
) -> int:
    """Open the stores, load the model if anything is missing, answer it; returns how many lines were written.

    Args:
        settings: what the arms share.
        task: the lmms-eval task.
        arms: the arms that answer.
        questions: those of this process.
        processes: this process among those of the run; a single one if not given.
        unusable: videos that are known to be unusable, and why.
        open_session: gives the loaded model; called only if an answer is missing.
        overlays: which questions of the whole run get their overlay stored; chosen among ``questions`` if not given.
    """
    processes = processes or Processes()
    with sigterm_raises(), ExitStack() as stack:
        stores = {}
        for arm in arms:
            record = arm_record(arm, settings, {})
            store = ArmStore(settings.folder / arm.folder, record, processes.shard, processes.launch)
            stores[arm.id] = stack.enter_context(store)
        withdraw_changed(stores, questions, partial(_not_asked, settings, task, questions, processes))
        work = Work(stores, arms, questions, settings.retry_failed, unusable or {})
        if not work.samples:
            return 0
        session = open_session(settings)
        session.check(arms)
        session.overlays = overlays or Overlays(settings, questions)
        generation = {
            **(settings.model.get("generation") or {}),
            **settings.benchmark.get("generation", {}),
        }
        described, revision = session.family.describe(), settings.benchmark.get("revision")
        origin = provenance(described, settings.seed, revision, generation)
        for arm in arms:
            if work.missing[arm.id]:
                write_record(stores[arm.id].folder, arm_record(arm, settings, origin))
        return answer_all(session, task, work, processes)


def _not_asked(
    settings: Settings, task: Any, questions: Sequence[Question], processes: Processes
) -> list[Question]:
    """The questions of the data that this run does not ask, for the first of its processes; none for the others."""
    if processes.rank > 0:
        return []
    asked = questions
    if processes.world > 1:
        asked = all_questions(task, settings.limit, settings.benchmark.get("families"))
    ids = {question.id for question in asked}
    return [question for question in all_questions(task, None, None) if question.id not in ids]


def _report(settings: Settings) -> list[str]:
    """Table, figures and page, and what W&B shows; returns what of it could not be made.

    Raises:
        DataError: when the disk refuses a file.
    """
    from stsimdiff.report.publish import publish, tell
    from stsimdiff.terminal import Console

    published = publish(settings.folder, None)
    if published.refused:
        said = "\n".join(published.refused)
        raise DataError(
            f"{said}\nall answers are stored in {settings.folder}: free or repair the disk and start the same command "
            "again"
        )
    tell(published, Console())
    if settings.logger["name"] == "wandb":
        from stsimdiff.evaluate.wandb_log import log_run

        try:
            log_run(settings.folder, settings.logger["project"], settings.logger["mode"])
        except RunFailed as failure:
            return [*published.unmade, str(failure)]
    return published.unmade
