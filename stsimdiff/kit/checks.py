"""What every method must keep, as functions that raise: the contract of :mod:`stsimdiff.compressors.base`, executable.

A check returns a sentence on what it measured, or ``None``. What a method itself raises is passed on. pytest is not
needed here; the plug-in around these checks is ``stsimdiff.kit``.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stsimdiff import models
from stsimdiff.budget import Budget, Kind, achieved
from stsimdiff.compressors.base import Run
from stsimdiff.config.arms import UNBUDGETED
from stsimdiff.engine import Compression, lent, process_state
from stsimdiff.engine.prefix import Prefix, SharedPrefix
from stsimdiff.errors import BudgetError, CheckSkipped, ConfigError
from stsimdiff.evaluate.guard import changed_state, state_of
from stsimdiff.kit.running import (
    GRID,
    KINDS,
    CompressorCase,
    DropsAlone,
    InterruptedRun,
    MeasuredRun,
    copy_seconds,
    fates,
    layout_for,
    video,
)
from stsimdiff.models.kit import miniatures, running
from stsimdiff.plan.dry_run import with_frames
from stsimdiff.tokens import Grid
from stsimdiff.trace import Trace

RETENTIONS = {"tokens": (0.02, 0.3, 0.5, 0.97, 1.0), "compute": (0.3, 0.6, 1.0)}
LARGE, WIDTH = Grid(32, 14, 14), 256
"""The video of which time and memory are measured, and D of its features."""
MOST_COPIES = 18
"""Memory of a selection, in copies of the token matrix; a matrix of all pairs of tokens is 24 of them."""


# Budgets -------------------------------------------------------------------------------------------------------


def budgets_are_met(case: CompressorCase, kind: Kind) -> None:
    """The budget is met on every scene: valid ascending selections, as many tokens as it says, all at 100 %."""
    _budgeted(case)
    refused: BudgetError | None = None
    met = 0
    for retention in RETENTIONS[kind]:
        for scene in KINDS:
            try:
                trace = case.drive(video(scene, GRID), layout_for(GRID), Budget(kind, retention))
            except BudgetError as error:
                refused = error
                break
            _meets(case, trace, kind, retention, f"a {scene} video")
            met += retention < 1
    if not met:
        raise CheckSkipped(f"refuses every budget of kind {kind}: {refused}")


def small_videos_work(case: CompressorCase, grid: Grid) -> None:
    """A video of one frame, of one token, of one token a frame: the budget is met, and something stays."""
    _budgeted(case)
    for scene in KINDS:
        for retention in (0.02, 0.5, 1.0):
            try:
                trace = case.drive(video(scene, grid), layout_for(grid), Budget("tokens", retention))
            except BudgetError:
                continue  # refused by name
            _meets(case, trace, "tokens", retention, f"a {scene} video of {grid}")


def half_precision_works(case: CompressorCase) -> None:
    """Features in bfloat16 give a selection that meets the budget."""
    _budgeted(case)
    trace = case.drive(video("mixed", GRID).bfloat16(), layout_for(GRID), case.budget)
    _meets(case, trace, "tokens", case.budget.retention, "a video in bfloat16")


def _budgeted(case: CompressorCase) -> None:
    if isinstance(case.compressor, UNBUDGETED):
        raise CheckSkipped("ignores the budget by what it is")
    places = lent.start(case.compressor, layout_for(GRID), case.budget).places
    if places.decoding and not (places.input or places.before or places.between):
        raise CheckSkipped("acts during decoding alone, which changes no prefill")


def _meets(case: CompressorCase, trace: Trace, kind: str, retention: float, place: str) -> None:
    want, left = (
        retention * trace.video,
        achieved(trace.video, trace.entering, trace.final)[kind] * trace.video,
    )
    # Half a token of rounding; of kind compute as much again, where a method rounds at several places.
    excused = max(1.0 if kind == "compute" else 0.5, case.tolerance * want) + 1e-6
    if abs(left - want) <= excused or (trace.final == 1 and want < 1):
        return
    kept = f"{left:.4g} of {trace.video} tokens" + (" a layer" if kind == "compute" else "")
    never = "" if trace.stages else "; no place returned a Selection"
    raise AssertionError(
        f"{place} at budget={kind}, retention {retention:g}: {kept} are left where {want:.4g} are allowed{never}; "
        "count with budget.keep(layout.grid.tokens, layout.layers, entering)"
    )


# What a selection depends on -----------------------------------------------------------------------------------


def selections_are_deterministic(case: CompressorCase) -> None:
    """The same video and question give the same selection, whatever random numbers were drawn before."""
    features, layout = video("mixed", GRID), layout_for(GRID)
    first = fates(case.drive(features, layout, case.budget))
    state = torch.get_rng_state()
    torch.manual_seed(12345)
    try:
        again = fates(case.drive(features, layout, case.budget))
    finally:
        torch.set_rng_state(state)
    assert first == again, (
        "the same video gives another selection the second time; draw from generator_for(layout.sample, self.seed)"
    )


def question_is_not_read(case: CompressorCase) -> None:
    """What declares ``reads_question=False`` selects the same for two questions, on drawn attention and on a model."""
    if case.compressor.reads_question:
        raise CheckSkipped("reads the question, or does not say that it does not")
    message = "another question gives another selection, so that no prefill can be shared; write reads_question = True"
    inside = f"{message}, or name in the run's input_state all that at_input sets for later places"
    features, layout = video("mixed", GRID), layout_for(GRID)
    other = dataclasses.replace(
        layout, length=layout.length + 9, question="and what is not shown", asked=None
    )
    places = lent.start(case.compressor, layout, case.budget).places
    if not places.attention and not places.reads:
        first, second = (
            fates(case.drive(features, prompt_layout, case.budget)) for prompt_layout in (layout, other)
        )
        assert first == second, message
    model = miniature("llava_video")
    prefix: Prefix | None = None
    logits: list[Tensor] = []
    prompts = (model.prompt, model.family.prompt(model.video, running.TEXT.replace("cat", "horse"), "kit"))
    try:
        case.compressor.check(case.budget, len(model.family.decoder))
        for prompt, continues in ((prompts[0], False), (prompts[1], True), (prompts[1], False)):
            run = lent.start(case.compressor, prompt.layout, case.budget)
            engine = SharedPrefix(model.family.decoder, run, prompt.layout, prefix if continues else None)
            logits.append(running.generate(dataclasses.replace(model, prompt=prompt), engine)[0])
            prefix = engine.prefix
            if prefix is None:
                raise CheckSkipped(
                    "selects by what it reads in the first layer, or below the first layer that it reads"
                )
    except (BudgetError, ConfigError) as error:
        raise CheckSkipped(f"refuses this model: {error}") from error
    off = float((logits[1] - logits[2]).abs().max() / logits[2].abs().max())
    assert off < model.tolerance, (
        f"{message if run.input_state is None else inside} (logits differ by {off:.2g} of the largest)"
    )


def no_state_is_carried(case: CompressorCase) -> None:
    """A video's selection is the same after another video, and while another one is under way."""
    layout = layout_for(GRID)
    features, other = (video("mixed", GRID, seed=seed) for seed in (0, 1))
    before = state_of(case.compressor)
    alone = [fates(case.drive(features, layout, case.budget)) for features in (features, other)]
    hint = "what one video needs lies in its run: start returns a new one each time"
    assert fates(case.drive(features, layout, case.budget)) == alone[0], (
        f"another video before it changes a selection; {hint}"
    )
    small = Grid(3, 5, 4)
    case.drive(video("mixed", small), layout_for(small), case.budget)
    assert fates(case.drive(features, layout, case.budget)) == alone[0], (
        f"a shorter video changes the next one's; {hint}"
    )
    second: list[object] = []

    def then() -> None:
        second.append(fates(case.drive(other, layout, case.budget)))

    first = case.drive(features, layout, case.budget, wrap=lambda run: InterruptedRun(run, then))
    assert fates(first) == alone[0] and second in ([], alone[1:]), (
        f"two videos at once change each other; {hint}"
    )
    changed = changed_state(before, state_of(case.compressor))
    assert not changed, f"a video changed {', '.join(changed)}; {hint}"


