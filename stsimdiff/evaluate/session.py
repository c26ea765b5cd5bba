"""Arms answer questions: every video is decoded and encoded once, and each answer is on disk before the next begins.

Used by the command line (:func:`run_arms`) and by the model that lmms-eval's own command loads.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from stsimdiff import video_process
from stsimdiff.compressors.base import Compressor
from stsimdiff.cost import DecoderShape, prefill_flops, prefill_flops_all
from stsimdiff.data.videos import unusable_videos
from stsimdiff.engine import Compression, Trace
from stsimdiff.errors import RunFailed, VideoError
from stsimdiff.evaluate.arms import Arm, Settings, arm_record
from stsimdiff.evaluate.overlays import Overlays
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.progress import Progress
from stsimdiff.evaluate.provenance import provenance
from stsimdiff.evaluate.questions import Question, all_questions, judge, load_task, replay
from stsimdiff.evaluate.store import ArmStore, read_answers, write_record
from stsimdiff.models import OPTIONS, resolve
from stsimdiff.models.base import EncodedVideo, Family, LoadOptions, Prompt, Stopwatch


@dataclass
class Outcome:
    """What a pass left behind.

    Attributes:
        folder: the run's folder.
        answered: samples answered in this call.
        failed: samples of all its arms that have no answer, earlier calls included.
    """

    folder: Path
    answered: int = 0
    failed: int = 0


@dataclass
class Work:
    """The questions that each arm has still to answer, and why some videos are known to be unusable."""

    stores: dict[str, ArmStore]
    arms: Sequence[Arm]
    questions: Sequence[Question]
    retry_failed: bool
    unusable: Mapping[str, str] = field(default_factory=dict)
    missing: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = {question.id for question in self.questions}
        for arm in self.arms:
            self.missing[arm.id] = wanted - self.stores[arm.id].done(self.retry_failed)

    @property
    def samples(self) -> int:
        """Answers still to give."""
        return sum(len(ids) for ids in self.missing.values())

    def arms_for(self, question: Question) -> list[Arm]:
        """Arms that have not answered this question."""
        return [arm for arm in self.arms if question.id in self.missing[arm.id]]

    def by_video(self) -> Iterable[tuple[str, list[Question]]]:
        """Videos with their open questions, each video once."""
        pending = [question for question in self.questions if self.arms_for(question)]
        for path, group in groupby(sorted(pending, key=lambda q: q.video), key=lambda q: q.video):
            yield path, list(group)


def share(questions: Sequence[Question], processes: Processes) -> list[Question]:
    """The questions of this process. A video, and so all its questions, belongs to one process."""
    turn = {path: i for i, path in enumerate(sorted({question.video for question in questions}))}
    return [q for q in questions if turn[q.video] % processes.world == processes.rank]


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

    Attributes:
        overlays: what of the answers is stored for the report's overlays; nothing if not set.
    """

    def __init__(self, settings: Settings, family: Family | None = None) -> None:
        self.settings = settings
        self.family = family or load_model(settings)
        self.shape = DecoderShape.from_config(self.family.text_config)
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
        """Frames and vision features of one video, and the tower's attention where one of the arms reads it."""
        benchmark = self.settings.benchmark
        count, seconds = self.settings.model["frames"], benchmark["video_seconds"]
        frames = video_process.shared().read(path, count, benchmark["decoder"], seconds)
        encoded = self.family.encode(frames, signals=any(self.compressor(arm).needs_vision for arm in arms))
        encoded.seconds["decode"] = frames.seconds
        self.overlays.keep_frames(path, frames)
        return encoded

    def ask(self, question: Question, encoded: EncodedVideo) -> Asked:
        """The prompt of a question, which all arms answer."""
        return Asked(encoded, self.family.prompt(encoded, question.text, sample=question.id))

    def answer(self, arm: Arm, question: Question, asked: Asked) -> tuple[str, Trace, dict[str, float]]:
        """One arm's answer to one question, its trace, and times in seconds."""
        prompt = asked.prompt
        run = self.compressor(arm).start(prompt.layout, arm.budget)
        watch = Stopwatch(self.family.device)
        with Compression(self.family.decoder, run, prompt.layout) as trace:
            text = self.family.answer(prompt, question.max_new_tokens)
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
            **_identity(question),
            "answer": text,
            "parsed": judgement.parsed,
            "target": judgement.target,
            "correct": judgement.correct,
            "video_tokens": trace.video,
            "text_tokens": trace.text,
            "tokens_per_layer": trace.entering,
            "retention_tokens": retention["tokens"],
            "retention_compute": retention["compute"],
            "llm_flops": prefill_flops(self.shape, trace.text, trace.entering, trace.mlp),
            "llm_flops_all": prefill_flops_all(self.shape, trace.text, trace.video),
            "reasons": trace.reasons(),
            "times": times,
            "error": None,
            **self.overlays.entry(question, trace, grid, self.family.picture(grid)),
        }


