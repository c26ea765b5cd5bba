"""``python -m stsimdiff.report results/<run>``: table, figures and page of a run, from its stored rows alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stsimdiff.errors import ConfigError, UserError
from stsimdiff.report.venue import VENUES
from stsimdiff.terminal import Console, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 when samples of the run failed or a file could not be made, 2 for a folder that is no run."""
    parser = argparse.ArgumentParser(prog="python -m stsimdiff.report", description=__doc__)
    parser.add_argument("run_dir", metavar="results/<run>", help="the folder of a run")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="columns=A,B style=NAME",
        help="columns of table.tex, by their names in table.csv (categories: all categories); figures for a column of "
        f"a venue's paper: {', '.join(VENUES)}",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="where the files go, instead of the folder of the run"
    )
    parser.add_argument(
        "--older", action="store_true", help="show older versions too: arms whose code has changed since"
    )
    parser.add_argument(
        "--full",
        "--verbose",
        action="store_true",
        help="print all of the report: categories, pairs, all notes",
    )
    parser.add_argument(
        "--breakdown",
        metavar="COLUMN",
        help="accuracies by the values of a column of the benchmark's rows: domain, task_type, duration ...",
    )
    options = parser.parse_intermixed_args(arguments)

    from stsimdiff.config.checks import expanded
    from stsimdiff.report.arms import arm_folders

    try:
        settings = _settings(options.settings)
        output = Path(expanded("--output", options.output)) if options.output else None
        run_dir = Path(expanded("the run", options.run_dir))
        arm_folders(run_dir)  # whether it is a run, before what takes long to import

        from stsimdiff.report.drawing import drawers
        from stsimdiff.report.publish import publish

        published = publish(
            run_dir,
            Console(),
            output,
            older=options.older,
            full=options.full,
            column=options.breakdown,
            processes=drawers(),
            **settings,
        )
    except UserError as error:
        say(error, error=True)
        return 2
    return 1 if published.table.n_failed or published.unmade else 0


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """What ``columns=`` and ``style=`` say; raises :class:`ConfigError` for other words."""
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("columns", "style") or not equals:
            raise ConfigError(f"report {word}: allowed: columns=A,B and style={'|'.join(VENUES)}")
        settings[name] = value.split(",") if name == "columns" else value
    return settings
