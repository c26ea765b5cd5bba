"""What a run would cost, before anything is loaded: ``plan=true`` on any command line.

Counts come from the questions, the videos' headers and the model's configuration alone; how a plan looks is made in
:mod:`stsimdiff.plan.show`. No weights are read and nothing is written.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from stsimdiff.compressors.base import Compressor
from stsimdiff.config.arms import Arm
from stsimdiff.config.settings import Settings
from stsimdiff.cost import (
    ModelShape,
    closed_form,
    compressor_flops,
    continued_flops,
    kv_bytes,
    prefill_flops,
    prefill_flops_all,
)
from stsimdiff.cost.tower import projector_flops, signal_flops, vision_flops
from stsimdiff.data import published
from stsimdiff.data.benchmarks import by_task
from stsimdiff.data.videos import listing, over, too_many
from stsimdiff.errors import DataError, UserError
from stsimdiff.evaluate.questions import Question, all_questions, category_of, load_task
from stsimdiff.evaluate.store import arm_folders, checked_answers, checked_record, shards
from stsimdiff.models.base import DTYPES, LoadOptions
from stsimdiff.models.released import planned_shape
from stsimdiff.plan.dry_run import dry_run, layers_shared
from stsimdiff.tokens import Grid
from stsimdiff.trace import Trace
from stsimdiff.video import Sampling
from stsimdiff.video.headers import Header, read_header

PROMPT_TOKENS = 30
"""Tokens of a chat template, about."""
CHARACTERS = 4
"""Characters of a question's text to a token, about."""
ANSWER_BYTES = 1500
"""Bytes of a stored answer, about, where none is stored yet."""
ENOUGH = 5
"""Stored answers from which a throughput is believed."""


@dataclass
class ArmPlan:
    """What one arm would cost.

    Attributes:
        arm: the arm.
        answered, open: questions that are answered (failures count as answered unless they are tried again), and not.
        trace: of a synthetic video, from which the counts are scaled; ``None`` where the method failed on it.
        reason: why there is no trace.
        flops: of the language model and the compressor for all open questions, every prompt prefilled whole.
        flops_shared: the same where one prefill serves a video's questions, as far as the method lets them share it;
            the compressor counts with every question.
        layers_shared: so many of the first layers.
        each: of the language model for one question of the typical video, ``each_all`` with all its tokens.
        closed: the closed form's ratio to all tokens.
        compressor: FLOPs of the method on the typical video; ``None``: not counted.
        kv: bytes of the cache for the largest video.
    """

    arm: Arm
    answered: int
    open: int
    trace: Trace | None = None
    reason: str = ""
    flops: int = 0
    flops_shared: int = 0
    layers_shared: int = 0
    each: int = 0
    each_all: int = 0
    closed: float = 0.0
    compressor: int | None = None
    kv: int = 0


@dataclass
class PassPlan:
    """What the arms of one pass would cost together: one model, one benchmark, one set of settings.

    Attributes:
        settings: of the pass.
        shape: sizes of the model, and ``source``, what they rest on.
        questions: how many, and ``videos`` about how many videos.
        hours: length of the videos.
        typical, largest: grids of the most frequent and of the largest video.
        text: tokens of the prompt's text, the mean.
        vision: FLOPs of tower and projector for every video with an open question, each once.
        arms: one entry each.
        memory: bytes by part, at the largest video.
        disk: bytes of the answers, and of the features of all videos if they were kept.
        throughput: FLOP/s, and ``rests_on``, where it comes from.
        reading: seconds of reading one video, from stored answers; ``None`` where none says it.
    """

    settings: Settings
    shape: ModelShape
    source: str
    questions: int
    videos: int
    hours: float
    typical: Grid
    largest: Grid
    text: int
    vision: int
    open_videos: int
    arms: list[ArmPlan]
    throughput: float
    rests_on: str
    memory: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    reading: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def flops(self) -> int:
        """Of everything that is open."""
        return self.vision + sum(arm.flops for arm in self.arms)

    @property
    def seconds(self) -> float:
        """Estimated time on one device."""
        return self.flops / self.throughput + (self.reading or 0.0) * self.open_videos


