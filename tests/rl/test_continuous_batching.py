"""Steered GRPO with the rollouts of continuous batching: the tokens of `generate`, and training on them."""

import pytest
import torch

from ..trained import logged
from .conftest import LOOPING

pytestmark = pytest.mark.filterwarnings("ignore")  # those of continuous batching, which are not ours to change

PAGED = {
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"num_blocks": 64, "page_size": 8, "max_batch_tokens": 16},
}


def rollouts_of(train, keep_batches, **settings):
    trainer = train(fit=False, **settings)
    batches, _ = keep_batches(trainer)
    trainer.train()
    return trainer, batches


@pytest.mark.parametrize("positions", ["generated", "all"])
def test_rollouts_and_losses_are_those_of_generate(train, keep_batches, positions):
    settings = {"generation_kwargs": {"top_k": 1}, "steer_positions": positions, "max_steps": 2, "num_steered": 2}
    plain, expected = rollouts_of(train, keep_batches, **settings)
    paged, got = rollouts_of(train, keep_batches, **settings, **PAGED)
    assert len(expected) == len(got) == 2
    for ours, theirs in zip(got, expected):
        assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
        assert torch.equal(ours["steered"], theirs["steered"])
    assert logged(paged, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-6)
    rows = got[0]["completion_ids"]
    assert (rows[got[0]["steered"]] == LOOPING).all() and not (rows[~got[0]["steered"]] == LOOPING).all(dim=1).any()


def test_three_steps_train_on_steered_rollouts(train):
    trainer = train(max_steps=3, use_transformers_paged=True, transformers_continuous_batching_config=PAGED[
        "transformers_continuous_batching_config"])  # fmt: skip
    assert logged(trainer, "steer/hit_rate")[0] == 1.0 and not any(logged(trainer, "steer/hit_rate_plain"))
    assert all(share > 0 for share in logged(trainer, "steer/advantage_share"))
    assert all(norm > 0 for norm in logged(trainer, "grad_norm"))


@pytest.mark.parametrize(
    "settings",
    [
        {"on_miss": "resample", "steer_strength": 0.1},
        {"dynamic_sampling": "fresh"},
        {"dynamic_sampling": "same"},
        {"target_hit_rate": 0.5, "steer_strength": 5.0},
        {"off_policy_weight": "truncated"},
        {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 4},
    ],
    ids=str,
)
def test_the_options_work_with_it(train, settings):
    trainer = train(**{"max_steps": 2, **settings, **PAGED})
    assert len(logged(trainer, "loss")) == trainer.args.max_steps
    assert logged(trainer, "steer/strength")
    if settings.get("on_miss") == "resample":
        assert logged(trainer, "steer/resampled")[0] > 0


def test_evaluation_is_not_steered(train, data):
    """TRL leaves the model in training mode after each batch of continuous batching; there are four of them here."""
    trainer = train(eval_dataset=data, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, **PAGED)
    entry = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert entry["eval_rewards/SeesLoops/mean"] > 0
    assert not any("steer/" in key for key in entry)


def test_a_generation_that_fails_is_an_error(train):
    trainer = train(fit=False, **PAGED)

    def fails(_block, args):
        if args[0].shape[1] == 8:  # the first pass over decoded tokens
            raise RuntimeError("out of something")

    trainer.model.model.layers[0].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="Continuous batching failed at row"):
        trainer.train()
