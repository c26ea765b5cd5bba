"""Speed and memory of ST-SimDiff's selection, as ratios that carry over from machine to machine.

    python benchmarks/selection.py --frames 16 32 64 128 256 --out results/selection.json

Time is given as a multiple of one copy of the token matrix into memory that is there already, measured in turn with
the selection; memory as a multiple of the matrix's size; growth as the exponent of time over frames. Three scenes
bracket what videos do: ``mixed`` (many communities), ``static`` (one community of everything) and ``different`` (no
edge at all).
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

from stsimdiff.compressors.st_simdiff import STSimDiff, select
from stsimdiff.tokens import Grid, VideoTokens

SCENES = ("mixed", "static", "different")
SHOT = 16
"""Frames until the picture changes."""


def scene(kind: str, grid: Grid, dim: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """``(N, dim)`` features, made frame by frame: a smooth picture for each shot, and noise that differs by place."""
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(grid.frames, grid.per_frame, dim, dtype=dtype, device=device)
    amount = 0.3 + 0.4 * torch.rand(grid.per_frame, 1, generator=generator)
    picture = None
    for frame in range(grid.frames):
        if picture is None or (kind == "mixed" and frame % SHOT == 0):
            coarse = torch.randn(1, dim, 4, 4, generator=generator)
            size = (grid.height, grid.width)
            picture = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].flatten(1).T
        if kind == "static":
            features[frame] = picture + 2
        else:
            noise = torch.randn(grid.per_frame, dim, generator=generator)
            features[frame] = picture + amount * picture.std() * noise if kind == "mixed" else noise
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


def measure(kind: str, grid: Grid, options: argparse.Namespace) -> dict:
    """One row of the table: medians over the repeats, copy and selection in turn."""
    features = scene(kind, grid, options.dim, getattr(torch, options.dtype), options.device)
    tokens, method = VideoTokens.full(features, grid), STSimDiff()
    few = Grid(min(2, grid.frames), grid.height, grid.width)
    select(VideoTokens.full(features[: few.tokens], few), options.retention, method)  # warm-up
    with Peak(options.device) as peak:
        found = select(tokens, options.retention, method)
    target = torch.empty_like(features)
    target.copy_(features)
    copies, selections = [], []
    for _ in range(options.repeats):
        copies.append(seconds(lambda: target.copy_(features), options.device))
        selections.append(seconds(lambda: select(tokens, options.retention, method), options.device))
    copy, selection = statistics.median(copies), statistics.median(selections)
    size = features.numel() * features.element_size()
    return {
        "scene": kind,
        "frames": grid.frames,
        "tokens": grid.tokens,
        "communities": len(found.communities),
        "kept": len(found.selection.keep),
        "copy_seconds": copy,
        "selection_seconds": selection,
        "selection_spread": max(selections) - min(selections),
        "time_over_copy": selection / copy,
        "memory_over_matrix": None if peak.extra is None else peak.extra / size,
    }


def exponent(rows: list[dict]) -> float:
    """Slope of log time over log frames (least squares)."""
    x = [math.log(row["frames"]) for row in rows]
    y = [math.log(row["selection_seconds"]) for row in rows]
    return statistics.linear_regression(x, y).slope if len(rows) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64, 128, 256])
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

    print("scene      frames  tokens   groups    kept  copy ms  select ms  x copy  x memory")
    rows, growth = [], {}
    for kind in SCENES:
        for frames in options.frames:
            row = measure(kind, Grid(frames, options.height, options.width), options)
            rows.append(row)
            memory = row["memory_over_matrix"]
            print(
                f"{kind:9} {frames:7} {row['tokens']:7} {row['communities']:8} {row['kept']:7} "
                f"{row['copy_seconds'] * 1e3:8.1f} {row['selection_seconds'] * 1e3:10.1f} "
                f"{row['time_over_copy']:7.2f} {'-' if memory is None else f'{memory:.2f}':>9}"
            )
        growth[kind] = exponent([row for row in rows if row["scene"] == kind])
        print(f"{kind:9} growth exponent {growth[kind]:.2f}")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"settings": settings, "machine": machine, "growth_exponent": growth, "rows": rows}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
