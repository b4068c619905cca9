import numpy as np
import pytest

from sae_posttrain.measure.statistics.intervals import paired_difference, seed_interval
from sae_posttrain.measure.statistics.resampling import bootstrap_difference, bootstrap_mean, bootstrap_ratio


def rows(values_PS):
    """Rows of an array of prompts by training seeds."""
    return [(f"prompt {p}", s, value) for (p, s), value in np.ndenumerate(np.asarray(values_PS))]


def crossed(rng, num_prompts, num_seeds, of_prompts, of_seeds, of_cells):
    """Values with an effect of the prompt, of the training seed, and noise of each cell: standard deviations."""
    return (
        of_prompts * rng.standard_normal((num_prompts, 1))
        + of_seeds * rng.standard_normal((1, num_seeds))
        + of_cells * rng.standard_normal((num_prompts, num_seeds))
    )


def pigeonhole_deviation(values_PS):
    """Standard deviation of the mean under the pigeonhole bootstrap, from the moments of multinomial counts."""
    num_prompts, num_seeds = values_PS.shape
    # counts w of n draws among n: E[w_i w_j] = 1 - 1/n, and 1 more where i = j
    of_prompts = np.eye(num_prompts) + 1 - 1 / num_prompts
    of_seeds = np.eye(num_seeds) + 1 - 1 / num_seeds
    square = np.trace(of_prompts @ values_PS @ of_seeds @ values_PS.T) / values_PS.size**2
    return np.sqrt(square - values_PS.mean() ** 2)


@pytest.mark.parametrize("effects", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_interval_of_a_mean_is_that_of_the_pigeonhole_bootstrap(effects):
    values_PS = crossed(np.random.default_rng(0), 300, 8, *effects)
    result = bootstrap_mean(rows(values_PS))
    assert result.estimate == pytest.approx(values_PS.mean())
    assert (result.high - result.low) / (2 * 1.96) == pytest.approx(pigeonhole_deviation(values_PS), rel=0.05)
    assert (result.num_prompts, result.num_seeds) == (300, 8)
    assert result.per_seed == pytest.approx(dict(enumerate(values_PS.mean(axis=0))))


def test_interval_agrees_with_resampling_prompts_and_seeds_one_by_one():
    rng = np.random.default_rng(1)
    before_PS = rng.random((60, 4)) < 0.4 + 0.2 * rng.standard_normal((60, 1))
    after_PS = rng.random((60, 4)) < 0.2 + 0.1 * np.arange(4)
    differences, ratios = [], []
    for _ in range(4_000):
        drawn = np.ix_(rng.integers(0, 60, 60), rng.integers(0, 4, 4))
        before, after = before_PS[drawn].mean(), after_PS[drawn].mean()
        differences.append(after - before)
        ratios.append(after / before - 1)
    result = bootstrap_difference(rows(before_PS), rows(after_PS))
    assert result.estimate == pytest.approx(after_PS.mean() - before_PS.mean())
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=0.02)
    ratio = bootstrap_ratio(rows(before_PS), rows(after_PS))
    assert ratio.estimate == pytest.approx(after_PS.mean() / before_PS.mean() - 1)
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.04)
    assert ratio.per_seed == pytest.approx(dict(enumerate(after_PS.mean(axis=0) / before_PS.mean(axis=0) - 1)))


def test_with_one_seed_only_prompts_are_resampled_and_the_result_says_so():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    values_P = np.random.default_rng(2).exponential(size=200)
    result = bootstrap_mean(rows(values_P[:, None]))
    expected = stats.bootstrap((values_P,), np.mean, method="percentile", rng=np.random.default_rng(0))
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)
    assert (result.num_seeds, result.seed_interval) == (1, None)
    assert "200 prompts, 1 seed: how trainings differ is unknown" in str(result)


def test_difference_with_one_seed_is_that_of_paired_difference():
    rng = np.random.default_rng(3)
    before, after = rng.random(300) < 0.3, rng.random(300) < 0.2
    result = bootstrap_difference(rows(before[:, None]), rows(after[:, None]))
    expected = paired_difference(before, after)
    assert result.estimate == pytest.approx(expected.difference)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_p_value_of_a_difference_is_that_of_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    rng = np.random.default_rng(9)
    before = rng.random(400)
    for shift in (0.0, 0.03, 0.06):
        after = before + shift + 0.4 * rng.standard_normal(400)
        result = bootstrap_difference(rows(before[:, None]), rows(after[:, None]))
        assert result.p_value == pytest.approx(stats.ttest_rel(before, after).pvalue, abs=0.015)
    assert bootstrap_mean(rows(before[:, None])).p_value is None


def test_p_value_of_no_difference_at_all_is_1_and_of_a_certain_one_as_small_as_resamples_can_tell():
    values_PS = np.zeros((300, 3))
    assert bootstrap_difference(rows(values_PS), rows(values_PS)).p_value == 1
    assert bootstrap_difference(rows(values_PS), rows(values_PS + 0.01)).p_value == 1  # within the bound of 0 of 300
    assert bootstrap_difference(rows(values_PS), rows(values_PS + 0.1), num_resamples=999).p_value == 0.002


