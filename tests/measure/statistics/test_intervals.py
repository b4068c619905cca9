import numpy as np
import pytest

from sae_posttrain.measure.statistics.intervals import mcnemar, paired_difference, seed_interval, t_quantile, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 300), (3, 300), (150, 300), (300, 300), (7, 20_000)])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, n, confidence):
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("n", "percent"), [(300, 1.26), (1_000, 0.38), (3_000, 0.13)])
def test_no_failure_in_n_answers_is_not_a_rate_of_zero(n, percent):
    # upper bound z²/(n + z²) with z = 1.96, z² = 3.8415: 3.8415/303.84 = 1.264 %, /1003.84 = .383 %, /3003.84 = .128 %
    low, high = wilson(0, n)
    assert low == 0
    assert round(100 * high, 2) == percent


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_rate_is_refused(successes, n):
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson(successes, n)


def test_confidence_in_percent_is_refused():
    with pytest.raises(ValueError, match="`confidence` is between 0 and 1, got 95"):
        wilson(1, 5, confidence=95)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 21), (700, 800), (2_000, 1)])
def test_mcnemar_agrees_with_scipy(b, c):
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_mcnemar_by_hand():
    # 5 of 5 discordant items on one side: 2 * (1/2)^5 = 1/16
    assert mcnemar(0, 5) == 0.0625


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="got -1 and 2"):
        mcnemar(-1, 2)


def test_paired_difference_by_hand():
    # 100 items: 10 fail before, 4 after, 2 of them in both: 8 healed, 2 new; (4 - 10) / 100
    before = [True] * 10 + [False] * 90
    after = [True] * 2 + [False] * 8 + [True] * 2 + [False] * 88
    result = paired_difference(before, after)
    assert result.difference == pytest.approx(-0.06)
    assert result.p_value == mcnemar(8, 2)
    assert (result.n, result.num_clusters) == (100, 100)
    # standard error sqrt((8 + 2 - 36/100) / 100²) = .0310: the bootstrap interval is close to -.06 ± 1.96 * .0310
    assert result.low == pytest.approx(-0.121, abs=0.01)
    assert result.high == pytest.approx(0.001, abs=0.01)


def test_interval_is_the_same_every_time():
    rng = np.random.default_rng(0)
    before, after = rng.random(200) < 0.3, rng.random(200) < 0.2
    assert paired_difference(before, after) == paired_difference(before, after)


def test_repeated_answers_to_one_prompt_are_not_new_evidence():
    # the same 50 prompts, each answer copied 8 times: the interval must be that of 50 pairs, not of 400
    rng = np.random.default_rng(0)
    before, after = rng.random(50) < 0.4, rng.random(50) < 0.2
    single = paired_difference(before, after)
    prompts = np.repeat(np.arange(50), 8)
    clustered = paired_difference(before.repeat(8), after.repeat(8), prompts)
    assert clustered.difference == pytest.approx(single.difference)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high), abs=0.02)
    assert (clustered.n, clustered.num_clusters, clustered.p_value) == (400, 50, None)
    naive = paired_difference(before.repeat(8), after.repeat(8))
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_clustered_interval_agrees_with_resampling_whole_clusters():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 6, 60)
    clusters = np.repeat(np.arange(60), sizes)
    before, after = rng.random(len(clusters)) < 0.5, rng.random(len(clusters)) < 0.3
    changes = [(after[clusters == c].astype(int) - before[clusters == c]) for c in range(60)]
    resampled = [
        np.concatenate([changes[c] for c in rng.integers(0, 60, 60)]).mean() for _ in range(2_000)
    ]  # fmt: skip
    result = paired_difference(before, after, clusters.tolist())
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.02)


def test_no_change_at_all_still_has_an_interval():
    result = paired_difference([False] * 300, [False] * 300)
    assert (result.difference, result.p_value) == (0, 1)
    assert (result.low, result.high) == pytest.approx((-0.0126, 0.0126), abs=1e-4)  # as 0 of 300


def test_pairs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="got 2 before, 1 after"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError, match="got 1 before, 1 after and 2 clusters"):
        paired_difference([True], [True], [1, 2])
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="true/false"):
        paired_difference([0.5], [1])


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 99, 1_000])
@pytest.mark.parametrize("confidence", [0.01, 0.5, 0.9, 0.95, 0.999])
def test_t_quantile_agrees_with_scipy(confidence, degrees):
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-10)


def test_three_seeds_say_little_about_a_fourth():
    # mean 0.02, standard deviation 0.01, t(2) = 4.303: 0.02 ± 4.303 * 0.01 / sqrt(3) = 0.02 ± 0.0248
    assert seed_interval([0.01, 0.02, 0.03]) == pytest.approx((-0.0048, 0.0448), abs=1e-4)


def test_seed_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    estimates = np.random.default_rng(0).normal(size=5)
    expected = stats.ttest_1samp(estimates, 0).confidence_interval(0.9)
    assert seed_interval(estimates.tolist(), 0.9) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("estimates", "message"),
    [([0.1], "two seeds or more, got 1"), ([0.1, float("nan")], "one finite number"), ([0.1] * 3, "All 3 seeds gave")],
)
def test_seeds_without_spread_have_no_interval(estimates, message):
    with pytest.raises(ValueError, match=message):
        seed_interval(estimates)


def test_t_quantile_refuses_what_is_no_distribution():
    with pytest.raises(ValueError, match="got 0"):
        t_quantile(0.95, 0)
    with pytest.raises(ValueError, match="got 95"):
        t_quantile(95, 3)
