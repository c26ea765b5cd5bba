"""Speed and memory of the methods' selections, as ratios that carry over from machine to machine.

    python -m benchmarks.selection --frames 16 32 64 128 256 --out results/selection.json

Timed are all selections of a method in the prefill of a decoder of four layers, which add nothing and whose attention
is drawn; what a method does while decoding is left out. Time is given as a multiple of one copy of the token matrix
into memory that is there already, of one product of the tokens of each frame with each other, and of all products of
matrices that the method makes itself, of which the arithmetic is given as a multiple of that of the product of frames;
memory as a multiple of the matrix's size; growth as the exponent of time over
frames. On the CPU seconds are those that this process computed, so that others on the machine count little. ST-SimDiff
is measured on four scenes that bracket what videos do: ``mixed`` (many small communities), ``static`` (one giant
community of everything), ``newline`` (mixed, with a column of equal newline tokens, as in LLaVA-Video) and
``different`` (no edge at all); every other method on ``mixed``.

Methods without own products take at most 8 copies (:data:`MOST_COPIES`), those with some at most twice the time
of the product of frames or of their own (:data:`MOST_PRODUCTS`); a row that does not is marked ``over``. STTM compares
tokens of a frame and of the next, pair by pair and not by a product (:data:`PAIRWISE`); it may take twice the time of
the product of frames. By definition
DivPrune compares all tokens of the video, and Scissor's bisection the means of all components at each of its steps, so
both make many products of frames; no such matrix is ever kept whole.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.output import save_report
from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Run
from stsimdiff.compressors.st_simdiff import STSimDiff, select
from stsimdiff.kit.running import InterceptedRun, MeasuredRun
from stsimdiff.plan.dry_run import without_model
from stsimdiff.tokens import Grid, Layout, Selection, VideoTokens, VisionSignals
from stsimdiff.trace import Trace

MAIN = "st_simdiff"
OTHERS = tuple(name for name in compressors.BUILTIN if name not in (MAIN, "none", "no_video"))
SCENES = ("mixed", "static", "newline", "different")
LAYERS, TOWER = 4, (16, 72)
"""Depth of the decoder; heads and their width of the vision tower, those of SigLIP."""
ADDED = ("addmm", "baddbmm")
PRODUCTS = ("mm", "bmm", "_euclidean_dist", *ADDED)
"""Products of matrices, and the distances that are made of one."""
MOST_COPIES, MOST_PRODUCTS = 8, 2
"""Limits of a selection's time: copies of the tokens, or the products that it is made of."""
PAIRWISE = ("sttm",)
"""Methods that compare a frame's tokens with each other without a product."""
SHOT = 16
"""Frames until the picture changes."""


def now(device: str) -> float:
    """Seconds: of this process on the CPU, of the clock on a device that has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(action: Callable[[], Any], device: str) -> float:
    """What an action takes."""
    started = now(device)
    action()
    return now(device) - started


class Timed(InterceptedRun):
    """A run whose calls are timed; memory is measured in another one, as that takes time itself."""

    def __init__(self, run: Run, device: str) -> None:
        super().__init__(run)
        self.device, self.seconds = device, 0.0

    def intercept(self, call: Callable[[], Selection | None]) -> Selection | None:
        started = now(self.device)
        selection = call()
        self.seconds += now(self.device) - started
        return selection


class Products(TorchDispatchMode):
    """Adds up the time of products of matrices, and their multiply-adds."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.seconds, self.adds = device, 0.0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if function._overloadpacket.__name__ not in PRODUCTS:
            return function(*args, **(kwargs or {}))
        started = now(self.device)
        found = function(*args, **(kwargs or {}))
        self.seconds += now(self.device) - started
        first = next(one for one in args[function._overloadpacket.__name__ in ADDED :] if one.ndim > 1)
        self.adds += found.numel() * first.shape[-1]
        return found


def scene(kind: str, grid: Grid, dim: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """``(N, dim)`` features, made frame by frame: a smooth picture for each shot, and noise that differs by place."""
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(grid.frames, grid.per_frame, dim, dtype=dtype, device=device)
    amount = 0.3 + 0.4 * torch.rand(grid.per_frame, 1, generator=generator)
    picture = None
    for frame in range(grid.frames):
        if picture is None or (kind in ("mixed", "newline") and frame % SHOT == 0):
            coarse = torch.randn(1, dim, 4, 4, generator=generator)
            size = (grid.height, grid.width)
            picture = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].flatten(1).T
        if kind == "static":
            features[frame] = picture + 2
        else:
            noise = torch.randn(grid.per_frame, dim, generator=generator)
            features[frame] = noise if kind == "different" else picture + amount * picture.std() * noise
    if kind == "newline":
        features.view(grid.frames, grid.height, grid.width, dim)[:, :, -1] = torch.randn(
            dim, generator=generator
        )
    return features.view(grid.tokens, dim)


def trace_of(
    name: str, tokens: VideoTokens, options: argparse.Namespace, wrap: Callable[[Run], Run]
) -> Trace:
    """The trace that a method leaves on the tokens of one video; ``wrap`` puts something around its run."""
    grid, device = tokens.grid, tokens.features.device
    generator = torch.Generator().manual_seed(0)
    vision = VisionSignals(
        torch.rand(grid.tokens, generator=generator).to(device),
        torch.randn(grid.tokens, *TOWER, generator=generator).to(device),
    )
    layout = Layout(grid, torch.arange(grid.tokens), grid.tokens + 30, LAYERS, "benchmark", vision)
    # Not lent, as the engine's guards against writes take time of their own.
    run = compressors.resolve(name)().start(layout, Budget("tokens", options.retention))
    return without_model(wrap(run), layout, tokens.features, generator)


