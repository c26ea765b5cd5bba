"""Speed and memory of the methods' selections, as ratios that carry over from machine to machine.

    python benchmarks/selection.py --frames 16 32 64 128 256 --out results/selection.json

Time is given as a multiple of one copy of the token matrix into memory that is there already, measured in turn with
the selection; memory as a multiple of the matrix's size; growth as the exponent of time over frames. What is timed is
all that a method does before the language model, or for FastV its choice among given attention. ST-SimDiff is measured
on four scenes that bracket what videos do: ``mixed`` (many small communities), ``static`` (one giant community of
everything), ``newline`` (mixed, with a column of equal newline tokens, as in LLaVA-Video) and ``different`` (no edge
at all); every other method on ``mixed``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch

from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.st_simdiff import STSimDiff, select
from stsimdiff.tokens import Grid, Layout, VideoTokens, VisionSignals

MAIN = "st_simdiff"
OTHERS = tuple(name for name in compressors.BUILTIN if name not in (MAIN, "none", "no_video"))
SCENES = ("mixed", "static", "newline", "different")
LAYERS, HEADS, TOWER = 28, 28, (16, 72)
"""Depth and heads of the decoder, heads and their width of the vision tower: those of a 7B model."""
SHOT = 16
"""Frames until the picture changes."""


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


class Peak:
    """Peak memory above that at the start: of the device on CUDA, else of the process (Linux)."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> Peak:
        self.extra: int | None = None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            reset = Path("/proc/self/clear_refs")
            self.before = None
            if reset.exists():
                # What earlier calls freed but the allocator still holds would hide what this one needs.
                ctypes.CDLL(None).malloc_trim(0)
                reset.write_text("5")
                self.before = self._status("VmRSS")
        return self

    def __exit__(self, *exc: object) -> None:
        if self.cuda:
            self.extra = torch.cuda.max_memory_allocated() - self.before
        elif self.before is not None:
            self.extra = self._status("VmHWM") - self.before

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def seconds(action, device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def selection(name: str, tokens: VideoTokens, options: argparse.Namespace):
    """What a method does with the tokens of one video, as a function without arguments that returns a Selection."""
    grid, device = tokens.grid, tokens.features.device
    vision = VisionSignals(
        torch.rand(grid.tokens, device=device), torch.randn(grid.tokens, *TOWER, device=device)
    )
    layout = Layout(grid, torch.arange(grid.tokens), grid.tokens + 30, LAYERS, "benchmark", vision)
    attention = torch.rand(HEADS, grid.tokens, device=device)
    method, budget = compressors.resolve(name)(), Budget("tokens", options.retention)

    def select_once():
        run = method.start(layout, budget)
        if run.places.input:
            return run.at_input(tokens)
        return run.before_layer(min(run.places.before), tokens, attention)

    return select_once


def measure(name: str, kind: str, grid: Grid, options: argparse.Namespace) -> dict:
    """One row of the table: medians over the repeats, copy and selection in turn."""
    if kind == "newline":
        grid = Grid(grid.frames, grid.height, grid.width + 1)
    features = scene(kind, grid, options.dim, getattr(torch, options.dtype), options.device)
    tokens = VideoTokens.full(features, grid)
    few = Grid(min(4, grid.frames), grid.height, grid.width)
    selection(name, VideoTokens.full(features[: few.tokens], few), options)()  # warm-up
    act = selection(name, tokens, options)
    with Peak(options.device) as peak:
        found = act()
    groups = len(select(tokens, options.retention, STSimDiff()).communities) if name == MAIN else None
    target = torch.empty_like(features)
    target.copy_(features)
    copies, selections = [], []
    for _ in range(options.repeats):
        copies.append(seconds(lambda: target.copy_(features), options.device))
        selections.append(seconds(act, options.device))
    copy, median = statistics.median(copies), statistics.median(selections)
    size = features.numel() * features.element_size()
    return {
        "method": name,
        "scene": kind,
        "frames": grid.frames,
        "tokens": grid.tokens,
        "communities": groups,
        "kept": grid.tokens if found is None else len(found.keep),
        "copy_seconds": copy,
        "selection_seconds": median,
        "selection_spread": max(selections) - min(selections),
        "time_over_copy": median / copy,
        "memory_over_matrix": None if peak.extra is None else peak.extra / size,
    }


def shown(row: dict) -> str:
    """A row of the printed table."""
    groups, memory = row["communities"], row["memory_over_matrix"]
    return (
        f"{row['method']:20}{row['scene']:10}{row['frames']:6} {row['tokens']:7} "
        f"{'-' if groups is None else groups:>7} {row['kept']:7} {row['copy_seconds'] * 1e3:8.1f} "
        f"{row['selection_seconds'] * 1e3:10.1f} {row['time_over_copy']:7.2f} "
        f"{'-' if memory is None else f'{memory:.2f}':>9}"
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
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--out", type=Path, default=Path("results/selection.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(
        "method              scene     frames  tokens  groups    kept  copy ms  select ms  x copy  x memory"
    )
    rows, growth = [], {}
    cases = [(MAIN, kind) for kind in SCENES] + [(name, "mixed") for name in OTHERS]
    for name, kind in cases:
        if name not in options.methods:
            continue
        own = [measure(name, kind, Grid(n, options.height, options.width), options) for n in options.frames]
        for row in own:
            print(shown(row), flush=True)
        growth[f"{name} {kind}"] = exponent(own)
        print(f"{name:20}{kind:10}growth exponent {exponent(own):.2f}", flush=True)
        rows += own
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"settings": settings, "machine": machine, "growth_exponent": growth, "rows": rows}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
