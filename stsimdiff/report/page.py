"""The report as one page that needs nothing else: table, plots, provenance, failures and token overlays.

Everything that comes from data reaches the page as escaped text or as JSON that the page's script writes as text.
Template, style and scripts lie in ``web``.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

from stsimdiff.data.moments import cells
from stsimdiff.evaluate.store import shards
from stsimdiff.report import render
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.columns import columns, main_cells
from stsimdiff.report.overlays import Film, Overlay, OverlayArm, fitted, notes_on, read_films, read_overlays
from stsimdiff.report.palette import COVERS, REASONS, UNKNOWN_REASON, Look, looks
from stsimdiff.report.rows import StoredRun
from stsimdiff.report.section import Section
from stsimdiff.report.series import COSTS, by_layer, front, threshold_maps
from stsimdiff.report.table import Table
from stsimdiff.report.text import number

SCRIPTS = ("data.js", "table.js", "plots.js", "overlay.js")


def report_page(run_dir: Path, table: Table, stored: StoredRun, figures: Iterable[str]) -> str:
    """The text of ``report.html``.

    Args:
        run_dir: ``results/<run>``.
        table: the run's table.
        stored: its rows.
        figures: names of the files in ``figures/``; asked for last, as they may still be drawn.

    Raises:
        DataError: for stored overlays that are damaged.
    """
    overlays = read_overlays(stored, table.sections)
    films, lost = read_films(run_dir, overlays)
    films, smaller = fitted(films)
    labels = {row.arm: row.label for section in table.sections for row in section.rows}
    layers = {arm: (100 * share).tolist() for arm, share in by_layer(stored.samples).items()}
    styles = looks(row for section in table.sections for row in section.rows)
    plots = [_plot(section, stored, layers, styles) for section in table.sections]
    return _render(
        title=table.run,
        report={
            "about": list(map(dict, dict.fromkeys(_about(section, stored) for section in table.sections))),
            "sections": [_section(section) for section in table.sections],
            "retentions": sorted({row.retention for s in table.sections for row in s.rows}, reverse=True),
            "figures": lambda: sorted(name for name in figures if name.endswith(".svg")),
            "notes": table.notes,
            "failures": _failures(stored, table),
            "arms": [_arm(arm, labels.get(arm.id, arm.label)) for arm in stored.arms],
            "costs": {name: label for name, (label, _) in COSTS.items()},
        },
        overlays=overlays,
        films=films,
        notes=[*notes_on(overlays), *lost, *smaller],
        plots=plots,
    )


def overlay_page(title: str, overlays: Sequence[Overlay], films: Mapping[str, Film]) -> str:
    """A page of overlays alone."""
    return _render(title, None, overlays, films, notes=[], plots=[])


def _render(
    title: str,
    report: dict[str, Any] | None,
    overlays: Sequence[Overlay],
    films: Mapping[str, Film],
    *,
    notes: list[str],
    plots: list[dict[str, Any]],
) -> str:
    loader = jinja2.PackageLoader("stsimdiff.report", "web")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    data = {
        "overlays": [_overlay(overlay, films) for overlay in overlays],
        "films": {name: _film(film) for name, film in films.items()},
        "colours": REASONS,
        "unknown": UNKNOWN_REASON,
        "covers": COVERS,
        "plots": plots,
    }
    scripts = [_source(environment, name) for name in (SCRIPTS if report else ("data.js", "overlay.js"))]
    return environment.get_template("page.html.jinja").render(
        title=title,
        report=report,
        overlays=overlays,
        notes=notes,
        style=_source(environment, "page.css"),
        scripts=scripts,
        plotly=_plotly() if report else "",
        data=to_json(data),
    )


def to_json(data: Any) -> str:
    """JSON that may stand inside a ``script`` element; a number that is not finite becomes null."""
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@functools.cache
def _plotly() -> str:
    """The library that draws the plots, packed: the page unpacks and runs it once a plot is scrolled to."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode()


def _about(section: Section, stored: StoredRun) -> tuple[tuple[str, str], ...]:
    """What a reader must know first: what was asked of which model, when, and what it does not say."""
    arms = [arm for arm in stored.arms if arm.id in {row.arm for row in section.rows}]
    answered = [path.stat().st_mtime for arm in arms for path in shards(arm.folder)]
    day = f", answered {datetime.fromtimestamp(max(answered), timezone.utc):%Y-%m-%d}" if answered else ""
    n = max((row.n for row in section.rows), default=0)
    subject = f"{section.model} on {section.benchmark}: {n} questions{day}, protocol {arms[0].protocol_name}"
    note = next((line for line in section.about if line.startswith("Benchmark ")), "")
    return ("what", subject), ("note", note)


