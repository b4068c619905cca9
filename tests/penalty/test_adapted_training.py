"""A weight that follows an allowed excess rate, in training."""

import pytest
import torch

from sae_posttrain.penalty.adaptive_weight import AdaptiveWeight

from ..trained import logged, weights
from .conftest import rows_of

pytestmark = pytest.mark.filterwarnings("ignore")


def spy_on_updates(trainer) -> list[tuple[float, float]]:
    seen = []

    class Spy(AdaptiveWeight):
        def update(self, excess_rate, loss):
            seen.append((excess_rate, loss))
            return super().update(excess_rate, loss)

    trainer.adaptive_weight.__class__ = Spy
    return seen


@pytest.mark.parametrize("kind", ["trainer", "dpo", "grpo"])
def test_weight_is_adapted_once_a_step_from_the_rate_and_the_trainers_own_loss(train, kind):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    settings |= {"penalty_target": 0.9}
    trainer = train(kind, fit=False, **settings)
    seen = spy_on_updates(trainer)
    trainer.train()
    assert [rate for rate, _ in seen] == pytest.approx(logged(trainer, "sae/excess_rate"))
    logged_weights = logged(trainer, "sae/penalty_weight")
    assert logged_weights[-1] < logged_weights[0] < 3.0  # the target is above the rate: there is slack
    paid = [weight * penalty for weight, penalty in zip([3.0, *logged_weights], logged(trainer, "sae/penalty"))]
    assert [loss for _, loss in seen] == pytest.approx(
        [loss - more for loss, more in zip(logged(trainer, "loss"), paid)], abs=1e-4
    )


def test_weight_of_the_next_step_is_the_adapted_one(train):
    adapted = train("trainer", max_steps=2, penalty_target=0.01)
    assert logged(adapted, "sae/penalty_weight")[-1] > 3.0
    assert not torch.equal(weights(adapted), weights(train("trainer", max_steps=2)))
    assert torch.equal(
        weights(train("trainer", max_steps=1, penalty_target=0.01)), weights(train("trainer", max_steps=1))
    )


def test_evaluation_does_not_move_the_weight(train, tokenizer):
    trainer = train("dpo", eval_dataset=rows_of("dpo", tokenizer), penalty_target=0.01)
    state = trainer.adaptive_weight.state()
    assert trainer.evaluate()["eval_sae/penalty_weight"] == trainer.penalty_weight
    assert trainer.adaptive_weight.state() == state


def test_resumed_training_goes_on_with_the_adapted_weight(train, tmp_path):
    settings = {"penalty_target": 0.05, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = train("trainer", **settings)
    resumed = train("trainer", fit=False, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.adaptive_weight.state() == whole.adaptive_weight.state()
    assert torch.equal(weights(whole), weights(resumed))
