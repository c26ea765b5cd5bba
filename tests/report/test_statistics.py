"""Intervals and tests against closed forms, other code and simulation."""

from math import comb, inf

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from helpers import recomputed
from stsimdiff.report.statistics import (
    ALPHA,
    Answers,
    Difference,
    Interval,
    clusters,
    holm,
    mcnemar,
    questions_needed,
)


def accuracy(correct, videos) -> Interval:
    return Answers(np.asarray(correct)[:, None], videos).accuracy(0)


def difference(first, second, videos) -> Difference:
    return Answers(np.stack([first, second], axis=1), videos).difference(0, 1)


EQUAL, THREES, SINGLE = np.full(112, 8), np.full(200, 3), np.ones(150, int)
UNEQUAL = np.random.default_rng(8).integers(1, 10, 60)
FEW = np.random.default_rng(9).integers(1, 10, 12)


def videos_of(sizes: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def clustered(generator: np.random.Generator, sizes: np.ndarray, share: float, rho: float) -> np.ndarray:
    """Answers of which a ``share`` is right, correlated by ``rho`` within a video (beta-binomial)."""
    strength = 1 / rho - 1
    chances = generator.beta(share * strength, (1 - share) * strength, len(sizes))
    return generator.random(sizes.sum()) < np.repeat(chances, sizes)


def pair(generator: np.random.Generator, sizes: np.ndarray, discordant: float, gap: float, rho: float):
    """Two arms that differ on a share of the questions; who wins there is correlated within a video."""
    won, lost = (discordant + gap) / 2, (discordant - gap) / 2
    chances = generator.dirichlet(np.array([won, lost, 1 - discordant]) * (1 / rho - 1), len(sizes))
    chances = np.repeat(chances, sizes, axis=0)
    draw = generator.random(len(chances))
    first = draw < chances[:, 0]
    second = ~first & (draw < chances[:, 0] + chances[:, 1])
    return first, second


def coverage(sizes: np.ndarray, share: float, rho: float, data_sets: int = 5000) -> float:
    generator, videos, covered = np.random.default_rng(1), videos_of(sizes), 0
    for _ in range(data_sets):
        interval = accuracy(clustered(generator, sizes, share, rho), videos)
        covered += interval.low <= share <= interval.high
    return covered / data_sets


@pytest.mark.parametrize(
    ("sizes", "share", "rho"),
    [
        (EQUAL, 0.9, 0.2),
        (EQUAL, 0.97, 0.1),
        (UNEQUAL, 0.67, 0.25),
        (UNEQUAL, 0.9, 0.2),
        (FEW, 0.8, 0.2),
        (THREES, 0.95, 0.1),
        (SINGLE, 0.8, 0.01),
    ],
)
def test_coverage_of_an_accuracy_is_within_a_point_of_95(sizes: np.ndarray, share: float, rho: float) -> None:
    assert coverage(sizes, share, rho) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(
    ("sizes", "share", "rho"),
    [
        (EQUAL, 0.996, 0.01),
        (EQUAL, 0.995, 0.3),
        (FEW, 0.95, 0.2),
        (UNEQUAL, 0.98, 0.2),
        (SINGLE[:50], 0.97, 0.01),
    ],
)
def test_with_a_handful_of_wrong_answers_an_interval_errs_to_the_wide_side(
    sizes: np.ndarray, share: float, rho: float
) -> None:
    # So few outcomes are possible that none covers 95 %; a percentile bootstrap is at 75 to 88 here.
    assert 0.93 <= coverage(sizes, share, rho, 1000) <= 0.995


@pytest.mark.parametrize(
    ("sizes", "discordant", "gap", "rho", "reach"),
    [
        (EQUAL, 0.1, 0.03, 0.2, 0.01),
        (UNEQUAL, 0.2, 0.05, 0.25, 0.01),
        (FEW, 0.3, 0.1, 0.2, 0.015),
        (SINGLE, 0.1, 0.05, 0.01, 0.015),
        (EQUAL, 0.01, 0.005, 0.1, 0.03),
    ],
)
def test_coverage_of_a_difference(sizes, discordant: float, gap: float, rho: float, reach: float) -> None:
    generator, videos, covered = np.random.default_rng(3), videos_of(sizes), 0
    for _ in range(2000):
        found = difference(*pair(generator, sizes, discordant, gap, rho), videos)
        covered += found.low <= gap <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=reach)


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL, FEW], ids=["equal", "unequal", "few"])
@pytest.mark.parametrize(("low", "high"), [(0.45, 0.5), (0.3, 0.9), (0.9, 0.92)])
def test_coverage_of_a_ratio(sizes, low: float, high: float) -> None:
    """Two arms whose answers cluster by video, in common and each alone."""
    generator, videos, covered, data_sets = np.random.default_rng(2), videos_of(sizes), 0, 1000
    for _ in range(data_sets):
        common = generator.normal(size=len(sizes))
        right = []
        for share in (low, high):
            ease = np.sqrt(0.2) * common + np.sqrt(0.1) * generator.normal(size=len(sizes))
            noise = np.sqrt(0.7) * generator.normal(size=len(videos))
            right.append(np.repeat(ease, sizes) + noise < stats.norm.ppf(share))
        found = Answers(np.stack(right, axis=1), videos).ratio(0, 1)
        covered += found.low <= low / high <= found.high
    assert 0.93 <= covered / data_sets <= 0.975


