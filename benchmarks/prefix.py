"""Sixteen arms of one pass with ``reuse_prefix`` against without: time, and how many answers are the same.

python -m benchmarks.prefix [--quick]

Both commands answer the same questions of the embedded benchmark, in turn, each a process of its own as a user would
start it. The start, decoding, the vision tower and the report are in both, so the ratio grows with the questions a
video has (seven here) and with the size of the model.

Measured with the default arguments on two CPU cores that other programs used too: 145.9 s with, 159.2 s without, ratio
1.09, 75 % of 896 answers continued, all the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.output import save_report
from benchmarks.sweep import ARMS, answers, command, spent
from stsimdiff.data import clips
from stsimdiff.evaluate.store import arm_folders, read_answers


def continued(results: Path, run: str) -> float:
    """Share of the answers whose prompts were not prefilled whole."""
    said = [row["prefill"] for folder in arm_folders(results / run) for row in read_answers(folder)]
    return said.count("continued") / len(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two videos and one repeat")
    parser.add_argument("--videos", type=int, default=8, help="clips of seven questions each")
    parser.add_argument("--repeats", type=int, default=3, help="of each; their medians count")
    parser.add_argument("--out", type=Path, default=Path("results/prefix.json"))
    options = parser.parse_args()
    videos, repeats = (2, 1) if options.quick else (options.videos, options.repeats)
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        data = clips.build(results / "data", videos=videos)
        for number in range(repeats):
            for reuse in (True, False):
                words = command(data, results, f"{number}_{reuse}", ARMS, None)
                times[reuse].append(spent([*words, f"reuse_prefix={str(reuse).lower()}"])[0])
        same = answers(results, "0_True") == answers(results, "0_False")
        share = continued(results, "0_True")
    shared, whole = (statistics.median(times[reuse]) for reuse in (True, False))
    report = {
        "arms": len(ARMS),
        "videos": videos,
        "shared_s": shared,
        "whole_s": whole,
        "ratio": whole / shared,
        "continued": share,
        "identical": same,
    }
    print(f"{len(ARMS)} arms, {videos} videos of 7 questions, medians of {repeats}")
    print(f"one prefill a video {shared:.1f} s, one a question {whole:.1f} s: ratio {whole / shared:.2f}")
    print(f"{100 * share:.0f} % of the answers continued from a prefix; answers identical: {same}")
    save_report(report, options.out)
    if not same:
        raise SystemExit("the answers differ with and without a shared prefix")


if __name__ == "__main__":
    main()
