"""``python -m stsimdiff forget run=NAME older``: remove the arms of a run whose code has changed since.

An arm is older when the run was asked later for the same one with other code; a table leaves it out. What is removed is
its folder, answers included. ``results=FOLDER`` names the folder of all runs.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from stsimdiff.errors import ConfigError, DataError
from stsimdiff.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; wrong input, and a folder that is in use or cannot be removed, raise :class:`UserError`."""
    parser = argparse.ArgumentParser(
        prog="python -m stsimdiff forget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="run=NAME older", help="which run, and what of it")
    words = parser.parse_args(arguments).words
    settings = [word for word in words if word.partition("=")[0] in ("run", "results") and "=" in word]
    rest = [word for word in words if word not in settings]
    if rest != ["older"] or not any(word.startswith("run=") for word in settings):
        raise ConfigError(
            f"forget {' '.join(words)}: allowed: run=NAME older, and results=FOLDER where the runs lie elsewhere"
        )

    from stsimdiff.config.checks import expanded
    from stsimdiff.evaluate.store import writer
    from stsimdiff.launchers.base import configurations
    from stsimdiff.report.arms import arms, older_arms

    (cfg,) = configurations(settings)
    run = Path(expanded("results", str(cfg.results))) / str(cfg.run)
    older = older_arms(arms(run))
    for arm in older:
        if owner := writer(arm.folder):
            raise DataError(
                f"{arm.folder} is being written by process {owner['pid']} on {owner['host']}; wait for it"
            )
    for arm in older:
        try:
            shutil.rmtree(arm.folder)
        except OSError as error:
            raise DataError(f"cannot remove {arm.folder}: {error.strerror or error}") from error
        say(f"removed {arm.folder}: {arm.configured} at {100 * arm.retention:.4g} % ({arm.kind})")
    again = f"; the table without them: python -m stsimdiff report {run}" if older else ""
    say(f"older versions of arms removed from {run}: {len(older)}{again}")
    return 0
