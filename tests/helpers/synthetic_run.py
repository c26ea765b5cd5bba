"""Runs as the harness stores them, written by hand for the tests of the reports."""

import json
import random
from pathlib import Path

from stsimdiff.files import write_whole
from stsimdiff.report.publish import files, show
from stsimdiff.report.rows import read
from stsimdiff.report.table import Table, build
from stsimdiff.terminal import Console

CATEGORIES = ["attr", "order", "event_count"]
QUESTIONS = [
    (f"v{video:02d}", f"v{video:02d}-{i}", CATEGORIES[(video + i) % 3])
    for video in range(40)
    for i in range(1 + video % 5)
]


def answer(
    question: tuple[str, str, str], chance: float, kept: float, compute: float, dice: random.Random
) -> dict:
    video, id_, category = question
    right, tokens = dice.random() < chance, dice.choice([400, 512])
    return {
        "id": id_,
        "video": video,
        "category": category,
        "answer": "B" if right else "A",
        "parsed": "B" if right else "A",
        "target": "B",
        "correct": right,
        "video_tokens": tokens,
        "text_tokens": 60,
        "tokens_per_layer": [round(tokens * compute)] * 4,
        "retention_tokens": kept * dice.uniform(0.995, 1.005),
        "retention_compute": compute * dice.uniform(0.995, 1.005),
        "llm_flops": tokens * 1e6 * (compute + 0.1),
        "llm_flops_all": tokens * 1.1e6,
        "reasons": {"representative": 3},
        "times": {"prefill": dice.uniform(0.01, 0.03), "compressor": 0.002, "answer": 0.04, "decode": 0.1},
        "error": None,
    }


def failed(question: tuple[str, str, str]) -> dict:
    video, id_, category = question
    error = {"type": "ValueError", "message": "no frames", "traceback": "Traceback ..."}
    identity = {"id": id_, "video": video, "category": category}
    return identity | {"answer": None, "parsed": None, "correct": None, "error": error}


def unparsed(question: tuple[str, str, str], dice: random.Random) -> dict:
    return answer(question, 0.0, 0.3, 0.3, dice) | {"answer": "well, who knows", "parsed": None}


def write_arm(
    run: Path,
    method: str,
    retention: float,
    stored: list[dict] | None,
    *,
    label: str = "",
    kind: str = "tokens",
    **more,
) -> Path:
    number = len(list(run.iterdir())) if run.is_dir() else 0
    folder = run / f"{method}_{number:02d}"
    folder.mkdir(parents=True)
    record = {
        "arm": f"{number:012x}",
        "method": method,
        "label": label or method,
        "compressor": {"_target_": f"stsimdiff.compressors.{method}"},
        "budget": {"kind": kind, "retention": retention},
        "model": {"name": "embedded", "path": "/models/embedded", "frames": 8},
        "benchmark": {
            "name": "clips",
            "task": "clips",
            "families": CATEGORIES,
            "chance": 25.0,
            "note": "toy clips only",
        },
        "code": "abc",
        "provenance": {
            "versions": {"torch": "2.9", "lmms_eval": "0.7.3", "decord": None},
            **{
                "device": "cpu",
                "dtype": "float32",
                "attention": "sdpa",
                "git": "abc1234",
                "seed": 0,
                "data": "r1",
            },
        },
    }
    (folder / "arm.json").write_text(json.dumps(record | more))
    if stored is not None:
        (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stored))
        (folder / "metrics.json").write_text("{}")
    return folder


def answers(chance: float, kept: float, compute: float | None = None, seed: int = 0) -> list[dict]:
    dice = random.Random(f"{chance} {kept} {compute} {seed}")
    return [
        answer(question, chance, kept, kept if compute is None else compute, dice) for question in QUESTIONS
    ]


def make(run_dir: Path | str, console: Console | None) -> Table:
    """Builds a run's table, writes ``table.md``, ``.csv``, ``.tex`` and ``pairs.csv`` beside it, prints it.

    Args:
        run_dir: ``results/<run>``.
        console: where to print; None prints nothing.

    Raises:
        DataError: as ``rows.read_samples`` does.
    """
    table = build(read(run_dir))
    for name, content in files(table).items():
        if content is None:
            (Path(run_dir) / name).unlink(missing_ok=True)
        else:
            write_whole(Path(run_dir) / name, content)
    if console is not None:
        show(table, console, full=True)
    return table
