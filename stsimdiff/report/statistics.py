"""Intervals and tests for accuracies: everything counts videos, since the questions on one rise and fall together.

Everything is a fraction in [0, 1]; who prints makes percent of it. What was chosen, and why:

* **Accuracy**: a t interval on the log-odds scale with the cluster-robust standard error of a ratio of sums. That
  standard error is what resampling whole videos tends to, without the noise of the resampling. The percentile
  bootstrap over videos, which is what one usually sees, covers too seldom with few videos or few wrong answers:
  simulated, 89 to 97 of 100 intervals hold the truth, and 75 to 88 where fewer than about ten answers are wrong.
  This one: 94 to 96, and 93 to 99 there, where any interval is coarse (``tests/report/test_statistics.py`` repeats it).
* **Difference**: the same, paired, on the plain scale, with half a question won and half a question lost added
  (Agresti and Min, Statistics in Medicine 24, 2005), without which two arms that never differ would have an
  interval of no width.
* **Ratio**: of two accuracies on the same questions, by Fieller's theorem with the standard error of the difference:
  the interval holds every ratio that its t test does not reject, so it leaves out 1 where that of the difference leaves
  out zero, and only there.
* **Two tests of a difference**: McNemar's exact test, which takes questions as independent and so rejects up to 18 %
  of true null hypotheses at a nominal 5 % when they are not; and the t test that belongs to the interval. A
  difference is *significant* only in both: its p is the larger one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, expit, logit, ndtri, stdtr, stdtrit

from stsimdiff.video.parts import file_of

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8
_PSEUDO = 0.5
"""Questions won, and questions lost, that are added to every pair."""
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval, as fractions; the bounds are NaN for fewer than two videos."""

    value: float
    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Difference(Interval):
    """An arm's accuracy minus another's on the same questions.

    Attributes:
        p_cluster: two-sided p of the t test that belongs to the interval: below 0.05 where the interval leaves out
            zero. 1 for fewer than two videos.
        p_mcnemar: two-sided p of McNemar's exact test.
        discordant: share of the questions that only one of the two got right.
        design_effect: variance of the difference over what it were if questions were independent; at least 1.
    """

    p_cluster: float
    p_mcnemar: float
    discordant: float
    design_effect: float

    @property
    def p(self) -> float:
        """The larger of both p-values: a difference counts only where both tests see it."""
        return max(self.p_cluster, self.p_mcnemar)


def clusters(videos: Iterable[str]) -> NDArray[np.int_]:
    """``(n,)``: questions about one video have one number, also where they are about parts of it."""
    return np.unique([file_of(video) for video in videos], return_inverse=True)[1]


class Answers:
    """Right and wrong answers of several arms to the same questions on the same videos.

    Args:
        correct: ``(n, arms)`` booleans.
        videos: ``(n,)`` the video of each question.

    Raises:
        ValueError: nothing to average, or lengths that differ.
    """

    def __init__(self, correct: ArrayLike, videos: ArrayLike) -> None:
        correct, videos = np.asarray(correct, dtype=float), np.asarray(videos)
        if correct.ndim != 2 or not len(correct) or len(correct) != len(videos):
            raise ValueError(
                f"answers {correct.shape} on {len(videos)} videos: need (questions, arms) and a video for each question"
            )
        _, cluster = np.unique(videos, return_inverse=True)
        self.size = np.bincount(cluster).astype(float)
        """``(videos,)`` questions of each video."""
        self.right = np.zeros((len(self.size), correct.shape[1]))
        """``(videos, arms)`` right answers."""
        np.add.at(self.right, cluster, correct)
        self.both = correct.T @ correct
        """``(arms, arms)`` questions that both got right."""
        self.n = len(correct)
        self.effective = self.n**2 / float(np.sum(self.size**2))
        """Videos of equal size that would tell as much."""

    def accuracy(self, arm: int) -> Interval:
        """Share of right answers of one arm with its interval; see the module's docstring.

        Where the videos show no spread (all answers right, all wrong, all videos alike) the arm says nothing of how
        its answers cluster. Then it is Wilson's interval with each video taken as one answer, the most cautious
        assumption: what other arms show must not change this one's interval.
        """
        right = self.right[:, arm]
        value = float(right.sum()) / self.n
        if len(self.size) < 2:
            return Interval(value, math.nan, math.nan)
        error, quantile = self._error(right, value), self._quantile()
        if error < _ROUNDING:
            low, high = _wilson(value, len(self.size), quantile)
            return Interval(value, max(0.0, min(low, value)), min(1.0, max(high, value)))
        reach = quantile * error / (value * (1 - value))
        return Interval(value, float(expit(logit(value) - reach)), float(expit(logit(value) + reach)))

    def difference(self, first: int, second: int) -> Difference:
        """Accuracy of arm ``first`` minus that of ``second``, with interval and tests."""
        gap = self.right[:, first] - self.right[:, second]
        value = float(gap.sum()) / self.n
        won = self.both[first, first] - self.both[first, second]
        lost = self.both[second, second] - self.both[first, second]
        exact = mcnemar(int(won), int(lost))
        discordant = float(won + lost) / self.n
        if len(self.size) < 2:
            return Difference(value, math.nan, math.nan, 1.0, exact, discordant, 1.0)
        n = self.n + 2 * _PSEUDO
        centre = float(gap.sum()) / n
        added = _PSEUDO * ((1 - centre) ** 2 + (1 + centre) ** 2)
        error = math.sqrt((self._error(gap, centre) * self.n) ** 2 + added) / n
        reach = self._quantile() * error
        p = 2 * float(stdtr(self._freedom(), -abs(centre) / error))
        alone = (discordant - value**2) / self.n
        effect = self._error(gap, value) ** 2 / alone if alone > _ROUNDING else 1.0
        return Difference(
            value, max(-1.0, centre - reach), min(1.0, centre + reach), p, exact, discordant, max(1.0, effect)
        )

    def ratio(self, first: int, second: int) -> Interval:
        """Accuracy of arm ``first`` over that of ``second``; the bounds are NaN where the second may be zero."""
        above, below = self.right[:, first], self.right[:, second]
        value = float(above.sum() / below.sum()) if below.any() else math.nan
        if len(self.size) < 2:
            return Interval(value, math.nan, math.nan)
        n, weight = self.n + 2 * _PSEUDO, 1 / (1 - self.size / self.n)
        # As in a difference: half a question that only the first got right, and half that only the second did.
        sums = np.array([above.sum(), below.sum()]) + _PSEUDO
        means = sums / n
        residual = np.stack([above, below]) - means[:, None] * self.size
        added = np.eye(2) - means[:, None]
        spread = (residual * weight) @ residual.T + _PSEUDO * (added @ added.T)
        # All r with (a - r b)^2 <= t^2 (A - 2 r C + r^2 B): between the roots of a square.
        square = np.outer(sums, sums) - self._quantile() ** 2 * spread
        inside = square[0, 1] ** 2 - square[0, 0] * square[1, 1]
        if square[1, 1] <= 0 or inside < 0:
            return Interval(value, math.nan, math.nan)
        low, high = ((square[0, 1] + sign * math.sqrt(inside)) / square[1, 1] for sign in (-1, 1))
        return Interval(value, max(0.0, float(low)), float(high))

    def _error(self, sums: NDArray[np.float64], mean: float) -> float:
        """Standard error of ``sum(sums) / n``, videos independent.

        The residual of a video is divided by the root of 1 less its share of the questions (CR2, Bell and McCaffrey,
        Survey Methodology 28, 2002), as a large video pulls the mean towards itself.
        """
        residual = sums - mean * self.size
        return math.sqrt(float(np.sum(residual**2 / (1 - self.size / self.n)))) / self.n

    def _freedom(self) -> float:
        """Degrees of freedom of that standard error, by Bell and McCaffrey's rule: fewer for unequal videos."""
        return max(self.effective - 1, 1.0)

    def _quantile(self) -> float:
        return float(stdtrit(self._freedom(), 1 - ALPHA / 2))


