"""The statistics of the reports once more, from stored lines, written down as the formulas stand in books.

Plain Python, numpy and scipy's distributions; nothing of ``stsimdiff`` is imported here, so that an error there
cannot hide here too.
"""

import json
from collections import defaultdict
from math import ceil, comb, exp, inf, log, sqrt
from pathlib import Path

from scipy.stats import norm, t


def stored(run: Path) -> dict[str, dict]:
    """Arms by id: the record of each, and under ``rows`` its answers by question."""
    arms = {}
    for folder in sorted(run.iterdir()):
        if not (folder / "arm.json").is_file():
            continue
        record = json.loads((folder / "arm.json").read_text())
        record["rows"] = {}
        for path in sorted(folder.glob("answers*.jsonl")):
            for line in path.read_text().splitlines():
                if line.endswith("}"):
                    row = json.loads(line)
                    record["rows"][row["id"]] = row
        arms[record["arm"]] = record
    return arms


def common(arms: dict[str, dict]) -> list[str]:
    """Questions that every arm with an answer has answered."""
    answered = [{i for i, row in arm["rows"].items() if row["error"] is None} for arm in arms.values()]
    return sorted(set.intersection(*filter(None, answered)))


def by_video(values: list[float], videos: list[str]) -> list[tuple[float, int]]:
    """Sum and number of the values of each video."""
    found = defaultdict(list)
    for value, video in zip(values, videos, strict=True):
        found[video].append(value)
    return [(sum(some), len(some)) for some in found.values()]


def clustered_variance(values: list[float], videos: list[str], mean: float) -> float:
    """Variance of the mean of the values, videos independent, each residual corrected by its leverage."""
    n = len(values)
    return sum((s - mean * m) ** 2 / (1 - m / n) for s, m in by_video(values, videos)) / n**2


def freedom(videos: list[str]) -> float:
    sizes = [m for _, m in by_video([0.0] * len(videos), videos)]
    return max(sum(sizes) ** 2 / sum(m * m for m in sizes) - 1, 1)


def accuracy(right: list[bool], videos: list[str]) -> tuple[float, float, float]:
    """Share of right answers with its interval."""
    r = sum(right) / len(right)
    variance, quantile = clustered_variance(right, videos, r), t.ppf(0.975, freedom(videos))
    if variance > 1e-20:
        reach = quantile * sqrt(variance) / (r * (1 - r))
        ends = [log(r / (1 - r)) - reach, log(r / (1 - r)) + reach]
        return r, 1 / (1 + exp(-ends[0])), 1 / (1 + exp(-ends[1]))
    count = len(set(videos))
    middle = (r + quantile**2 / (2 * count)) / (1 + quantile**2 / count)
    half = quantile / (1 + quantile**2 / count) * sqrt(r * (1 - r) / count + quantile**2 / (4 * count**2))
    return r, min(r, middle - half), max(r, middle + half)


def difference(first: list[bool], second: list[bool], videos: list[str]) -> dict[str, float]:
    """A difference with its interval, both p-values, the share of discordant questions and the design effect."""
    n = len(first)
    gap = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
    # Half a question won and half a question lost, each on a video of its own.
    centre = sum(gap) / (n + 1)
    spread = sum((s - centre * m) ** 2 / (1 - m / n) for s, m in by_video(gap, videos))
    error = sqrt(spread + 0.5 * (1 - centre) ** 2 + 0.5 * (-1 - centre) ** 2) / (n + 1)
    reach = t.ppf(0.975, freedom(videos)) * error
    won, lost = gap.count(1), gap.count(-1)
    d = sum(gap) / n
    alone = ((won + lost) / n - d * d) / n
    return {
        "value": d,
        "low": max(-1, centre - reach),
        "high": min(1, centre + reach),
        "p_cluster": 2 * t.cdf(-abs(centre) / error, freedom(videos)),
        "p_mcnemar": mcnemar(won, lost),
        "discordant": (won + lost) / n,
        "effect": max(1.0, clustered_variance(gap, videos, d) / alone) if alone > 1e-12 else 1.0,
    }


def ratio(first: list[bool], second: list[bool], videos: list[str]) -> tuple[float, float, float]:
    """One accuracy over another: all ratios r for which a t test finds no difference between a and r times b."""
    n = len(first)

    def rejected(r: float) -> bool:
        gap = [a - r * b for a, b in zip(first, second, strict=True)]
        # Half a question that only the first got right, and half that only the second did.
        centre = (sum(gap) + 0.5 - 0.5 * r) / (n + 1)
        spread = sum((s - centre * m) ** 2 / (1 - m / n) for s, m in by_video(gap, videos))
        error = sqrt(spread + 0.5 * (1 - centre) ** 2 + 0.5 * (-r - centre) ** 2) / (n + 1)
        return abs(centre) > t.ppf(0.975, freedom(videos)) * error

    def end(inside: float, outside: float) -> float:
        assert rejected(outside) and not rejected(inside)
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    estimate = (sum(first) + 0.5) / (sum(second) + 0.5)
    return sum(first) / sum(second), end(estimate, 0.0) if rejected(0.0) else 0.0, end(estimate, 50.0)


def mcnemar(won: int, lost: int) -> float:
    n = won + lost
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(won, lost) + 1)) / 2**n)


def holm(p_values: list[float]) -> list[float]:
    """Holm's procedure as it is told: the smallest p against alpha / m, the next against alpha / (m - 1), ..."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, p_values[i] * (len(p_values) - step)))
        adjusted[i] = floor
    return adjusted


def needed(d: float, discordant: float, effect: float, alpha: float) -> float:
    """The smallest n that meets the inequality of the documentation, found by bisection."""
    if d == 0:
        return inf
    spread = norm.ppf(1 - alpha / 2) * sqrt(discordant) + norm.ppf(0.8) * sqrt(max(discordant - d * d, 0))

    def enough(n: float) -> bool:
        return n * abs(d) - 1 >= sqrt(n * effect) * spread

    low, high = 1.0, 2.0
    while not enough(high):
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return ceil(high - 1e-9)