def plan_pass(settings: Settings, arms: Sequence[Arm]) -> PassPlan:
    """The plan of the arms of one pass; raises as :func:`show`."""
    model = settings.model
    options = LoadOptions(model.device, model.dtype, model.attn_implementation, model.options)
    shape, source = planned_shape(model.family, model.path, options)
    compressors = {arm.id: arm.build() for arm in arms}
    for arm in arms:
        compressors[arm.id].check(arm.budget, shape.decoder.layers)
    questions, headers, notes = _questions(settings)
    if model.checkpoint is None:
        notes.append("without the weights, nobody knows which questions are answered already")
    elif settings.benchmark.revision is None:
        notes.append("without the data, nobody knows which questions are answered already")
    grids = {path: _grid(shape, header, Sampling.of(model)) for path, header in headers.items()}
    of_question = {question.id: grids[question.video] for question in questions}
    typical = Counter(of_question.values()).most_common(1)[0][0]
    largest = max(of_question.values(), key=lambda grid: grid.tokens)
    text = PROMPT_TOKENS + round(statistics.mean(len(q.text) for q in questions) / CHARACTERS)
    text += shape.timestamp_tokens * typical.frames
    stored, sizes, speeds, reading = _stored(settings, arms)
    plans: list[ArmPlan] = []
    open_ids: set[str] = set()
    for arm in arms:
        open_questions = [question for question in questions if question.id not in stored[arm.id]]
        open_ids |= {question.id for question in open_questions}
        plan = ArmPlan(arm, len(questions) - len(open_questions), len(open_questions))
        bytes_per_value = _bytes_per_value(model.dtype, shape)
        of_video = Counter(question.video for question in open_questions)
        left = Counter((grids[path], count) for path, count in of_video.items())
        _fill(plan, compressors[arm.id], shape, typical, largest, text, left, bytes_per_value)
        plans.append(plan)
    open_videos = {question.video for question in questions if question.id in open_ids}
    reads_tower = any(compressors[plan.arm.id].needs_vision for plan in plans if plan.open)
    throughput, rests_on = _throughput(settings, shape, options, speeds)
    made = PassPlan(
        settings=settings,
        shape=shape,
        source=source,
        questions=len(questions),
        videos=len(headers),
        hours=sum(header.seconds for header in headers.values()) / 3600,
        typical=typical,
        largest=largest,
        text=text,
        vision=sum(_tower(shape, grids[path], reads_tower) for path in open_videos),
        open_videos=len(open_videos),
        arms=plans,
        throughput=throughput,
        rests_on=rests_on,
        reading=reading,
        notes=notes,
    )
    bytes_per_value = _bytes_per_value(model.dtype, shape)
    made.disk = {
        "answers": sum(plan.open for plan in plans) * round(statistics.mean(sizes or [ANSWER_BYTES])),
        "features": sum(grid.tokens for grid in grids.values()) * shape.decoder.hidden * bytes_per_value,
    }
    made.memory = _memory(made, options)
    return made


def _questions(settings: Settings) -> tuple[list[Question], dict[str, Header], list[str]]:
    """The questions, the header of each of their videos by path, and notes for the user."""
    benchmark, notes = settings.benchmark, []
    module = None if benchmark.data else benchmark.module()
    world = {"world": benchmark.world} if benchmark.world else {}
    if module and (planned := module.planned(benchmark.task, **world)):
        # To read the generated videos they would have to be made; what they are like is known.
        notes.append(f"the data of {benchmark.name} is not made yet: the counts are the generator's")
        rows, size = planned
        wanted = set(benchmark.categories or module.CATEGORIES)
        questions = [
            Question(row["id"], row["video"], category_of(row), text, 1, row)
            for row, text in rows
            if category_of(row) in wanted
        ][: settings.limit]
        return questions, {q.video: Header(*size) for q in questions}, notes
    public = by_task(benchmark.task)
    if public and not benchmark.root:
        return _published(public.name, settings.limit)
    questions = all_questions(load_task(benchmark), settings.limit, benchmark.categories)
    headers, broken = {}, {}
    for path in sorted({question.video for question in questions}):
        try:
            headers[path] = read_header(path)
        except DataError as error:
            broken[path] = str(error)
    videos = [*broken, *headers]
    if broken and (
        not headers or (not benchmark.allow_missing and too_many(broken, videos, settings.max_failures))
    ):
        raise DataError(
            f"{listing(broken.values())}\n{len(broken)} of {len(videos)} videos cannot be used; "
            f"{over(settings.max_failures, len(videos))}"
        )
    if broken:
        lost = sum(question.video in broken for question in questions)
        notes.append(f"{lost} of {len(questions)} questions would fail for lack of a usable video")
    return [question for question in questions if question.video in headers], headers, notes


