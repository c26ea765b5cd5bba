"""``python -m stsimdiff doctor key=value ...``: whether this machine can do a run, proved before the run begins.

A line for each check, with what was measured on this machine, with these weights, on this device, in this dtype and
with this attention backend. A check that fails says what to do, and the others go on. Nothing is stored.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stsimdiff.commands import HELP
from stsimdiff.config.checks import obstacle
from stsimdiff.config.settings import NoLogger, Settings, WandbLogger
from stsimdiff.config.wandb_mode import wandb_mode
from stsimdiff.errors import CheckSkipped, ConfigError, DataError, MissingParts, UserError
from stsimdiff.evaluate.passes import Pass, passes_of
from stsimdiff.files import existing
from stsimdiff.launchers import base
from stsimdiff.terminal import say
from stsimdiff.video import process

if TYPE_CHECKING:
    from torch import Tensor

    from stsimdiff.config.arms import Arm
    from stsimdiff.evaluate.questions import Question
    from stsimdiff.evaluate.session import PreparedQuestion, Session
    from stsimdiff.models.base import Family
    from stsimdiff.models.kit.running import FamilyCase
    from stsimdiff.video import Frames

USAGE = """\
usage: python -m stsimdiff doctor [key=value ...]

Proves that this machine can do a run, in a few minutes and without storing anything: the checkpoint, the prompt, the
engine's exactness, every method's budget, memory and time of the largest prompt, decoders, disk, data, W&B.

  key=value   as for the run: experiment=table1 model.path=/weights data=/data, or model=... benchmark=...

Exit code 0: every check passed; 1: one failed; 2: wrong settings.
"""
NAME_WIDTH = 26
LEAST_FREE = 1e9
"""Bytes that must be free where answers and generated data go."""
MASKED = ("input", "before layer 2", "inside layer 1", "at four places")
"""The drops, of those that the family kit tries, that are compared with masks."""
NOISE = 4
"""Dropping may differ from masking by so many times what two ways of running the stock model differ by."""
RUNS = 16
"""How often a model that gives several results is run, to see them all."""


class Doctor:
    """Makes checks, prints a line for each, and counts.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.states: Counter[str] = Counter()

    def check(self, name: str, probe: Callable[[], str]) -> bool:
        """Make one check; whether it passed.

        Args:
            name: what is checked, at the head of the line.
            probe: returns what was measured; raises what went wrong.
        """
        state, text = outcome(probe)
        self.states[state] += 1
        first, *rest = text.splitlines() or [""]
        self.say(f"{state:<8}{name:<{NAME_WIDTH}}{' ' if len(name) >= NAME_WIDTH else ''}{first}")
        for line in rest:
            self.say(" " * (8 + NAME_WIDTH) + line)
        return state == "ok"


def outcome(probe: Callable[[], str]) -> tuple[str, str]:
    """``ok``, ``skipped`` or ``FAILED``, and what was measured, why there is nothing, or what went wrong."""
    try:
        return "ok", probe()
    except CheckSkipped as reason:
        return "skipped", str(reason)
    except (UserError, AssertionError) as error:
        return "FAILED", str(error) or type(error).__name__
    except (Exception, SystemExit) as error:
        return "FAILED", f"{type(error).__name__}: {error}\n{_where(error)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code 0, or 1 when a check failed.

    Raises:
        UserError: for wrong settings.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not HELP.isdisjoint(words):
        say(USAGE.rstrip())
        return 0
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"{flags[0]} is no flag of doctor; allowed: --help, and settings key=value")
    # A plan's settings need neither weights nor data, whose lack is a finding here.
    configurations = base.configurations([*words, "plan=true"])
    doctor = Doctor(say)
    try:
        passes = passes_of(configurations)
    except MissingParts as error:
        # Not even a plan can do without these: nobody has published how large the benchmark is.
        for part in error.parts:
            doctor.check("data", partial(_missing, part))
        return 1
    _machine(doctor, [run_pass.settings for run_pass in passes])
    questions = _data(doctor, [run_pass.settings for run_pass in passes])
    for group in _by_model(passes):
        _model(doctor, group, questions)
    process.shared().close()
    states = doctor.states
    rest = [f"{states[state]} {state.lower()}" for state in ("FAILED", "skipped") if states[state]]
    doctor.say("\n" + "; ".join([f"{states['ok']} of {states.total()} checks passed", *rest]))
    return 1 if states["FAILED"] else 0


def _missing(part: str) -> str:
    raise DataError(part)


