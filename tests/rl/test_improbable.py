import logging

import pytest

from sae_posttrain.rl.improbable import ImprobableCheck


@pytest.mark.parametrize(
    ("logp", "entropy", "warns"),
    [(-6.9, 3.2, True), (-1.3, 3.2, False), (-6.1, 3.2, False), (-6.3, 3.2, True)],
)
def test_steered_text_far_below_the_policys_own_is_warned_of(caplog, logp, entropy, warns):
    with caplog.at_level(logging.WARNING):
        ImprobableCheck().update({"steer/logp": logp, "steer/entropy_plain": entropy})
    assert ("are improbable to the model" in caplog.text) == warns


def test_the_warning_comes_once_and_holds_both_figures(caplog):
    check = ImprobableCheck()
    with caplog.at_level(logging.WARNING):
        for logp in (-1.0, -6.9, -8.0):
            check.update({"steer/logp": logp, "steer/entropy_plain": 3.0})
    assert len(caplog.records) == 1
    assert "6.9 nats a token, its own rollouts 3.0" in caplog.text


def test_nothing_is_said_without_both_figures(caplog):
    with caplog.at_level(logging.WARNING):
        ImprobableCheck().update({"cold/logp": -9.0, "steer/entropy_plain": 1.0})
        ImprobableCheck().update({"steer/logp": -9.0})
    assert not caplog.records


@pytest.mark.parametrize(("strength", "warns"), [(10.0, 1), (0.1, 0)])
def test_training_warns_of_a_push_to_text_that_the_model_would_not_write(train, caplog, strength, warns):
    with caplog.at_level(logging.WARNING):
        train(max_steps=2, steer_strength=strength)
    assert caplog.text.count("are improbable to the model") == warns
