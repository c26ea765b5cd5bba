"""Intervals and tests against closed forms, exact enumeration and simulation."""

from itertools import product
from math import comb

import numpy as np
import pytest

from stsimdiff.report.statistics import accuracy, difference, holm, mcnemar


def unequal_clusters(generator: np.random.Generator, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers whose chance of being right belongs to the video; videos with 1 to 9 questions."""
    sizes = generator.integers(1, 10, videos)
    chances = np.repeat(generator.beta(2, 1, videos), sizes)
    return generator.random(sizes.sum()) < chances, np.repeat(np.arange(videos), sizes)


def linearised_error(values: np.ndarray, videos: np.ndarray) -> float:
    """Standard error of a ratio of sums over clusters (Cochran, Sampling Techniques, section 2.11)."""
    mean = values.mean()
    residuals = np.bincount(videos, weights=values - mean)
    return float(np.sqrt((residuals**2).sum()) / len(values))


def test_accuracy_is_the_share_of_right_answers_not_the_mean_of_videos() -> None:
    interval = accuracy([True] * 9 + [False], ["a"] * 9 + ["b"], resamples=200)
    assert interval.value == pytest.approx(0.9)


def test_resamples_of_three_videos_equal_the_enumeration_of_all_27() -> None:
    right, videos = np.array([1, 1, 0, 0, 0, 1], bool), np.array(["a", "a", "a", "b", "b", "c"])
    sums, sizes = np.array([2, 0, 1]), np.array([3, 2, 1])
    drawn = [sums[list(picks)].sum() / sizes[list(picks)].sum() for picks in product(range(3), repeat=3)]
    # "inverted_cdf" because both distributions have few steps: the quantiles fall on the same ones.
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    interval = accuracy(right, videos, resamples=20_000)
    assert interval.low == pytest.approx(low)
    assert interval.high == pytest.approx(high)


def test_width_is_the_closed_form_for_clusters_and_wider_than_for_single_questions() -> None:
    right, videos = unequal_clusters(np.random.default_rng(1), 400)
    interval = accuracy(right, videos)
    error = linearised_error(right.astype(float), videos)
    assert (interval.high - interval.low) == pytest.approx(2 * 1.96 * error, rel=0.05)
    independent = np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert error > 1.3 * independent


def test_interval_covers_the_truth_in_95_of_100_simulations() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        interval = accuracy(*unequal_clusters(generator, 60), resamples=400)
        covered += interval.low <= 2 / 3 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_difference_is_paired() -> None:
    generator = np.random.default_rng(3)
    second, videos = unequal_clusters(generator, 300)
    first = second.copy()
    first[generator.choice(len(first), 30, replace=False)] ^= True
    interval = difference(first, second, videos)
    gap = first.astype(float) - second
    assert interval.value == pytest.approx(first.mean() - second.mean())
    assert (interval.high - interval.low) == pytest.approx(2 * 1.96 * linearised_error(gap, videos), rel=0.07)
    alone = accuracy(first, videos)
    assert (interval.high - interval.low) < (alone.high - alone.low) / 2


def test_same_seed_same_interval_and_order_of_questions_does_not_matter() -> None:
    right, videos = unequal_clusters(np.random.default_rng(4), 50)
    turned = np.random.default_rng(5).permutation(len(right))
    assert accuracy(right, videos, seed=7) == accuracy(right[turned], videos[turned], seed=7)
    assert accuracy(right, videos, seed=7) != accuracy(right, videos, seed=8)


def test_one_video_has_no_interval() -> None:
    interval = accuracy([True, False], ["a", "a"])
    assert interval.value == 0.5
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize(("right", "videos"), [([], []), ([True], ["a", "b"])])
def test_nothing_or_unequal_lengths_are_refused(right: list, videos: list) -> None:
    with pytest.raises(ValueError, match="as many of both"):
        accuracy(right, videos)


def test_unequal_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="same questions"):
        difference([True], [True, False], ["a"])
    with pytest.raises(ValueError, match="same questions"):
        mcnemar([True], [True, False])


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 5), (2, 9), (10, 1), (0, 6)])
def test_mcnemar_is_the_exact_binomial_tail(only_first: int, only_second: int) -> None:
    first = np.array([1] * 20 + [1] * only_first + [0] * only_second, bool)
    second = np.array([1] * 20 + [0] * only_first + [1] * only_second, bool)
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_holm_is_the_worked_example_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_controls_the_family_wise_error() -> None:
    generator = np.random.default_rng(6)
    rejected = sum(min(holm(generator.random(10))) < 0.05 for _ in range(4000))
    assert rejected / 4000 == pytest.approx(0.05, abs=0.012)
