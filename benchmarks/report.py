"""How long the report of a large run takes: 75 arms and the 896 questions of the embedded benchmark.

python -m benchmarks.report [--quick] [--profile]

The run's folder is made by what writes the answers of a run, with drawn answers in place of a model's: the arms are
those of `experiment=embedded_table` and some more of other budgets, with frames and overlays of eight questions. The
report is made in a process of its own, as a user would.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.output import save_report
from stsimdiff.config.arms import Arm, arm_record
from stsimdiff.config.settings import Settings
from stsimdiff.data import clips
from stsimdiff.evaluate import store
from stsimdiff.evaluate.failures import identity
from stsimdiff.evaluate.overlays import Overlays
from stsimdiff.evaluate.passes import Pass, passes_of
from stsimdiff.evaluate.questions import Question, category_of
from stsimdiff.evaluate.shown import note_shown
from stsimdiff.launchers.base import configurations
from stsimdiff.tokens import Grid, Picture, Reason
from stsimdiff.trace import Trace
from stsimdiff.video import Frames

GRID, PICTURE = Grid(8, 8, 8), Picture(2, 8, 8, 8)
LAYERS = 6
METHODS = "random,uniform_frames,spatial_pool,evs,fastv,prumerge,visionzip,st_simdiff"
"""Those that also have a fourth budget, which makes the arms 75."""
LIMIT = 10.0
"""Seconds."""


def arms_of_table(results: Path) -> Pass:
    """The arms of the embedded table and those of a fourth budget."""
    words = [f"results={results}", "run=table", "logger=none"]
    composed = configurations(["experiment=embedded_table", *words])
    composed += configurations([f"compressor={METHODS}", "budget.retention=0.2", *words])
    (one,) = passes_of(composed)
    return one


def answers(
    arm: Arm, questions: list[Question], overlays: Overlays, grid: Grid, picture: Picture
) -> Iterator[dict[str, Any]]:
    """A line for each question, with the fields of a real one."""
    dice = random.Random(arm.id)
    chance = 0.3 + 0.5 * arm.budget.retention * dice.uniform(0.7, 1)
    kept = round(grid.tokens * arm.budget.retention)
    for question in questions:
        hard = random.Random(question.id).random()
        letter, target = "A" if (dice.random() + hard) / 2 < chance else "B", "A"
        drawn = torch.full((grid.tokens,), int(Reason.DROPPED), dtype=torch.uint8)
        drawn[dice.sample(range(grid.tokens), kept)] = int(Reason.IMPORTANT)
        yield {
            **identity(question),
            "answer": letter,
            "parsed": letter,
            "target": target,
            "correct": letter == target,
            "stock_parsed": letter,
            "stock_correct": letter == target,
            "stock_error": None,
            "video_tokens": grid.tokens,
            "text_tokens": 58,
            "tokens_per_layer": [kept] * LAYERS,
            "retention_tokens": kept / grid.tokens,
            "retention_compute": kept / grid.tokens,
            "llm_flops": round(2e9 * kept / grid.tokens * dice.uniform(0.99, 1.01)) + 10**8,
            "llm_flops_all": 2 * 10**9 + 10**8,
            "kv_bytes": 2048 * kept,
            "reasons": {"dropped": grid.tokens - kept, "important": kept},
            "features": "encoded",
            "times": {
                "answer": dice.uniform(0.03, 0.05),
                "prefill": dice.uniform(0.01, 0.03),
                "compressor": 0.002,
            }
            | {"preprocess": 0.06, "vision": 0.1, "decode": 0.1},
            **overlays.entry(question, Trace(LAYERS, grid.tokens, 58, reason=drawn), grid, picture),
            "of": "0123456789ab-0123456789ab",
        }


def write_run(
    settings: Settings,
    arms: list[Arm],
    count: int,
    pixels: np.ndarray,
    grid: Grid = GRID,
    picture: Picture = PICTURE,
) -> None:
    """The folder of a run whose arms have answered the first `count` questions of the embedded benchmark.

    Args:
        pixels: the frames ``(T, height, width, 3)`` uint8 of every video.
        grid: of the tokens of every video.
        picture: where they lie in the frames.
    """
    questions = [
        Question(row["id"], row["video"], category_of(row), row["question"], 1, row)
        for row in list(clips.questions())[:count]
    ]
    overlays = Overlays(settings, questions)
    for path in {question.video for question in questions}:
        overlays.keep_frames(path, Frames(pixels, tuple(range(len(pixels))), len(pixels), 8.0))
    for arm in arms:
        with store.ArmStore(settings.folder / arm.folder, arm_record(arm, settings, {})) as opened:
            for row in answers(arm, questions, overlays, grid, picture):
                opened.append({**row, "error": None})
    note_shown(settings.folder, None, {arm.id: None for arm in arms})


def peak_mib(command: list[str]) -> float:
    """The most memory that a command and its processes held at once, in MiB; pages that they share count once.

    Not ``ru_maxrss``, in which a child begins with what this process holds.
    """
    process, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        peak = max(peak, _held_kib(process.pid))
        time.sleep(0.05)
    return peak / 1024


def _held_kib(pid: int) -> int:
    place = Path(f"/proc/{pid}")
    try:
        (held,) = (
            line for line in (place / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:")
        )
        children = [
            int(child)
            for task in (place / "task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError):
        return 0  # it has ended
    return int(held.split()[1]) + sum(map(_held_kib, children))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 arms and 100 questions")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="leave the run's folder here")
    parser.add_argument("--out", type=Path, default=Path("results/report.json"))
    options = parser.parse_args()
    store.sync = lambda descriptor: None  # the answers are not worth waiting for a disk
    with tempfile.TemporaryDirectory() as name:
        one = arms_of_table(options.keep or Path(name))
        arms, count = list(one.arms.values()), 896
        if options.quick:
            arms, count = arms[:10], 100
        folder = one.settings.folder
        if not folder.is_dir():
            noise = np.random.default_rng(0).integers(0, 255, (16, 224, 224, 3), dtype=np.uint8)
            write_run(one.settings, arms, count, noise)
        command = [sys.executable, "-m", "stsimdiff", "report", str(folder)]
        if options.profile:
            script = (
                "import cProfile, sys; sys.argv[:] = sys.argv[1:]; from stsimdiff.commands.cli import main;"
                "profile = cProfile.Profile()\n"
                "try: profile.runcall(main)\n"
                "except SystemExit: pass\n"
                "profile.create_stats(); import pstats\n"
                "pstats.Stats(profile).sort_stats('cumulative').print_stats(70)"
            )
            subprocess.run([sys.executable, "-c", script, *command[2:]], check=True)
        runs = []
        for _ in range(1 if options.quick else options.repeats):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            runs.append((time.perf_counter() - began, core))
        peak = peak_mib(command)
    best, core = min(runs)[0], min(core for _, core in runs)
    print(
        f"{len(arms)} arms x {count} questions: report in {best:.1f} s, {core:.1f} s on a core, {peak:.0f} MiB"
    )
    print(f"at most {LIMIT:.0f} s: {'yes' if best <= LIMIT else 'no'} (best of {len(runs)})")
    report = {"arms": len(arms), "questions": count, "runs_s": runs, "peak_mib": peak}
    save_report(report, options.out)


if __name__ == "__main__":
    main()
