"""``python -m stsimdiff.data NAME [--data FOLDER]``: fetch a public benchmark, or check one that is on this machine."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from stsimdiff.data.benchmarks import BENCHMARKS, by_name
from stsimdiff.data.fetch import prepare
from stsimdiff.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 with a message."""
    parser = argparse.ArgumentParser(
        prog="python -m stsimdiff.data",
        description="Fetch a benchmark from the hub, unpack it, check every video and write an index.",
    )
    parser.add_argument("benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("--data", help="a folder that holds the data already; nothing is fetched then")
    given = parser.parse_args(arguments)
    try:
        prepare(by_name(given.benchmark), given.data, partial(print, flush=True))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
