"""A table as figures, PDF, SVG and PNG: accuracy against what it costs, retention by layer, maps of the thresholds.

They are as wide as a column of a venue and have no title, since a paper's caption says what they show.

Drawn from the table's own numbers, without a display and without matplotlib's global state.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stsimdiff.report.breakdown import BreakdownRow
from stsimdiff.report.drawing import Draw
from stsimdiff.report.labels import greek
from stsimdiff.report.moments import ALL, MomentRow
from stsimdiff.report.palette import STYLES, Look, Style, looks
from stsimdiff.report.rows import StoredRun
from stsimdiff.report.section import Section, TableRow
from stsimdiff.report.series import (
    COSTS,
    FORMATS,
    FRAMES,
    NAMES,
    Sweep,
    by_layer,
    front,
    over_frames,
    sweeps,
    threshold_maps,
)
from stsimdiff.report.venue import VENUES, Venue

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stsimdiff.report.table import Table

LONGEST = 48
"""Characters of a line of a legend, at most."""
WIDE = 5.0
"""Inches from which on panels stand side by side."""
GREY = "#707070"
DPI = 200

Looks = Mapping[tuple[str, str], Look]


def figures(table: Table, stored: StoredRun, style: Venue = VENUES["plain"]) -> Iterator[tuple[str, Draw]]:
    """Name and drawing of each figure of a run; a drawing gives its files by format, none where there is nothing to
    show."""
    layers = by_layer(stored.samples)
    styles = looks(row for section in table.sections for row in section.rows)
    slugs: list[str] = []
    for section in table.sections:
        slugs.append(slug(section))
        again = slugs.count(slugs[-1])
        suffix = "" if len(table.sections) == 1 else f"_{slugs[-1]}{f'_{again}' if again > 1 else ''}"

        def against(*costs: str, section: Section = section) -> Callable[[], Figure | None]:
            return lambda: accuracy(section, costs, styles)

        def layered(section: Section = section) -> Figure | None:
            return retention_by_layer(section, layers, styles)

        def mapped(section: Section = section) -> Figure | None:
            return thresholds(section, stored)

        def over(section: Section = section) -> Figure | None:
            return swept(section)

        def parted(section: Section = section) -> Figure | None:
            return by_value(section, table.parts, styles)

        def kept(section: Section = section) -> Figure | None:
            return by_moment(section, table.moments, styles)

        drawings = (
            *(against("flops"), against("tokens", "compute"), against("latency")),
            *(layered, mapped, over, parted, kept),
        )
        about = f"{section.model} on {section.benchmark}, budget of kind {section.budget}"
        for name, draw in zip(NAMES, drawings, strict=True):
            yield f"{name}{suffix}", partial(_drawn, draw, f"{name}{suffix}", about, style)
    together = partial(by_frames, over_frames(table.sections, stored.arms), styles)
    yield FRAMES, partial(_drawn, together, FRAMES, "accuracy over the number of frames", style)


def _drawn(draw: Callable[[], Figure | None], name: str, about: str, style: Venue) -> dict[str, bytes]:
    with rc_context({**style.settings(), "svg.hashsalt": name}):
        figure = draw()
        return {} if figure is None else save(figure, about)


def slug(section: Section) -> str:
    """A section's name as part of a file's name."""
    words = f"{section.model}_{section.benchmark}_{section.budget}"
    return re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_")


def save(figure: Figure, about: str) -> dict[str, bytes]:
    """A figure in every format, by the format's name; ``about`` is the title in the files' description."""
    files = {}
    # It stays where it has been laid out: with an engine, even an empty one, every format lays it out again.
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    figure.set_layout_engine(None)
    for kind in FORMATS:
        # Without a date and random names inside, equal rows give equal files.
        dated = {"svg": "Date", "pdf": "CreationDate", "png": "Software"}[kind]
        stream = BytesIO()
        figure.savefig(stream, format=kind, dpi=DPI, metadata={dated: None, "Title": about})
        files[kind] = stream.getvalue()
    return files


def accuracy(section: Section, costs: tuple[str, ...], styles: Looks) -> Figure | None:
    """Accuracy with its interval against one or more costs, a panel each, with the Pareto front."""
    rows = [row for row in section.rows if not math.isnan(row.overall)]
    shown = [row for row in rows if row.method != "no_video"]
    if not shown or all(math.isnan(COSTS[cost][1](row)) for cost in costs for row in shown):
        return None
    figure, panels = _panels(len(costs), beside=2, sharey=True)
    for axes, cost in zip(panels, costs, strict=True):
        name, x = COSTS[cost]
        for label, members in _by_label(shown).items():
            members = sorted((row for row in members if not math.isnan(x(row))), key=x)
            if members:
                _series(axes, [x(row) for row in members], members, styles[members[0].method, label])
        best = np.array(front(section, cost)).reshape(-1, 2)
        axes.step(best[:, 0], best[:, 1], where="post", color=GREY, lw=1.0, ls=(0, (1, 1.5)), zorder=1)
        _tidy(axes, name, "accuracy, %\n(95 % interval)")
    extra = [Line2D([], [], color=GREY, lw=1.0, ls=(0, (1, 1.5)), label="Pareto front")]
    if blind := next((row for row in rows if row.method == "no_video"), None):
        extra.append(Line2D([], [], color=GREY, lw=0.8, ls="--", label=f"no video: {blind.overall:.1f} %"))
        low, high = panels[0].get_ylim()
        if blind.overall >= low - (high - low):
            for axes in panels:
                axes.axhline(blind.overall, color=GREY, lw=0.8, ls="--")
    _legend(figure, shown, styles, extra)
    return figure


def _series(axes: Axes, x: list[float], rows: list[TableRow], look: Look) -> None:
    y = [row.overall for row in rows]
    below = [_distance(row.overall, row.ci_low) for row in rows]
    above = [_distance(row.ci_high, row.overall) for row in rows]
    size = (11 if look.marker in "*_" else 6.5) * rcParams["font.size"] / 10
    axes.errorbar(
        x, y, yerr=[below, above], color=look.colour, marker=look.marker, ms=size, mec=look.colour,
        mew=1.6 if look.thin else 0.4, lw=1.1, ls=look.line, elinewidth=0.8, capsize=2, alpha=0.95,
    )  # fmt: skip


def _distance(high: float, low: float) -> float:
    apart = high - low
    return 0.0 if math.isnan(apart) else max(0.0, apart)


def retention_by_layer(section: Section, layers: dict[str, np.ndarray], styles: Looks) -> Figure | None:
    """The share of the video tokens that enters each layer, a panel for each retention."""
    blocks = {
        retention: [row for row in rows if row.arm in layers and not row.reference]
        for retention, rows in section.blocks().items()
    }
    blocks = {retention: rows for retention, rows in blocks.items() if rows}
    if not blocks:
        return None
    figure, panels = _panels(len(blocks), sharey=True)
    every = [row for rows in blocks.values() for row in rows]
    for axes, (retention, rows) in zip(panels, blocks.items(), strict=False):
        for row in rows:
            share = 100 * layers[row.arm]
            look = styles[row.method, row.label]
            axes.plot(
                range(len(share)), share, color=look.colour, marker=look.marker, ms=5, lw=1.1,
                ls=look.line, mew=1.6 if look.thin else 0.4, markevery=max(1, len(share) // 8), alpha=0.9,
            )  # fmt: skip
        axes.set_title(f"budget {100 * retention:.4g} %")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _tidy(axes, "decoder layer", "video tokens entering, %")
    _legend(figure, every, styles, [])
    return figure


def thresholds(section: Section, stored: StoredRun) -> Figure | None:
    """Maps of the accuracy over tau_sim and tau_diff or two other swept parameters, one scale for all of them."""
    maps = threshold_maps(section, stored.arms)
    known = [cell for grid in maps for cell in grid.accuracy.ravel() if not math.isnan(cell)]
    if not known:
        return None
    figure, panels = _panels(len(maps))
    low, high = min(known), max(known)
    for axes, grid in zip(panels, maps, strict=False):
        image = axes.imshow(grid.accuracy, cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
        for y, x in np.ndindex(grid.accuracy.shape):
            value = grid.accuracy[y, x]
            dark = math.isnan(value) or value < (low + high) / 2
            text = "–" if math.isnan(value) else f"{value:.1f}"
            colour = "black" if math.isnan(value) or not dark else "white"
            axes.text(x, y, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(grid.similar)), grid.similar)
        axes.set_yticks(range(len(grid.different)), grid.different)
        axes.set_xlabel(greek(grid.names[0]))
        axes.set_ylabel(greek(grid.names[1]))
        axes.set_title(_wrapped(axes, greek(grid.title)))
    figure.colorbar(image, ax=panels, label="accuracy, %")
    return figure


def swept(section: Section) -> Figure | None:
    """The accuracy, with its interval, over each swept parameter: lines over numbers, bars of words; a panel each."""
    whole = next((row.overall for row in section.rows if row.method == "none"), math.nan)
    return _over(sweeps(section), whole)


def by_frames(sweeps: Sequence[Sweep], styles: Looks) -> Figure | None:
    """The accuracy of each arm, with its interval, over the number of frames; a panel a model and benchmark."""
    return _over(sweeps, math.nan, styles)


def _over(sweeps: Sequence[Sweep], whole: float, styles: Looks | None = None) -> Figure | None:
    """Lines and bars of sweeps; with ``styles`` in the colours of the methods, each budget with a line of its own."""
    if not sweeps:
        return None
    figure, panels = _panels(len(sweeps), beside=2, sharey=True)
    handles: list[Line2D] = []
    for axes, sweep in zip(panels, sweeps, strict=True):
        width = 0.8 / len(sweep.lines)
        for turn, (label, by) in enumerate(sweep.lines.items()):
            values, rows = zip(*sorted(by.items(), key=lambda line: sweep.values.index(line[0])), strict=True)
            again, place = divmod(len(handles), len(STYLES))
            drawn: Look | Style = STYLES[place]
            if styles:
                drawn = styles[rows[0].method, rows[0].label]
                again = sum(handle.get_color() == drawn.colour for handle in handles)
            look: dict[str, Any] = {"color": drawn.colour}
            y = [row.overall for row in rows]
            error = [
                [_distance(row.overall, row.ci_low) for row in rows],
                [_distance(row.ci_high, row.overall) for row in rows],
            ]
            if sweep.numbers:
                look |= {"marker": drawn.marker, "ls": ("-", "--", ":")[again % 3], "lw": 1.1}
                axes.errorbar(values, y, yerr=error, elinewidth=0.8, capsize=2, **look)
            else:
                x = [sweep.values.index(value) + width * (turn + 0.5) - 0.4 for value in values]
                axes.bar(
                    x, y, width=0.9 * width, yerr=error, hatch=("", "//", "..")[again % 3], **look,
                    error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": GREY},
                )  # fmt: skip
                look |= {"marker": "s", "ls": "none"}
            text = label if sweep.name == FRAMES else f"{sweep.name}: {label}"
            handles.append(Line2D([], [], label=_filled(figure, text), **look))
        if not math.isnan(whole):
            axes.axhline(whole, color=GREY, lw=0.8, ls="--")
        if not sweep.numbers:
            axes.set_xticks(range(len(sweep.values)), [str(value) for value in sweep.values])
        if sweep.name != FRAMES or len(sweeps) > 1:
            axes.set_title(sweep.method)
        _tidy(axes, greek(sweep.name), "accuracy, %\n(95 % interval)")
    if not math.isnan(whole):
        handles.append(Line2D([], [], color=GREY, lw=0.8, ls="--", label="all tokens"))
    _below(figure, handles)
    return figure


def by_value(section: Section, parts: Sequence[BreakdownRow], styles: Looks) -> Figure | None:
    """For each value of a column what every method loses against all tokens, with its interval; a panel a block. The
    accuracies themselves where there is nothing to compare with."""
    arms = {row.arm for row in section.rows}
    place = (section.model, section.benchmark, section.budget)
    rows = [part for part in parts if part.arm in arms and (part.model, part.benchmark, part.budget) == place]
    compared = [part for part in rows if not math.isnan(part.minus)]
    shown = compared or rows
    if not shown:
        return None
    heading = "accuracy minus all tokens, points" if compared else "accuracy, %"
    values = list(dict.fromkeys(part.value for part in rows))
    blocks = sorted({part.retention for part in shown}, reverse=True)
    figure, panels = _panels(len(blocks), tall=0.4 * len(values), sharey=True, sharex=True)
    for axes, retention in zip(panels, blocks, strict=True):
        block = [part for part in shown if part.retention == retention]
        labels = list(dict.fromkeys(part.label for part in block))
        for turn, label in enumerate(labels):
            mine = [part for part in block if part.label == label]
            look = styles[mine[0].method, label]
            x = [part.minus if compared else part.accuracy for part in mine]
            low = [part.minus_low if compared else part.ci_low for part in mine]
            high = [part.minus_high if compared else part.ci_high for part in mine]
            y = [values.index(part.value) + 0.7 * ((turn + 0.5) / len(labels) - 0.5) for part in mine]
            reach = [
                [_distance(a, b) for a, b in zip(x, low, strict=True)],
                [_distance(b, a) for a, b in zip(x, high, strict=True)],
            ]
            axes.errorbar(
                x,
                y,
                xerr=reach,
                color=look.colour,
                marker=look.marker,
                ms=5,
                ls="none",
                elinewidth=0.8,
                capsize=2,
            )
        if compared:
            axes.axvline(0, color=GREY, lw=0.8)
        axes.set_title(f"budget {100 * retention:.4g} %")
        counts = {part.value: part.n for part in rows}
        axes.set_yticks(range(len(values)), [f"{value} (n {counts[value]})" for value in values])
        _tidy(axes, f"{heading}, by {rows[0].column}", "")
    panels[0].set_ylim(len(values) - 0.5, -0.5)
    arms = {part.arm for part in shown}
    _legend(figure, [row for row in section.rows if row.arm in arms], styles, [])
    return figure


def _panels(count: int, beside: int = 3, tall: float = 0, **shared: bool) -> tuple[Figure, list[Axes]]:
    """A figure of the column's width with as many panels, side by side as far as there is room for them.

    Args:
        count: of panels.
        beside: how many of them may stand side by side.
        tall: height that a panel needs at least, in inches.
        shared: whether panels share an axis, as ``subplots`` takes it.
    """
    width = rcParams["figure.figsize"][0]
    columns = min(count, beside if width >= WIDE else max(1, beside - 1))
    lines = -(-count // columns)
    each = width / columns
    height = max(0.58 * each, 0.26 * rcParams["font.size"], tall)
    figure = Figure(figsize=(width, 0.3 + lines * height), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, **shared).ravel().tolist()
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _by_label(rows: list[TableRow]) -> dict[str, list[TableRow]]:
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(row.label, []).append(row)
    return groups


def by_moment(section: Section, moments: Sequence[MomentRow], styles: Looks) -> Figure | None:
    """Accuracy on the questions that have a moment against how much of it is kept, a mark an arm, with intervals."""
    rows = {row.arm: row for row in section.rows}
    place = (section.model, section.benchmark, section.budget)
    shown = [
        mark
        for mark in moments
        if mark.category == ALL and mark.arm in rows and (mark.model, mark.benchmark, mark.budget) == place
    ]
    if not shown:
        return None
    figure, (axes,) = _panels(1)
    for mark in shown:
        look = styles[mark.method, mark.label]
        x, y = mark.moment_kept, mark.accuracy
        reach = [[[100 * _distance(of.value, of.low)], [100 * _distance(of.high, of.value)]] for of in (x, y)]
        axes.errorbar(
            [100 * x.value], [100 * y.value], xerr=reach[0], yerr=reach[1], color=look.colour, marker=look.marker,
            ms=5, mec=look.colour, mew=1.6 if look.thin else 0.4, ls="none", elinewidth=0.6, capsize=2, alpha=0.9,
        )  # fmt: skip
    _tidy(axes, "moment kept, % of its tokens", "accuracy, %\n(questions with a moment)")
    _legend(figure, [rows[mark.arm] for mark in shown], styles, [])
    return figure


def _legend(figure: Figure, rows: list[TableRow], styles: Looks, extra: Sequence[Line2D]) -> None:
    """Every label with its look, below the panels; the figure gets taller with them."""
    handles = []
    for method, label in dict.fromkeys((row.method, row.label) for row in rows):
        look = styles[method, label]
        handles.append(
            Line2D(
                [], [], color=look.colour, marker=look.marker, ms=0.6 * rcParams["legend.fontsize"], lw=1.1,
                ls=look.line, mew=1.6 if look.thin else 0.4, label=_filled(figure, label),
            )
        )  # fmt: skip
    _below(figure, [*handles, *extra])


def _filled(figure: Figure, label: str) -> str:
    """A label of a legend on as many lines as the figure's width asks for."""
    width = figure.get_size_inches()[0]
    fitting = min(LONGEST, int((width - 0.6) / (0.56 * rcParams["legend.fontsize"] / 72)))
    return textwrap.fill(greek(label), fitting)


def _below(figure: Figure, handles: Sequence[Line2D]) -> None:
    width, height = figure.get_size_inches()
    for columns in (3, 2, 1):
        legend = figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=columns)
        if (box := legend.get_window_extent()).width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_size_inches(width, height + box.height / figure.dpi)


def _wrapped(axes: Axes, text: str) -> str:
    """Text on as many lines as a panel's width asks for."""
    place = axes.get_subplotspec()
    assert place is not None
    letter = 0.56 * rcParams["font.size"] / 72
    width = 0.75 * rcParams["figure.figsize"][0] / place.get_gridspec().ncols
    return textwrap.fill(text, int(width / letter))


def _tidy(axes: Axes, x: str, y: str) -> None:
    place = axes.get_subplotspec()
    assert place is not None
    axes.set_xlabel(_wrapped(axes, x))
    if place.is_first_col():
        axes.set_ylabel(y)
    axes.grid(True, color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
