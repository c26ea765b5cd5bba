"""The latency protocol's numbers, from its stored measurements alone: medians, quartiles, and ratios to all tokens.

A ratio is made pair by pair: of the same question in the same repeat, so what slows a repeat down cancels out. Its
interval is that of the median by order statistics, at 95 %; measurements of one question are taken as independent.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import quantile_test

from stsimdiff.latency.measure import TIMES
from stsimdiff.resources import folder

PAPER = "efficiency_llava_video_r30.csv"
RATIOS = ("prefill", "first_token", "inference", "end_to_end", "peak_bytes")
"""What is compared with all tokens, as a share of theirs."""
IDENTITY = ("model", "family", "parameters", "benchmark", "frames", "method", "label", "budget")
"""What tells the lines of a table apart."""


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, or with the ends of its interval."""

    median: float
    low: float
    high: float

    @classmethod
    def quartiles(cls, values: Sequence[float]) -> Spread:
        """Of measurements."""
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(middle), float(low), float(high))

    @classmethod
    def interval(cls, values: Sequence[float]) -> Spread:
        """The median and its 95 % interval by order statistics; no interval for fewer than 6 values."""
        middle = statistics.median(values)
        if len(values) < 6:
            return cls(middle, math.nan, math.nan)
        bounds = quantile_test(values, q=middle, p=0.5).confidence_interval(0.95)
        return cls(middle, float(bounds.low), float(bounds.high))


@dataclass
class Line:
    """One arm of one pass.

    Attributes:
        of: the identity that its measurements share.
        n: measurements.
        error: why it failed, if it did.
        spreads: by name of a time, and ``peak_bytes`` where it was measured.
        ratios: to all tokens, by name; empty where that was not measured.
        flops: of a sample, the mean over questions, by part; ``None`` where it is not counted.
        tokens: kept video tokens over all, and ``compute`` likewise.
    """

    of: dict[str, Any]
    n: int = 0
    error: str | None = None
    spreads: dict[str, Spread] = field(default_factory=dict)
    ratios: dict[str, Spread] = field(default_factory=dict)
    flops: dict[str, float | None] = field(default_factory=dict)
    flops_ratio: float | None = None
    tokens: float = math.nan
    compute: float = math.nan
    kv_bytes: float = math.nan
    video_frames: int = 0


def summarise(rows: Iterable[dict[str, Any]]) -> list[Line]:
    """A line for each arm of each pass, in the order in which they were measured."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["pass"], row["arm"]), []).append(row)
    full = {key[0]: group for key, group in groups.items() if group[0]["method"] == "none"}
    lines = [_line(group, full.get(key[0], [])) for key, group in groups.items()]
    # An arm that failed while warming up has the first line of the file, not of the table.
    order = list(dict.fromkeys(line.of["pass"] for line in lines))
    return sorted(lines, key=lambda line: (order.index(line.of["pass"]), line.n == 0))


def _line(group: list[dict[str, Any]], full: list[dict[str, Any]]) -> Line:
    line = Line({key: group[0][key] for key in (*IDENTITY, "pass")})
    line.error = next((row["error"] for row in group if row["error"] is not None), None)
    measured = [row for row in group if row["error"] is None]
    line.n = len(measured)
    if not measured:
        return line
    for name in (*TIMES, "peak_bytes"):
        values = [_value(row, name) for row in measured]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            line.spreads[name] = Spread.quartiles(known)
    partner = {(row["question"], row["repeat"]): row for row in full if row["error"] is None}
    pairs = [(row, partner[key]) for row in measured if (key := (row["question"], row["repeat"])) in partner]
    for name in RATIOS:
        both = [(_value(row, name), _value(other, name)) for row, other in pairs]
        ratios = [a / b for a, b in both if a is not None and b]
        if both and len(ratios) == len(both):
            line.ratios[name] = Spread.interval(ratios)
    line.flops = {part: _mean([row["flops"][part] for row in measured]) for part in measured[0]["flops"]}
    if pairs and None not in line.flops.values():
        totals = [(_total(row), _total(other)) for row, other in pairs]
        counted = [(a, b) for a, b in totals if a is not None and b is not None]
        if len(counted) == len(totals):
            line.flops_ratio = sum(a for a, _ in counted) / sum(b for _, b in counted)
    line.tokens = statistics.mean(row["retention_tokens"] for row in measured)
    line.compute = statistics.mean(row["retention_compute"] for row in measured)
    line.kv_bytes = statistics.mean(row["kv_bytes"] for row in measured)
    line.video_frames = max(row["video_frames"] for row in measured)
    return line


def _value(row: dict[str, Any], name: str) -> float | None:
    return row["peak_bytes"] if name == "peak_bytes" else row["times"][name]


def _total(row: dict[str, Any]) -> int | None:
    parts = row["flops"].values()
    return None if None in parts else sum(parts)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class PaperComparison:
    """Our ST-SimDiff beside the paper's, at one number of frames; what the paper does not say is ``None``.

    Attributes:
        frames: of a video.
        line: ours.
        saving: share of the inference time that is saved against all tokens, with its interval.
        paper: the paper's row.
    """

    frames: int
    line: Line
    saving: Spread | None
    paper: dict[str, float | None]

    @property
    def same_model(self) -> bool:
        """Whether ours was measured on a model of the paper's family and size."""
        return self.line.of["family"] == "llava_video" and 7e9 < (self.line.of["parameters"] or 0) < 9e9


def beside_the_paper(lines: Sequence[Line]) -> list[PaperComparison]:
    """ST-SimDiff with the method's defaults, at about 30 %, for every number of frames that was measured."""
    with (folder("results_paper") / PAPER).open(encoding="utf-8") as stream:
        printed = {
            int(row["frames"]): {key: float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(stream)
        }
    comparisons = []
    for line in lines:
        if line.of["label"] != "st_simdiff" or line.of["budget"]["retention"] != 0.3 or line.error:
            continue
        ratio = line.ratios.get("inference")
        saving = Spread(1 - ratio.median, 1 - ratio.high, 1 - ratio.low) if ratio else None
        comparisons.append(
            PaperComparison(line.of["frames"], line, saving, printed.get(line.of["frames"], {}))
        )
    return comparisons
