"""A steered GRPO run that is resumed where a generation ends ends in the weights of one that was not interrupted."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

STEPS = 8
"""Two epochs of four steps, of two generations each."""

SETTINGS = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,  # rollouts of every other step
    "gradient_accumulation_steps": 1,
    "max_completion_length": 8,
    "temperature": 1.0,
    "steer_strength": 2.0,
    "target_hit_rate": 0.5,
    "max_steps": STEPS,
    "learning_rate": 0.01,
    "optim": "adamw_torch",
    "lr_scheduler_type": "linear",
    "save_strategy": "steps",
    "save_steps": 1,
}


@pytest.fixture
def make_trainer(train):
    return lambda **kwargs: train(fit=False, **SETTINGS | kwargs)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def moved(trainer) -> list[float]:
    return [entry["steer/strength"] for entry in trainer.state.log_history if "steer/strength" in entry]


@pytest.mark.parametrize(
    ("restore_callbacks", "steps"),
    [(False, (6, 4)), (True, (2,))],
    ids=["in and before the second epoch", "in the first epoch, callbacks restored"],
)
def test_weights_and_strength_after_resuming_are_those_of_an_uninterrupted_run(
    make_trainer, tmp_path, caplog, restore_callbacks, steps
):
    settings = {"restore_callback_states_from_checkpoint": restore_callbacks}
    first = make_trainer(**settings)
    first.train()
    assert len(set(moved(first))) == 4  # the strength moved after each of four generations
    whole = {step: weights(tmp_path / "run" / f"checkpoint-{step}") for step in range(1, STEPS + 1)}
    for step in steps:
        resumed = make_trainer(**settings)
        for later in range(step + 1, STEPS + 1):
            shutil.rmtree(tmp_path / "run" / f"checkpoint-{later}")
        with caplog.at_level(logging.WARNING):
            resumed.train(resume_from_checkpoint=True)
        assert {each: weights(tmp_path / "run" / f"checkpoint-{each}") for each in whole} == whole
        assert moved(resumed) == moved(first)
        assert resumed.steer_strength == first.steer_strength
    assert "not included in current configuration" not in caplog.text  # transformers restored it, or was not asked to
    assert "between two generations" not in caplog.text


def test_resuming_between_two_generations_is_warned_of_and_goes_on(make_trainer, tmp_path, caplog):
    make_trainer().train()
    whole = weights(tmp_path / "run" / f"checkpoint-{STEPS}")
    resumed = make_trainer()
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert "Resuming at step 3, between two generations" in caplog.text
    assert "save at multiples of 2 steps" in caplog.text
    assert weights(tmp_path / "run" / f"checkpoint-{STEPS}") != whole
    assert resumed.state.global_step == STEPS


def test_a_controller_that_is_switched_on_when_resuming_is_saved_from_then_on(make_trainer, tmp_path):
    make_trainer(target_hit_rate=None, max_steps=2).train()
    resumed = make_trainer(max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.steer_strength != 2.0
    again = make_trainer(max_steps=4)
    again.train(resume_from_checkpoint=True)  # nothing is left to do, but to read the state
    assert again.steer_strength == resumed.steer_strength


def test_rollouts_are_drawn_from_the_random_state_of_the_checkpoint(make_trainer, keep_batches, tmp_path):
    whole = make_trainer(target_hit_rate=None)
    kept, _ = keep_batches(whole)
    whole.train()
    resumed = make_trainer(target_hit_rate=None)
    torch.manual_seed(123)
    kept_again, _ = keep_batches(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert len(kept) == 4 and len(kept_again) == 2
    assert torch.equal(kept_again[0]["completion_ids"], kept[2]["completion_ids"])
