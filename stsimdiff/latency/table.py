"""How the latency protocol's numbers look: the tables in the terminal, ``efficiency.csv``, ``.md`` and ``.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.text import Text

from stsimdiff.errors import DataError
from stsimdiff.files import write_whole
from stsimdiff.latency.measure import TIMES
from stsimdiff.latency.measurements import read_measurements
from stsimdiff.latency.summary import IDENTITY, RATIOS, Line, Spread, beside_the_paper, summarise
from stsimdiff.report import text
from stsimdiff.report.text import Cell, Cells, number, terminal
from stsimdiff.terminal import Console

GIGA = 1e9
WIDE = 150
"""Width of the tables where no terminal says its own: a line is better long than cut."""
PARTS = ("vision", "projector", "compressor", "decoder", "head")

NOTE = (
    "Times in ms: median [quartiles]. decode: reading the frames; vision: tower, projector and pooling; compressor: by "
    "itself; prefill: decoder layers over the prompt, the compressor included; first token: from the frames "
    "in memory, preprocessing included; token: each further one; x: share of the time with all tokens, the median over "
    "pairs of the same question and repeat [95 % interval]. FLOPs %: from vision tower to first token, of all tokens'."
)


def make(run: Path, console: Console | None) -> list[Line]:
    """Write ``efficiency.csv``, ``.md`` and ``.json`` of a run and print the tables, if anything was measured.

    Raises:
        DataError: for a line that is no measurement, or a folder that cannot be written.
    """
    rows = read_measurements(run)
    if not rows:
        return []
    lines = summarise(rows)
    try:
        write_whole(run / "efficiency.csv", text.csv(pd.DataFrame(map(_flat, lines))))
        write_whole(run / "efficiency.md", markdown(lines, rows))
        write_whole(run / "efficiency.json", json.dumps(_jsonable(lines, rows), indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write the tables into {run}: {error.strerror}") from error
    if console is not None:
        console = console if console.is_terminal else Console(width=WIDE, file=console.file)
        show(lines, console)
        console.print(f"written to {run}/efficiency.csv, .md and .json", soft_wrap=True)
    return lines


def _milliseconds(spread: Spread) -> Cell:
    digits = 2 if spread.median < 0.01 else 1 if spread.median < 0.1 else 0
    quartiles = f" [{1000 * spread.low:.{digits}f}, {1000 * spread.high:.{digits}f}]"
    return number(1000 * spread.median, f".{digits}f", quartiles)


def _ratio(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell("")
    interval = "" if math.isnan(spread.low) else f" [{spread.low:.3f}, {spread.high:.3f}]"
    return number(spread.median, ".3f", interval)


Columns = Sequence[tuple[str, Callable[[Line], Cell]]]


def _budget(line: Line) -> Cell:
    budget = line.of["budget"]
    unbudgeted = line.of["method"] in ("none", "no_video")
    return Cell(
        "" if unbudgeted else f"{100 * budget['retention']:g} % {budget['kind']}", budget["retention"]
    )


def _time(name: str, line: Line) -> Cell:
    return _milliseconds(line.spreads[name])


TEXTS: Columns = (("method", lambda line: Cell(line.of["label"])), ("budget", _budget))
NUMBERS: Columns = (
    ("tokens %", lambda line: number(100 * line.tokens)),
    ("FLOPs %", lambda line: _number(line.flops_ratio, ".1f", 0.01)),
    ("n", lambda line: number(line.n, ".0f", " then failed" if line.error else "")),
    ("decode", partial(_time, "decode")),
    ("vision", partial(_time, "vision")),
    ("compressor", partial(_time, "compressor")),
    ("prefill", partial(_time, "prefill")),
    ("first token", partial(_time, "first_token")),
    ("token", partial(_time, "token")),
    ("end to end", partial(_time, "end_to_end")),
    ("peak GB", lambda line: _number(line.spreads.get("peak_bytes"), ".2f", GIGA)),
    ("first token x", lambda line: _ratio(line.ratios.get("first_token"))),
    ("end to end x", lambda line: _ratio(line.ratios.get("end_to_end"))),
)
"""The columns of the table; of an arm that failed at once there are words alone."""


def cells(group: Sequence[Line]) -> Cells:
    """The table of one pass."""
    lines = [
        [of(line) for _, of in TEXTS] + [of(line) if line.n else Cell("failed") for _, of in NUMBERS]
        for line in group
    ]
    return Cells([heading for heading, _ in (*TEXTS, *NUMBERS)], [("", lines)], text_columns=len(TEXTS))


def _sections(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    sections: dict[str, list[Line]] = {}
    for line in lines:
        sections.setdefault(line.of["pass"], []).append(line)
    titled = []
    for group in sections.values():
        of, read = group[0].of, max(line.video_frames for line in group)
        fewer = f" (the videos have {read})" if 0 < read < of["frames"] else ""
        titled.append((f"{of['model']} on {of['benchmark']}, {of['frames']} frames{fewer}", group))
    return titled


def _beside(lines: Sequence[Line]) -> Cells:
    heading = [
        "frames", "saving", "paper's", "seconds, all tokens", "paper's", "seconds, st_simdiff", "paper's",
        "peak GB, all tokens", "paper's", "peak GB, st_simdiff", "paper's",
    ]  # fmt: skip
    rows = []
    for comparison in beside_the_paper(lines):
        full = next(
            (
                line.spreads
                for line in lines
                if line.of["pass"] == comparison.line.of["pass"] and line.of["method"] == "none"
            ),
            {},
        )
        spreads, paper = comparison.line.spreads, comparison.paper
        rows.append(
            [
                number(comparison.frames, ".0f"),
                _ratio(comparison.saving),
                _number(paper.get("relative_saving"), ".3f"),
                _number(full.get("inference"), ".3f"),
                _number(paper.get("inference_seconds_all_tokens"), ".2f"),
                _number(spreads.get("inference"), ".3f"),
                _number(paper.get("inference_seconds_st_simdiff"), ".2f"),
                _number(full.get("peak_bytes"), ".2f", GIGA),
                _number(paper.get("peak_memory_gb_all_tokens"), ".1f"),
                _number(spreads.get("peak_bytes"), ".2f", GIGA),
                _number(paper.get("peak_memory_gb_st_simdiff"), ".1f"),
            ]
        )
    return Cells(heading, [("", rows)] if rows else [], text_columns=0)


def _number(value: Spread | float | None, form: str, unit: float = 1.0) -> Cell:
    """A number, or the median of a spread, or nothing where there is none."""
    value = value.median if isinstance(value, Spread) else value
    return number(None if value is None else value / unit, form, empty="")


def _paper_note(lines: Sequence[Line]) -> str:
    same = all(comparison.same_model for comparison in beside_the_paper(lines))
    other = "" if same else " Measured here was another model: for reference only."
    return (
        "ST-SimDiff at 30 % beside the paper's LLaVA-Video-7B (inference from the frames in memory to the last token; "
        f"what the paper does not print is left empty).{other}"
    )


def show(lines: Sequence[Line], console: Console) -> None:
    """Print the tables."""
    for title, group in _sections(lines):
        console.print(Text(title, style="bold"), soft_wrap=True)
        terminal(cells(group), console)
        if not any(line.of["method"] == "none" and line.n for line in group):
            console.print("no ratios: compressor=none was not measured in this pass")
        for line in group:
            if line.error:
                console.print(f"{line.of['label']} failed: {line.error}", soft_wrap=True)
        console.print()
    console.print(NOTE, soft_wrap=True)
    beside = _beside(lines)
    if beside.blocks:
        console.print()
        console.print(_paper_note(lines), soft_wrap=True)
        terminal(beside, console)


def markdown(lines: Sequence[Line], rows: Sequence[dict[str, Any]]) -> str:
    """The tables as ``efficiency.md`` holds them."""
    parts = ["# Efficiency\n"]
    for title, group in _sections(lines):
        parts.append(f"## {title}\n")
        parts.append(f"{text.markdown(cells(group))}\n")
        parts += [f"* {line.of['label']} failed: {line.error}\n" for line in group if line.error]
    parts.append(f"{NOTE}\n")
    beside = _beside(lines)
    if beside.blocks:
        parts.append(f"## Beside the paper\n\n{_paper_note(lines)}\n")
        parts.append(f"{text.markdown(beside)}\n")
    origins = {json.dumps(row["provenance"], sort_keys=True): row for row in rows if row["error"] is None}
    for row in origins.values():
        origin = row["provenance"]
        versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items() if version)
        parts.append(
            f"Measured on {row['machine']}; {origin['dtype']}, attention {origin['attention']}, git {origin['git']}, "
            f"peak memory: {row['peak_of']}; {versions}.\n"
        )
    return "\n".join(parts)


def _flat(line: Line) -> dict[str, Any]:
    flat: dict[str, Any] = {key: line.of[key] for key in IDENTITY if key != "budget"}
    flat |= {"budget": line.of["budget"]["kind"], "retention": line.of["budget"]["retention"]}
    flat |= {"video_frames": line.video_frames, "n": line.n, "error": line.error}
    flat |= {"retention_tokens": line.tokens, "retention_compute": line.compute}
    for name in (*TIMES, "peak_bytes"):
        spread = line.spreads.get(name, Spread(math.nan, math.nan, math.nan))
        unit = name if name == "peak_bytes" else f"{name}_seconds"
        flat |= {unit: spread.median, f"{unit}_q1": spread.low, f"{unit}_q3": spread.high}
    for name in RATIOS:
        spread = line.ratios.get(name, Spread(math.nan, math.nan, math.nan))
        flat |= {f"{name}_ratio": spread.median, f"{name}_ratio_low": spread.low}
        flat[f"{name}_ratio_high"] = spread.high
    flat |= {f"flops_{part}": line.flops.get(part) for part in PARTS}
    return flat | {"flops_ratio": line.flops_ratio, "kv_bytes": line.kv_bytes}


def _blank(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _jsonable(lines: Sequence[Line], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    flat = [{key: _blank(value) or None for key, value in _flat(line).items()} for line in lines]
    origins = {
        json.dumps([row["machine"], row["provenance"]], sort_keys=True) for row in rows if not row["error"]
    }
    return {
        "arms": flat,
        "measured_with": [json.loads(text) for text in sorted(origins)],
        "times": TIMES,
        "measurements": len(rows),
    }