def nothing_is_left_behind(case: CompressorCase) -> None:
    """What is lent stays as it was, and so does the process: random states, default dtype, threads, working folder."""
    threads = set(threading.enumerate())
    before = process_state.read(process_state.EVERYTHING)
    try:
        for kind in ("mixed", "static"):
            # In-place writes and what torch computes with are found by the engine itself.
            case.drive(video(kind, GRID), layout_for(GRID), case.budget)
    finally:
        changed = process_state.put_back(process_state.EVERYTHING, before)
    assert not changed, f"changed {'; changed '.join(changed)}"
    left = [thread.name for thread in threading.enumerate() if thread not in threads and not thread.daemon]
    assert not left, f"left the threads {', '.join(left)} running; end them"


def bad_features_are_refused(case: CompressorCase) -> None:
    """NaN and infinite features raise ``ValueError`` instead of giving a selection of nothing in particular."""
    layout, name = layout_for(GRID), type(case.compressor).__name__
    for value in (float("nan"), float("inf"), -float("inf")):
        features = video("mixed", GRID)
        features[37, 3] = value
        try:
            case.drive(features, layout, case.budget)
        except ValueError:
            continue
        seen = [fates(case.drive(video(kind, GRID), layout, case.budget)) for kind in ("mixed", "different")]
        if seen[0] == seen[1]:
            raise CheckSkipped("reads no features")
        raise AssertionError(
            f"a feature that is {value} raises nothing; begin with tokens.check_finite('{name}')"
        )


