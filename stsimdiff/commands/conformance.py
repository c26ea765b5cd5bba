"""``python -m stsimdiff.conformance DIR...``: our code on recorded cases, compared with their recorded outputs.

A line a case, then a summary. Exit codes: 0 all agree, 1 something differs, 2 wrong input (and nothing differs).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stsimdiff.errors import UserError
from stsimdiff.terminal import say

if TYPE_CHECKING:
    from stsimdiff.conformance.cases import Case
    from stsimdiff.conformance.compare import Comparison
    from stsimdiff.models.base import Family

SHOWN = 3
"""Differences of a case that its line is followed by."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m stsimdiff.conformance", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "path",
        nargs="+",
        help="a case file, a folder of them, the folder of an end-to-end case, or a folder of those",
    )
    paths = parser.parse_args(arguments).path

    import torch
    from transformers.utils import logging

    from stsimdiff.conformance.cases import find

    logging.disable_progress_bar()
    # As the cases were recorded.
    torch.set_num_threads(1)
    try:
        cases = [case for path in paths for case in find(path)]
    except UserError as error:
        say(error, error=True)
        return 2
    differing, wrong, fields, skipped = 0, 0, 0, {}
    families: dict[Path, Family] = {}
    for case in cases:
        try:
            result = check(case, families)
        except (UserError, ValueError) as error:
            say(f"error    {case.name}: {error}")
            wrong += 1
            continue
        differing += bool(result.differences)
        fields += len(result.compared)
        skipped.update(result.skipped)
        say(
            f"{'differs' if result.differences else 'agrees':8} {case.name}: {len(result.compared)} fields compared"
        )
        for line in result.differences[:SHOWN]:
            say(f"         {line}")
        if len(result.differences) > SHOWN:
            say(f"         and {len(result.differences) - SHOWN} more")
    for name, reason in sorted(skipped.items()):
        say(f"not compared: {name} ({reason})")
    say(
        f"{len(cases)} cases: {len(cases) - differing - wrong} agree, {differing} differ, {wrong} could not be "
        f"replayed; {fields} fields compared"
    )
    return 1 if differing else 2 if wrong else 0


def check(case: Case, families: dict[Path, Family] | None = None) -> Comparison:
    """Replay one case and compare it with its recording.

    Args:
        case: the case.
        families: loaded checkpoints by folder; only the latest is kept.
    """
    from stsimdiff.conformance import replay_case
    from stsimdiff.conformance.cases import read_fields
    from stsimdiff.conformance.compare import compare
    from stsimdiff.conformance.prompts import load_family

    recorded = read_fields(case.recorded)
    family = None
    if case.run is not None and families is not None:
        if case.path not in families:
            families.clear()
            families[case.path] = load_family(case.path / "checkpoint")
        family = families[case.path]
    return compare(case, recorded, replay_case(case, family))