def _published(name: str, limit: int | None) -> tuple[list[Question], dict[str, Header], list[str]]:
    """Stand-ins as many and as long as the benchmark's authors say its questions and videos are."""
    size = published.PUBLISHED[name]
    seconds, (height, width) = size.hours * 3600 / size.videos, published.FRAME
    header = Header(round(seconds * published.FPS), seconds, height, width)
    text = " " * published.CHARACTERS
    questions = [
        Question(str(i), str(i * size.videos // size.questions), "all", text, 16, {})
        for i in range(size.questions)
    ][:limit]
    note = (
        f"the data of {name} is not here: {size.questions} questions, {size.videos} videos and {size.hours:g} hours as "
        f"{size.source} says; frames of {width} x {height} and {published.CHARACTERS} characters a question are "
        "assumed, and all questions count as one category"
    )
    return questions, {question.video: header for question in questions}, [note]


def _grid(shape: ModelShape, header: Header, sampling: Sampling) -> Grid:
    count = sampling.frames
    if header.frames:
        rate = header.frames / header.seconds if header.seconds else float(published.FPS)
        count = len(sampling.indices(header.frames, rate))
    return shape.grid(count, header.height, header.width)


def _tower(shape: ModelShape, grid: Grid, signals: bool) -> int:
    work = shape.tower_work(grid)
    read = signal_flops(shape.tower, work) if signals else 0
    return vision_flops(shape.tower, work) + projector_flops(shape.tower, work) + read


def _fill(
    plan: ArmPlan,
    compressor: Compressor,
    shape: ModelShape,
    typical: Grid,
    largest: Grid,
    text: int,
    left: Mapping[tuple[Grid, int], int],
    bytes_per_value: int,
) -> None:
    """Put an arm's counts into its plan: those of a synthetic video of the typical grid, scaled to the others.

    ``left``: how many videos have such a grid and so many open questions.
    """
    decoder = shape.decoder
    try:
        trace = dry_run(compressor, plan.arm.budget, typical, text, decoder.layers)
        plan.layers_shared = layers_shared(compressor, plan.arm.budget, typical, text, decoder.layers)
    except UserError:
        raise
    except Exception as error:
        # A method of a user's own may do anything, also with a video that is none.
        plan.reason = f"{type(error).__name__}: {error}"
        return
    plan.trace = trace

    def scaled(grid: Grid) -> tuple[list[int], list[int]]:
        factor = grid.tokens / typical.tokens
        return [round(n * factor) for n in trace.entering], [round(n * factor) for n in trace.mlp]

    work = shape.tower_work(typical)
    selection = compressor_flops(compressor, trace, typical, decoder, shape.tower, work)
    if selection is not None and compressor.needs_vision:
        # The tower's attention is read once for a video and counts there, not with each question.
        selection -= signal_flops(shape.tower, work)
    plan.compressor = selection
    plan.each = prefill_flops(decoder, text, trace.entering, trace.mlp)
    plan.each_all = prefill_flops_all(decoder, text, trace.video)
    everything = closed_form(decoder, text, [trace.video] * decoder.layers)
    plan.closed = closed_form(decoder, text, trace.entering) / everything
    plan.kv = kv_bytes(decoder, text, scaled(largest)[0], bytes_per_value)
    for (grid, questions), videos in left.items():
        counts = scaled(grid)
        first = prefill_flops(decoder, text, *counts)
        further = continued_flops(decoder, text, *counts, plan.layers_shared)
        method = questions * round((selection or 0) * grid.tokens / typical.tokens)
        plan.flops += videos * (questions * first + method)
        plan.flops_shared += videos * (first + (questions - 1) * further + method)


def _stored(
    settings: Settings, arms: Sequence[Arm]
) -> tuple[dict[str, set[str]], list[int], list[float], float | None]:
    """Ids that each arm has answered; of this run's answers their sizes, FLOP/s, and the time of reading a video."""
    answered: dict[str, set[str]] = {arm.id: set() for arm in arms}
    sizes: list[int] = []
    speeds: list[float] = []
    readings: list[float] = []
    for folder in arm_folders(settings.folder):
        record = checked_record(folder)
        rows = checked_answers(folder, record=record)
        succeeded = [row for row in rows if row["error"] is None]
        if record["arm"] in answered:
            counted = succeeded if settings.retry_failed else rows
            answered[record["arm"]] = {row["id"] for row in counted}
        if rows:
            sizes.append(sum(path.stat().st_size for path in shards(folder)) // len(rows))
        same = record["model"].get("checkpoint") == settings.model.checkpoint
        for row in succeeded if same and settings.model.checkpoint else ():
            # A time that was not taken is null, or not there.
            times = {
                name: seconds for name, seconds in (row.get("times") or {}).items() if seconds is not None
            }
            decoding = times.get("prefill", 0) - times.get("compressor", 0)
            if decoding > 0 and row.get("llm_flops") is not None:
                speeds.append(row["llm_flops"] / decoding)
            if "decode" in times:
                readings.append(times["decode"] + times.get("preprocess", 0))
    return answered, sizes, speeds, statistics.median(readings) if readings else None


def _throughput(
    settings: Settings, shape: ModelShape, options: LoadOptions, speeds: Sequence[float]
) -> tuple[float, str]:
    """FLOP/s to reckon with, and what it rests on."""
    if settings.plan_tflops is not None:
        return settings.plan_tflops * 1e12, "plan_tflops"
    if len(speeds) >= ENOUGH:
        return statistics.median(speeds), f"the prefill of {len(speeds)} answers stored in {settings.folder}"
    device = options.resolved_device()
    dtype = DTYPES.get(options.dtype if options.dtype != "auto" else shape.dtype, torch.float32)
    if settings.model.threads is not None:
        torch.set_num_threads(settings.model.threads)
    return (
        _product_speed(device, dtype),
        f"a product of {dtype} matrices measured on {device}; a model reaches less, so expect a longer time; "
        "set plan_tflops=NUMBER to what your device reaches",
    )


def _product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product on a device, the best of some."""
    from stsimdiff.engine import synchronise

    side = 1024 if device.type == "cpu" else 8192
    a, b = (
        torch.ones(side, side, device=device, dtype=dtype),
        torch.ones(side, side, device=device, dtype=dtype),
    )
    best, until = 0.0, time.perf_counter() + 0.5
    for _ in range(50):
        synchronise(device)
        started = time.perf_counter()
        a @ b
        synchronise(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
        if time.perf_counter() > until:
            break
    return best


def _bytes_per_value(dtype: str, shape: ModelShape) -> int:
    return DTYPES.get(dtype if dtype != "auto" else shape.dtype, torch.float32).itemsize


def _memory(plan: PassPlan, options: LoadOptions) -> dict[str, int]:
    """Bytes by part at the largest video; activations are the largest set of tensors that are alive at once."""
    shape, grid = plan.shape, plan.largest
    bytes_per_value = _bytes_per_value(plan.settings.model.dtype, shape)
    decoder, tower, work = shape.decoder, shape.tower, shape.tower_work(grid)
    length = plan.text + grid.tokens
    # The gate, what it gates and their product are alive at once; in a plain MLP input and output of the activation.
    in_layer = length * (3 * decoder.intermediate + 3 * decoder.hidden) * bytes_per_value
    in_tower = work.patches * ((2 + tower.gated) * tower.intermediate + 4 * tower.width) * bytes_per_value
    if tower.rotary:
        # While keys are rotated: the layer's input, before and after its norm, queries, keys and values; in float32
        # queries and keys, the rotated queries, and three terms of the rotated keys.
        in_tower = max(
            in_tower, work.patches * tower.width * (5 * bytes_per_value + 6 * torch.float32.itemsize)
        )
    pixels = work.embedded * tower.patch * torch.float32.itemsize
    scores = 0
    if options.attn_implementation == "eager":
        longest = max(work.sequences)
        scores = max(decoder.heads * length**2, tower.heads * work.patches * longest) * bytes_per_value
    kept = min(plan.settings.cache.max_gb * 1e9, plan.disk["features"])
    return {
        "weights": shape.parameters * bytes_per_value,
        "features": grid.tokens * decoder.hidden * tower.projectors * bytes_per_value,
        **({"features kept for other passes": round(kept)} if kept else {}),
        "cache of keys and values": max((arm.kv for arm in plan.arms), default=0),
        "activations": max(in_layer, in_tower + pixels) + scores,
    }
