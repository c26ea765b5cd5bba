"""How long commands take that only read or check: their usage, a wrong setting, a folder that is no run, and the like.

python -m benchmarks.startup [--quick]

Each command is a process of its own, as a user starts it, in a folder that holds nothing; the files that Python
imports are warm. Beside the time that passes stands the time on a core, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.output import save_report

COMMANDS = {
    "--help": 0,
    "--cfg job": 0,
    "compressor=nonsense": 2,
    "budget.retention=2": 2,
    "report --help": 0,
    "report results/none": 2,
    "forget run=none older": 2,
    "data videomme --data none": 2,
    "inspect none.mp4": 2,
    "doctor budget.retention=2": 2,
    "profile budget.retention=2": 2,
    "check --help": 0,
    "conformance --help": 0,
}
"""What is started, and the exit code that it must have."""
LIMIT = 1.5
"""Seconds."""


def started(words: list[str], folder: Path) -> tuple[int, float, float]:
    """Exit code of a command, the seconds that it took, and those that it spent on a core."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, "-m", "stsimdiff", *words]
    code = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each command once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/startup.json"))
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    report = {}
    print(" median s    best s   on a core s   command")
    with tempfile.TemporaryDirectory() as folder:
        for line, expected in COMMANDS.items():
            runs = [
                started(line.split(), Path(folder)) for _ in range(1 if options.quick else options.repeats)
            ]
            if {code for code, *_ in runs} != {expected}:
                raise SystemExit(f"{line}: exit code {runs[0][0]}, expected {expected}")
            took, core = ([run[part] for run in runs] for part in (1, 2))
            report[line] = {
                "median_s": statistics.median(took),
                "best_s": min(took),
                "core_s": statistics.median(core),
            }
            late = "" if min(took) <= LIMIT else f"   over {LIMIT} s"
            print(
                f"{statistics.median(took):9.2f}{min(took):10.2f}{statistics.median(core):14.2f}   {line}{late}"
            )
    save_report(report, options.out)


if __name__ == "__main__":
    main()