def _where(error: BaseException) -> str:
    """The last line of our own code that an unexpected error passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "stsimdiff" in frame.filename]
    return f"at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


# The machine ---------------------------------------------------------------------------------------------------


def _machine(doctor: Doctor, settings: Sequence[Settings]) -> None:
    doctor.check("versions", _versions)
    for folder in dict.fromkeys(each.folder.parent for each in settings):
        doctor.check("disk for answers", partial(_disk, folder))
    for decoder in dict.fromkeys(each.benchmark.decoder for each in settings):
        doctor.check(f"decoder {decoder}", partial(_decoder, decoder))
    for logger in {str(each.logger): each.logger for each in settings}.values():
        doctor.check("W&B", partial(_wandb, logger))


def _versions() -> str:
    from stsimdiff.evaluate.provenance import PACKAGES, versions

    installed = {"python": platform.python_version(), **versions(PACKAGES)}
    return ", ".join(f"{name} {version}" for name, version in installed.items() if version)


def _disk(folder: Path) -> str:
    if why := obstacle(folder):
        raise DataError(f"{why}; choose another folder: results=FOLDER")
    there = existing(folder)
    free = shutil.disk_usage(there).free
    free_space = f"{free / 1e9:.1f} GB free below {there}"
    if free < LEAST_FREE:
        raise DataError(
            f"{free_space}; free at least {LEAST_FREE / 1e9:g} GB, or choose another folder: results=FOLDER"
        )
    return free_space


def _decoder(decoder: str) -> str:
    """Read a clip whose frames carry their number, as grey levels."""
    import numpy as np

    from stsimdiff.data.clips.dataset import write_video

    with tempfile.TemporaryDirectory() as folder:
        path, levels = Path(folder) / "numbered.mp4", np.arange(32, dtype=np.uint8) * 7 + 16
        write_video(path, np.broadcast_to(levels[:, None, None, None], (32, 64, 64, 3)))
        frames = process.shared().read(path, 8, decoder)
    seen = [round((level - 16) / 7) for level in frames.pixels.mean((1, 2, 3))]
    if tuple(seen) != frames.indices:
        raise DataError(
            f"asked for the frames {list(frames.indices)} of a numbered clip and got {seen}; choose another "
            "benchmark.decoder"
        )
    return f"{len(seen)} of {len(seen)} frames of a numbered clip are those asked for"


def _wandb(logger: NoLogger | WandbLogger) -> str:
    if logger.name != "wandb":
        raise CheckSkipped("switched off (logger=none)")
    mode = wandb_mode(logger.mode)
    if mode is None:
        raise CheckSkipped("switched off by WANDB_MODE")
    return f"{mode}, project {logger.project}"


# The data ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class CheckSample:
    """What of a benchmark the model's checks use.

    Attributes:
        settings: of the pass, its benchmark completed.
        question: the first one whose video is sound.
        longest: the longest text of a question.
        height, width: pixels of a frame of the largest sound video.
    """

    settings: Settings
    question: Question
    longest: str
    height: int
    width: int


def _data(doctor: Doctor, settings: Sequence[Settings]) -> dict[str, CheckSample]:
    """Check every benchmark once; a sample of each that can be used, by the benchmark's name."""
    samples: dict[str, CheckSample] = {}
    for each in {each.benchmark.name: each for each in settings}.values():
        name = each.benchmark.name
        doctor.check(f"data {name}", partial(_benchmark, each, samples, name))
    return samples


def _benchmark(settings: Settings, samples: dict[str, CheckSample], name: str) -> str:
    from stsimdiff.data.benchmarks import by_task
    from stsimdiff.data.videos import listing, over, too_many, unusable_videos
    from stsimdiff.evaluate.questions import all_questions, load_task
    from stsimdiff.video.headers import read_header

    benchmark = settings.benchmark
    public = by_task(benchmark.task)
    if public:
        benchmark = dataclasses.replace(benchmark, root=str(public.root(benchmark.data)))
    questions = all_questions(load_task(benchmark), settings.limit, benchmark.categories)
    videos = sorted({question.video for question in questions})
    unusable = unusable_videos(
        dataclasses.replace(benchmark, allow_missing=True), videos, settings.max_failures
    )
    sound = [path for path in videos if path not in unusable]
    if sound:
        sizes = {(header.height, header.width) for header in map(read_header, sound)}
        height, width = max(sizes, key=lambda size: size[0] * size[1])
        question = next(question for question in questions if question.video == sound[0])
        longest = max((question.text for question in questions), key=len)
        samples[name] = CheckSample(
            dataclasses.replace(settings, benchmark=benchmark, plan=False), question, longest, height, width
        )
    counts = f"{len(questions)} questions about {len(videos)} videos"
    if unusable:
        counts += f"; {len(unusable)} cannot be used:\n{listing(unusable.values())}"
    if not sound or (not benchmark.allow_missing and too_many(unusable, videos, settings.max_failures)):
        again = f"fetch these again (`make data BENCHMARK={name}`)"
        raise DataError(f"{counts}\n{again}; {over(settings.max_failures, len(videos))}")
    counts += "\n" if unusable else ", "
    return f"{counts}each opened; the largest frame is {height} x {width}"


