"""All that a run leaves to be looked at: the table's files, the figures and the page.

Each file is put in place whole, while no other command makes the report of the same run. What cannot be made does not
take the rest with it, and is said: the command then fails.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stsimdiff import lock
from stsimdiff.extras import undrawn
from stsimdiff.files import make_folder, write_whole
from stsimdiff.report import attribution_table, breakdown, latex, moments, reasons, render
from stsimdiff.report.drawing import Draw, begun
from stsimdiff.report.rows import StoredRun, read
from stsimdiff.report.series import FORMATS, FRAMES, NAMES
from stsimdiff.report.table import Table, build
from stsimdiff.report.text import csv
from stsimdiff.report.venue import Venue, venue
from stsimdiff.terminal import Console

log = logging.getLogger(__name__)

FIGURES = "figures"
PAGE = "report.html"


@dataclass
class RunReport:
    """What was made of a run.

    Attributes:
        stored: its rows.
        table: its table.
        folder: where the files lie.
        undrawn: why there are neither figures nor a page, where the packages for them are not installed; else empty.
        page: ``report.html``; None when it could not be made.
        unmade: the files that could not be made, with the reason.
        refused: those of them that the disk refused.
    """

    stored: StoredRun
    table: Table
    folder: Path
    undrawn: str = ""
    page: Path | None = None
    unmade: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def publish(
    run_dir: Path | str,
    console: Console | None,
    output: Path | str | None = None,
    *,
    older: bool = False,
    full: bool = False,
    column: str | None = None,
    columns: Sequence[str] = (),
    style: str = "plain",
    processes: int = 1,
) -> RunReport:
    """Write the table of a run, ``figures/*`` and ``report.html``, from its stored rows alone; then print the table.

    Printing comes last: whatever becomes of the terminal, the files are there.

    Args:
        run_dir: ``results/<run>``.
        console: where the table and the page's path are printed; None prints nothing.
        output: the folder for the files; the run's own if not given.
        older: whether arms count of whose code the run was asked for another version since.
        full: whether all of the report is printed, instead of one screen.
        column: of the benchmark's rows, whose values the accuracies are broken down by.
        columns: of ``table.tex``, by their names; see ``latex.latex``.
        style: of the figures, a name in ``venue.VENUES``.
        processes: how many draw the figures; more than one are forks of this one.

    Raises:
        ConfigError: for an unknown column of ``table.tex`` or style: nothing is written.
        DataError: as ``rows.read_samples`` and ``table.build`` do, or for an output that cannot be made: nothing is
            written.
    """
    run_dir, drawn_for = Path(run_dir), venue(style)
    output = Path(output) if output else run_dir
    if output != run_dir:
        make_folder(output)
    with lock.alone(output, lock.REPORT) if output.is_dir() else contextlib.nullcontext():
        stored = read(run_dir, older=older)
        published = RunReport(stored, build(stored, column), output, undrawn())
        latex.check(published.table, columns)
        folder = _Folder(output)
        with _begun(published, stored, drawn_for, processes) as drawings:
            for name, content in files(published.table, columns).items():
                folder.put(name, content)
            figures = _draw(published, drawings, folder)
            _write_page(published, stored, run_dir, folder, figures)
            list(figures)  # what a page that could not be made did not ask for
        published.refused = folder.refused(run_dir)
        published.unmade += published.refused
    if console is not None:
        tell(published, console, full=full)
    return published


def tell(published: RunReport, console: Console, *, full: bool = False) -> None:
    """Print the table, what could not be made, and where the files are."""
    show(published.table, console, full=full)
    for problem in published.unmade:
        console.print(problem, style="bold red", highlight=False, soft_wrap=True)
    if published.undrawn:
        console.print(published.undrawn, style="yellow", highlight=False, soft_wrap=True)
    whole = published.folder / "table.md"
    if whole.is_file():
        more = "" if full else " (categories, pairs, all notes; also on the screen with --verbose)"
        console.print(f"Table: {whole}{more}", highlight=False, soft_wrap=True)
    if published.page:
        console.print(f"Page: {published.page}", highlight=False, soft_wrap=True)


class _Folder:
    """Where the files go. What the disk refuses is kept, to be said once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._refused: dict[str, list[str]] = {}

    def put(self, name: str, content: bytes | str | None) -> bool:
        """Write a file whole, or remove it for None; whether the disk let it.

        A file that cannot be written is removed where it can be: that of an earlier report must not pass for this
        one's.
        """
        path = self.path / name
        try:
            if content is not None:
                path.parent.mkdir(exist_ok=True)
                write_whole(path, content)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._refused.setdefault(error.strerror or str(error), []).append(name)
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        return True

    def refused(self, run_dir: Path) -> list[str]:
        """A sentence for each reason for which files are not there."""
        return [
            f"NOT WRITTEN into {self.path}: {', '.join(names)}: {why}. Fix that, or write them elsewhere: "
            f"python -m stsimdiff report {run_dir} --output FOLDER"
            for why, names in self._refused.items()
        ]


@contextlib.contextmanager
def _begun(
    published: RunReport, stored: StoredRun, style: Venue, processes: int
) -> Iterator[Mapping[str, Draw]]:
    """The drawing of each figure by its name, begun where there are processes to draw it."""
    if published.undrawn:
        yield {}
        return
    from stsimdiff.report.figures import figures

    drawings = dict(figures(published.table, stored, style))
    with begun([*drawings.values()], processes) as results:
        yield dict(zip(drawings, results, strict=True))


def _draw(published: RunReport, drawings: Mapping[str, Draw], folder: _Folder) -> Iterator[str]:
    """Names of the figures that were written. Every figure for itself: the reasons for which one may fail are many."""
    made = set()
    for name, draw in drawings.items():
        try:
            drawn = draw()
        except Exception as error:
            log.debug("figure %s", name, exc_info=True)
            place = folder.path / FIGURES / name
            published.unmade.append(f"NOT DRAWN: {place}: {type(error).__name__}: {error}")
            continue
        for kind, content in drawn.items():
            made.add(f"{name}.{kind}")
            if folder.put(f"{FIGURES}/{name}.{kind}", content):
                yield f"{name}.{kind}"
    # Those of an earlier report may be of arms that are no more; no other files.
    ours = re.compile(rf"({'|'.join((*NAMES, FRAMES))})(_\w+)?\.({'|'.join(FORMATS)})")
    for path in sorted((folder.path / FIGURES).glob("*")):
        if ours.fullmatch(path.name) and path.name not in made:
            folder.put(f"{FIGURES}/{path.name}", None)


def _write_page(
    published: RunReport, stored: StoredRun, run_dir: Path, folder: _Folder, figures: Iterable[str]
) -> None:
    from stsimdiff.report.page import report_page

    content = None
    try:
        if not published.undrawn:
            content = report_page(run_dir, published.table, stored, figures)
    except Exception as error:
        log.debug("page", exc_info=True)
        published.unmade.append(f"NOT WRITTEN: {folder.path / PAGE}: {type(error).__name__}: {error}")
    if folder.put(PAGE, content) and content is not None:
        published.page = folder.path / PAGE


def files(table: Table, columns: Sequence[str] = ()) -> dict[str, str | None]:
    """The files of a table by name; None for one that a run like this has not. ``columns`` are those of LaTeX."""
    return {
        "table.csv": csv(table.frame()),
        "pairs.csv": csv(table.pairs()),
        "table.md": render.markdown(table),
        "table.tex": latex.latex(table, columns),
        **attribution_table.files(table.attributions, table.anchors),
        **breakdown.files(table.parts, table.run),
        **reasons.files(table.reasons, table.run),
        **moments.files(table.moments, table.run),
    }


def show(table: Table, console: Console, *, full: bool = False) -> None:
    """Print a table and its verdicts: one screen, or all of it."""
    (render.show_full if full else render.show)(table, console)