def load_model(settings: Settings) -> Family:
    """Load the model that the settings name, and seed torch."""
    from transformers.utils import logging

    # A bar of its own would tear the progress bar apart.
    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    model = settings.model
    if model["threads"] is not None:
        torch.set_num_threads(model["threads"])
    own = {name: model[name] for name in OPTIONS.get(model["family"], {})}
    options = LoadOptions(model["device"], model["dtype"], model["attn_implementation"], own)
    return resolve(model["family"]).load(model["path"], options)


def run_arms(settings: Settings, arms: Sequence[Arm]) -> Outcome:
    """Answer what is missing, score it, and write the table.

    Args:
        settings: what the arms share.
        arms: the arms of this pass.

    Raises:
        UserError: before a model is loaded, for data that is missing or wrong.
        RunFailed: at the end, when a sample of these arms has no answer.
    """
    with Processes.joined() as processes:
        if processes.rank > 0:
            # The first process prepares the data; the others then find it in place.
            processes.wait()
        task = load_task(settings.benchmark)
        questions = all_questions(task, settings.limit, settings.benchmark.get("families"))
        settings, unusable = _checked_videos(settings, questions)
        if processes.rank == 0:
            processes.wait()
        outcome = Outcome(settings.folder)
        outcome.answered = answer_missing(
            settings,
            task,
            arms,
            share(questions, processes),
            processes,
            unusable,
            overlays=Overlays(settings, questions),
        )
        processes.wait()
        if processes.rank > 0:
            return outcome
        outcome.failed = _score(settings, task, arms, questions)
        unmade = _report(settings)
    if outcome.failed:
        raise RunFailed(
            f"{outcome.failed} samples have no answer{_reasons(settings, arms)}\nAll reasons are in "
            f'{settings.folder}/*/answers*.jsonl under "error". Everything else is stored: retry_failed=true asks only '
            "these again."
        )
    if unmade:
        raise RunFailed(
            "\n".join([*unmade, "All answers and the table are stored; report makes the rest again."])
        )
    return outcome


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
    unusable = unusable_videos(settings.benchmark, [question.video for question in questions])
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
    with ExitStack() as stack:
        stores = {}
        for arm in arms:
            store = ArmStore(settings.folder / arm.folder, arm_record(arm, settings, {}), processes.shard)
            stores[arm.id] = stack.enter_context(store)
        work = Work(stores, arms, questions, settings.retry_failed, unusable or {})
        if not work.samples:
            return 0
        session = open_session(settings)
        session.check(arms)
        session.overlays = overlays or Overlays(settings, questions)
        origin = provenance(session.family.describe(), settings.seed, settings.benchmark.get("revision"))
        for arm in arms:
            if work.missing[arm.id]:
                write_record(stores[arm.id].folder, arm_record(arm, settings, origin))
        return answer_all(session, task, work, show=processes.rank == 0)


