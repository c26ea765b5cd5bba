"""Intervals and tests for accuracies: bootstrap clustered by video, McNemar in pairs, Holm's correction.

Questions on one video rise and fall together, so videos are resampled and never single questions. Everything
is a fraction in [0, 1]; who prints makes percent of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 2_000_000
"""Draws worked on at once: 16 MB, whatever the number of videos."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile interval, as fractions; the bounds are NaN for fewer than two videos."""

    value: float
    low: float
    high: float


def accuracy(correct: ArrayLike, videos: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Share of right answers with its 95 % percentile interval, videos resampled.

    The estimate of a resample is its right answers over its questions (a ratio of sums), so that a video with
    many questions weighs as much as it does in the accuracy itself. Where every answer is right, or every
    one wrong, the interval has no width: the bootstrap cannot see what never happened.

    Args:
        correct: ``(n,)`` booleans.
        videos: ``(n,)`` the video of each question.
        resamples: bootstrap resamples.
        seed: of the resampling; equal videos and seed give equal resamples for every arm.

    Raises:
        ValueError: nothing to average, or lengths that differ.
    """
    return _interval(np.asarray(correct, dtype=float), np.asarray(videos), resamples, seed)


def difference(
    first: ArrayLike, second: ArrayLike, videos: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Accuracy of ``first`` minus that of ``second`` on the same questions, videos resampled for both.

    Args:
        first: ``(n,)`` booleans of one arm.
        second: ``(n,)`` booleans of the other, same order of questions.
        videos: ``(n,)`` the video of each question.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: nothing to compare, or lengths that differ.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} answers against {second.size}: pairs need the same questions")
    return _interval(first - second, np.asarray(videos), resamples, seed)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p of McNemar's exact test: are the questions that only one arm got right evenly split?

    It takes questions as independent; with several on a video it is somewhat too sure, the clustered interval
    of ``difference`` is not.

    Args:
        first: ``(n,)`` booleans of one arm.
        second: ``(n,)`` booleans of the other, same order of questions.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} answers against {second.size}: pairs need the same questions")
    only_first = int(np.sum(first & ~second))
    discordant = only_first + int(np.sum(~first & second))
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; they control the family-wise error."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def _interval(values: NDArray[np.float64], videos: NDArray, resamples: int, seed: int) -> Interval:
    if not len(values) or len(values) != len(videos):
        raise ValueError(f"{len(values)} answers on {len(videos)} videos: need as many of both, at least one")
    _, cluster = np.unique(videos.astype(str), return_inverse=True)
    sums = np.bincount(cluster, weights=values)
    sizes = np.bincount(cluster).astype(float)
    value = float(sums.sum() / sizes.sum())
    if len(sizes) < 2:
        return Interval(value, float("nan"), float("nan"))
    drawn = _ratios(sums, sizes, _counts(len(sizes), resamples, seed))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _ratios(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], counts: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """``(resamples,)`` right answers over questions, of the videos that each resample drew."""
    columns = np.stack([sums, sizes], axis=1).astype(np.float32)  # whole numbers below 2**24: exact
    drawn = np.empty((len(counts), 2))
    step = max(1, _CHUNK // len(sizes))
    for start in range(0, len(counts), step):
        drawn[start : start + step] = counts[start : start + step].astype(np.float32) @ columns
    return drawn[:, 0] / drawn[:, 1]


@lru_cache(maxsize=1)
def _counts(videos: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """``(resamples, videos)``: how often each resample drew each video.

    All arms of a table share it: they have the same videos. A byte is enough: a count is about Poisson of mean
    one, and with fewer than 256 videos it cannot be more than their number.
    """
    generator = np.random.default_rng(seed)
    counts = np.empty((resamples, videos), dtype=np.uint8)
    step = max(1, _CHUNK // videos)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = generator.integers(0, videos, size=(rows, videos)) + videos * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(picks.ravel(), minlength=rows * videos).reshape(
            rows, videos
        )
    return counts
