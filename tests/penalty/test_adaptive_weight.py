import json
import math
import random
from types import SimpleNamespace

import pytest

from sae_posttrain.penalty.adaptive_weight import AdaptiveWeight, KeepWeightInCheckpoints


def train(adaptive, *, steps=600, lag=10.0, noise=0.0, loss_of=lambda rate, step: 1.0, seed=0):
    """A model whose excess rate follows the weight after `lag` steps: 0.4 without a penalty, 0.4 / (1 + weight)."""
    draws = random.Random(seed)
    rate, rates, weights = 0.4, [], []
    for step in range(steps):
        rate += (0.4 / (1 + adaptive.weight) - rate) / lag
        loss = loss_of(rate, step) * math.exp(draws.gauss(0, noise))
        adaptive.update(rate * math.exp(-abs(draws.gauss(0, noise))), loss)
        rates.append(rate)
        weights.append(adaptive.weight)
    return rates, weights


def test_one_update_is_the_formula():
    adaptive = AdaptiveWeight(2.0, target=0.1)
    # (0.3 − 0.1) / (0.3 + 0.1) = 0.5
    assert adaptive.update(0.3, 1.0) == pytest.approx(2.0 * math.exp(0.05 * 0.5))
    # the mean of 0.3 and 0 is 0.15: (0.15 − 0.1) / (0.15 + 0.1) = 0.2
    assert adaptive.update(0.0, 1.0) == pytest.approx(2.0 * math.exp(0.05 * 0.7))


@pytest.mark.parametrize("start", [0.02, 1.0, 300.0])
@pytest.mark.parametrize("lag", [10.0, 40.0])
def test_the_excess_rate_reaches_its_target_from_above_and_below(start, lag):
    rates, weights = train(AdaptiveWeight(start, target=0.05), lag=lag, noise=0.05, steps=900)
    assert all(abs(rate - 0.05) < 0.01 for rate in rates[-50:])
    assert weights[-1] == pytest.approx(7.0, rel=0.25)  # 0.4 / (1 + 7) = 0.05


def test_the_weight_falls_to_zero_where_the_target_holds_by_itself_and_comes_back_where_it_does_not():
    adaptive = AdaptiveWeight(1.0, target=0.2)
    for _ in range(200):
        adaptive.update(0.0, 1.0)
    assert adaptive.weight == 0.0
    for _ in range(400):
        adaptive.update(1.0, 1.0)
    assert adaptive.weight > 1.0


def test_the_weight_is_bounded():
    adaptive = AdaptiveWeight(2.0, target=0.01)
    for _ in range(1000):
        adaptive.update(1.0, 1.0)
    assert adaptive.weight == pytest.approx(2000.0)


def test_a_loss_above_its_limit_lowers_the_weight_though_the_target_is_missed():
    adaptive = AdaptiveWeight(1.0, target=0.01, max_loss_increase=0.02)
    for _ in range(60):
        adaptive.update(0.4, 1.0)
    before = adaptive.weight
    for _ in range(100):
        adaptive.update(0.4, 1.05)
    assert adaptive.weight < before
    without_limit = AdaptiveWeight(1.0, target=0.01)
    for _ in range(160):
        without_limit.update(0.4, 1.05)
    assert without_limit.weight > before


