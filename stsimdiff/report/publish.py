"""All that a run leaves to be looked at: the table's files, the figures and the page.

A figure or a page that cannot be made does not take the table with it, and is said: the command then fails.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from stsimdiff.report.rows import Stored, read
from stsimdiff.report.table import Table, build, show, write
from stsimdiff.terminal import Console

log = logging.getLogger(__name__)

FIGURES = "figures"


@dataclass
class Published:
    """What was made of a run.

    Attributes:
        table: its table.
        page: ``report.html``; None when it could not be made.
        unmade: the figures and pages that could not be made, with the reason.
    """

    table: Table
    page: Path | None = None
    unmade: list[str] = field(default_factory=list)


def publish(run_dir: Path | str, console: Console | None) -> Published:
    """Write the table of a run, ``figures/*`` and ``report.html``, from its stored rows alone; then print the table.

    Printing comes last: whatever becomes of the terminal, the files are there.

    Args:
        run_dir: ``results/<run>``.
        console: where the table and the page's path are printed; None prints nothing.

    Raises:
        DataError: as ``rows.load`` does, before anything is written.
    """
    run_dir = Path(run_dir)
    stored = read(run_dir)
    table = build(stored)
    write(table, run_dir)
    published = Published(table)
    _draw(published, stored, run_dir / FIGURES)
    _write_page(published, stored, run_dir)
    if console is None:
        return published
    show(table, console)
    for problem in published.unmade:
        console.print(problem, style="bold red", highlight=False, soft_wrap=True)
    if published.page:
        console.print(f"\nPage: {published.page}", highlight=False, soft_wrap=True)
    return published


def _draw(published: Published, stored: Stored, folder: Path) -> None:
    """Every figure for itself: the reasons for which one may fail (disk, data, fonts) are many."""
    from stsimdiff.report import figures

    figures.clear(folder)
    for name, draw in figures.figures(published.table, stored):
        try:
            figure = draw()
            if figure is not None:
                figures.save(figure, folder, name)
        except Exception as error:
            log.debug("figure %s", name, exc_info=True)
            published.unmade.append(f"NOT DRAWN: {folder / name}: {type(error).__name__}: {error}")


def _write_page(published: Published, stored: Stored, run_dir: Path) -> None:
    from stsimdiff.report.page import NAME, write_report

    # The page of an earlier report must not pass for this one's.
    (run_dir / NAME).unlink(missing_ok=True)
    try:
        published.page = write_report(run_dir, published.table, stored)
    except Exception as error:
        log.debug("page", exc_info=True)
        published.unmade.append(f"NOT WRITTEN: {run_dir / NAME}: {type(error).__name__}: {error}")
