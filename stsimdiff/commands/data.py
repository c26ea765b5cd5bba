"""``python -m stsimdiff data benchmark=videomme``: fetch a public benchmark, or check one that is on this machine.

Settings are those of a run: ``benchmark.data=/folder`` (or ``data=/folder`` for the folder of all benchmarks) checks
what lies there, ``benchmark=videomme,mlvu`` takes several. ``keep_archives=false`` removes each archive once it is
unpacked. ``python -m stsimdiff data videomme --data /folder`` says the same in fewer words.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stsimdiff.config.checks import Folder, Seconds, failure_limit
from stsimdiff.data.benchmarks import BENCHMARKS, Benchmark, by_name, by_task, folder_in
from stsimdiff.data.fetch import announce, prepare
from stsimdiff.errors import ConfigError, UserError
from stsimdiff.schema import check, one_of
from stsimdiff.terminal import say
from stsimdiff.video.process import SECONDS

KEEP = "keep_archives"


@dataclass(frozen=True)
class DataRequest:
    """A benchmark, the folder that holds it or ``None``, how its videos are opened and how many may be unusable."""

    benchmark: Benchmark
    data: str | None
    seconds: float | None = SECONDS
    decoder: str = "pyav"
    limit: int | str = "2%"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 with a message."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any("=" in word and not word.startswith("-") for word in arguments):
        return _composed(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m stsimdiff data",
        description="Fetch a benchmark from the hub, unpack it, check every video and write an index. Settings of a "
        "run are taken too: benchmark=videomme,mlvu benchmark.data=/folder benchmark.video_seconds=60; "
        "keep_archives=false removes each archive once it is unpacked",
    )
    parser.add_argument("benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("--data", help="a folder that holds the data already; nothing is fetched then")
    options = parser.parse_args(arguments)
    try:
        request = DataRequest(by_name(options.benchmark), check("--data", options.data, Folder | None))
    except UserError as error:
        say(error, error=True)
        return 2
    return _prepared([request], keep=True)


def _composed(words: Sequence[str]) -> int:
    """The same from settings, as Hydra composes them; a benchmark that fails does not keep the others from it."""
    from stsimdiff.commands.cli import errors_as_messages
    from stsimdiff.launchers.base import configurations

    requests = []
    with errors_as_messages(list(words)):
        keep = [word.partition("=")[2] for word in words if word.partition("=")[0] == KEEP]
        for value in keep:
            one_of(KEEP, value, ("true", "false"))
        for cfg in configurations([word for word in words if word.partition("=")[0] != KEEP]):
            check("benchmark.video_seconds", cfg.benchmark.video_seconds, Seconds | None)
            benchmark = by_task(cfg.benchmark.task)
            if benchmark is None:
                raise ConfigError(
                    f"benchmark={cfg.benchmark.name} is no public benchmark; allowed: {', '.join(BENCHMARKS)}"
                )
            data = check("benchmark.data", cfg.benchmark.data, Folder | None)
            every = check("data", cfg.data, Folder | None)
            data = data or (every and str(folder_in(Path(every), benchmark.name)))
            limit = failure_limit(cfg.max_failures)
            requests.append(
                DataRequest(benchmark, data, cfg.benchmark.video_seconds, cfg.benchmark.decoder, limit)
            )
        return _prepared(requests, keep="false" not in keep[-1:])


def _prepared(requests: Sequence[DataRequest], keep: bool) -> int:
    """Say what room everything takes, then prepare one after the other; the exit code."""
    needs = announce([request.benchmark for request in requests if request.data is None], keep, say)
    failed = 0
    for request in requests:
        need = needs.get(request.benchmark.name) if request.data is None else None
        try:
            if isinstance(need, UserError):
                raise need
            place = request.benchmark, request.data, say, request.seconds, request.decoder
            prepare(*place, limit=request.limit, keep=keep, need=need)
        except UserError as error:
            say(error, error=True)
            failed += 1
    return 2 if failed else 0