def _section(section: Section) -> dict[str, Any]:
    cells = main_cells(section)
    lines = [line for _, block in cells.blocks for line in block]
    return {
        "title": render.title(section),
        "headings": [cells.headings[0], "budget %", *cells.headings[1:]],
        "text_columns": [i for i, column in enumerate(columns(section), 2) if column.is_text],
        "rows": [
            {
                "arm": row.arm,
                "retention": row.retention,
                "kind": "fault" if row.fault else "best" if row.best else "",
                "cells": [line[0], number(100 * row.retention, ".4g"), *line[1:]],
            }
            for row, line in zip(section.rows, lines, strict=True)
        ],
        "pairs": pairs if (pairs := render.pair_cells(section)).blocks else None,
        "verdicts": section.verdicts,
        "pairs_note": render.pairs_note(section),
        "notes": section.notes,
        "about": section.about,
    }


def _plot(
    section: Section,
    stored: StoredRun,
    layers: dict[str, list[float]],
    styles: Mapping[tuple[str, str], Look],
) -> dict[str, Any]:
    return {
        "title": f"{section.model} on {section.benchmark}, budget of kind {section.budget}",
        "rows": [
            {
                "arm": row.arm,
                "method": row.method,
                "label": row.label,
                "retention": row.retention,
                "overall": row.overall,
                "low": row.ci_low,
                "high": row.ci_high,
                "cost": {name: x(row) for name, (_, x) in COSTS.items()},
                "layers": layers.get(row.arm),
                "look": styles[row.method, row.label].plotly(),
            }
            for row in section.rows
        ],
        "front": {name: front(section, name) for name in COSTS},
        "maps": [
            {"names": m.names, "title": m.title, "x": m.similar, "y": m.different, "z": m.accuracy.tolist()}
            for m in threshold_maps(section, stored.arms)
        ],
    }


def _failures(stored: StoredRun, table: Table) -> list[dict[str, Any]]:
    """Failed samples by arm, type and message, the most frequent first."""
    labels = {row.arm: row.label for section in table.sections for row in section.rows}
    failed = stored.samples[stored.samples["failed"]].fillna({"error_type": "", "error_message": ""})
    kinds = failed.groupby(["arm", "retention", "error_type", "error_message"], sort=False, dropna=False)[
        "id"
    ]
    failures = [
        {
            "arm": labels.get(arm, arm),
            "retention": f"{100 * retention:.4g}",
            "type": kind,
            "message": message,
            "count": len(ids),
            "first": ids.iloc[0],
        }
        for (arm, retention, kind, message), ids in kinds
    ]
    return sorted(failures, key=lambda kind: -kind["count"])


def _arm(arm: StoredArm, label: str) -> dict[str, str]:
    record = {name: value for name, value in arm.record.items() if name not in ("method", "label")}
    name = label if arm.reference else f"{label} at {100 * arm.retention:.4g} % ({arm.kind})"
    return {"name": name, "record": json.dumps(record, indent=2, ensure_ascii=False)}


def _overlay(overlay: Overlay, films: Mapping[str, Film]) -> dict[str, Any]:
    return {
        **{name: getattr(overlay, name) for name in ("anchor", "id", "benchmark", "category", "video")},
        "question": overlay.question,
        "target": overlay.target,
        "taken": [
            {
                **{
                    name: getattr(arm, name)
                    for name in ("arm", "name", "model", "answer", "correct", "lacking", "proposed")
                },
                **{name: getattr(arm, name) for name in ("film", "grid", "picture", "codes", "colours")},
                # Packed as it is stored: the page unpacks what it shows.
                "reason": arm.packed,
                "counts": {code: arm.reason.count(int(code)) for code in arm.codes},
                "evidence": _evidence(arm, films.get(arm.film)),
            }
            for arm in overlay.taken
        ],
    }


def _evidence(arm: OverlayArm, film: Film | None) -> dict[int, tuple[int, int, int, int]]:
    """The cells of what the question asks for: top, left, bottom, right, ends excluded, by the frame's place."""
    boxes = {}
    for place, index in enumerate(film.numbers if film else []):
        if index in arm.evidence:
            left, top, right, bottom = arm.evidence[index]
            rows, columns = cells((left, top, right, bottom), arm.picture["height"], arm.picture["width"])
            boxes[place] = rows.start, columns.start, rows.stop, columns.stop
    return boxes


def _film(film: Film) -> dict[str, Any]:
    jpegs = [base64.b64encode(jpeg).decode() for jpeg in film.jpegs]
    return {"jpegs": jpegs, "seconds": film.seconds}
