"""The store at the size of a large sweep: writing, resuming, and starting a finished sweep again, over its growth.

python -m benchmarks.store [--quick] [--questions 10000] [--arms 50] [--folder DIR]

A stub stands in for the model and answers at once, so that all that is measured is ours: the loop, the lines, the
syncs. The sweep grows in steps; each step resumes what the steps before it left, as `limit=` does.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.output import save_report
from stsimdiff.budget import Budget
from stsimdiff.config.arms import Arm
from stsimdiff.config.settings import Settings, settings_from_config
from stsimdiff.evaluate.failures import identity
from stsimdiff.evaluate.questions import Question
from stsimdiff.evaluate.reading import Reader
from stsimdiff.evaluate.run import answer_missing
from stsimdiff.evaluate.scoring import score
from stsimdiff.files import fingerprint
from stsimdiff.launchers.base import configurations
from stsimdiff.models.base import EncodedVideo
from stsimdiff.report import rows, table
from stsimdiff.tokens import Grid

LAYERS = 28
PER_VIDEO = 3
METRIC = "stub_accuracy"


class StubTask:
    """Scores an answer by its letter, as a task of lmms-eval does."""

    config = SimpleNamespace(task="stub")

    def process_results(self, document: dict[str, Any], results: list[str]) -> dict[str, Any]:
        parsed, target = results[0], document["answer"]
        return {METRIC: {"parsed": parsed, "target": target, "correct": parsed == target}}

    def aggregation(self) -> dict[str, Callable[[list[dict[str, Any]]], float]]:
        return {METRIC: lambda found: sum(item["correct"] for item in found) / len(found)}


class StubSession:
    """Answers without a model; the lines have the fields and the size of real ones."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        about = {"device": "none", "dtype": "none", "attention": "none"}
        self.family = SimpleNamespace(describe=lambda: about)
        self.reader = Reader(settings)

    def check(self, arms: Any) -> None:
        pass

    def lacks(self, path: str, arms: Any) -> bool:
        return False

    def free(self) -> None:
        pass

    def forget_prefix(self) -> None:
        pass

    def encode(self, path: str, arms: Any) -> EncodedVideo:
        return EncodedVideo(features=None, grid=Grid(1, 1, 1), inputs={})

    def ask(self, question: Question, encoded: EncodedVideo) -> Question:
        return question

    def row(self, task: Any, arm: Arm, question: Question, asked: Question) -> dict[str, Any]:
        number = question.document["number"]
        letter = "ABCD"[(number * 7 + int(arm.id, 16)) % 4]
        target = question.document["answer"]
        kept = round(6000 * arm.budget.retention)
        return {
            **identity(question),
            "answer": letter,
            "parsed": letter,
            "target": target,
            "correct": letter == target,
            "video_tokens": 6000,
            "text_tokens": 60,
            "tokens_per_layer": [kept] * LAYERS,
            "retention_tokens": kept / 6000,
            "retention_compute": kept / 6000,
            "llm_flops": 10**13,
            "llm_flops_all": 3 * 10**13,
            "reasons": {"dropped": 6000 - kept, "important": kept},
            "features": "encoded",
            "times": {"answer": 0.5, "prefill": 0.4, "compressor": 0.01, "decode": 3.0, "vision": 1.0},
            "error": None,
        }


def questions(count: int) -> list[Question]:
    """Questions, three to a video, with the shape of a benchmark's."""
    return [
        Question(
            id=f"question-{n:06d}",
            video=f"/videos/{n // PER_VIDEO:06d}.mp4",
            category=("short", "medium", "long")[n % 3],
            text="",
            max_new_tokens=16,
            document={"number": n, "answer": "ABCD"[n % 4]},
        )
        for n in range(count)
    ]


def stub_arms(count: int) -> list[Arm]:
    """Arms of one method with as many settings."""
    return [
        Arm("stub", f"stub n={n}", {"_target_": "stub", "n": n}, Budget("tokens", 0.3), _id(n), "0" * 12)
        for n in range(1, count + 1)
    ]


def _id(number: int) -> str:
    return fingerprint(str(number))


def stub_settings(folder: Path) -> Settings:
    (config,) = configurations(
        ["logger=none", f"results={folder}", "run=sweep", "benchmark.note=no real answers", "video.workers=0"]
    )
    return settings_from_config(config)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="400 questions and 10 arms")
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--arms", type=int, default=50)
    parser.add_argument("--steps", type=int, default=4, help="equal steps in which the sweep grows")
    parser.add_argument("--repeats", type=int, default=3, help="of the start on a finished sweep")
    parser.add_argument("--folder", type=Path, help="where the store is put; its disk is measured")
    parser.add_argument("--out", type=Path, default=Path("results/store.json"))
    options = parser.parse_args()
    count, arms = (400, 10) if options.quick else (options.questions, options.arms)
    asked, all_arms = questions(count), stub_arms(arms)
    steps, report = [], {"questions": count, "arms": arms}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        settings, task = stub_settings(Path(folder)), StubTask()
        print(
            "questions     rows   start s   us a row stored   answers in store   us a row on a second start"
        )
        for step in range(1, options.steps + 1):
            now = asked[: count * step // options.steps]
            opened: list[float] = []

            def open_session(given: Settings, opened: list[float] = opened) -> StubSession:
                opened.append(time.perf_counter())
                return StubSession(given)

            began = time.perf_counter()
            written = answer_missing(settings, task, all_arms, now, open_session=open_session)
            start, write = opened[0] - began, time.perf_counter() - opened[0]
            again = [
                timed(lambda now=now: answer_missing(settings, task, all_arms, now))[0]
                for _ in range(options.repeats)
            ]
            held = len(now) * arms
            steps.append(
                {"rows": held, "written": written, "start_s": start, "write_s": write}
                | {"second_start_s": statistics.median(again)}
            )
            print(
                f"{len(now):9}{written:9}{start:10.2f}{1e6 * write / written:18.0f}{held:19}"
                f"{1e6 * statistics.median(again) / held:18.2f} ({statistics.median(again):.2f} s)",
                flush=True,
            )
        parts = {"start: open the store, find nothing missing": steps[-1]["second_start_s"]}
        parts["replay through the task, metrics"] = timed(lambda: score(settings, task, all_arms, asked))[0]
        parts["the same, nothing changed"] = timed(lambda: score(settings, task, all_arms, asked))[0]
        parts["read the rows for the table"], stored = timed(lambda: rows.read(settings.folder))
        parts["table with intervals and pairs"] = timed(lambda: table.build(stored))[0]
    report |= {"steps": steps, "finished_sweep_s": parts}
    report["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, seconds in parts.items():
        print(f"{seconds:8.2f} s  {name}")
    print(f"peak memory {report['peak_bytes'] / 2**20:.0f} MiB")
    save_report(report, options.out)


if __name__ == "__main__":
    main()