# The model -----------------------------------------------------------------------------------------------------


def _by_model(passes: Sequence[Pass]) -> list[list[Pass]]:
    """The passes of each model, whatever their frames."""
    from stsimdiff.evaluate.shared import model_key

    groups: dict[str, list[Pass]] = {}
    for run_pass in passes:
        groups.setdefault(model_key(run_pass.settings), []).append(run_pass)
    return list(groups.values())


def _model(doctor: Doctor, passes: Sequence[Pass], samples: dict[str, CheckSample]) -> None:
    """Check one model and the arms that answer with it."""
    from stsimdiff.models.kit import checks
    from stsimdiff.models.kit.running import FamilyCase

    settings = dataclasses.replace(passes[0].settings, plan=False)
    if not doctor.check("checkpoint's files", lambda: _files(settings)):
        return
    loaded: list[Family] = []
    if not doctor.check("checkpoint", lambda: _load(settings, loaded)):
        return
    family = loaded[0]
    case = cache(partial(FamilyCase.of, family))
    doctor.check("prompt", lambda: _prompt(case()))
    doctor.check("keep-all equals stock", lambda: keep_all(case()))
    doctor.check("dropping equals masking", lambda: masking(case()))
    doctor.check("nothing is left behind", lambda: _summary(checks.nothing_is_left_behind, case()))
    _arms(doctor, family, passes, samples)
    frames = max(run_pass.settings.model.frames for run_pass in passes)
    doctor.check("largest prompt", lambda: _largest(family, passes, samples, frames))


def _files(settings: Settings) -> str:
    from stsimdiff.models.presence import absent, fetching, unready

    model = settings.model
    if model.checkpoint is None:
        raise DataError(f"no checkpoint at model.path={model.path}; get one: {fetching(model.family)}")
    if problems := absent(model.family, model.path) + unready(model.family, model.path):
        raise DataError("\n".join(problems))
    weights = list(Path(str(model.path)).rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in weights)
    return f"{len(weights)} safetensors files, {size / 1e9:.3g} GB, fingerprint {model.checkpoint}"


def _load(settings: Settings, loaded: list[Family]) -> str:
    from torch import nn

    from stsimdiff.evaluate.session import load_model

    started = time.perf_counter()
    family = load_model(settings)
    loaded.append(family)
    parts = [part for part in vars(family).values() if isinstance(part, nn.Module)]
    tensors = sum(len(list(part.parameters())) for part in parts)
    count = sum(weight.numel() for part in parts for weight in part.parameters())
    where = family.describe()
    return (
        f"all {tensors} tensors accounted for, {count / 1e9:.3g} B parameters{_released(settings, family)}; "
        f"{where['dtype']}, {where['attention']} on {where['device']}; loaded in {time.perf_counter() - started:.0f} s"
    )


def _released(settings: Settings, family: Family) -> str:
    """How the sizes compare with those of the released checkpoint."""
    from stsimdiff.models import info, is_own
    from stsimdiff.models.base import LoadOptions
    from stsimdiff.models.released import planned_shape

    name, shape = settings.model.family, family.shape
    if is_own(name) or shape is None:
        return ""
    released, _ = planned_shape(name, None, LoadOptions())
    same = (shape.decoder, shape.tower) == (released.decoder, released.tower)
    return f", sizes as {info(name).released}" if same else f" (not the sizes of {info(name).released})"


def _prompt(case: FamilyCase) -> str:
    """The prompt token by token, as text."""
    from stsimdiff.models.kit.running import TEXT

    family, layout = case.family, case.prompt.layout
    ids = _ids_of(case)
    video = set(layout.video.tolist())
    words, text = [], []
    for place, token in enumerate(ids):
        if place in video:
            if place == int(layout.video[0]):
                words.append(f"[{layout.grid.tokens} video tokens]")
            continue
        words.append(repr(family.tokenizer.decode([token]))[1:-1])
        text.append(token)
    decoded = family.tokenizer.decode(text)
    if TEXT.splitlines()[0] not in decoded:
        raise DataError(
            f"the question is not in the prompt: {decoded!r}; the tokenizer's files are not those of this model, take "
            "them from the released checkpoint"
        )
    return f"{layout.length} tokens: {'|'.join(words)}"


