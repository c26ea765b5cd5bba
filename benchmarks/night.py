"""A night in a minute: videos of mixed length read from disk for a model whose answers take a set time.

python -m benchmarks.night [--quick]

Reading is real: files are made, and decoded as in a run. The device is a sleep of the length that an answer is said to
take, so that a machine without one shows what waits for what. Three questions, each in one run of the harness's own
loop and queue:

* one device and 1, 2, 4 and 8 readers, against reading each video when its turn comes, and against the bound
  max(decoding / readers, answers), where readers beyond the cores of this machine do not count. Answers take as long
  as decoding did just before, which is measured anew for each repeat, since other work on the machine slows it;
* 1, 2, 4 and 8 processes, each with a device of its own, that share the videos by the queue, on videos whose answers
  take a hundred times as long for the longest as for the shortest: how far apart the processes end;
* what it costs when half of the processes are killed halfway.

The device waits for the first reader to start (0.4 s) and for the first video, the longest. In a night that is nothing,
and here 3.6 % of a run of 128 videos for the video and 2 to 3 % for the start; of the few of ``--quick`` it is a third.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.decoding import make
from benchmarks.output import save_report
from benchmarks.store import StubSession, StubTask, stub_arms, stub_settings
from stsimdiff import video
from stsimdiff.config.arms import Arm
from stsimdiff.config.settings import Settings
from stsimdiff.evaluate.questions import Question
from stsimdiff.evaluate.run import answer_missing
from stsimdiff.evaluate.store import read_answers
from stsimdiff.models.base import EncodedVideo
from stsimdiff.tokens import Grid
from stsimdiff.video import process

SPREAD = 100
"""How many times as long as the shortest video the longest one is."""
FRAMES = 32
PER_VIDEO = 3
COUNTS = (1, 2, 4, 8)
LAUNCH = multiprocessing.get_context("fork")
"""Imports are paid once, before the clock starts."""


class Device(StubSession):
    """A session that reads videos as a run does, and answers by waiting.

    Args:
        settings: of the run.
        seconds: that each answer about a video takes.
        reads: whether the videos are read; the bound of a run that only answers is known without it.
    """

    def __init__(self, settings: Settings, seconds: Mapping[str, float], reads: bool) -> None:
        super().__init__(settings)
        self.seconds, self.reads, self.busy = seconds, reads, 0.0

    def lacks(self, path: str, arms: Any) -> bool:
        return self.reads

    def encode(self, path: str, arms: Any) -> EncodedVideo:
        if self.reads:
            self.reader.frames(path)
        return EncodedVideo(features=None, grid=Grid(1, 1, 1), inputs={})

    def row(self, task: Any, arm: Arm, question: Question, asked: Question) -> dict[str, Any]:
        time.sleep(self.seconds[question.video])
        self.busy += self.seconds[question.video]
        return super().row(task, arm, question, asked)


def files(folder: Path, count: int, longest: float) -> dict[str, float]:
    """Paths of made videos, and their lengths in seconds, which differ by :data:`SPREAD`."""
    found = {}
    for number in range(count):
        seconds = longest * SPREAD ** (-number / (count - 1))
        path = folder / f"{number * 7 % count:03d}-{number}.mp4"  # names say nothing of lengths
        make(path, "h264", seconds, 10, 10, (320, 180))
        found[str(path)] = seconds
    return found


def decoding(settings: Settings, paths: list[str]) -> float:
    """Seconds that one reader takes for all videos, its start left out."""
    process.shared().probe(paths[0])
    started = time.perf_counter()
    for path in paths:
        process.shared().read(path, video.Sampling.of(settings.model), settings.benchmark.decoder, None)
    return time.perf_counter() - started


class Night:
    """Runs over the same videos; each call of :meth:`run` is a run with a folder of its own."""

    def __init__(self, folder: Path, videos: Mapping[str, float]) -> None:
        self.folder, self.number = folder, 0
        settings = stub_settings(folder)
        self.settings = replace(
            settings, model=replace(settings.model, frames=FRAMES), overlays=0, max_failures=0
        )
        self.arms = stub_arms(1)
        self.questions = [
            Question(f"{Path(path).stem}-{n}", path, "all", "", 1, {"number": n, "answer": "A"})
            for path in videos
            for n in range(PER_VIDEO)
        ]

    def run(
        self,
        seconds: Mapping[str, float],
        processes: int = 1,
        readers: int = 0,
        reads: bool = True,
        kill: Callable[[list[Any]], None] = lambda started: None,
    ) -> list[tuple[float, float]]:
        """Start processes together, and wait for them; when each ended, and how long its device worked.

        Args:
            seconds: that an answer about each video takes.
            processes: that answer.
            readers: processes of each of them that read ahead.
            reads: whether the videos are read.
            kill: is given the processes, and may kill some; a killed one is not among what is returned.

        Raises:
            SystemExit: when an answer is missing or was given twice.
        """
        self.number += 1
        ahead = replace(self.settings.video, workers=readers)
        settings = replace(self.settings, folder=self.folder / f"night{self.number}", video=ahead)
        ends: Any = LAUNCH.SimpleQueue()
        began = time.perf_counter()

        def work() -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the bars
            device: list[Device] = []

            def opened(given: Settings) -> Any:
                device.append(Device(given, seconds, reads))
                return device[0]

            answer_missing(settings, StubTask(), self.arms, self.questions, open_session=opened)
            ends.put((time.perf_counter() - began, device[0].busy if device else 0.0))

        started = [LAUNCH.Process(target=work) for _ in range(processes)]
        for one in started:
            one.start()
        kill(started)
        for one in started:
            one.join()
        if any(one.exitcode not in (0, -signal.SIGKILL) for one in started):
            raise SystemExit(f"a process of {settings.folder} failed")
        rows = read_answers(settings.folder / self.arms[0].folder)
        lines = sum(
            len(path.read_bytes().splitlines())
            for path in (settings.folder / self.arms[0].folder).glob("answers*.jsonl")
        )
        if len(rows) != len(self.questions) or any(row["error"] for row in rows):
            raise SystemExit(f"{len(rows)} of {len(self.questions)} questions were answered")
        if lines != len(rows):
            raise SystemExit(f"{lines - len(rows)} answers were given twice")
        return [ends.get() for one in started if one.exitcode == 0]


def by_length(videos: Mapping[str, float], total: float) -> dict[str, float]:
    """Seconds of an answer about each video, in proportion to its length, so that all take ``total``."""
    every = PER_VIDEO * sum(videos.values())
    return {path: total * length / every for path, length in videos.items()}


def readers(night: Night, videos: Mapping[str, float], repeats: int) -> dict[str, Any]:
    """One device and more and more readers, where answers take as long as decoding and twice as long."""
    cores = len(os.sched_getaffinity(0))
    report: dict[str, Any] = {"cores": cores, "runs": []}
    print(f"One device, {len(videos)} videos, {cores} cores; medians of {repeats}")
    for times in (1, 2):
        found: dict[int, list[dict[str, float]]] = {count: [] for count in (0, *COUNTS)}
        for _ in range(repeats):
            decode = decoding(night.settings, list(videos))
            answers = times * decode
            seconds = by_length(videos, answers)
            for count in found:
                spent = night.run(seconds, readers=count)[0][0]
                bound = max(decode / min(count, cores), answers) if count else decode + answers
                none = found[0][-1]["s"] if count else spent
                row = {"s": spent, "bound_s": bound, "over_bound": spent / bound, "idle": 1 - answers / spent}
                found[count].append(row | {"answers_s": answers, "faster": none / spent})
        medians = {
            count: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
            for count, rows in found.items()
        }
        print(
            f"answers take {medians[0]['answers_s']:.1f} s, decoding {medians[0]['answers_s'] / times:.1f} s\n"
            "  readers    time s   bound s   time / bound   idle   as fast as none"
        )
        for count, row in medians.items():
            print(
                f"{count:9}{row['s']:10.1f}{row['bound_s']:10.1f}{row['over_bound']:15.2f}{row['idle']:7.0%}"
                f"{row['faster']:18.2f}",
                flush=True,
            )
            report["runs"].append({"readers": count, "answers_over_decoding": times, **row})
    return report


def queue(night: Night, videos: Mapping[str, float], total: float) -> list[dict[str, Any]]:
    """More and more processes with a device each; nothing is read, so that cores do not decide."""
    seconds, report = by_length(videos, total), []
    longest = PER_VIDEO * max(seconds.values())
    print(
        f"\nA queue of {len(videos)} videos whose answers take {longest:.1f} s to {longest / SPREAD:.2f} s, "
        f"{total:.0f} s together\nprocesses    time s   bound s   time / bound   idle   first to end"
    )
    for count in COUNTS:
        found = night.run(seconds, count, reads=False)
        ends = [end for end, _ in found]
        bound = max(total / count, longest)
        idle = 1 - total / (count * max(ends))
        print(
            f"{count:9}{max(ends):10.1f}{bound:10.1f}{max(ends) / bound:15.2f}{idle:7.0%}"
            f"{1 - min(ends) / max(ends):13.0%} before the last",
            flush=True,
        )
        report.append({"processes": count, "s": max(ends), "bound_s": bound, "idle": idle, "ends_s": ends})
    return report


def killed(night: Night, videos: Mapping[str, float], total: float, count: int = 4) -> dict[str, Any]:
    """Half of the processes are killed when half of the time is over."""
    seconds = by_length(videos, total)
    half = total / count / 2

    def kill(started: list[Any]) -> None:
        time.sleep(half)
        for one in started[: count // 2]:
            os.kill(one.pid, signal.SIGKILL)

    found = night.run(seconds, count, reads=False, kill=kill)
    spent = max(end for end, _ in found)
    # What the killed ones had not stored is asked again; the rest is shared by those that are left.
    bound = half + (total - count * half) / (count - count // 2)
    again = sum(busy for _, busy in found) + (count // 2) * half - total
    print(
        f"\n{count // 2} of {count} processes killed after {half:.1f} s: {spent:.1f} s instead of {bound:.1f} s, "
        f"{spent / bound:.2f} times; every question answered once, {again:.1f} s of answers given again"
    )
    return {"processes": count, "s": spent, "bound_s": bound, "again_s": again}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 videos of at most 60 s, and 10 s of answers")
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--longest", type=float, default=200, help="seconds of the longest video")
    parser.add_argument("--answers", type=float, default=60, help="seconds that the queue's answers take")
    parser.add_argument("--repeats", type=int, default=3, help="of decoding and of one device's runs")
    parser.add_argument("--out", type=Path, default=Path("results/night.json"))
    options = parser.parse_args()
    count, longest, total, repeats = options.videos, options.longest, options.answers, options.repeats
    if options.quick:
        count, longest, total, repeats = 16, 60.0, 10.0, 1
    with tempfile.TemporaryDirectory() as name:
        videos = files(Path(name), count, longest)
        night = Night(Path(name) / "results", videos)
        report = {
            "videos": count,
            "longest_s": longest,
            "one_device": readers(night, videos, repeats),
            "queue": queue(night, videos, total),
            "killed": killed(night, videos, total),
        }
    save_report(report, options.out)


if __name__ == "__main__":
    main()
