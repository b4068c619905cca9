import numpy as np
import pytest

from sae_posttrain.measure.statistics.claims import benjamini_hochberg, holm, non_inferiority
from sae_posttrain.measure.statistics.resampling import bootstrap_difference


def arms(num_prompts, before_rate, after_rate, num_seeds=1):
    """Right answers of two models, independent of each other."""
    rng = np.random.default_rng(0)
    cells = [(prompt, seed) for prompt in range(num_prompts) for seed in range(num_seeds)]
    before = [(*cell, rng.random() < before_rate) for cell in cells]
    return before, [(*cell, rng.random() < after_rate) for cell in cells]


def test_ability_that_was_kept_is_non_inferior():
    before, after = arms(3_000, 0.9, 0.9, num_seeds=3)
    result = non_inferiority(before, after, 0.02, num_resamples=2_000)
    assert (result.verdict, result.prompts_needed, result.margin) == ("non-inferior", None, 0.02)
    assert result.difference == bootstrap_difference(before, after, num_resamples=2_000)
    assert result.difference.low > -0.02
    assert str(result).startswith("non-inferior: ")


def test_ability_that_was_lost_is_inferior():
    result = non_inferiority(*arms(1_000, 0.9, 0.7), 0.02)
    assert (result.verdict, result.prompts_needed) == ("inferior", None)
    assert result.difference.high < -0.02


def test_no_difference_on_few_prompts_shows_nothing():
    result = non_inferiority(*arms(100, 0.8, 0.8), 0.02)
    assert result.verdict == "undecided"
    assert result.difference.low < -0.02 < result.difference.high
    assert f"Too few prompts: at this difference it takes about {result.prompts_needed:,}" in str(result)


def test_prompts_needed_are_enough_at_the_same_difference():
    before = [(p, 0, p % 10 < 9) for p in range(300)]  # 90 % right
    after = [(p, 0, p % 10 > 0) for p in range(300)]  # the same rate, on other prompts
    # 20 % differ: 1.96 * sqrt(0.2 / n) is below 0.03 from n = 854
    needed = non_inferiority(before, after, 0.03).prompts_needed
    assert needed == pytest.approx(854, rel=0.15)
    copies = range(needed // 300 + 1)
    many = [[((copy, p), s, value) for copy in copies for p, s, value in arm] for arm in (before, after)]
    assert non_inferiority(*many, 0.03).verdict == "non-inferior"


def test_difference_of_the_margin_itself_is_never_decided():
    before = [(p, 0, 1.0) for p in range(8)]
    after = [(p, 0, float(p > 1)) for p in range(8)]  # exactly a quarter lower
    result = non_inferiority(before, after, 0.25)
    assert (result.verdict, result.prompts_needed) == ("undecided", None)
    assert "no number of prompts decides" in str(result)


@pytest.mark.parametrize("margin", [0, -0.02, float("nan"), float("inf")])
def test_margin_that_is_none_is_refused(margin):
    with pytest.raises(ValueError, match="`margin` is the acceptable loss"):
        non_inferiority([("a", 0, 1)], [("a", 0, 1)], margin)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    # multipletests(p_values, method="holm") of statsmodels 0.15.0
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.9, 0.001, 0.013, 0.013, 0.6, 0.0499], [1, 0.006, 0.065, 0.065, 1, 0.1497]),
        ([0.05], [0.05]),
        ([0, 1, 0.3], [0, 1, 0.6]),
    ],
)
def test_holm_agrees_with_statsmodels(p_values, adjusted):
    tests = holm({f"task {i}": p for i, p in enumerate(p_values)})
    assert list(tests) == [f"task {i}" for i in range(len(p_values))]
    assert [test.p_value for test in tests.values()] == p_values
    assert [test.adjusted for test in tests.values()] == pytest.approx(adjusted)
    assert [test.rejected for test in tests.values()] == [p <= 0.05 for p in adjusted]


def test_holm_by_hand():
    # 2 * .02 = .04 holds at .05; the other is alone then: .04 at least as large as the one before
    tests = holm({"loss": 0.04, "rate": 0.02})
    assert (tests["rate"].adjusted, tests["loss"].adjusted) == (0.04, 0.04)
    assert not holm({"loss": 0.04, "rate": 0.02}, alpha=0.03)["rate"].rejected


@pytest.mark.parametrize(
    ("p_values", "alpha", "message"),
    [
        ({}, 0.05, "There is no test"),
        ({"rate": float("nan")}, 0.05, "got nan for 'rate'"),
        ({"rate": 1.2}, 0.05, "got 1.2 for 'rate'"),
        ({"rate": 0.2}, 5, "`alpha` is between 0 and 1, got 5"),
    ],
)
def test_holm_refuses_what_is_no_family_of_tests(p_values, alpha, message):
    with pytest.raises(ValueError, match=message):
        holm(p_values, alpha)


def test_benjamini_hochberg_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    p_values = np.random.default_rng(0).random(200) ** 3
    adjusted = benjamini_hochberg(p_values)
    np.testing.assert_allclose(adjusted, stats.false_discovery_control(p_values), rtol=1e-12)
    # 4 tests: 0.01 · 4 / 1, 0.02 · 4 / 2, then 0.9 · 4 / 4 caps what comes before it: 0.8 · 4 / 3 > 0.9
    np.testing.assert_allclose(benjamini_hochberg([0.8, 0.01, 0.9, 0.02]), [0.9, 0.04, 0.9, 0.04])


@pytest.mark.parametrize(("p_values", "message"), [([], "no test"), ([0.5, 1.5], "from 0 to 1, got 1.5")])
def test_benjamini_hochberg_refuses_what_is_no_p_value(p_values, message):
    with pytest.raises(ValueError, match=message):
        benjamini_hochberg(p_values)