def _ids_of(case: FamilyCase) -> list[int]:
    """The ids of a prompt's tokens; where it is made of embeddings, those whose rows these are."""
    import torch

    inputs = case.prompt.inputs
    if "input_ids" in inputs:
        return inputs["input_ids"][0].tolist()
    table, ids = case.family.model.get_input_embeddings().weight, []
    video = set(case.prompt.layout.video.tolist())
    for place, row in enumerate(inputs["inputs_embeds"][0]):
        same = [] if place in video else torch.nonzero((table == row.to(table)).all(1))[:1, 0].tolist()
        if not same and place not in video:
            raise DataError(f"token {place} of the prompt is not in the vocabulary")
        ids.append(same[0] if same else -1)
    return ids


def keep_all(case: FamilyCase) -> str:
    """Whether a compressor that keeps every token changes no bit.

    A stock model may give several results itself, where a kernel adds up in the order in which its parts end: then each
    result must be one of those.
    """
    import torch

    from stsimdiff.models.kit.checks import keep_all_is_bit_identical, keeping_all
    from stsimdiff.models.kit.running import NEW_TOKENS, generate

    try:
        keep_all_is_bit_identical(case)
    except AssertionError:
        stock = _distinct(generate(case)[0] for _ in range(RUNS))
        if len(stock) == 1:
            raise
        kept = _distinct(keeping_all(case)[0] for _ in range(RUNS))
        apart = max(float((result - stock[0]).abs().max()) for result in stock)
        differences = (
            f"{len(stock)} results of the stock model itself in {RUNS} runs, up to {apart:.2g} apart"
        )
        others = [result for result in kept if not any(torch.equal(result, reference) for reference in stock)]
        if others:
            raise AssertionError(
                f"keeping all tokens gives {len(others)} results that are none of {differences}"
            ) from None
        return f"bit for bit one of {differences}"
    return f"bit for bit, on the prompt and {NEW_TOKENS} generated tokens"


def _distinct(results: Iterable[Tensor]) -> list[Tensor]:
    """Those that differ in a bit from each other."""
    import torch

    distinct: list[Tensor] = []
    for result in results:
        if not any(torch.equal(result, other) for other in distinct):
            distinct.append(result)
    return distinct


def masking(case: FamilyCase, reference: FamilyCase | None = None) -> str:
    """Dropping against masking, beside what the stock model with and without an explicit mask differs by.

    Args:
        case: the model that drops.
        reference: the same model and prompt with an attention backend that takes masks, where this one takes none.
    """
    from stsimdiff.models.kit.checks import drops_of
    from stsimdiff.models.kit.running import ScriptedRun, generate, masked

    attention = case.family.describe()["attention"]
    if reference is None and attention not in ("sdpa", "eager"):
        raise CheckSkipped(
            f"{attention} takes no mask of its own; model.attn_implementation=sdpa checks this"
        )
    reference = reference or case
    largest, noise, scale, seen = 0.0, 0.0, 0.0, 0.0
    for name in MASKED:
        try:
            drops = drops_of(case, name)
        except CheckSkipped:
            continue  # so many layers it has not
        logits, tokens, _ = generate(case, ScriptedRun(drops))
        largest = max(largest, float((logits - masked(reference, drops, tokens)).abs().max()))
        stock = generate(case, forced=tokens)[0]
        noise = max(noise, float((stock - masked(reference, {}, tokens)).abs().max()))
        seen = max(seen, float((logits - stock).abs().max()))
        scale = max(scale, float(logits.abs().max()))
    gap = (
        f"logits differ by up to {largest:.2g}; those of the stock model with and without an explicit mask by "
        f"{noise:.2g}, the drops themselves change them by {seen:.2g} (largest logit {scale:.3g})"
    )
    if not seen > largest:
        raise DataError(
            f"{gap}: what is dropped does not show in this model's logits, so this proves nothing"
        )
    if largest > max(NOISE * noise, case.tolerance * scale):
        raise DataError(
            f"{gap}; this is more than rounding: try model.attn_implementation=eager or model.dtype=float32, and "
            "report it with this line"
        )
    return gap


def _summary(probe: Callable[[Any], None], case: FamilyCase) -> str:
    probe(case)
    return (probe.__doc__ or "").strip().splitlines()[0]


# The methods ---------------------------------------------------------------------------------------------------