def test_a_ratio_leaves_out_1_where_its_difference_leaves_out_zero() -> None:
    generator, videos, apart = np.random.default_rng(3), videos_of(FEW), []
    for _ in range(300):
        right = generator.random((FEW.sum(), 2)) < [0.5, 0.65]
        answers = Answers(right, videos)
        gap, share = answers.difference(0, 1), answers.ratio(0, 1)
        assert (gap.low <= 0 <= gap.high) == (share.low <= 1 <= share.high)
        if len(apart) < 5:
            again = recomputed.ratio(*right.T.tolist(), videos.tolist())
            assert (share.value, share.low, share.high) == pytest.approx(again, abs=1e-6)
        apart.append(not share.low <= 1 <= share.high)
    assert 0.1 < np.mean(apart) < 0.9


def test_a_ratio_to_nothing_right_has_no_value_and_no_bounds() -> None:
    found = Answers(np.array([[True, False]] * 8), np.arange(8) // 2).ratio(0, 1)
    assert np.isnan([found.value, found.low, found.high]).all()


def test_clusters_fool_mcnemar_but_not_what_decides() -> None:
    generator, videos = np.random.default_rng(4), videos_of(EQUAL)
    found = [difference(*pair(generator, EQUAL, 0.1, 0.0, 0.2), videos) for _ in range(1000)]
    assert np.mean([one.p_mcnemar < ALPHA for one in found]) > 0.12
    assert np.mean([one.p < ALPHA for one in found]) < 0.06


def test_interval_and_its_test_say_the_same() -> None:
    generator, videos = np.random.default_rng(5), videos_of(UNEQUAL)
    found = [difference(*pair(generator, UNEQUAL, 0.2, 0.06, 0.1), videos) for _ in range(200)]
    leaves_out_zero = [one.low > 0 or one.high < 0 for one in found]
    assert leaves_out_zero == [one.p_cluster < ALPHA for one in found]
    assert 20 < sum(leaves_out_zero) < 180


def test_standard_error_is_what_resampling_videos_tends_to() -> None:
    generator = np.random.default_rng(6)
    right, videos = clustered(generator, UNEQUAL, 0.7, 0.2), videos_of(UNEQUAL)
    sums, sizes = np.bincount(videos, weights=right), np.bincount(videos)
    picks = generator.integers(0, len(sizes), (20_000, len(sizes)))
    drawn = sums[picks].sum(1) / sizes[picks].sum(1)
    interval = accuracy(right, videos)
    logits = np.log(np.array([interval.low, interval.high]) / (1 - np.array([interval.low, interval.high])))
    error = np.diff(logits)[0] / 2 / 2.0 * right.mean() * (1 - right.mean())
    assert error == pytest.approx(drawn.std(), rel=0.05)


def test_one_question_a_video_is_the_textbook_interval() -> None:
    right = np.arange(200) < 150
    interval = accuracy(right, np.arange(200))
    error = np.sqrt(0.75 * 0.25 / 199)  # the sample's standard error of a mean
    reach = stats.t.ppf(0.975, 199) * error / (0.75 * 0.25)
    assert interval.low == pytest.approx(1 / (1 + np.exp(-np.log(3) + reach)))
    assert interval.high == pytest.approx(1 / (1 + np.exp(-np.log(3) - reach)))


@pytest.mark.parametrize("right", [1, 2, 3])
def test_videos_all_alike_have_wilsons_interval_over_the_videos(right: int) -> None:
    # Four questions on each of 40 videos, of which the same share is right everywhere.
    found = accuracy(np.tile(np.arange(4) < right, 40), videos_of(np.full(40, 4)))
    quantile = 2 * stats.norm.sf(stats.t.ppf(0.975, 39))
    low, high = proportion_confint(10 * right, 40, alpha=quantile, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))


