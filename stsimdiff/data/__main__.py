"""``python -m stsimdiff data benchmark=videomme``: fetch a public benchmark, or check one that is on this machine.

Settings are those of a run: ``benchmark.data=/folder`` (or ``data=/folder`` for the folder of all benchmarks) checks
what lies there, ``benchmark=videomme,mlvu`` takes several. ``python -m stsimdiff data videomme --data /folder`` says
the same in fewer words.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stsimdiff.data.benchmarks import BENCHMARKS, by_name, by_task, folder_in
from stsimdiff.data.fetch import prepare
from stsimdiff.errors import ConfigError, UserError
from stsimdiff.evaluate.values import path
from stsimdiff.terminal import say
from stsimdiff.video_process import SECONDS


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 with a message."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any("=" in word and not word.startswith("-") for word in arguments):
        return _composed(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m stsimdiff data",
        description="Fetch a benchmark from the hub, unpack it, check every video and write an index. Settings of a "
        "run are taken too: benchmark=videomme,mlvu benchmark.data=/folder benchmark.video_seconds=60",
    )
    parser.add_argument("benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("--data", help="a folder that holds the data already; nothing is fetched then")
    given = parser.parse_args(arguments)
    try:
        prepare(by_name(given.benchmark), path("--data", given.data, True), say, SECONDS)
    except UserError as error:
        say(error, error=True)
        return 2
    return 0


def _composed(words: Sequence[str]) -> int:
    """The same from settings, as Hydra composes them; a benchmark that fails does not keep the others from it."""
    from stsimdiff.cli import errors_as_messages
    from stsimdiff.evaluate.benchmark_settings import check_video_seconds
    from stsimdiff.launcher import configurations

    failed = 0
    with errors_as_messages(list(words)):
        asked = configurations(words)
        for cfg in asked:
            check_video_seconds(cfg.benchmark.video_seconds)
            benchmark = by_task(cfg.benchmark.task)
            if benchmark is None:
                raise ConfigError(
                    f"benchmark={cfg.benchmark.name} is no public benchmark; allowed: {', '.join(BENCHMARKS)}"
                )
            data, every = path("benchmark.data", cfg.benchmark.data, True), path("data", cfg.data, True)
            data = data or (every and str(folder_in(Path(every), benchmark.name)))
            try:
                prepare(benchmark, data, say, cfg.benchmark.video_seconds, cfg.benchmark.decoder)
            except UserError as error:
                say(error, error=True)
                failed += 1
    return 2 if failed else 0


if __name__ == "__main__":
    from stsimdiff.cli import command

    command("data")
