"""``python -m stsimdiff profile key=value ...``: the latency protocol, measured and tabulated."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stsimdiff.config.settings import Settings
from stsimdiff.data.videos import unusable_videos
from stsimdiff.errors import ConfigError, RunFailed
from stsimdiff.evaluate.passes import Pass, check_presence, passes_of
from stsimdiff.evaluate.questions import Question, all_questions, load_task
from stsimdiff.files import make_folder
from stsimdiff.launchers import base
from stsimdiff.lock import Lock
from stsimdiff.ranks import ranks
from stsimdiff.terminal import Console

if TYPE_CHECKING:
    from stsimdiff.latency.protocol import Protocol

LEAST_REPEATS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        The exit code 0.

    Raises:
        UserError: for wrong input, before a model is loaded.
        RunFailed: when an arm failed; the others were measured.
    """
    options = _parse(arguments)
    configurations = base.configurations(options.settings)
    passes = passes_of(configurations)
    folder = _folder(passes)
    check_presence(configurations, passes)

    from stsimdiff.evaluate.session import load_model  # these import torch
    from stsimdiff.evaluate.shared import SharedModel
    from stsimdiff.kit.rehearsal import rehearse
    from stsimdiff.latency.measurements import MEASUREMENTS, drop_torn_line
    from stsimdiff.latency.protocol import PassMeasurement, Protocol

    rehearse(passes)
    protocol = Protocol(options.questions, options.repeats, options.warmup, options.new_tokens)
    questions_by_pass = [_questions(run_pass.settings, protocol) for run_pass in passes]
    make_folder(folder)
    # Imported before the measuring, so that an interruption finds it ready.
    from stsimdiff.latency import table

    lock = Lock(folder / ".lock.efficiency")
    lock.take()
    failures: list[str] = []
    try:
        drop_torn_line(folder / MEASUREMENTS)
        shared = SharedModel()
        for run_pass, questions in zip(passes, questions_by_pass, strict=True):
            family = shared.family(run_pass.settings, load_model)
            failures += PassMeasurement(
                run_pass.settings, list(run_pass.arms.values()), questions, protocol, family
            ).run()
            del family  # another model may need the room
    finally:
        lock.release()
        table.make(folder, Console())
    if failures:
        raise RunFailed("\n".join(failures))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stsimdiff profile",
        description="Measure time and memory of arms in turn, on the same questions, with nothing cached. "
        "Writes efficiency.csv, .md and .json into results/<run>; started again it goes on.",
    )
    parser.add_argument(
        "--questions", type=_from(1), default=2, help="questions, each about another video (2)"
    )
    parser.add_argument(
        "--repeats", type=_from(LEAST_REPEATS), default=10, help="measurements of each question and arm (10)"
    )
    parser.add_argument("--warmup", type=_from(1), default=1, help="rounds that are not recorded (1)")
    parser.add_argument("--new-tokens", type=_from(2), default=8, help="tokens to generate (8)")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="as on the main command line; lists are swept"
    )
    return parser.parse_intermixed_args(arguments)


def _from(least: int) -> Any:
    def number(text: str) -> int:
        value = int(text) if text.isdecimal() else 0
        if value < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is out of range; allowed: a whole number from {least}"
            )
        return value

    return number


def _folder(passes: Sequence[Pass]) -> Path:
    """The run's folder; checks what does not go with this command."""
    folders = {run_pass.settings.folder for run_pass in passes}
    if len(folders) > 1:
        raise ConfigError("run and results name one folder here; leave them out of the sweep")
    if any(run_pass.settings.plan for run_pass in passes):
        raise ConfigError("plan=true does not go with profile; plan the run without `profile`")
    if ranks().world > 1:
        raise ConfigError("profile measures in one process: start it without torch.distributed.run")
    return folders.pop()


def _questions(settings: Settings, protocol: Protocol) -> list[Question]:
    """The first question about each of the first videos."""
    by_video: dict[str, Question] = {}
    for question in all_questions(
        load_task(settings.benchmark), settings.limit, settings.benchmark.categories
    ):
        by_video.setdefault(question.video, question)
    chosen = list(by_video.values())[: protocol.questions]
    if len(chosen) < protocol.questions:
        raise ConfigError(
            f"--questions {protocol.questions} needs as many videos; {settings.benchmark.name} has {len(chosen)} "
            "with these settings"
        )
    every = dataclasses.replace(settings.benchmark, allow_missing=False)
    unusable_videos(every, [question.video for question in chosen])
    return chosen
