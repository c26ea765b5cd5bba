"""Arms of one pass against a run for each arm: time, identical answers, and memory over the number of videos.

python -m benchmarks.sweep [--quick] [--questions N]

Every run is a process of its own, as a user would start it. What a separate run does again is the start, decoding and
the vision tower; the answers themselves cost the same in both. The ratio so depends on the model and on the size: all
three parts are printed. The embedded model's tower is small beside its answers, so its ratio falls as questions are
added.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.output import save_report
from stsimdiff.data import clips
from stsimdiff.evaluate.store import arm_folders, read_answers

METHODS = ("random", "uniform_frames", "spatial_pool", "evs", "fastervlm", "st_simdiff")
RETENTIONS = (0.3, 0.1)
EXTRA = (("none", 1.0), ("no_video", 1.0), ("visionzip", 0.3), ("prumerge", 0.3))
ARMS = [(method, r) for method in METHODS for r in RETENTIONS] + list(EXTRA)


def command(
    data: Path, results: Path, run: str, arms: list[tuple[str, float]], limit: int | None
) -> list[str]:
    """The command line that answers with these arms."""
    lines = ",".join(f"'compressor={method} budget.retention={r}'" for method, r in arms)
    words = [f"arms=[{lines}]", f"benchmark.data={data}", f"results={results}", f"run={run}", "logger=none"]
    return [sys.executable, "-m", "stsimdiff", *words, *([f"limit={limit}"] if limit else [])]


def spent(words: list[str]) -> tuple[float, int]:
    """Seconds of a command, and the peak of its resident memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)}\n{said}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def answers(results: Path, run: str) -> dict[str, list[Any]]:
    """What each arm answered, and how many tokens entered each layer."""
    return {
        folder.name: [
            (row["id"], row["answer"], row["tokens_per_layer"], row["reasons"])
            for row in read_answers(folder)
        ]
        for folder in arm_folders(results / run)
    }


def parts(results: Path, run: str) -> dict[str, float]:
    """Seconds of answers prefilled whole, and of decoding, preprocessing and the vision tower, as the lines say."""
    answering, encoding = 0.0, 0.0
    for number, folder in enumerate(arm_folders(results / run)):
        rows = read_answers(folder)
        answering += sum(row["times"].get("answer", 0.0) for row in rows)
        if number == 0:
            videos = {row["video"]: row["times"] for row in rows}
            encoding = sum(t["decode"] + t["preprocess"] + t["vision"] for t in videos.values())
    return {"answers_s": answering, "encoding_s": encoding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two videos and one repeat")
    parser.add_argument("--videos", type=int, default=8, help="clips of seven questions each")
    parser.add_argument("--questions", type=int, help="only the first so many questions")
    parser.add_argument("--repeats", type=int, default=3, help="of the one pass; its median counts")
    parser.add_argument("--out", type=Path, default=Path("results/sweep.json"))
    options = parser.parse_args()
    videos, repeats = (2, 1) if options.quick else (options.videos, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        few, many = (clips.build(results / f"data{n}", videos=n) for n in (videos, 4 * videos))
        passes = [spent(command(few, results, f"pass{i}", ARMS, options.questions)) for i in range(repeats)]
        alone = [spent(command(few, results, "alone", [arm], options.questions)) for arm in ARMS]
        of_it = parts(results, "pass0")
        same = answers(results, "pass0") == answers(results, "alone")
        _, peak = spent(command(many, results, "many", ARMS[:4], None))
        _, peak_few = spent(command(few, results, "few", ARMS[:4], None))
    one, separate = statistics.median(seconds for seconds, _ in passes), sum(seconds for seconds, _ in alone)
    report = {
        "arms": len(ARMS),
        "videos": videos,
        "questions": options.questions,
        "one_pass_s": one,
        "separate_s": separate,
        "ratio": separate / one,
        "of_one_pass": of_it,
        "identical": same,
        "peak_bytes": {str(videos): peak_few, str(4 * videos): peak},
        "machine": platform.machine(),
    }
    print(f"{len(ARMS)} arms in one pass: {one:.1f} s (median of {repeats}); one by one: {separate:.1f} s")
    rest = one - sum(of_it.values())
    print(
        f"of one pass: answers prefilled whole {of_it['answers_s']:.1f} s, decoding and vision tower "
        f"{of_it['encoding_s']:.1f} s, the rest {rest:.1f} s"
    )
    print(f"ratio {separate / one:.2f}; answers identical: {same}")
    print(
        f"peak memory: {videos} videos {peak_few / 2**20:.0f} MiB, {4 * videos} videos {peak / 2**20:.0f} MiB"
    )
    save_report(report, options.out)
    if not same:
        raise SystemExit("the arms of one pass answered otherwise than alone")


if __name__ == "__main__":
    main()
