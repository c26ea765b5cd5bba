"""The latency protocol: time and memory of arms, measured in turn.

Fixed questions, warm-up, every part synchronised, nothing cached, repeats in which the arms take turns (A B A B), so
that whatever drifts hits all alike. Each measurement is on disk before the next begins; what is made of them stands in
:mod:`stsimdiff.latency.summary`. Never read off an accuracy run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from stsimdiff.compressors.base import Compressor
from stsimdiff.config.arms import Arm
from stsimdiff.config.settings import Settings
from stsimdiff.errors import DataError, RunFailed
from stsimdiff.evaluate.guard import Guard, WeightsChanged
from stsimdiff.evaluate.provenance import provenance
from stsimdiff.evaluate.questions import Question
from stsimdiff.files import append_line, fingerprint
from stsimdiff.latency.measure import SampleMeasurement, Subject, counted, measure
from stsimdiff.latency.measurements import MEASUREMENTS, read_measurements
from stsimdiff.models.base import Family
from stsimdiff.video import Sampling

log = logging.getLogger(__name__)


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


class PassMeasurement:
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
        self.origin = provenance(described, settings.seed, settings.benchmark.revision)
        self.key = self._key(described)

    def run(self) -> list[str]:
        """Measure what is missing; returns a message for each arm that failed."""
        for arm in self.arms:
            self.compressors[arm.id].check(arm.budget, len(self.family.decoder))
        done = self._rounds_done()
        missing = [turn for turn in self._turns() if turn not in done]
        if not missing:
            log.info("%d frames: all measured", self.settings.model.frames)
            return self._messages()
        for number in range(self.protocol.warmup):
            for question in self.questions:
                self._round(question, -1 - number, record=False)
        for repeat, name in missing:
            question = next(q for q in self.questions if q.id == name)
            log.info(
                "%d frames: repeat %d of %d, %s",
                self.settings.model.frames,
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
                self.settings.benchmark.decoder,
                self.protocol.new_tokens,
            )
            try:
                with self.guard.sample(subject.compressor):
                    measured = measure(subject, question)
                if measured.cost["flops"]["compressor"] is None:
                    self._count(subject, arm, question, measured)
            except WeightsChanged as error:
                raise RunFailed(str(error)) from error
            except (Exception, SystemExit) as error:
                # An arm that runs out of memory at 128 frames must not cost the others their measurements.
                self.failed[arm.id] = f"{type(error).__name__}: {error}"
                self._append(self._identity(arm, question, repeat) | {"error": self.failed[arm.id]})
                log.warning(
                    "%s failed, so it is not measured any further: %s", arm.label, self.failed[arm.id]
                )
                if self.family.device.type != "cpu":
                    torch.accelerator.empty_cache()
                continue
            if record:
                self._append(self._line(arm, question, repeat, measured))

    def _count(self, subject: Subject, arm: Arm, question: Question, measured: SampleMeasurement) -> None:
        """FLOPs of a method without a formula: counted once for each question, in a run of its own."""
        key = arm.id, question.id
        if key not in self.own_flops:
            self.own_flops[key] = counted(subject, question)
        measured.cost["flops"]["compressor"] = self.own_flops[key]

    def _identity(self, arm: Arm, question: Question, repeat: int) -> dict[str, Any]:
        return {
            "pass": self.key,
            "arm": arm.id,
            "method": arm.method,
            "label": arm.label,
            "budget": dataclasses.asdict(arm.budget),
            "model": self.settings.model.name,
            "family": self.settings.model.family,
            "parameters": self.family.shape.parameters if self.family.shape else None,
            "benchmark": self.settings.benchmark.name,
            "frames": self.settings.model.frames,
            "question": question.id,
            "repeat": repeat,
        }

    def _line(self, arm: Arm, question: Question, repeat: int, measured: SampleMeasurement) -> dict[str, Any]:
        kept = measured.trace.retention()
        return {
            **self._identity(arm, question, repeat),
            "video_frames": measured.frames,
            "video_tokens": measured.trace.video,
            "text_tokens": measured.trace.text,
            "retention_tokens": kept["tokens"],
            "retention_compute": kept["compute"],
            "times": measured.times,
            "token_seconds": measured.tokens,
            "peak_bytes": measured.peak,
            "peak_of": measured.kind,
            **measured.cost,
            "provenance": self.origin,
            "machine": _machine(self.family.device),
            "error": None,
        }

    def _key(self, described: dict[str, str]) -> str:
        """Of what may be compared: the same machine, model, questions, protocol and arms."""
        question_ids = [question.id for question in self.questions]
        everything = [
            {key: value for key, value in self.settings.model.stored().items() if key != "path"},
            self.settings.benchmark.name,
            self.settings.benchmark.revision,
            self.protocol.new_tokens,
            question_ids,
            sorted(arm.id for arm in self.arms),
            described,
            _machine(self.family.device),
            self.origin["versions"],
        ]
        return fingerprint(everything)

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
        frames = self.settings.model.frames
        return [f"{labels[id_]} with {frames} frames failed: {reason}" for id_, reason in self.failed.items()]

    def _append(self, row: dict[str, Any]) -> None:
        try:
            append_line(self.file, json.dumps(row))
        except OSError as error:
            raise DataError(f"cannot write {self.file}: {error.strerror}") from error


def _machine(device: torch.device) -> str:
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{platform.node()}, {name}, {device.type}"
