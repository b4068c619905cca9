import pytest

from sae_posttrain.training.watch.stopping import Patience


def test_a_rate_counts_as_better_only_if_the_loss_stays_low():
    patience = Patience("endless", patience=2, max_loss_increase=0.1)
    assert not patience.add(0.5, 2.0)
    assert not patience.add(0.4, 2.2)  # a lower rate, paid with the loss
    assert patience.best == 0.5
    assert not patience.add(0.4, 2.1)
    assert patience.best == 0.4
    assert not patience.add(0.3, 2.3)
    assert patience.add(0.4, 1.9)


def test_more_is_better_for_the_right_language():
    patience = Patience("right_language", patience=1)
    assert not patience.add(0.5, None)
    assert not patience.add(0.6, None)
    assert patience.add(0.55, None)


def test_the_loss_must_be_there_if_it_is_asked_for():
    with pytest.raises(ValueError, match="needs `eval_loss`"):
        Patience("endless", 1, max_loss_increase=0.0).add(0.1, None)
