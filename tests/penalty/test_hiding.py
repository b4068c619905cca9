from dataclasses import replace

import pytest
import torch

from sae_posttrain.penalty.hiding import compare_readings, correlation, probability_ratio, refitted_auroc
from sae_posttrain.penalty.probe_texts import ProbeReading

PLACE = (0, "resid_post")
NUM = 40


@pytest.fixture
def features(make_features):
    """One feature that reads the first coordinate."""
    feature_set = make_features(blocks=(0,), per_block=1)
    rows = torch.zeros_like(feature_set.encoder_rows)
    rows[0, 0] = 1
    return replace(feature_set, encoder_rows=rows, encoder_bias=torch.zeros(1))


def reading(values_PD, probability):
    """One token a text; the first half belongs to the target."""
    is_target = torch.arange(NUM) < NUM // 2
    return ProbeReading(
        pre_activations={PLACE: values_PD[:, :1]},
        mean_values={PLACE: values_PD},
        variance_explained={},
        token_is_target=is_target,
        text_is_target=is_target,
        target_probability=torch.full((NUM,), probability, dtype=torch.float64),
        num_tokens=torch.ones(NUM),
    )


def values(of_first, of_second=0.0, seed=0):
    """Noise of deviation 1, and a height of the target's texts in the first two coordinates."""
    drawn = torch.randn(NUM, 32, generator=torch.Generator().manual_seed(seed))
    drawn[: NUM // 2, 0] += of_first
    drawn[: NUM // 2, 1] += of_second
    return drawn


def test_a_model_that_stays_as_it_is_does_not_hide(features):
    before = reading(values(6.0), 0.01)
    drift = compare_readings(features, before, before)
    figures = drift.features[features.names[0]]
    assert (figures.correlation, figures.fall) == (pytest.approx(1.0), 0.0)
    assert figures.auroc == figures.auroc_before > 0.99
    assert drift.probability_ratio == pytest.approx((1.0, 1.0, 1.0))
    assert drift.hiding == {}


def test_a_feature_that_lost_the_target_while_the_residuals_did_not_is_blind(features):
    drift = compare_readings(features, reading(values(6.0), 0.01), reading(values(0.0, of_second=6.0), 0.001))
    (words,) = drift.hiding.values()
    assert "AUROC fell from 1.00 to 0.49" in words and "a direction fitted anew has 1.00" in words
    assert "standard deviations" not in words


def test_a_model_that_forgot_the_target_does_not_hide(features):
    drift = compare_readings(features, reading(values(6.0), 0.01), reading(values(0.0), 0.001))
    assert drift.features[features.names[0]].auroc < 0.8
    assert drift.hiding == {}


def test_a_reading_that_fell_while_the_target_stayed_as_probable_is_unstopped(features):
    now = values(6.0)
    now[NUM // 2 :, 0] -= 4.0
    drift = compare_readings(features, reading(values(6.0), 0.01), reading(now, 0.0095))
    (words,) = drift.hiding.values()
    assert "0.95 times as probable" in words and "the behaviour did not" in words
    assert "AUROC" not in words


def test_a_reading_that_fell_with_the_behaviour_is_healthy(features):
    now = values(6.0)
    now[NUM // 2 :, 0] -= 4.0
    drift = compare_readings(features, reading(values(6.0), 0.01), reading(now, 0.004))
    assert drift.features[features.names[0]].fall > 3
    assert drift.hiding == {}


def test_groups_of_one_vocabulary_have_no_probability_to_compare(features):
    drift = compare_readings(features, reading(values(6.0), 0.0), reading(values(6.0) - 9, 0.0))
    assert drift.probability_ratio is None
    assert drift.hiding == {}


def test_correlation_is_of_each_column():
    before = torch.tensor([[1.0, 1.0, 5.0], [2.0, 2.0, 5.0], [3.0, 3.0, 5.0]])
    now = torch.tensor([[10.0, 3.0, 1.0], [20.0, 2.0, 2.0], [30.0, 1.0, 3.0]])
    assert correlation(before, now).tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_the_refitted_direction_is_tried_on_texts_it_was_not_fitted_on():
    is_target = torch.arange(NUM) < NUM // 2
    noise = torch.randn(NUM, 4000, generator=torch.Generator().manual_seed(0))
    assert refitted_auroc(noise, is_target) < 0.75  # fitted and tried on the same texts it would be 1
    assert refitted_auroc(values(6.0), is_target) > 0.95


def test_the_probability_ratio_comes_with_an_interval_over_texts():
    before, now = reading(values(0.0), 0.01), reading(values(0.0), 0.01)
    draws = torch.rand(NUM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = probability_ratio(before, replace(now, target_probability=0.02 * draws))
    assert found is not None
    ratio, low, high = found
    assert ratio == pytest.approx(float(2 * draws[NUM // 2 :].mean()))
    assert 0.6 < low < ratio < high < 1.5