def test_a_target_that_costs_too_much_ends_near_the_loss_limit():
    def costly(rate, step):
        return 1 + 0.5 * (0.4 - rate)  # 1 without a penalty, 1.19 at the target

    limited, free = AdaptiveWeight(1.0, target=0.02, max_loss_increase=0.05), AdaptiveWeight(1.0, target=0.02)
    rates, _ = train(limited, steps=1500, loss_of=costly)
    # The reference is the mean loss of the first ten steps, 1.05, while the first weight was taking effect.
    assert costly(rates[-1], 0) == pytest.approx(1.05 * 1.05, rel=0.01)
    rates, _ = train(free, steps=1500, loss_of=costly)
    assert costly(rates[-1], 0) == pytest.approx(1.19, rel=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_of_the_loss_alone_does_not_lower_the_weight(seed):
    limited = train(AdaptiveWeight(1.0, target=0.05, max_loss_increase=0.02), noise=0.05, seed=seed)
    free = train(AdaptiveWeight(1.0, target=0.05), noise=0.05, seed=seed)
    assert limited[1][-1] == pytest.approx(free[1][-1], rel=0.1)


def test_a_loss_that_falls_is_never_above_its_limit():
    def falling(rate, step):
        return 1 + 2 * math.exp(-step / 100)

    limited = train(AdaptiveWeight(1.0, target=0.05, max_loss_increase=0.01), loss_of=falling)
    assert limited == train(AdaptiveWeight(1.0, target=0.05), loss_of=falling)


def test_a_weight_goes_on_from_its_checkpoint_bit_for_bit():
    figures = [(random.Random(i).random(), 1 + random.Random(i + 1).random()) for i in range(200)]
    whole = AdaptiveWeight(1.0, target=0.3, max_loss_increase=0.02)
    expected = [whole.update(*each) for each in figures]
    first, second = (AdaptiveWeight(1.0, target=0.3, max_loss_increase=0.02) for _ in range(2))
    for each in figures[:120]:
        first.update(*each)
    state = SimpleNamespace(stateful_callbacks={})
    KeepWeightInCheckpoints(first).on_step_end(None, state, None)
    state.stateful_callbacks = json.loads(json.dumps(state.stateful_callbacks))  # as trainer_state.json keeps it
    KeepWeightInCheckpoints(second).on_train_begin(None, state, None)
    assert second.weight == first.weight
    assert [second.update(*each) for each in figures[120:]] == expected[120:]


def test_a_state_from_before_the_loss_has_a_reference_is_json():
    adaptive = AdaptiveWeight(1.0, target=0.3, max_loss_increase=0.02)
    adaptive.update(0.2, 1.0)
    other = AdaptiveWeight(1.0, target=0.3, max_loss_increase=0.02)
    other.load_state(json.loads(json.dumps(adaptive.state(), allow_nan=False)))
    assert other.state() == adaptive.state()


def test_training_from_the_start_keeps_the_weight_that_was_set():
    adaptive = AdaptiveWeight(3.0, target=0.1)
    KeepWeightInCheckpoints(adaptive).on_train_begin(None, SimpleNamespace(stateful_callbacks={}), None)
    assert adaptive.weight == 3.0


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((math.nan, 1.0), "excess rate lies between 0 and 1, got nan"),
        ((1.5, 1.0), "excess rate lies between 0 and 1, got 1.5"),
        ((0.5, math.nan), "The loss is nan"),
        ((0.5, math.inf), "The loss is inf"),
    ],
)
def test_figures_that_are_none_are_refused_and_change_nothing(figures, message):
    adaptive = AdaptiveWeight(1.0, target=0.1)
    before = adaptive.state()
    with pytest.raises(ValueError, match=message):
        adaptive.update(*figures)
    assert adaptive.state() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, "starts above 0, got 0.0"),
        ({"target": 0.0}, "between 0 and 1"),
        ({"target": math.nan}, "between 0 and 1"),
        ({"max_loss_increase": -0.1}, "share above 0"),
        ({"gain": 0.0}, "`gain` must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveWeight(**{"weight": 1.0, "target": 0.1} | settings)


def test_a_state_of_something_else_is_refused():
    adaptive = AdaptiveWeight(1.0, target=0.1)
    with pytest.raises(ValueError, match="this one holds 'strength'"):
        adaptive.load_state({"strength": 1.0})
    with pytest.raises(ValueError, match="nan as 'mean_rate'"):
        adaptive.load_state(adaptive.state() | {"mean_rate": math.nan})