def test_all_right_is_wilsons_interval_and_never_of_no_width() -> None:
    low, _ = proportion_confint(40, 40, alpha=2 * stats.norm.sf(stats.t.ppf(0.975, 39)), method="wilson")
    for sizes in (np.ones(40, int), np.full(40, 5)):
        interval = accuracy(np.ones(sizes.sum(), bool), videos_of(sizes))
        assert (interval.low, interval.high) == (pytest.approx(low), 1.0)
    _, high = proportion_confint(0, 40, alpha=2 * stats.norm.sf(stats.t.ppf(0.975, 39)), method="wilson")
    wrong = accuracy(np.zeros(200, bool), videos_of(np.full(40, 5)))
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(high))
    # Whatever an arm beside it shows of how the answers of a video go together.
    beside = np.tile([True, True, False, True, True], 40)
    beside[:: 7 * 5] = False
    both = Answers(np.stack([np.ones(200, bool), beside], axis=1), videos_of(np.full(40, 5)))
    assert both.accuracy(0) == interval


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_no_interval_leaves_what_is_possible(n: int) -> None:
    videos = np.arange(n)
    won = difference(np.ones(n, bool), np.zeros(n, bool), videos)
    lost = difference(np.zeros(n, bool), np.ones(n, bool), videos)
    assert (won.value, won.high, lost.value, lost.low) == (1, 1, -1, -1)
    for right in (np.ones(n, bool), np.zeros(n, bool), np.arange(n) % 2 == 0):
        interval = accuracy(right, videos)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_accuracy_is_the_share_of_right_answers_not_the_mean_of_videos() -> None:
    assert accuracy([True] * 9 + [False], ["a"] * 9 + ["b"]).value == pytest.approx(0.9)


def test_difference_is_paired() -> None:
    generator = np.random.default_rng(3)
    videos = videos_of(EQUAL)
    second = clustered(generator, EQUAL, 0.7, 0.3)
    first = second.copy()
    first[generator.choice(len(first), 30, replace=False)] ^= True
    found, alone = difference(first, second, videos), accuracy(first, videos)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert (found.high - found.low) < (alone.high - alone.low) / 2
    other = difference(second, first, videos)
    assert (other.low, other.high, other.p) == pytest.approx((-found.high, -found.low, found.p))


