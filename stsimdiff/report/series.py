"""What is plotted of a table, as numbers: the Pareto front, retention by layer, grids of thresholds.

How it is drawn stands in ``figures`` (files) and in the page's own script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stsimdiff.report.arm import StoredArm
from stsimdiff.report.labels import order
from stsimdiff.report.section import Row, Section

FORMATS = ("pdf", "svg", "png")
NAMES = (
    *("accuracy_flops", "accuracy_retention", "accuracy_latency", "retention_by_layer", "thresholds"),
    "breakdown",
)
"""The figures' files, and how their names begin; known without drawing any."""

COSTS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "flops": ("LLM prefill FLOPs, % of all tokens", lambda row: 100 * row.values["llm_flops_ratio"]),
    "tokens": ("video tokens kept after the last drop, %", lambda row: 100 * row.retention_tokens),
    "compute": ("video tokens kept, mean over the layers, %", lambda row: 100 * row.retention_compute),
    "latency": (
        "prefill in this run, median ms (an indication)",
        lambda row: row.values["prefill_ms"],
    ),
}
"""What accuracy is plotted against: the axis and how a row gives it."""
THRESHOLDS = ("tau_sim", "tau_diff")


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, accuracy) that no other beats in both, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not math.isnan(cost + accuracy) and (not front or accuracy > front[-1][1]):
            front.append((cost, accuracy))
    return front


def front(section: Section, cost: str) -> list[tuple[float, float]]:
    """The Pareto front of a section; ``no_video`` sees nothing and takes no part."""
    _, x = COSTS[cost]
    return pareto((x(row), row.overall) for row in section.rows if row.method != "no_video")


def by_layer(samples: pd.DataFrame) -> dict[str, np.ndarray]:
    """For each arm ``(L,)``: video tokens entering each layer as a share of all, mean over its answers.

    Args:
        samples: what ``rows.load`` returns.
    """
    found = {}
    answered = samples[
        ~samples["failed"] & samples["tokens_per_layer"].notna() & (samples["video_tokens"] > 0)
    ]
    for arm, rows in answered.groupby("arm", sort=False):
        counts = np.array(rows["tokens_per_layer"].tolist(), dtype=float)
        found[arm] = (counts / rows["video_tokens"].to_numpy(float)[:, None]).mean(axis=0)
    return found


@dataclass(frozen=True)
class ThresholdMap:
    """Accuracies in percent over two thresholds; NaN where there is no arm.

    Attributes:
        title: the method, its retention and what else of its parameters is not the default.
        similar: values of ``tau_sim``, the columns.
        different: values of ``tau_diff``, the rows.
        accuracy: ``(rows, columns)``.
    """

    title: str
    similar: list[str]
    different: list[str]
    accuracy: np.ndarray


def threshold_maps(section: Section, arms: Sequence[StoredArm]) -> list[ThresholdMap]:
    """One map for each method, retention and setting of all other parameters, where a threshold was swept."""
    parameters = {arm.id: arm.compressor for arm in arms}
    groups: dict[tuple, list[Row]] = {}
    for row in section.rows:
        given = parameters.get(row.arm)
        if given and all(name in given for name in THRESHOLDS):
            rest = {key: value for key, value in given.items() if key not in THRESHOLDS}
            key = (row.method, row.retention, json.dumps(rest, sort_keys=True), row.settings)
            groups.setdefault(key, []).append(row)
    maps = []
    for (method, retention, *_), rows in groups.items():
        cells = {tuple(parameters[row.arm][name] for name in THRESHOLDS): row.overall for row in rows}
        similar, different = (sorted({cell[i] for cell in cells}, key=order) for i in (0, 1))
        if len(cells) < 2:
            continue
        grid = np.array([[cells.get((s, d), math.nan) for s in similar] for d in different], dtype=float)
        own = [part for part in rows[0].label.split()[1:] if not part.startswith(THRESHOLDS + ("#",))]
        title = " ".join([method, *own, f"at {100 * retention:.4g} %"])
        maps.append(ThresholdMap(title, [_said(s) for s in similar], [_said(d) for d in different], grid))
    return maps


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
