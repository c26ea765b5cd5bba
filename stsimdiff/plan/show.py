"""How a plan looks in the terminal. What it says is worked out in :mod:`stsimdiff.plan.estimate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rich.text import Text

from stsimdiff.config.arms import Arm
from stsimdiff.config.settings import Settings
from stsimdiff.plan.estimate import ArmPlan, PassPlan, plan_pass
from stsimdiff.report.text import Cell, Cells, number, terminal
from stsimdiff.terminal import Console

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def render(plans: Sequence[PassPlan], console: Console) -> None:
    """Print every pass, then the sum of all."""
    for plan in plans:
        _pass(plan, console)
    cells = sum(len(plan.arms) for plan in plans)
    left = sum(arm.open for plan in plans for arm in plan.arms)
    done = sum(arm.answered for plan in plans for arm in plan.arms)
    models = len({(plan.settings.model.name, plan.settings.model.path) for plan in plans})
    benchmarks = len({plan.settings.benchmark.name for plan in plans})
    flops, seconds = sum(plan.flops for plan in plans), sum(plan.seconds for plan in plans)
    disk = sum(plan.disk["answers"] for plan in plans)
    least = max(sum(plan.memory.values()) for plan in plans)
    console.print(
        Text.assemble(
            ("In all", "bold"),
            f": {cells} cells (arms of {models} models on {benchmarks} benchmarks), {left} answers to give, "
            f"{done} there already; {quantity(flops, 'FLOPs')}, about {duration(seconds)} on one device; at least "
            f"{size(least)} of memory, {size(disk)} of answers.",
        ),
        soft_wrap=True,
    )
    console.print(
        "Nothing was loaded and nothing was written; leave plan=true out to run it.", soft_wrap=True
    )


def quantity(value: float, unit: str) -> str:
    """A number with three digits and a prefix: ``1.23 TFLOPs``."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}{unit}"


def size(bytes_: float) -> str:
    """Bytes with a decimal prefix."""
    return quantity(bytes_, "B")


def duration(seconds: float) -> str:
    """Seconds in words of two units at most."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _pass(plan: PassPlan, console: Console) -> None:
    model, benchmark = plan.settings.model, plan.settings.benchmark
    console.print(
        Text.assemble((f"{model.name} on {benchmark.name}", "bold"), f", {model.frames} frames"),
        soft_wrap=True,
    )
    grid = plan.typical
    lines = [
        f"sizes: {plan.source}; {plan.shape.parameters / 1e9:.3g} billion weights, "
        f"{plan.shape.decoder.layers} layers",
        f"questions: {plan.questions} about {plan.videos} videos, {plan.hours:.3g} hours of video",
        f"tokens of a video: {grid.tokens} ({grid.frames} x {grid.height} x {grid.width}), the most frequent; "
        f"{plan.largest.tokens}, the largest; about {plan.text} of text",
        f"vision tower and projector: {quantity(plan.vision, 'FLOPs')} for {plan.open_videos} videos, each once "
        "for all arms",
    ]
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
    terminal(_cells(plan), console)
    console.print(
        "  LLM: of the language model for one question, counted; closed: 4nd^2 + 2n^2d + 2ndm, as papers print; "
        "method: of the compressor itself; all open: each prompt prefilled whole; shared: one prefill a video, as far "
        "as the method lets its questions share it",
        style="dim",
        soft_wrap=True,
    )
    for arm in plan.arms:
        if arm.trace is None:
            console.print(
                f"  {arm.arm.label} is left out of the sums: it failed on a synthetic video with {arm.reason}",
                soft_wrap=True,
            )
    memory = ", ".join(f"{name} {size(value)}" for name, value in plan.memory.items())
    reading = "reading the videos not included"
    if plan.reading is not None:
        reading = f"including {duration(plan.reading * plan.open_videos)} to read the videos"
    shared = sum(arm.flops_shared for arm in plan.arms) + plan.vision
    whole = (
        f", each prompt prefilled whole; {quantity(shared, 'FLOPs')} where questions share a prefill"
        if plan.settings.reuse_prefix
        else ""
    )
    lines = [
        f"memory: about {size(sum(plan.memory.values()))} at the largest video ({memory})",
        f"disk: {size(plan.disk['answers'])} of answers; the features of all videos would be "
        f"{size(plan.disk['features'])}",
        f"time: about {duration(plan.seconds)} for {quantity(plan.flops, 'FLOPs')} at "
        f"{quantity(plan.throughput, 'FLOP/s')}, which rests on {plan.rests_on}; {reading}; "
        f"generated tokens not included{whole}",
        *plan.notes,
    ]
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
    console.print()


Columns = Sequence[tuple[str, Callable[[ArmPlan], Cell]]]


def _quantity(value: float | None, unit: str = "") -> Cell:
    return Cell("not counted") if value is None else Cell(quantity(value, unit), value)


def _retention(kind: str, plan: ArmPlan) -> Cell:
    return number(100 * plan.trace.retention()[kind] if plan.trace else None)


COLUMNS: Columns = (
    ("arm", lambda plan: Cell(plan.arm.label)),
    ("budget", lambda plan: Cell(f"{100 * plan.arm.budget.retention:g} % {plan.arm.budget.kind}")),
    ("open", lambda plan: number(plan.open, ".0f")),
    ("done", lambda plan: number(plan.answered, ".0f")),
)
FROM_TRACE: Columns = (
    ("tokens %", partial(_retention, "tokens")),
    ("compute %", partial(_retention, "compute")),
    ("LLM FLOPs", lambda plan: _quantity(plan.each)),
    ("LLM %", lambda plan: number(100 * plan.each / plan.each_all)),
    ("closed %", lambda plan: number(100 * plan.closed)),
    ("method", lambda plan: _quantity(plan.compressor)),
    ("all open", lambda plan: _quantity(plan.flops)),
    ("shared", lambda plan: _quantity(plan.flops_shared)),
    ("KV cache", lambda plan: _quantity(plan.kv, "B")),
)
"""The columns that are known of a method that ran on a synthetic video."""


def _cells(plan: PassPlan) -> Cells:
    lines = [
        [of(arm) for _, of in COLUMNS] + [of(arm) if arm.trace else Cell("not known") for _, of in FROM_TRACE]
        for arm in plan.arms
    ]
    return Cells([heading for heading, _ in (*COLUMNS, *FROM_TRACE)], [("", lines)])


WIDE = 140


def show(passes: Sequence[tuple[Settings, Sequence[Arm]]]) -> None:
    """Print the plan of a whole batch.

    Raises:
        UserError: for whatever would stop the run before its model is loaded.
    """
    console = Console()
    # Where no terminal says its width, a line of the table is better long than cut.
    console = console if console.is_terminal else Console(width=WIDE)
    render([plan_pass(settings, arms) for settings, arms in passes], console)
