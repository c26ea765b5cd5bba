"""``python -m stsimdiff check my_module.Mine [PARAMETER=VALUE ...]``: whether a method keeps the contract, in seconds.

A line a check, then a summary. Exit codes: 0 all pass, 1 a check fails, 2 wrong input. It needs no weights and no
data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stsimdiff.commands import HELP
from stsimdiff.errors import ConfigError
from stsimdiff.source import own_frame
from stsimdiff.terminal import say

if TYPE_CHECKING:
    from stsimdiff.kit.running import CompressorCase

USAGE = """\
usage: python -m stsimdiff check METHOD [PARAMETER=VALUE ...]

Checks whether a method keeps the contract: budgets, videos of one frame and one token, determinism, no state carried,
no in-place write, its places, dropping against masking on a miniature of each family, time and memory.

  METHOD            my_module.Mine, a class in the current folder or an installed package; or a name, such as fastv
  PARAMETER=VALUE   of the method

  python -m stsimdiff check my_module.Mine power=1.0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not HELP.isdisjoint(words) or not words:
        say(USAGE.rstrip(), error=not words)
        return 0 if words else 2
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"{flags[0]} is no flag of check; allowed: --help, and PARAMETER=VALUE")

    from stsimdiff.kit import named_compressor
    from stsimdiff.kit.running import CompressorCase

    return run(CompressorCase(named_compressor(words)))


def run(case: CompressorCase) -> int:
    """Run all checks on a method and say what came of each; returns the exit code."""
    import torch

    from stsimdiff.kit import checks

    say(f"{case.compressor!r}, {case.place}")
    torch.set_num_threads(1)  # what is compared must be rounded alike
    counts = {"passes": 0, "fails": 0, "skipped": 0}
    for name, check in checks.CHECKS.items():
        where = None
        try:
            came, message = "passes", check(case) or ""
        except checks.CheckSkipped as reason:
            came, message = "skipped", str(reason)
        except (Exception, SystemExit) as error:
            came, message = "fails", str(error)
            if not isinstance(error, AssertionError):
                message = f"{type(error).__name__}: {error}"
            where = own_frame(error) or case.place
        counts[came] += 1
        say(f"{came:8} {name}" + (f": {message}" if message else ""))
        if where:
            say(f"         {where}")
    say(f"{counts['passes']} pass, {counts['fails']} fail, {counts['skipped']} skipped")
    return 1 if counts["fails"] else 0
