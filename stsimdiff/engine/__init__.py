"""Tokens are dropped inside a stock decoder, while it runs; what a method is given there is lent to it."""

from __future__ import annotations

from stsimdiff.engine.compression import Compression, Decoder, synchronise
from stsimdiff.trace import Stage, Trace

__all__ = ["Compression", "Decoder", "Stage", "Trace", "synchronise"]
