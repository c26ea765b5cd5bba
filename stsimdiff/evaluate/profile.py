"""``python -m stsimdiff profile key=value ...``: the latency protocol. Time and memory of arms, measured in turn.

Fixed questions, warm-up, every part synchronised, nothing cached, repeats in which the arms take turns (A B A B), so
that whatever drifts hits all alike. Each measurement is on disk before the next begins; what is made of them stands in
:mod:`stsimdiff.report.efficiency`. Never read off an accuracy run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from stsimdiff import launcher
from stsimdiff.compressors.base import Compressor
from stsimdiff.data.videos import unusable_videos
from stsimdiff.errors import ConfigError, DataError, RunFailed
from stsimdiff.evaluate.arms import Arm, Settings
from stsimdiff.evaluate.guard import Guard, WeightsChanged
from stsimdiff.evaluate.latency import Sample, Subject, counted, measure
from stsimdiff.evaluate.lock import Lock
from stsimdiff.evaluate.provenance import provenance
from stsimdiff.evaluate.questions import Question, all_questions, load_task
from stsimdiff.evaluate.session import load_model
from stsimdiff.evaluate.shared import Shared
from stsimdiff.models.base import Family
from stsimdiff.ranks import ranks
from stsimdiff.terminal import Console
from stsimdiff.video import Sampling

log = logging.getLogger(__name__)

MEASUREMENTS = "efficiency.jsonl"
"""The file of a run that holds a line for each measurement."""
LEAST_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is done to each arm.

    Attributes:
        questions: how many, each about another video: the first ones of the benchmark.
        repeats: how often each is measured with each arm.
        warmup: rounds before, which are not recorded.
        new_tokens: tokens to generate.
    """

    questions: int
    repeats: int
    warmup: int
    new_tokens: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        The exit code 0.

    Raises:
        UserError: for wrong input, before a model is loaded.
        RunFailed: when an arm failed; the others were measured.
    """
    protocol, words = _parse(arguments)
    configurations = launcher.configurations(words)
    passes = launcher.passes_of(configurations)
    folder = _folder(passes)
    launcher.check_presence(configurations, passes)
    asked = [_questions(one.settings, protocol) for one in passes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}") from error
    # Imported before the measuring, so that an interruption finds it ready.
    from stsimdiff.report import efficiency_table

    lock = Lock(folder / ".lock.efficiency")
    lock.take()
    failures: list[str] = []
    try:
        _drop_torn_line(folder / MEASUREMENTS)
        shared = Shared()
        for one, questions in zip(passes, asked, strict=True):
            family = shared.family(one.settings, load_model)
            failures += Measuring(one.settings, list(one.arms.values()), questions, protocol, family).run()
            del family  # another model may need the room
    finally:
        lock.release()
        efficiency_table.make(folder, Console())
    if failures:
        raise RunFailed("\n".join(failures))
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[Protocol, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m stsimdiff profile",
        description="Measure time and memory of arms in turn, on the same questions, with nothing cached. "
        "Writes efficiency.csv, .md and .json into results/<run>; started again it goes on.",
    )
    parser.add_argument(
        "--questions", type=_from(1), default=2, help="questions, each about another video (2)"
    )
    parser.add_argument(
        "--repeats", type=_from(LEAST_REPEATS), default=10, help="measurements of each question and arm (10)"
    )
    parser.add_argument("--warmup", type=_from(1), default=1, help="rounds that are not recorded (1)")
    parser.add_argument("--new-tokens", type=_from(2), default=8, help="tokens to generate (8)")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="as on the main command line; lists are swept"
    )
    given = parser.parse_intermixed_args(arguments)
    return Protocol(given.questions, given.repeats, given.warmup, given.new_tokens), given.settings


def _from(least: int) -> Any:
    def number(text: str) -> int:
        value = int(text) if text.isdecimal() else 0
        if value < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is out of range; allowed: a whole number from {least}"
            )
        return value

    return number


def _folder(passes: Sequence[launcher.Pass]) -> Path:
    """The run's folder; checks what does not go with this command."""
    folders = {one.settings.folder for one in passes}
    if len(folders) > 1:
        raise ConfigError("run and results name one folder here; leave them out of the sweep")
    if any(one.settings.plan for one in passes):
        raise ConfigError("plan=true does not go with profile; plan the run without `profile`")
    if ranks().world > 1:
        raise ConfigError("profile measures in one process: start it without torch.distributed.run")
    return folders.pop()


