"""One look for each method and each reason, in figures, plots, overlays and films alike.

Colours are of middle lightness, so that they can be told from white and from black paper, and chosen after Okabe and
Ito and after Tol for colour-blind readers; methods differ in their markers too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """Colour, and the marker's name for matplotlib and for Plotly."""

    colour: str
    marker: str
    symbol: str


KNOWN = {
    "none": Style("#808080", "_", "line-ew-open"),
    "no_video": Style("#808080", "x", "x-thin-open"),
    "random": Style("#9C9A3A", "v", "triangle-down"),
    "uniform_frames": Style("#C79A3B", "^", "triangle-up"),
    "spatial_pool": Style("#56A9DC", "s", "square"),
    "temporal_difference": Style("#3FA796", "D", "diamond"),
    "fastervlm": Style("#B565C4", "X", "x"),
    "fastv": Style("#7B6CDB", "o", "circle"),
    "framefusion": Style("#2679B8", ">", "triangle-right"),
    "prumerge": Style("#2F9355", "P", "cross"),
    "visionzip": Style("#CC6677", "<", "triangle-left"),
    "st_simdiff": Style("#D55E00", "*", "star"),
}
OTHERS = (
    *(Style("#A0522D", "p", "pentagon"), Style("#5B8C1F", "h", "hexagon")),
    *(Style("#D0508F", "H", "hexagon2"), Style("#4F7F8C", "d", "diamond-tall")),
)
"""For methods of users, by turns in the order of their names."""

REASONS = {
    "dropped": "#000000",
    "all": "#FFFFFF",
    "representative": "#56B4E9",
    "event": "#D55E00",
    "important": "#F0E442",
    "contextual": "#009E73",
    "uniform": "#E69F00",
    "random": "#CC79A7",
    "ungrouped": "#A9A9A9",
    "merged": "#0072B2",
}
UNKNOWN_REASON = "#FF00FF"


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """The style of each method; one of a user's own has the same style in all figures of a run."""
    named = sorted(set(methods))
    own = [method for method in named if method not in KNOWN]
    return {method: KNOWN.get(method) or OTHERS[own.index(method) % len(OTHERS)] for method in named}
