"""What is plotted of a table, as numbers: the Pareto front, retention by layer, swept parameters alone and by twos.

How it is drawn stands in ``figures`` (files) and in the page's own script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stsimdiff.report.arm import StoredArm
from stsimdiff.report.labels import order
from stsimdiff.report.section import Section, TableRow

FORMATS = ("pdf", "svg", "png")
NAMES = (
    "accuracy_flops", "accuracy_retention", "accuracy_latency", "retention_by_layer", "thresholds", "swept",
    "breakdown", "moments",
)  # fmt: skip
"""The figures' files, and how their names begin; known without drawing any."""
FRAMES = "frames"
"""The figure of all tables of a run together."""

COSTS: dict[str, tuple[str, Callable[[TableRow], float]]] = {
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
        samples: what ``rows.read_samples`` returns.
    """
    shares = {}
    answered = samples[
        ~samples["failed"] & samples["tokens_per_layer"].notna() & (samples["video_tokens"] > 0)
    ]
    for arm, rows in answered.groupby("arm", sort=False):
        counts = np.array(rows["tokens_per_layer"].tolist(), dtype=float)
        shares[arm] = (counts / rows["video_tokens"].to_numpy(float)[:, None]).mean(axis=0)
    return shares


@dataclass(frozen=True)
class ThresholdMap:
    """Accuracies in percent over two parameters; NaN where there is no arm.

    Attributes:
        names: ``tau_sim`` and ``tau_diff``, or the two parameters that were swept.
        title: the method, its retention and what else of its parameters is not the default.
        similar: values of the first, the columns.
        different: values of the second, the rows.
        accuracy: ``(rows, columns)``.
    """

    names: tuple[str, str]
    title: str
    similar: list[str]
    different: list[str]
    accuracy: np.ndarray


def threshold_maps(section: Section, arms: Sequence[StoredArm]) -> list[ThresholdMap]:
    """One map for each method, retention and setting of all other parameters, where a threshold or two others were
    swept."""
    parameters = {arm.id: arm.compressor for arm in arms}
    pairs = {method: _pair(rows) for method, rows in _methods(section).items()}
    groups: dict[tuple, list[TableRow]] = {}
    for row in section.rows:
        values, names = parameters.get(row.arm), pairs[row.method]
        if values and names and all(name in values for name in names):
            rest = {key: value for key, value in values.items() if key not in names}
            key = (row.method, row.retention, json.dumps(rest, sort_keys=True), row.settings)
            groups.setdefault(key, []).append(row)
    maps = []
    for (method, retention, *_), rows in groups.items():
        names = pairs[method] or THRESHOLDS
        cells = {tuple(parameters[row.arm][name] for name in names): row.overall for row in rows}
        similar, different = (sorted({cell[i] for cell in cells}, key=order) for i in (0, 1))
        if len(cells) < 2:
            continue
        grid = np.array([[cells.get((s, d), math.nan) for s in similar] for d in different], dtype=float)
        title = " ".join([method, *_rest(rows[0], names), f"at {100 * retention:.4g} %"])
        maps.append(
            ThresholdMap(
                names, title, [_value_text(s) for s in similar], [_value_text(d) for d in different], grid
            )
        )
    return maps


def _methods(section: Section) -> dict[str, list[TableRow]]:
    groups: dict[str, list[TableRow]] = {}
    for row in section.rows:
        groups.setdefault(row.method, []).append(row)
    return groups


def _pair(rows: Iterable[TableRow]) -> tuple[str, str] | None:
    """The parameters that a method's map is over."""
    swept = list(dict.fromkeys(name for row in rows for name in row.swept))
    if set(swept).isdisjoint(THRESHOLDS):
        return (swept[0], swept[1]) if len(swept) == 2 else None
    return THRESHOLDS


def _rest(row: TableRow, names: Iterable[str]) -> list[str]:
    """What a row's label says beside the values of these parameters."""
    return [
        part for part in row.label.split()[1:] if not part.startswith((*(f"{name}=" for name in names), "#"))
    ]


@dataclass(frozen=True)
class Sweep:
    """A method's rows along one of its parameters.

    Attributes:
        values: of the parameter, in order.
        lines: by what else the rows differ in, the row at each value.
    """

    method: str
    name: str
    values: list[Any]
    lines: dict[str, dict[Any, TableRow]]

    @property
    def numbers(self) -> bool:
        """Whether the parameter is a number, and no word or switch."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)


def sweeps(section: Section) -> list[Sweep]:
    """For each parameter that was swept the rows that differ in nothing else, where there are two."""
    results = []
    for method, rows in _methods(section).items():
        for name in dict.fromkeys(name for row in rows for name in row.swept):
            groups: dict[tuple, dict[Any, TableRow]] = {}
            for row in rows:
                if not math.isnan(row.overall):
                    rest = {key: value for key, value in row.swept.items() if key != name}
                    key = (json.dumps(rest, sort_keys=True), row.settings, row.retention)
                    groups.setdefault(key, {})[row.swept[name]] = row
            lines = {
                " ".join([*_rest(row, (name,)), f"at {100 * row.retention:.4g} %"]): group
                for group in groups.values()
                if len(group) > 1
                for row in (next(iter(group.values())),)
            }
            if lines:
                values = sorted({value for group in lines.values() for value in group}, key=order)
                results.append(Sweep(method, name, values, lines))
    return results


def over_frames(sections: Iterable[Section], arms: Iterable[StoredArm]) -> list[Sweep]:
    """The rows of each label and retention along the number of frames, where tables differ in nothing else."""
    known = {arm.id: arm for arm in arms}
    groups: dict[tuple, dict[str, dict[Any, TableRow]]] = {}
    for section in sections:
        for row in section.rows:
            arm = known[row.arm]
            model = arm.record["model"]
            if model.get("frames") is None or math.isnan(row.overall):
                continue
            shown = (model.get("sampling"), model.get("fps"), arm.protocol.get("name"))
            key = (arm.model[0], section.benchmark, section.budget, arm.model[1], *shown)
            label = row.label if row.reference else f"{row.label} at {100 * row.retention:.4g} %"
            groups.setdefault(key, {}).setdefault(label, {})[model["frames"]] = row
    results = []
    for (model, benchmark, *_), lines in groups.items():
        several = {label: by for label, by in lines.items() if len(by) > 1}
        values = sorted({value for by in several.values() for value in by})
        if several:
            results.append(Sweep(f"{model} on {benchmark}", FRAMES, values, several))
    return results


def _value_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