def _questions(settings: Settings, protocol: Protocol) -> list[Question]:
    """The first question about each of the first videos."""
    found: dict[str, Question] = {}
    for question in all_questions(
        load_task(settings.benchmark), settings.limit, settings.benchmark["families"]
    ):
        found.setdefault(question.video, question)
    chosen = list(found.values())[: protocol.questions]
    if len(chosen) < protocol.questions:
        raise ConfigError(
            f"--questions {protocol.questions} needs as many videos; {settings.benchmark['name']} has {len(chosen)} "
            "with these settings"
        )
    unusable_videos({**settings.benchmark, "allow_missing": False}, [question.video for question in chosen])
    return chosen


class Measuring:
    """The measurements of one pass: one model, one benchmark, one number of frames.

    Args:
        settings: of the pass.
        arms: the arms that take turns.
        questions: the fixed questions.
        protocol: how often.
        family: the loaded model.
    """

    def __init__(
        self,
        settings: Settings,
        arms: Sequence[Arm],
        questions: Sequence[Question],
        protocol: Protocol,
        family: Family,
    ) -> None:
        self.settings, self.arms, self.questions = settings, arms, questions
        self.protocol, self.family = protocol, family
        self.file = settings.folder / MEASUREMENTS
        self.compressors: dict[str, Compressor] = {arm.id: arm.build() for arm in arms}
        self.guard = Guard(family)
        self.failed: dict[str, str] = {}
        self.own_flops: dict[tuple[str, str], int | None] = {}
        described = family.describe()
        self.origin = provenance(described, settings.seed, settings.benchmark.get("revision"))
        self.key = self._key(described)

    def run(self) -> list[str]:
        """Measure what is missing; returns a message for each arm that failed."""
        for arm in self.arms:
            self.compressors[arm.id].check(arm.budget, len(self.family.decoder))
        done = self._rounds_done()
        missing = [turn for turn in self._turns() if turn not in done]
        if not missing:
            log.info("%d frames: all measured", self.settings.model["frames"])
            return self._messages()
        for number in range(self.protocol.warmup):
            for question in self.questions:
                self._round(question, -1 - number, record=False)
        for repeat, name in missing:
            question = next(q for q in self.questions if q.id == name)
            log.info(
                "%d frames: repeat %d of %d, %s",
                self.settings.model["frames"],
                repeat + 1,
                self.protocol.repeats,
                name,
            )
            self._round(question, repeat, record=True)
        return self._messages()

    def _turns(self) -> Iterator[tuple[int, str]]:
        for repeat in range(self.protocol.repeats):
            for question in self.questions:
                yield repeat, question.id

    def _round(self, question: Question, repeat: int, *, record: bool) -> None:
        """One question, each arm once."""
        for arm in self.arms:
            if arm.id in self.failed:
                continue
            subject = Subject(
                self.family,
                self.compressors[arm.id],
                arm.budget,
                Sampling.of(self.settings.model),
                self.settings.benchmark["decoder"],
                self.protocol.new_tokens,
            )
            try:
                with self.guard.sample(subject.compressor):
                    sample = measure(subject, question)
                if sample.cost["flops"]["compressor"] is None:
                    self._count(subject, arm, question, sample)
            except WeightsChanged as error:
                raise RunFailed(str(error)) from error
            except (Exception, SystemExit) as error:
                # An arm that runs out of memory at 128 frames must not cost the others their measurements.
                self.failed[arm.id] = f"{type(error).__name__}: {error}"
                self._append(self._identity(arm, question, repeat) | {"error": self.failed[arm.id]})
                log.warning("%s failed and is measured no further: %s", arm.label, self.failed[arm.id])
                if self.family.device.type != "cpu":
                    torch.accelerator.empty_cache()
                continue
            if record:
                self._append(self._line(arm, question, repeat, sample))

    def _count(self, subject: Subject, arm: Arm, question: Question, sample: Sample) -> None:
        """FLOPs of a method without a formula: counted once for each question, in a run of its own."""
        key = arm.id, question.id
        if key not in self.own_flops:
            self.own_flops[key] = counted(subject, question)
        sample.cost["flops"]["compressor"] = self.own_flops[key]

    def _identity(self, arm: Arm, question: Question, repeat: int) -> dict[str, Any]:
        return {
            "pass": self.key,
            "arm": arm.id,
            "method": arm.method,
            "label": arm.label,
            "budget": dataclasses.asdict(arm.budget),
            "model": self.settings.model["name"],
            "family": self.settings.model["family"],
            "parameters": self.family.shape.parameters if self.family.shape else None,
            "benchmark": self.settings.benchmark["name"],
            "frames": self.settings.model["frames"],
            "question": question.id,
            "repeat": repeat,
        }

    def _line(self, arm: Arm, question: Question, repeat: int, sample: Sample) -> dict[str, Any]:
        kept = sample.trace.retention()
        return {
            **self._identity(arm, question, repeat),
            "video_frames": sample.frames,
            "video_tokens": sample.trace.video,
            "text_tokens": sample.trace.text,
            "retention_tokens": kept["tokens"],
            "retention_compute": kept["compute"],
            "times": sample.times,
            "token_seconds": sample.tokens,
            "peak_bytes": sample.peak,
            "peak_of": sample.kind,
            **sample.cost,
            "provenance": self.origin,
            "machine": _machine(self.family.device),
            "error": None,
        }

    def _key(self, described: dict[str, str]) -> str:
        """Of what may be compared: the same machine, model, questions, protocol and arms."""
        asked = [question.id for question in self.questions]
        everything = [
            {key: value for key, value in self.settings.model.items() if key != "path"},
            self.settings.benchmark["name"],
            self.settings.benchmark.get("revision"),
            self.protocol.new_tokens,
            asked,
            sorted(arm.id for arm in self.arms),
            described,
            _machine(self.family.device),
            self.origin["versions"],
        ]
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]

    def _rounds_done(self) -> set[tuple[int, str]]:
        """Rounds in which every arm was measured; an arm that failed is measured again only if asked for."""
        rows = [row for row in read_measurements(self.settings.folder) if row["pass"] == self.key]
        if not self.settings.retry_failed:
            self.failed = {row["arm"]: row["error"] for row in rows if row["error"] is not None}
        wanted = {arm.id for arm in self.arms} - set(self.failed)
        measured: dict[tuple[int, str], set[str]] = {}
        for row in rows:
            if row["error"] is None:
                measured.setdefault((row["repeat"], row["question"]), set()).add(row["arm"])
        return {turn for turn, arms in measured.items() if wanted <= arms}

    def _messages(self) -> list[str]:
        labels = {arm.id: arm.label for arm in self.arms}
        frames = self.settings.model["frames"]
        return [f"{labels[id_]} with {frames} frames failed: {reason}" for id_, reason in self.failed.items()]

    def _append(self, row: dict[str, Any]) -> None:
        try:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise DataError(f"cannot write {self.file}: {error.strerror}") from error


def read_measurements(folder: Path) -> list[dict[str, Any]]:
    """The measurements of a run, the last one of each arm, question and repeat; none where there is no file.

    Raises:
        DataError: for a line that is no measurement.
    """
    file = folder / MEASUREMENTS
    if not file.is_file():
        return []
    rows: dict[tuple, dict[str, Any]] = {}
    # A line without its end is one that an interruption cut off.
    *lines, _torn = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key = row["pass"], row["arm"], row["question"], row["repeat"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number} is no measurement: {error!r}; remove the line") from error
        rows.pop(key, None)
        rows[key] = row
    return list(rows.values())


def _drop_torn_line(file: Path) -> None:
    """Cut off what an interruption left unfinished, so that the next line stands alone."""
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.warning("%s: dropped a torn last line; its round is measured again", file)
        os.truncate(file, whole)


def _machine(device: torch.device) -> str:
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{platform.node()}, {name}, {device.type}"


if __name__ == "__main__":
    from stsimdiff.cli import command

    command("profile")
