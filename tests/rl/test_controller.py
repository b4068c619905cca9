import math
from types import SimpleNamespace

import pytest

from sae_posttrain.rl.controller import StrengthController


def make(strength=1.0, target=0.8, gain=0.2, largest=8.0):
    return StrengthController(strength, target=target, gain=gain, largest=largest)


def test_one_update_is_the_formula():
    controller = make()
    assert controller.update(0.5) == pytest.approx(math.exp(0.2 * (0.8 - 0.5)))
    # mean 0.7 · 0.5 + 0.3 · 1 = 0.65
    assert controller.update(1.0) == pytest.approx(math.exp(0.2 * 0.3 + 0.2 * 0.15))


@pytest.mark.parametrize("start", [0.1, 1.0, 7.0])
def test_the_hit_rate_reaches_its_target_and_stays(start):
    controller, rates = make(start), []
    for _ in range(200):
        rates.append(1 / (1 + (1.6 / controller.strength) ** 6))  # half of the rollouts at 1.6 norms
        controller.update(rates[-1])
    assert all(abs(rate - 0.8) < 0.02 for rate in rates[-50:])


def test_the_strength_follows_a_policy_that_changes():
    controller, rates = make(), []
    for step in range(400):
        half = 1.0 + step / 200  # the push that makes half of the rollouts faulty grows
        rates.append(1 / (1 + (half / controller.strength) ** 6))
        controller.update(rates[-1])
    assert all(abs(rate - 0.8) < 0.05 for rate in rates[-200:])


def test_the_strength_is_bounded():
    low, high = make(), make()
    for _ in range(200):
        low.update(1.0)
        high.update(0.0)
    assert low.strength == pytest.approx(0.01) or low.strength > 0.01
    assert high.strength == 8.0
    assert make(strength=0.0101, gain=1.0).update(1.0) == 0.01


def test_a_controller_goes_on_from_its_checkpoint():
    first, second = make(), make(strength=5.0)
    first.update(0.1)
    second.on_train_begin(None, SimpleNamespace(stateful_callbacks={"StrengthController": first.state()}), None)
    assert (second.strength, second.mean_hit_rate) == (first.strength, first.mean_hit_rate)
    assert first.update(0.3) == second.update(0.3)


def test_a_controller_that_the_trainer_builds_from_its_checkpoint_goes_on_too():
    first = make(target=0.5, gain=0.7, largest=3.0)
    first.update(0.1)
    second = StrengthController.from_state(first.state())
    assert second.state() == first.state()
    assert first.update(0.3) == second.update(0.3)


def test_a_controller_that_the_checkpoint_does_not_know_keeps_its_strength_and_is_saved_from_then_on():
    controller, state = make(strength=2.0), SimpleNamespace(stateful_callbacks={})
    controller.on_train_begin(None, state, None)
    assert controller.strength == 2.0
    assert state.stateful_callbacks == {"StrengthController": controller.state()}


@pytest.mark.parametrize("saved", [{"strength": -1.0}, {"strength": float("nan")}, {"strength": "2"}, {}])
def test_a_damaged_state_is_refused(saved):
    state = SimpleNamespace(stateful_callbacks={"StrengthController": {"args": {}, "attributes": saved}})
    with pytest.raises(ValueError, match="its `trainer_state.json` is damaged"):
        make().on_train_begin(None, state, None)
