"""Checks of a method's parameters; the message names the value, what is allowed, and an example."""

from __future__ import annotations

import math
from typing import Any

from stsimdiff.errors import ConfigError


def switch(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise ConfigError(f"compressor.{name}={value!r} is unknown; allowed: true, false")


def number(name: str, value: Any, low: float, high: float, example: float, or_word: str = "") -> None:
    """Refuse what is no number in [low, high], nor the one word that may stand for it."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not right and not (or_word and value == or_word):
        span = f"from {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        word = f"{or_word}, or " if or_word else ""
        raise ConfigError(
            f"compressor.{name}={value!r} is out of range; allowed: {word}a number {span}; for example {example:g}"
        )


def whole(name: str, value: Any, low: int, example: int) -> None:
    """Refuse what is no whole number from ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(
            f"compressor.{name}={value!r} is out of range; allowed: {low}, {low + 1}, ...; for example {example}"
        )