def _arms(doctor: Doctor, family: Family, passes: Sequence[Pass], samples: dict[str, CheckSample]) -> None:
    """Every arm answers one question about one video; arms that differ in their benchmark alone count once."""
    from stsimdiff.evaluate.session import Session

    seen: set[str] = set()
    for run_pass in passes:
        arms = {
            f"{arm.label} {arm.budget} {run_pass.settings.model.frames}": arm
            for arm in run_pass.arms.values()
        }
        arms = {key: arm for key, arm in arms.items() if key not in seen}
        seen |= arms.keys()
        if not arms:
            continue
        sample = samples.get(run_pass.settings.benchmark.name)
        settings = dataclasses.replace(
            sample.settings if sample else run_pass.settings, model=run_pass.settings.model
        )
        session = Session(dataclasses.replace(settings, plan=False), family)
        # Once for all of them, where the first one asks.
        prepared = cache(partial(_prepare, session, list(arms.values()), sample))
        for arm in arms.values():
            doctor.check(arm.method, partial(_arm, session, arm, prepared))


def _arm(session: Session, arm: Arm, prepared: Callable[[], tuple[Question, PreparedQuestion]]) -> str:
    from stsimdiff.budget import TOLERANCE
    from stsimdiff.config.arms import UNBUDGETED

    session.check([arm])
    question, put = prepared()
    started = time.perf_counter()
    answered = session.answer(arm, question, put)
    seconds = time.perf_counter() - started
    text, trace = answered.text, answered.trace
    achieved = trace.retention()
    shares = {kind: f"{100 * share:.1f}%" for kind, share in achieved.items()}
    result = (
        f"{shares['tokens']} of {trace.video} tokens kept, {shares['compute']} of the compute; {seconds:.2f} s; "
        f"answer {text!r}"
    )
    if isinstance(session.compressor(arm), UNBUDGETED):
        return result
    wanted, got = arm.budget.retention, achieved[arm.budget.kind]
    # One token more or less is rounding.
    if abs(got - wanted) > max(TOLERANCE * wanted, 1 / trace.video):
        raise DataError(
            f"{result}; its budget is {100 * wanted:g}% of the {arm.budget.kind}: the table would mark it"
        )
    return f"budget {100 * wanted:g}% ({arm.budget.kind}): {result}"


def _prepare(
    session: Session, arms: Sequence[Arm], sample: CheckSample | None
) -> tuple[Question, PreparedQuestion]:
    """A question put to the model; about a made-up video where there is no data."""
    from stsimdiff.evaluate.questions import Question
    from stsimdiff.models.kit.running import TEXT

    if sample is not None:
        return sample.question, session.ask(sample.question, session.encode(sample.question.video, arms))
    signals = session.signals(arms)
    frames = made_up(session.settings.model.frames, 360, 640)
    question = Question("doctor", "", "all", TEXT, 4, {})
    encoded = session.family.encode(frames, signals=signals)
    encoded.frames = frames
    return question, session.ask(question, encoded)


def made_up(count: int, height: int, width: int) -> Frames:
    """Frames of noise, of any size."""
    import numpy as np

    from stsimdiff.video import Frames

    noise = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return Frames(noise, tuple(range(0, 30 * count, 30)), 30 * count, 30.0)


def _largest(family: Family, passes: Sequence[Pass], samples: dict[str, CheckSample], frames: int) -> str:
    """Memory and time of all tokens of the largest frames, with the longest question."""
    from stsimdiff.data.published import FRAME
    from stsimdiff.evaluate.questions import Question
    from stsimdiff.latency.measure import PeakMemory
    from stsimdiff.models.kit.running import TEXT

    names = [run_pass.settings.benchmark.name for run_pass in passes]
    there = [samples[name] for name in names if name in samples]
    sizes = [(sample.height, sample.width) for sample in there] or [FRAME]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    text = max([sample.longest for sample in there] or [TEXT], key=len)
    started = time.perf_counter()
    try:
        with PeakMemory(family.device) as memory:
            encoded = family.encode(made_up(frames, height, width))
            seen = time.perf_counter() - started
            prompt = family.prompt(encoded, text, sample="doctor")
            family.answer(prompt, Question("", "", "", "", 16, {}).max_new_tokens)
    except Exception as error:
        from stsimdiff.evaluate.failures import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise DataError(
            f"{frames} frames of {height} x {width} do not fit into memory; ask for fewer (model.frames=N), spread the "
            "model (model.device_map=auto), or load it in a smaller dtype (model.dtype=bfloat16)"
        ) from error
    peak = f"{memory.peak / 1e9:.1f} GB ({memory.kind})" if memory.peak else "memory not measured here"
    return (
        f"{frames} frames of {height} x {width}: {encoded.grid.tokens} video tokens, {prompt.layout.text} of text; "
        f"{peak}; {seen:.1f} s to encode, {time.perf_counter() - started - seen:.1f} s to answer with all tokens"
    )
