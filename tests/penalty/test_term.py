"""A penalty term of a user's own, beside those that ship and alone."""

import pytest
import torch

from sae_posttrain import FeaturePenaltyMixin
from sae_posttrain.hooks.record import SiteRecorder
from sae_posttrain.penalty.term import PenaltyTerm, TermReading, summable

from ..trained import logged, weights
from .conftest import CLASSES, rows_of

PLACE = (1, "resid_post")


class SmallResiduals(PenaltyTerm):
    """Mean square of the second block's output."""

    def __init__(self, weight: float):
        self.weight = weight

    def attach(self, model):
        self.recorder = SiteRecorder(model, [PLACE])

    def arm(self):
        return self.recorder.armed()

    def measure(self, captured, batch):
        square = batch.value_at(captured, PLACE).float().square().mean(dim=-1)
        total = (square * batch.penalised).sum()
        return TermReading(total, summable(total, batch.penalised.sum()))

    def metrics(self, sums):
        return {"residual/square": (sums[0] / sums[1]).item()}


@pytest.mark.parametrize("kind", ["dpo", "grpo", "trainer"])
def test_a_term_of_ones_own_trains_beside_the_features_and_is_logged(train, kind):
    held = train(kind, arguments={"terms": [SmallResiduals(1.0)]})
    without = train(kind)
    assert not torch.equal(weights(held), weights(without))
    assert logged(held, "residual/square")[0] > 0
    assert logged(held, "sae/penalty") == logged(without, "sae/penalty")


def test_a_term_of_ones_own_needs_neither_features_nor_tokens(train, tokenizer):
    alone = {"features": None, "penalty_weight": 0.0, "target_group": "zh", "max_steps": 3}
    data = {"eval_dataset": rows_of("dpo", tokenizer)}
    held = train("dpo", **alone, **data, arguments={"terms": [SmallResiduals(1.0)]})
    assert held.feature_penalty is held.token_penalty is held.adaptive_weight is None
    squares = logged(held, "residual/square")
    assert squares[-1] < squares[0]
    assert held.evaluate()["eval_residual/square"] > 0


def test_a_term_with_weight_zero_trains_exactly_like_the_parent(train):
    alone = {"features": None, "penalty_weight": 0.0, "target_group": "zh"}
    held = train("dpo", **alone, arguments={"terms": [SmallResiduals(0.0)]})
    assert torch.equal(weights(held), weights(train("dpo", plain=True)))
    assert logged(held, "residual/square")[0] > 0


def test_a_term_alone_needs_to_know_whose_answers_to_leave_out(train):
    alone = {"features": None, "penalty_weight": 0.0}
    with pytest.raises(ValueError, match="Set `target_group`"):
        train("dpo", **alone, arguments={"terms": [SmallResiduals(1.0)]}, fit=False)


def test_a_term_with_a_plain_config_is_refused(train):
    trainer, plain = CLASSES["dpo"][0], CLASSES["dpo"][3]
    with pytest.raises(ValueError, match="`terms` were passed with a plain `DPOConfig`"):
        train("dpo", classes=(trainer, plain), arguments={"terms": [SmallResiduals(1.0)]}, fit=False)


def test_the_old_name_of_the_method_is_refused_with_the_new_one(train):
    class Old(CLASSES["dpo"][0]):
        def penalised_tokens(self, inputs):
            return inputs["completion_mask"].bool()

    with pytest.raises(TypeError, match="`penalised_tokens`.*called `penalised_positions` now.*rename it"):
        train("dpo", classes=(Old, CLASSES["dpo"][1]), fit=False)
    assert not hasattr(FeaturePenaltyMixin, "penalised_tokens")
