"""Time and memory of one sample, part by part, with nothing cached: what the latency protocol repeats.

Every boundary between parts waits for the device, so a part's time is its own. Which samples are measured, how often
and in which order is decided in :mod:`stsimdiff.latency.protocol`.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from stsimdiff import video
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, signals_for
from stsimdiff.cost import DecoderShape, sample_cost
from stsimdiff.cost.counting import CountedRun
from stsimdiff.engine import Compression, lent, synchronise
from stsimdiff.evaluate.questions import Question
from stsimdiff.models.base import EncodedVideo, Family
from stsimdiff.trace import Trace
from stsimdiff.video import Sampling

TIMES = {
    "decode": "reading the frames from the file",
    "preprocess": "resizing and normalising them",
    "vision": "vision tower, projector and pooling, the reading of the tower's attention included",
    "compressor": "the method itself: its preparation, its selections, the attention read for it",
    "prefill": "the decoder's layers over the prompt, the compressor included",
    "first_token": "from the frames in memory to the first token",
    "token": "each further token, the median of the sample",
    "inference": "from the frames in memory to the last token",
    "end_to_end": "from the file to the last token",
}
"""The measured times and what each covers, in seconds."""


class Clock:
    """Marks on a device's own time line: CUDA events where there are any, else the host's clock, both synchronised.

    Args:
        device: what computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Wait for the device; a point in time for :meth:`between`."""
        if self.device.type != "cuda":
            synchronise(self.device)
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        event.synchronize()
        return event

    def between(self, first: Any, second: Any) -> float:
        """Seconds from one mark to a later one."""
        return first.elapsed_time(second) / 1000 if self.device.type == "cuda" else second - first


class PeakMemory:
    """``with PeakMemory(device) as memory: ...``; ``memory.peak`` is the most that was held inside, weights included.

    On an accelerator it is what torch's allocator gave out; on the CPU the resident set of the process (Linux), or
    ``None`` where the system does not say.

    Attributes:
        kind: ``allocator`` or ``resident set``.
        peak: bytes, or ``None``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "resident set" if device.type == "cpu" else "allocator"
        self.peak: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.kind == "allocator":
            torch.get_device_module(self.device).reset_peak_memory_stats(self.device)
        else:
            _trim()
            self._counts = _reset_resident()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.kind == "allocator":
            self.peak = torch.get_device_module(self.device).max_memory_allocated(self.device)
        elif self._counts:
            self.peak = _resident("VmHWM")


def _trim() -> None:
    """Give what was freed back to the system: else it would hide what the next sample needs (glibc only)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


def _reset_resident() -> bool:
    """Start the high-water mark anew; False where the system has none."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class _TokenClock(StoppingCriteria):
    """Marks the end of each generated token and never stops anything."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.marks: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.marks.append(self.clock.mark())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass
class SampleMeasurement:
    """What was measured of one sample.

    Attributes:
        times: seconds, by the names of :data:`TIMES`.
        tokens: seconds of each generated token after the first.
        peak: bytes of memory, or ``None``, and ``kind``, what they are.
        trace: what the engine saw.
        video: the encoded video's grid and signals.
        cost: as :func:`stsimdiff.cost.sample_cost` says it.
        frames: frames that were read.
    """

    times: dict[str, float]
    tokens: list[float]
    peak: int | None
    kind: str
    trace: Trace
    cost: dict[str, Any]
    frames: int


@dataclass(frozen=True)
class Subject:
    """What is measured: a method and its budget on a loaded model.

    Attributes:
        family: the loaded model.
        compressor, budget: the method.
        sampling: which frames of a video are taken.
        video_decoder: what reads the file, one of :data:`stsimdiff.video.DECODERS`, by name.
        new_tokens: tokens to generate, whatever the model says.
    """

    family: Family
    compressor: Compressor
    budget: Budget
    sampling: Sampling
    video_decoder: str
    new_tokens: int


def measure(subject: Subject, question: Question) -> SampleMeasurement:
    """Answer one question from the file on, and time each part."""
    family, clock = subject.family, Clock(subject.family.device)
    tokens = _TokenClock(clock)
    with PeakMemory(family.device) as memory:
        start = clock.mark()
        frames = video.read(question.video, subject.sampling, subject.video_decoder)
        read = clock.mark()
        encoded = family.encode(frames, signals=signals_for([subject.compressor]))
        prompt = family.prompt(encoded, question.text, sample=question.video_name)
        prepared = clock.mark()
        run = lent.start(subject.compressor, prompt.layout, subject.budget, frames=frames)
        started = clock.mark()
        with Compression(family.decoder, run, prompt.layout) as trace:
            family.generate(prompt, **_generation(subject.new_tokens, tokens))
        end = clock.mark()
    marks = tokens.marks
    each = [clock.between(a, b) for a, b in zip(marks[:-1], marks[1:], strict=True)]
    times = {
        "decode": clock.between(start, read),
        "preprocess": encoded.seconds["preprocess"],
        "vision": encoded.seconds["vision"],
        "compressor": clock.between(prepared, started) + trace.compressor_seconds,
        "prefill": trace.prefill_seconds,
        "first_token": clock.between(read, marks[0]),
        "token": statistics.median(each),
        "inference": clock.between(read, end),
        "end_to_end": clock.between(start, end),
    }
    cost = _cost(subject, trace, encoded)
    return SampleMeasurement(times, each, memory.peak, memory.kind, trace, cost, len(frames.indices))


def counted(subject: Subject, question: Question) -> int | None:
    """FLOPs of a method without a formula on one question, counted as it runs; the run is not timed."""
    family = subject.family
    frames = video.read(question.video, subject.sampling, subject.video_decoder)
    encoded = family.encode(frames, signals=signals_for([subject.compressor]))
    prompt = family.prompt(encoded, question.text, sample=question.video_name)
    run = CountedRun(lent.start(subject.compressor, prompt.layout, subject.budget, frames=frames))
    with Compression(family.decoder, run, prompt.layout) as trace:
        family.generate(prompt, 1)
    shape, decoder = family.shape, DecoderShape.from_config(family.text_config)
    known = (shape.tower, shape.tower_work(encoded.grid)) if shape else (None, None)
    return run.flops(trace, decoder, subject.compressor.needs_vision, *known)


def _generation(new_tokens: int, tokens: _TokenClock) -> dict[str, Any]:
    # As many tokens for every arm, also where the model would end its answer.
    criteria = StoppingCriteriaList([tokens])
    return {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "stopping_criteria": criteria}


def _cost(subject: Subject, trace: Trace, encoded: EncodedVideo) -> dict[str, Any]:
    family = subject.family
    decoder = DecoderShape.from_config(family.text_config)
    bytes_per_value = family.model.dtype.itemsize
    return sample_cost(family.shape, decoder, trace, encoded.grid, subject.compressor, bytes_per_value)
