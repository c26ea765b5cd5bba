"""One look for each method and each reason, in figures, plots, overlays and films alike.

Colours are of middle lightness, so that they can be told from white and from black paper, and chosen after Okabe and
Ito and after Tol for colour-blind readers; methods differ in their markers too.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stsimdiff.compressors import BUILTIN
from stsimdiff.report.arm import PROPOSED

if TYPE_CHECKING:
    from stsimdiff.report.section import TableRow


@dataclass(frozen=True)
class Style:
    """Colour, and the marker's name for matplotlib and for Plotly."""

    colour: str
    marker: str
    symbol: str


ENDS = {
    "none": Style("#808080", "_", "line-ew-open"),
    "no_video": Style("#808080", "x", "x-thin-open"),
}
STYLES = (
    Style("#B565C4", "X", "x"),
    Style("#7B6CDB", "o", "circle"),
    Style("#2679B8", ">", "triangle-right"),
    Style("#2F9355", "P", "cross"),
    Style("#9C9A3A", "v", "triangle-down"),
    Style("#56A9DC", "s", "square"),
    Style("#3FA796", "D", "diamond"),
    Style("#C79A3B", "^", "triangle-up"),
    Style("#CC6677", "<", "triangle-left"),
)
"""Of the built-in methods in the order of their names; further rounds have these markers in other colours."""
STAR = {PROPOSED: Style("#D55E00", "*", "star")}
GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of it round the circle of hues keep neighbours apart and come back to no hue."""


def _hex(hue: float, light: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue, min(max(light, 0.0), 1.0), saturation)
    return "#" + "".join(f"{round(255 * part):02X}" for part in parts)


def _builtin(number: int) -> Style:
    turn, place = divmod(number, len(STYLES))
    colour, *marker = vars(STYLES[place]).values()
    return Style(_hex((number + turn) * GOLDEN % 1, 0.48, 0.5) if turn else colour, *marker)


PLAIN = {PROPOSED: _builtin(len(BUILTIN))}
"""What it has where the run is about another method, which has the star."""
KNOWN = {
    **ENDS,
    **STAR,
    **{
        name: _builtin(number)
        for number, name in enumerate(name for name in BUILTIN if name not in {**ENDS, **STAR})
    },
}
OWN = (
    ("p", "pentagon"),
    ("h", "hexagon"),
    ("H", "hexagon2"),
    ("d", "diamond-tall"),
    ("8", "octagon"),
    ("1", "y-down-open"),
    ("2", "y-up-open"),
    ("3", "y-left-open"),
    ("4", "y-right-open"),
    ("+", "cross-thin-open"),
)
"""Markers for methods of users, by turns in the order of their names; no known method has one of them."""
OTHERS = tuple(
    Style(colour, *marker)
    for colour, marker in zip(("#A0522D", "#5B8C1F", "#D0508F", "#4F7F8C"), OWN, strict=False)
)
"""The first of them; the colours of further ones go round the circle of hues."""
LINES: tuple[tuple[str | tuple[int, tuple[int, ...]], str], ...] = (
    ("-", "solid"),
    ("--", "dash"),
    (":", "dot"),
    ("-.", "dashdot"),
    ((0, (9, 3)), "longdash"),
    ((0, (9, 3, 2, 3)), "longdashdot"),
)
"""Lines for matplotlib and for Plotly: those of a method's labels, by turns."""
LIGHTER = 0.27
"""How far in lightness, of 1, the shades of a method's labels go from its colour."""


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: the colour, marker and line of its label, for matplotlib and for Plotly."""

    colour: str
    marker: str
    symbol: str
    line: str | tuple[int, tuple[int, ...]]
    dash: str

    def plotly(self) -> dict[str, str]:
        """What the page's script draws the arm with."""
        return {"colour": self.colour, "symbol": self.symbol, "dash": self.dash}

    @property
    def thin(self) -> bool:
        """Whether the marker is made of strokes, and cannot be seen without an edge."""
        return self.marker in "_x+1234"


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
COVERS = {"dropped": 0.72, "all": 0.08, "others": 0.34}
"""How much of its reason's colour covers a token, in films and on the page."""
UNKNOWN_REASON = "#FF00FF"


def styles(methods: Iterable[str], proposed: str = PROPOSED) -> dict[str, Style]:
    """The style of each method, no two alike; one of a user's own has the same style in all figures of a run.

    Args:
        methods: their names.
        proposed: the one that has the star.
    """
    named = sorted(set(methods))
    others = [method for method in named if method not in KNOWN]
    star = next(iter(STAR.values()))
    known = {**KNOWN, **PLAIN, proposed: star}
    return {method: known.get(method) or _further_style(others.index(method)) for method in named}


def _further_style(number: int) -> Style:
    if number < len(OTHERS):
        return OTHERS[number]
    marker, symbol = OWN[number % len(OWN)]
    hue = number * GOLDEN % 1
    return Style(_hex(hue, 0.42 + 0.04 * (number // len(OWN) % 3), 0.5), marker, symbol)


def looks(rows: Iterable[TableRow]) -> dict[tuple[str, str], Look]:
    """The look of every method and label: the method's colour and marker, in a shade and with a line of its own."""
    labels: dict[str, list[str]] = {}
    proposed = PROPOSED
    for row in rows:
        proposed = row.method if row.proposed else proposed
        known = labels.setdefault(row.method, [])
        if row.label not in known:
            known.append(row.label)
    by_label = {}
    for method, style in styles(labels, proposed).items():
        for number, label in enumerate(labels[method]):
            line, dash = LINES[number % len(LINES)]
            colour = _shade(style.colour, number, len(labels[method]))
            by_label[method, label] = Look(colour, style.marker, style.symbol, line, dash)
    return by_label


def _shade(colour: str, number: int, of: int) -> str:
    """The colour itself, and for further labels by turns darker and lighter, the more of them the closer together."""
    if not number:
        return colour
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    steps = math.ceil((of - 1) / 2)
    away = LIGHTER * math.ceil(number / 2) / steps
    return _hex(hue, light - away if number % 2 else light + away, saturation)