def places_are_used(case: CompressorCase) -> None:
    """A model of few layers has the places, or the method refuses it by name; each announced place is asked."""
    run = lent.start(case.compressor, layout_for(GRID), case.budget)
    places = run.places
    if not (places.input or places.before or places.between or places.decoding):
        if isinstance(case.compressor, UNBUDGETED):
            raise CheckSkipped("acts nowhere")
        raise AssertionError("the run acts nowhere; say where: places = Places(input=True)")
    trace = case.drive(video("mixed", GRID), layout_for(GRID), case.budget)
    if not run.finished:
        visited = {(place, layer) for place, layer, _ in trace.asked}
        announced = {("input", 0)} if places.input else set()
        announced |= {(kind, layer) for kind in ("before", "between") for layer in getattr(places, kind)}
        assert visited <= announced, f"asked at {sorted(visited - announced)}, which places does not announce"
    for layers in (2, 4):
        layout = layout_for(GRID, layers)
        try:
            case.drive(video("mixed", GRID), layout, case.budget)
        except (BudgetError, ConfigError):
            continue  # refused by name
        except ValueError as error:
            if "does not exist: the model has layers" not in str(error):
                raise
            raise AssertionError(
                f"on a model of {layers} layers: {error}; raise ConfigError in check(budget, layers)"
            ) from error


# The engine on models ------------------------------------------------------------------------------------------

_LOADED: dict[str, running.FamilyCase] = {}