def test_seeds_that_differ_widen_the_interval():
    values_PS = np.random.default_rng(4).random((200, 4))
    apart = values_PS + np.arange(4)
    narrow, wide = bootstrap_mean(rows(values_PS)), bootstrap_mean(rows(apart))
    assert wide.seed_interval == pytest.approx(seed_interval(apart.mean(axis=0).tolist()))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    # Student's t promises less than four seeds seem to say: 3.18 * sd / sqrt(4) against 1.96 * sqrt(3/4) of it
    assert wide.seed_interval[1] - wide.seed_interval[0] > 1.5 * (wide.high - wide.low)
    assert "over seeds [" in str(wide)


def test_interval_covers_the_mean_of_all_prompts_and_seeds():
    rng = np.random.default_rng(5)
    num_covered = 0
    for _ in range(200):
        result = bootstrap_mean(rows(crossed(rng, 60, 15, 1, 0.2, 1)), num_resamples=1_000)
        num_covered += result.low < 0 < result.high
    assert num_covered / 200 > 0.9


def test_rows_may_come_in_any_order():
    before_PS, after_PS = np.random.default_rng(6).random((2, 40, 3))
    expected = bootstrap_difference(rows(before_PS), rows(after_PS))
    assert bootstrap_difference(rows(before_PS), rows(after_PS)[::-1]) == expected


def test_missing_cells_weigh_nothing():
    values_PS = np.random.default_rng(7).random((100, 3))
    kept = [row for row in rows(values_PS) if row[:2] != ("prompt 5", 1)]
    result = bootstrap_mean(kept)
    assert result.estimate == pytest.approx(np.mean([value for *_, value in kept]))
    assert result.per_seed[1] == pytest.approx(np.delete(values_PS[:, 1], 5).mean())
    alone = bootstrap_mean([("a", 0, 0.2), ("b", 1, 0.4), ("c", 2, 0.6)])  # some resamples draw no cell
    assert 0.2 <= alone.low < alone.estimate < alone.high <= 0.6


def test_nothing_failed_still_has_an_interval():
    none = np.zeros((300, 3))
    result = bootstrap_mean(rows(none))
    assert (result.estimate, result.low, result.seed_interval) == (0, 0, None)
    assert result.high == pytest.approx(0.0126, abs=1e-4)  # as 0 of 300 prompts
    same = bootstrap_difference(rows(none), rows(none))
    assert (same.low, same.high) == pytest.approx((-0.0126, 0.0126), abs=1e-4)
    shifted = bootstrap_difference(rows(none + 0.1), rows(none + 0.2))
    assert (shifted.low, shifted.high) == pytest.approx((0.1 - 0.0126, 0.1 + 0.0126), abs=1e-4)
    assert shifted.seed_interval is None


def test_no_failure_after_is_not_a_fall_by_all():
    before_PS = np.zeros((300, 2))
    before_PS[:30] = 1  # 10 % of 300 prompts
    result = bootstrap_ratio(rows(before_PS), rows(0 * before_PS))
    assert (result.estimate, result.low) == (-1, -1)
    # at least 1.26 % / 10 % of the failures may be left, more where few prompts that failed are drawn
    assert 0.126 < 1 + result.high < 0.2


def test_relative_change_of_a_single_failure_has_no_upper_bound():
    before_PS = np.zeros((300, 1))
    before_PS[0] = 1  # left out of 37 % of the resamples
    result = bootstrap_ratio(rows(before_PS), rows(np.roll(before_PS, 1)))
    assert (result.estimate, result.low, result.high) == (0, -1, np.inf)
    seeds = bootstrap_ratio(rows([[1, 0]] * 9 + [[1, 1]]), rows([[0, 0]] * 9 + [[1, 0]]))
    assert seeds.per_seed == pytest.approx({0: -0.9, 1: -1})


def test_arms_of_different_prompts_are_refused():
    with pytest.raises(ValueError, match="2 of 3 occur in one of them only, e.g. prompt 'b' with seed 0"):
        bootstrap_difference([("a", 0, 1), ("b", 0, 1)], [("a", 0, 1), ("b", 1, 1)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "`rows` is empty"),
        ([("a", 0, 1), ("a", 0, 0)], "prompt 'a' with seed 0 twice. Average"),
        ([("a", 0, float("nan"))], "a finite value, got \\('a', 0, nan\\)"),
        ([("a", 0, None)], "a finite value, got"),
        ([("a", 0)], "got \\('a', 0\\)"),
        ([("a", 0, 3.2), ("b", 0, 3.2)], "do not vary at all"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(given)


def test_relative_change_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="values of 0 or more"):
        bootstrap_ratio([("a", 0, -1), ("b", 0, 1)], [("a", 0, 1), ("b", 0, 1)])
    with pytest.raises(ValueError, match="Every value before is 0"):
        bootstrap_ratio([("a", 0, 0), ("b", 0, 0)], [("a", 0, 1), ("b", 0, 1)])


def test_settings_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="got 95; 0.95 is usual"):
        bootstrap_mean([("a", 0, 1), ("b", 0, 0)], confidence=95)
    with pytest.raises(ValueError, match="`num_resamples` is 100 or more, got 10"):
        bootstrap_mean([("a", 0, 1), ("b", 0, 0)], num_resamples=10)