def answer_all(session: Session, task: Any, work: Work, *, show: bool = True) -> int:
    """Answer every missing sample, video by video; returns how many lines were written.

    A sample that raises, ``SystemExit`` included, is written as failed and the rest goes on.

    Raises:
        RunFailed: when more than ``max_failures`` samples failed in this call.
    """
    written = failures = 0
    with Progress(work.samples, show=show) as progress:
        for path, questions in work.by_video():
            encoded: EncodedVideo | Exception | SystemExit
            try:
                if path in work.unusable:
                    raise VideoError(work.unusable[path])
                encoded = session.encode(path, work.arms)
            except (Exception, SystemExit) as error:
                encoded = error
            for question in questions:
                asked = _asked(session, question, encoded)
                for arm in work.arms_for(question):
                    progress.arm(arm.label, arm.budget.retention)
                    row = _row_or_failure(session, task, arm, question, asked)
                    work.stores[arm.id].append(row)
                    written += 1
                    failures += row["error"] is not None and path not in work.unusable
                    progress.step(failed=row["error"] is not None)
                    if failures > session.settings.max_failures:
                        raise RunFailed(
                            f"stopped after {failures} failed samples (max_failures={session.settings.max_failures}); "
                            f"the last one: {row['error']['type']}: {row['error']['message']}. What was answered is "
                            f"stored in {session.settings.folder}"
                        )
    return written


def _asked(
    session: Session, question: Question, encoded: EncodedVideo | Exception | SystemExit
) -> Asked | Exception | SystemExit:
    """The question put to the model, or what stands in the way: the same for every arm."""
    if not isinstance(encoded, EncodedVideo):
        return encoded
    try:
        return session.ask(question, encoded)
    except (Exception, SystemExit) as error:
        return error


def _row_or_failure(
    session: Session, task: Any, arm: Arm, question: Question, asked: Asked | Exception | SystemExit
) -> dict[str, Any]:
    if not isinstance(asked, Asked):
        return failure(question, asked)
    try:
        return session.row(task, arm, question, asked)
    except (Exception, SystemExit) as error:
        return failure(question, error)


def failure(question: Question, error: BaseException) -> dict[str, Any]:
    """The stored line of a sample that has no answer; nothing is scored for it."""
    details = "".join(traceback.format_exception(error))
    return {
        **_identity(question),
        "answer": None,
        "parsed": None,
        "correct": None,
        "error": {"type": type(error).__name__, "message": str(error), "traceback": details},
    }


def _identity(question: Question) -> dict[str, Any]:
    return {"id": question.id, "video": Path(question.video).name, "family": question.family}


def _score(settings: Settings, task: Any, arms: Sequence[Arm], questions: Sequence[Question]) -> int:
    """Replay every arm's stored answers through the task, write ``metrics.json``; returns the samples unanswered."""
    by_id = {question.id: question for question in questions}
    failed = 0
    for arm in arms:
        folder = settings.folder / arm.folder
        rows = [row for row in read_answers(folder) if row["id"] in by_id]
        answered = [(by_id[row["id"]], row["answer"]) for row in rows if row["error"] is None]
        correct = [row["correct"] for row in rows if row["error"] is None]
        failed += len(by_id) - len(answered)
        metrics = {
            "task": settings.benchmark["task"],
            "n": len(answered),
            "n_failed": len(by_id) - len(answered),
            "accuracy": 100 * sum(map(bool, correct)) / len(correct) if correct else None,
            "metrics": replay(task, answered) if answered else {},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return failed


def _report(settings: Settings) -> list[str]:
    """Table, figures and page; returns what of it could not be made."""
    from rich.console import Console

    from stsimdiff.report.publish import publish

    published = publish(settings.folder, Console())
    if settings.logger["name"] == "wandb":
        from stsimdiff.evaluate.wandb_log import log_run

        log_run(settings.folder, settings.logger["project"], settings.logger["mode"])
    return published.unmade