def miniature(family: str) -> running.FamilyCase:
    """A miniature of a family with a video and a prompt, the tower's signals read; made once."""
    if family not in _LOADED:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            path = miniatures.make(family, Path(folder) / family)
            loaded = running.load(models.resolve(family), str(path), "cpu", "float32", "sdpa")
            frames = running.synthetic_frames(6)
            seen = loaded.encode(frames, signals=True)
            _LOADED[family] = running.FamilyCase(
                loaded, frames, seen, loaded.prompt(seen, running.TEXT, sample="kit")
            )
    return _LOADED[family]


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def dropping_equals_masking(case: CompressorCase, family: str) -> str | None:
    """On a family's miniature, what the method drops has no influence from there on, as if stock layers masked it."""
    model = miniature(family)
    layout, layers = with_frames(model.prompt.layout), len(model.family.decoder)
    try:
        case.compressor.check(case.budget, layers)
        run = DropsAlone(lent.start(case.compressor, layout, case.budget))
        with torch.no_grad():
            logits, tokens, trace = running.generate(model, run)
    except (BudgetError, ConfigError) as error:
        raise CheckSkipped(f"refuses this model: {error}") from error
    assert trace is not None
    present = set(range(trace.video))
    drops: dict[tuple[str, int], set[int]] = {}
    for stage in trace.stages:
        kept = set(stage.kept.tolist())
        drops[stage.place, stage.layer] = present - kept
        present = kept
    if run.positions != "kept":
        raise CheckSkipped(f"its positions are {run.positions}, which no mask of the stock model equals")
    if run.places.decoding:
        raise CheckSkipped("hides cached keys during decoding too")
    off = float((logits - running.masked(model, drops, tokens)).abs().max() / logits.abs().max())
    assert off < model.tolerance, f"dropping differs from masking by {off:.2g} of the largest logit"
    # As it is, with what it merges.
    with Compression(model.family.decoder, lent.start(case.compressor, layout, case.budget), layout):
        model.family.answer(model.prompt, running.NEW_TOKENS)
    return f"{trace.final} of {trace.video} tokens"


# Time and memory -----------------------------------------------------------------------------------------------


def memory_is_small(case: CompressorCase) -> str:
    """Selecting among 6,272 tokens makes no matrix of all pairs; what it takes is told in copies of the tokens."""
    features, layout = video("mixed", LARGE, WIDTH), layout_for(LARGE)
    # Warm-up at full size: what libraries load on first use counts as resident too.
    case.drive(features, layout, case.budget)
    measured: list[MeasuredRun] = []

    def wrap(run: Run) -> MeasuredRun:
        measured.append(MeasuredRun(run))
        return measured[-1]

    copy, size = copy_seconds(features), features.numel() * features.element_size()
    # What else a process allocates meanwhile counts as well: the least of three.
    for _ in range(3):
        case.drive(features, layout, case.budget, wrap=wrap)
        least = min(measured, key=lambda run: run.peak)
        copies, seconds = least.peak / size, least.seconds / copy
        if copies <= MOST_COPIES:
            break
    costs = f"memory {copies:.1f} and time {seconds:.0f} copies of the token matrix ({len(features)} tokens)"
    assert copies <= MOST_COPIES, (
        f"{costs}; at most {MOST_COPIES} in memory: make no matrix of all pairs of tokens"
    )
    return costs


def _families() -> dict[str, Callable[[CompressorCase], str | None]]:
    return {
        f"dropping equals masking: {family}": partial(dropping_equals_masking, family=family)
        for family in sorted(models.FAMILIES)
    }


CHECKS: dict[str, Callable[[CompressorCase], str | None]] = {
    "budget of tokens": partial(budgets_are_met, kind="tokens"),
    "budget of compute": partial(budgets_are_met, kind="compute"),
    "one frame": partial(small_videos_work, grid=Grid(1, 5, 4)),
    "one token": partial(small_videos_work, grid=Grid(1, 1, 1)),
    "one token a frame": partial(small_videos_work, grid=Grid(9, 1, 1)),
    "bfloat16": half_precision_works,
    "deterministic": selections_are_deterministic,
    "reads no question": question_is_not_read,
    "no state carried": no_state_is_carried,
    "nothing left behind": nothing_is_left_behind,
    "bad features refused": bad_features_are_refused,
    "places announced and used": places_are_used,
    **_families(),
    "time and memory": memory_is_small,
}
"""Every check by its name, as it stands in pytest's output and in that of ``stsimdiff check``."""