def apart(correct: NDArray[np.float64], chosen: NDArray[np.bool_], videos: NDArray[Any]) -> Interval:
    """Accuracy on chosen questions minus that on the others, of the same videos or of others, with its interval.

    The error of the difference counts videos, as that of an accuracy does. Half the distance between bounds is that of
    shares to which a right and a wrong answer were added on each side (Agresti and Caffo, The American Statistician 54,
    2000), without which two sides of right answers alone would have an interval of no width.

    Args:
        correct: ``(n,)`` 0 or 1.
        chosen: ``(n,)``, some and not all.
        videos: ``(n,)`` the video of each question.
    """
    n = len(correct)
    value, centre, added, error = 0.0, 0.0, 0.0, np.zeros(n)
    for side, sign in ((chosen, 1), (~chosen, -1)):
        count = int(side.sum()) + 2
        mean = float(correct[side].sum() + 1) / count
        value, centre = value + sign * float(correct[side].mean()), centre + sign * mean
        added += ((1 - mean) ** 2 + mean**2) / count**2
        # The mean of these over all questions is that side's part of the difference, about its centre.
        error[side] = sign * n / count * (correct[side] - mean)
    answers = Answers(error[:, None], videos)
    if len(answers.size) < 2:
        return Interval(value, math.nan, math.nan)
    reach = answers._quantile() * math.sqrt(answers._error(answers.right[:, 0], 0.0) ** 2 + added)
    return Interval(value, max(-1.0, centre - reach), min(1.0, centre + reach))


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: are the questions that only one arm got right evenly split?

    Args:
        won: questions that only the first arm got right.
        lost: questions that only the second got right.
    """
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; they control the family-wise error.

    As statsmodels' ``multipletests``, which collects garbage at every call: a third of a second here.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def questions_needed(
    value: float, discordant: float, design_effect: float = 1.0, alpha: float = ALPHA
) -> float:
    """Questions from which on a test of level ``alpha`` sees such a difference with probability :data:`POWER`.

    With d the difference, psi the share of discordant questions, D the design effect and z normal quantiles: the
    smallest n with ::

        n |d| - 1 >= sqrt(n D) A,    A = z(1 - alpha / 2) sqrt(psi) + z(POWER) sqrt(psi - d^2)

    the sample size of McNemar's test (Connor, Biometrics 43, 1987) with the exact test's continuity correction and
    the variance that clustering leaves. It supposes that difference, discordance and questions in a video stay as
    they were seen. Infinite where no difference was seen.

    Args:
        value: difference as a fraction.
        discordant: share of the questions that only one of the two got right.
        design_effect: as in :class:`Difference`.
        alpha: two-sided level of the test.
    """
    gap = abs(value)
    if gap < _ROUNDING:
        return math.inf
    spread = ndtri(1 - alpha / 2) * math.sqrt(discordant)
    spread += ndtri(POWER) * math.sqrt(max(discordant - gap**2, 0.0))
    spread *= math.sqrt(design_effect)
    return float(math.ceil(((spread + math.sqrt(spread**2 + 4 * gap)) / (2 * gap)) ** 2))


def _wilson(value: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share among ``n`` independent answers."""
    square = quantile**2 / n
    centre = (value + square / 2) / (1 + square)
    reach = quantile / (1 + square) * math.sqrt(value * (1 - value) / n + square / (4 * n))
    return centre - reach, centre + reach