def measure(name: str, kind: str, grid: Grid, options: argparse.Namespace) -> dict:
    """One row of the table: medians over the repeats, copy, product and selection in turn."""
    if kind == "newline":
        grid = Grid(grid.frames, grid.height, grid.width + 1)
    features = scene(kind, grid, options.dim, getattr(torch, options.dtype), options.device)
    tokens = VideoTokens.full(features, grid)
    few = Grid(min(4, grid.frames), grid.height, grid.width)
    measured: list[MeasuredRun] = []
    timed: list[Timed] = []

    def measuring(run: Run) -> Run:
        measured.append(MeasuredRun(run, options.device))
        return measured[-1]

    def timing(run: Run) -> Run:
        timed.append(Timed(run, options.device))
        return timed[-1]

    trace_of(name, VideoTokens.full(features[: few.tokens], few), options, timing)  # warm-up
    timed.clear()
    trace = trace_of(name, tokens, options, measuring)
    groups = len(select(tokens, options.retention, STSimDiff()).communities) if name == MAIN else None
    with Products(options.device) as products:
        trace_of(name, tokens, options, lambda run: run)
    target, frames = features.clone(), features.view(grid.frames, grid.per_frame, -1)
    copies, frame_products = [], []
    for _ in range(options.repeats):
        copies.append(seconds(lambda: target.copy_(features), options.device))
        frame_products.append(seconds(lambda: frames @ frames.mT, options.device))
        trace_of(name, tokens, options, timing)
    selections = [one.seconds for one in timed]
    median = statistics.median(selections)
    size = features.numel() * features.element_size()
    return {
        "method": name,
        "scene": kind,
        "frames": grid.frames,
        "tokens": grid.tokens,
        "communities": groups,
        "kept": trace.final,
        "copy_seconds": statistics.median(copies),
        "frame_product_seconds": statistics.median(frame_products),
        "own_products_seconds": products.seconds,
        "own_over_frame_product": products.adds / (grid.tokens * grid.per_frame * options.dim),
        "selection_seconds": median,
        "selection_spread": max(selections) - min(selections),
        "time_over_copy": median / statistics.median(copies),
        "time_over_frame_product": median / statistics.median(frame_products),
        "time_over_own_products": median / products.seconds if products.seconds else None,
        "memory_over_matrix": measured[0].peak / size if measured[0].peak else None,
    }


def within(row: dict) -> bool:
    """Whether a row meets the limit of its kind: copies for methods without products, else products."""
    if row["time_over_copy"] <= MOST_COPIES:
        return True
    own = math.inf if row["method"] in PAIRWISE else row["time_over_own_products"]
    return own is not None and min(own, row["time_over_frame_product"]) <= MOST_PRODUCTS


def shown(row: dict) -> str:
    """A row of the printed table."""
    groups, memory, own = row["communities"], row["memory_over_matrix"], row["time_over_own_products"]
    return (
        f"{row['method']:20}{row['scene']:10}{row['frames']:6} {row['tokens']:7} "
        f"{'-' if groups is None else groups:>7} {row['kept']:7} {row['copy_seconds'] * 1e3:8.1f} "
        f"{row['selection_seconds'] * 1e3:10.1f} {row['time_over_copy']:7.2f} "
        f"{row['time_over_frame_product']:8.2f} {'-' if own is None else f'{own:.2f}':>6} "
        f"{row['own_over_frame_product']:7.2f} {'-' if memory is None else f'{memory:.2f}':>9}"
        f"{'' if within(row) else '  over'}"
    )


def exponent(rows: list[dict]) -> float:
    """Slope of log time over log frames (least squares)."""
    x = [math.log(row["frames"]) for row in rows]
    y = [math.log(row["selection_seconds"]) for row in rows]
    return statistics.linear_regression(x, y).slope if len(rows) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--methods", nargs="+", default=[MAIN, *OTHERS], choices=[MAIN, *OTHERS])
    parser.add_argument("--height", type=int, default=13)
    parser.add_argument("--width", type=int, default=14)
    parser.add_argument("--dim", type=int, default=3584)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--retention", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--out", type=Path, default=Path("results/selection.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(
        "method              scene     frames  tokens  groups    kept  copy ms  select ms  x copy  x frames  x own"
        "  prod.  x memory"
    )
    rows, growth = [], {}
    try:
        for name, kind in [
            (method, scene)
            for method in options.methods
            for scene in (SCENES if method == MAIN else ["mixed"])
        ]:
            own = [
                measure(name, kind, Grid(n, options.height, options.width), options) for n in options.frames
            ]
            for row in own:
                print(shown(row), flush=True)
            growth[f"{name} {kind}"] = exponent(own)
            print(f"{name:20}{kind:10}growth exponent {exponent(own):.2f}", flush=True)
            rows += own
    finally:
        # What was measured before an interruption is kept.
        settings = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()
        }
        machine = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "day": time.strftime("%Y-%m-%d", time.gmtime()),
            "load": os.getloadavg()[0],
        }
        report = {"settings": settings, "machine": machine, "growth_exponent": growth, "rows": rows}
        save_report(report, options.out)


if __name__ == "__main__":
    main()
