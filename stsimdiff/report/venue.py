"""How figures look in the papers of a venue: a column's width, the size of text, the kind of letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stsimdiff.errors import ConfigError
from stsimdiff.schema import suggestion


@dataclass(frozen=True)
class Venue:
    """Measures of a venue's style file.

    Attributes:
        width: of a column, in inches.
        text: size of the captions' text, in points; figures have it too.
        small: size of numbers at the axes and of legends, in points.
        letters: a family that matplotlib brings along.
    """

    width: float
    text: float
    small: float
    letters: str

    def settings(self) -> dict[str, Any]:
        """matplotlib's names for it."""
        return {
            "font.family": [self.letters, "DejaVu Sans"],
            "font.size": self.text,
            "axes.labelsize": self.text,
            "axes.titlesize": self.text,
            "figure.labelsize": self.text,
            "xtick.labelsize": self.small,
            "ytick.labelsize": self.small,
            "legend.fontsize": self.small,
            "legend.labelspacing": 0.3,
            "figure.figsize": (self.width, self.width),
            # Venues refuse letters of type 3.
            "pdf.fonttype": 42,
            # A dollar sign in a label is one.
            "text.parse_math": False,
        }


VENUES = {
    "plain": Venue(6.5, 10, 9, "DejaVu Sans"),
    "neurips": Venue(5.5, 9, 8, "STIXGeneral"),
    "cvpr": Venue(3.25, 9, 7.5, "STIXGeneral"),
}


def venue(name: str) -> Venue:
    """One by its name.

    Raises:
        ConfigError: for an unknown one.
    """
    if name not in VENUES:
        allowed = f"{', '.join(VENUES)}{suggestion(name, VENUES)}"
        raise ConfigError(f"style={name} is unknown; allowed: {allowed}")
    return VENUES[name]
