"""Runs all stages; two stages of one core each run side by side wherever neither needs the other.

core 1:  tower (pixels to codes) -> features of real frames --+-> language model on real features
core 2:  language model on symbolic videos -> more features --+   (both cores), then the model card
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import card, clips, language, tower
from .journal import Journal
from .recipe import FULL, QUICK

RANKS = 2  # processes of the last training stage
STAGES = ("tower", "symbolic", "features", "video", "save", "card")


def _run_stage(stage: str, rank: int, out: Path, work: Path, seed: int, quick: bool) -> None:
    recipe, journal = QUICK if quick else FULL, Journal(out, stage)
    if stage == "tower":
        tower.run_tower(recipe.tower, seed, work, journal)
    elif stage == "symbolic":
        language.run_symbolic(recipe.symbolic, seed, work, journal)
    elif stage == "features":
        clips.run_features(recipe, seed, work)
    elif stage == "video":
        language.run_video(recipe.video, seed, rank, RANKS, work, journal)
    elif stage == "save":
        language.run_save(seed, work, out)
    elif stage == "card":
        card.write(out, work, recipe, seed, videos=4 if quick else None)


def _run_all(out: Path, work: Path, arguments: list[str]) -> None:
    running: list[subprocess.Popen] = []

    def start(stage: str, rank: int = 0) -> subprocess.Popen:
        command = [sys.executable, "-m", __package__, *arguments, "--stage", stage, "--rank", str(rank)]
        running.append(subprocess.Popen(command))
        return running[-1]

    def finish(*processes: subprocess.Popen) -> None:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in running):
                break
            time.sleep(0.2)
        failed = [process for process in running if process.poll()]
        if failed:
            raise RuntimeError(f"stage failed: {' '.join(map(str, failed[0].args))}")

    try:
        first, symbolic = start("tower"), start("symbolic")
        finish(first)
        features = start("features")
        finish(symbolic)
        finish(features, start("features"))
        finish(*(start("video", rank) for rank in range(RANKS)))
        finish(start("save"))
        finish(start("card"))
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()


def main() -> None:
    """All stages in their order, or the one that is asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, its card and its log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps of every stage, to test the script")
    parser.add_argument("--keep-work", action="store_true", help="keep the intermediate files in OUT/work")
    parser.add_argument("--rank", type=int, default=0, help="which process of a stage that has several")
    parser.add_argument("--stage", choices=STAGES, help="run one stage on the files in OUT/work")
    options = parser.parse_args()
    out, work = options.out, options.out / "work"
    if options.stage:
        _run_stage(options.stage, options.rank, out, work, options.seed, options.quick)
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    (out / "training_log.jsonl").unlink(missing_ok=True)
    arguments = ["--out", str(out), "--seed", str(options.seed)] + ["--quick"] * options.quick
    _run_all(out, work, arguments)
    if not options.keep_work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