def test_arms_that_never_differ_are_not_told_apart_but_their_interval_has_a_width() -> None:
    right = np.arange(60) % 3 > 0
    found = difference(right, right, np.arange(60) // 4)
    assert found.low < found.value == 0 < found.high
    assert (found.p_cluster, found.p_mcnemar, found.design_effect) == (1, 1, 1)


def test_order_of_questions_and_names_of_videos_do_not_matter() -> None:
    right, videos = clustered(np.random.default_rng(4), UNEQUAL, 0.7, 0.2), videos_of(UNEQUAL)
    turned = np.random.default_rng(5).permutation(len(right))
    names = np.array([f"video {i}" for i in range(60)])[videos]
    assert accuracy(right, videos) == accuracy(right[turned], names[turned])


def test_one_video_has_no_interval_and_tells_nothing_apart() -> None:
    interval = accuracy([True, False], ["a", "a"])
    assert interval.value == 0.5
    assert np.isnan([interval.low, interval.high]).all()
    assert difference([True] * 40, [False] * 40, ["a"] * 40).p == 1


def test_by_other_code() -> None:
    generator = np.random.default_rng(7)
    for sizes, share in ((UNEQUAL, 0.7), (FEW, 0.8), (EQUAL[:9], 0.999)):
        videos = [f"v{i}" for i in videos_of(sizes)]
        first, second = (clustered(generator, sizes, share, 0.2).tolist() for _ in range(2))
        answers = Answers(np.array([first, second]).T, videos)
        for i, right in enumerate((first, second)):
            found = answers.accuracy(i)
            expected = recomputed.accuracy(right, videos)
            assert (found.value, found.low, found.high) == pytest.approx(expected)
        found, expected = answers.difference(0, 1), recomputed.difference(first, second, videos)
        assert vars(found) | {"effect": 0} == pytest.approx(
            {
                **{k: v for k, v in expected.items() if k != "effect"},
                "design_effect": expected["effect"],
                "effect": 0,
            }
        )


@pytest.mark.parametrize(("right", "videos"), [([], []), ([True], ["a", "b"])])
def test_nothing_or_unequal_lengths_are_refused(right: list, videos: list) -> None:
    with pytest.raises(ValueError, match="a video for each question"):
        accuracy(right, videos)


def test_unequal_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        difference([True], [True, False], ["a"])


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 5), (2, 9), (10, 1), (0, 6), (70, 41)])
def test_mcnemar_is_the_exact_binomial_tail_and_that_of_statsmodels(won: int, lost: int) -> None:
    n = won + lost
    tail = sum(comb(n, k) for k in range(min(won, lost) + 1)) / 2**n
    assert mcnemar(won, lost) == pytest.approx(min(1.0, 2 * tail))
    if n:
        other = contingency_tables.mcnemar([[20, won], [lost, 20]], exact=True)
        assert mcnemar(won, lost) == pytest.approx(other.pvalue)


def test_holm_is_the_worked_example_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    p_values = np.random.default_rng(2).random(40) ** 4
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_controls_the_family_wise_error() -> None:
    generator = np.random.default_rng(6)
    rejected = sum(min(holm(generator.random(10))) < 0.05 for _ in range(4000))
    assert rejected / 4000 == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("questions", "discordant", "gap", "rho", "alpha"),
    [(1, 0.1, 0.04, 0.001, 0.05), (6, 0.12, 0.04, 0.15, 0.05), (6, 0.2, 0.08, 0.1, 0.05 / 20)],
)
def test_so_many_questions_tell_apart_in_80_of_100_runs(
    questions: int, discordant: float, gap: float, rho: float, alpha: float
) -> None:
    generator = np.random.default_rng(11)
    large = np.full(20_000, questions)
    effect = difference(*pair(generator, large, discordant, gap, rho), videos_of(large)).design_effect
    needed = questions_needed(gap, discordant, effect, alpha)
    sizes = np.full(round(needed / questions), questions)
    found = [
        difference(*pair(generator, sizes, discordant, gap, rho), videos_of(sizes)).p for _ in range(600)
    ]
    assert np.mean(np.array(found) < alpha) == pytest.approx(0.8, abs=0.05)


def test_questions_needed_grow_with_clustering_and_are_infinite_without_a_difference() -> None:
    assert questions_needed(0.0, 0.1) == inf
    assert questions_needed(0.02, 0.1, 2.0) > 1.7 * questions_needed(0.02, 0.1)
    # Connor's own formula, without the continuity correction, is a little below.
    connor = (1.959964 * 0.1**0.5 + 0.841621 * (0.1 - 0.02**2) ** 0.5) ** 2 / 0.02**2
    assert connor < questions_needed(0.02, 0.1) < connor + 2 / 0.02


def test_parts_of_a_file_are_one_video() -> None:
    """Cuts of one recording, as MVBench asks about, rise and fall together like questions about it."""
    videos = [
        "a.mp4#t=0.0,2.5",
        "b.mp4",
        "a.mp4#t=2.5,7.0",
        "tv/s1#t=1.0,2.0&fps=3.0",
        "tv/s1#fps=3.0",
        "c#1.mp4",
    ]
    assert clusters(videos).tolist() == [0, 1, 0, 3, 3, 2]
