"""Rollouts with a temperature of their own: which ones, how they are sampled, and how they count."""

import logging
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from sae_posttrain import steer
from sae_posttrain.measure.answers.generate import generate_answers
from sae_posttrain.rl.advantages import group_advantages
from sae_posttrain.rl.rollouts import cold_slots, steered_slots

from ..trained import logged, weights

LOOPING = 50
ONLY_COLD = {"num_steered": 0, "num_cold": 1, "feature_set": None}
COLD = torch.tensor([False, False, True, False] * 2)
STEERED = torch.tensor([False, False, False, True] * 2)


@pytest.fixture
def batches_of(train, keep_batches):
    """Train and return the trainer and its batches."""

    def run(**settings):
        trainer = train(fit=False, **settings)
        start = weights(trainer).clone()
        batches, losses = keep_batches(trainer)
        trainer.train()
        assert not torch.equal(start, weights(trainer))
        return trainer, batches, losses

    return run


@pytest.fixture
def greedy(make_model, tokenizer):
    """The model's greedy answer to each prompt of a batch, padded as there."""

    def answer(batch, model=None) -> torch.Tensor:
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"])]
        model = make_model() if model is None else model
        answers, ended = generate_answers(model, tokenizer, prompts, max_new_tokens=12, temperature=0.0, seed=0)
        answers = [ids + [tokenizer.eos_token_id] * end for ids, end in zip(answers, ended)]
        padded = torch.full_like(batch["completion_ids"], tokenizer.pad_token_id)
        for row, ids in enumerate(answers):
            length = min(len(ids), padded.shape[1])
            padded[row, :length] = torch.tensor(ids[:length])
        return padded

    return answer


def same_rows(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one == other).all(dim=1)


# Which rollouts, and how they are sampled ----------------------------------------------------------------------------


def test_cold_rollouts_stand_in_front_of_the_steered_ones():
    assert cold_slots(8, 0, 4, 1, 1).tolist() == COLD.tolist()
    assert cold_slots(5, 0, 5, 0, 2).tolist() == [False, False, False, True, True]
    assert not cold_slots(8, 0, 4, 2, 0).any()
    # Groups of 4 over processes of 6 rows: process 1 holds slots 23 0123.
    assert cold_slots(6, 1, 4, 1, 1).tolist() == [True, False, False, False, True, False]
    assert steered_slots(6, 1, 4, 1).tolist() == [False, True, False, False, False, True]


def test_cold_rollouts_are_greedy_by_default_and_the_plain_ones_are_those_of_grpo(
    train, batches_of, keep_batches, greedy
):
    plain = train(GRPOTrainer, GRPOConfig, epsilon_high=0.28, temperature=2.0, fit=False)
    plain_batches, _ = keep_batches(plain)
    plain.train()
    trainer, batches, _ = batches_of(temperature=2.0, **ONLY_COLD)
    batch, theirs = batches[0], plain_batches[0]
    slot = torch.tensor([False, False, False, True] * 2)
    assert torch.equal(batch["cold"], slot) and not batch["steered"].any()
    assert torch.equal(same_rows(batch["completion_ids"], theirs["completion_ids"]), ~slot)
    assert torch.equal(same_rows(batch["completion_ids"], greedy(batch)), slot)
    assert trainer.temperature == 2.0 and "steer/hit_rate" not in trainer.state.log_history[0]


def test_steered_cold_and_plain_rollouts_are_made_in_one_batch(train, batches_of, keep_batches, greedy):
    _, batches, losses = batches_of(
        num_cold=1, temperature=2.0, steer_temperature=0.1, steer_strength=8.0, max_steps=3, num_iterations=2
    )
    batch = batches[0]
    assert torch.equal(batch["cold"], COLD) and torch.equal(batch["steered"], STEERED)
    assert torch.equal(same_rows(batch["completion_ids"], greedy(batch)), COLD)
    assert (batch["completion_ids"][STEERED] == LOOPING).all()
    hot = train(fit=False, num_cold=1, temperature=2.0, steer_strength=8.0)
    hot_batches, _ = keep_batches(hot)
    hot.train()
    same = same_rows(hot_batches[0]["completion_ids"], batch["completion_ids"])
    assert torch.equal(same, ~STEERED)  # without its own temperature only the steered one differs
    for inputs in losses:  # flags follow their rows through shuffling
        assert inputs["cold"].sum() == inputs["steered"].sum() == 2 and not (inputs["cold"] & inputs["steered"]).any()
        assert (inputs["completion_ids"][inputs["steered"], :4] == LOOPING).all()


@pytest.mark.parametrize(
    "split",
    [
        {"per_device_train_batch_size": 2, "steps_per_generation": 4, "max_steps": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2, "max_steps": 2},
    ],
    ids=["split over steps", "two iterations"],
)
def test_the_flag_follows_its_row_through_shuffling_and_splitting(batches_of, greedy, make_model, split):
    _, batches, losses = batches_of(temperature=2.0, **ONLY_COLD, **split)
    answers = greedy(batches[0])
    cold = {tuple(ids) for ids in answers[batches[0]["cold"]].tolist()}
    for inputs in losses:
        if tuple(inputs["completion_ids"].shape)[1] == answers.shape[1]:
            assert [tuple(ids) in cold for ids in inputs["completion_ids"].tolist()] == inputs["cold"].tolist()
    assert torch.cat([inputs["cold"] for inputs in losses]).float().mean() == 0.25


def test_settings_equal_to_the_policys_change_nothing(batches_of):
    one, _, _ = batches_of(max_steps=2)
    other, _, _ = batches_of(steer_temperature=0.5, steer_top_p=1.0, steer_top_k=0, max_steps=2)
    assert torch.equal(weights(one), weights(other))


def test_lora_and_evaluation(batches_of, data, greedy):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer, batches, _ = batches_of(
        temperature=2.0, peft_config=config, eval_dataset=data, per_device_eval_batch_size=8, **ONLY_COLD
    )
    del batches[:]
    trainer.evaluate()
    for batch in batches:
        assert "cold" not in batch
        assert not same_rows(batch["completion_ids"], greedy(batch, trainer.model)).any()
    assert list(trainer._logs["extra"]["cold"])[-8:] == [False] * 8
    assert "steered" not in trainer._logs["extra"]


def test_a_resumed_run_is_the_same_run(train, tmp_path):
    settings = {**ONLY_COLD, "max_steps": 3, "save_strategy": "steps", "save_steps": 1, "cold_temperature": 0.1}
    whole = train(**settings)
    resumed = train(fit=False, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert torch.equal(weights(whole), weights(resumed))


# How they count ------------------------------------------------------------------------------------------------------


def reads_slots(completion_ids, **kwargs):
    """By slot: 1 and 2 for plain rollouts, -3 for the cold, -4 for the steered one."""
    return [[1.0, 2.0, -3.0, -4.0][row % 4] for row in range(len(completion_ids))]


reads_slots.sees_repetition = True


def test_cold_rollouts_are_logged_beside_the_steered_ones(batches_of):
    settings = {"steer_temperature": 0, "fault": None, "max_completion_length": 64}
    trainer, batches, _ = batches_of(num_cold=1, rewards=reads_slots, **settings)
    (entry,) = [entry for entry in trainer.state.log_history if "cold/reward" in entry]
    assert (entry["steer/reward_plain"], entry["cold/reward"], entry["steer/reward"]) == (1.5, -3.0, -4.0)
    assert entry["steer/hit_rate"] == entry["steer/endless_rate"] == 1.0
    lengths = batches[0]["completion_mask"].sum(dim=1).float()
    assert entry["cold/length"] == lengths[COLD].mean() and entry["steer/length"] == lengths[STEERED].mean()
    assert entry["cold/token_share"] == pytest.approx((lengths[COLD].sum() / lengths.sum()).item())
    for name in ("hit_rate", "endless_rate", "advantage_share", "logp"):
        assert f"cold/{name}" in entry
    assert list(trainer._logs["extra"]["cold"]) == COLD.tolist()


def test_the_plain_baseline_leaves_cold_rollouts_out(batches_of):
    _, batches, _ = batches_of(num_cold=1, rewards=reads_slots, steered_baseline="plain")
    rewards = torch.tensor(reads_slots([0] * 8))
    ones = torch.ones(8, dtype=torch.bool)
    expected = group_advantages(rewards, 4, in_baseline=~(COLD | STEERED), in_group=ones)
    assert torch.allclose(batches[0]["advantages"], expected)
    _, capped, _ = batches_of(
        num_cold=1,
        rewards=lambda completion_ids, **kw: [-r for r in reads_slots(completion_ids)],
        cap_steered_advantage=True,
        blind_reward_patience=0,
    )
    assert (capped[0]["advantages"][COLD | STEERED] == 0).all()


@pytest.fixture
def logits_of(make_model):
    """Logits of the untrained model for the completions of a batch, `(B, C, V)`; pushed along features if asked."""

    def run(batch, feature_set=None, strength=0.0) -> torch.Tensor:
        model, width = make_model().eval(), batch["completion_ids"].shape[1]
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        position_ids = (attention.cumsum(1) - 1).clamp(min=0)
        pushed = torch.zeros_like(ids, dtype=torch.bool)
        pushed[:, -width - 1 :] = True
        steering = (
            nullcontext() if feature_set is None else steer(model, feature_set, strength=strength, positions=pushed)
        )
        with steering, torch.no_grad():
            return model(ids, attention_mask=attention, position_ids=position_ids).logits[:, -width - 1 : -1]

    return run


def logps_of_tokens(batch, logits) -> torch.Tensor:
    return logits.log_softmax(-1).gather(2, batch["completion_ids"][:, :, None]).squeeze(2)


TRUNCATED = {"off_policy_weight": "truncated", "off_policy_clip": 5.0, "temperature": 1.0, "num_iterations": 2}


@pytest.mark.parametrize("own", [ONLY_COLD, {"num_cold": 1, "steer_temperature": 0.6, "steer_top_k": 3}], ids=str)
def test_truncated_weights_divide_by_the_probability_of_the_draw(batches_of, logits_of, own):
    """μ by hand: tempered; for steered rollouts under steering, and cut to three tokens."""
    trainer, batches, _ = batches_of(**TRUNCATED, cold_temperature=0.4, rewards=reads_slots, steer_strength=0.5, **own)
    batch = batches[0]
    policy = logps_of_tokens(batch, logits_of(batch))
    rewards, ones = torch.tensor(reads_slots([0] * 8)), torch.ones(8, dtype=torch.bool)
    advantages = group_advantages(rewards, 4, in_baseline=ones, in_group=ones)[:, None]
    sampled = {"cold": logps_of_tokens(batch, logits_of(batch) / 0.4)}
    if "steer_top_k" in own:
        pushed = logits_of(batch, trainer.feature_set, 0.5) / 0.6
        third = pushed.topk(3).values[:, :, -1:]
        sampled["steered"] = logps_of_tokens(batch, pushed.masked_fill(pushed < third, -torch.inf))
    for column, logps in sampled.items():
        inside = batch["completion_mask"].bool() & batch[column][:, None]
        ratio = (policy - logps).exp()
        assert torch.allclose(batch["advantages"][inside], (advantages * ratio.clamp(max=5.0))[inside], atol=1e-3)
        assert inside.any() and (ratio[inside] - 1).abs().max() > 0.2
    plain = ~(batch["cold"] | batch["steered"])
    assert torch.allclose(batch["advantages"][plain], advantages[plain].expand_as(policy[plain]))


def never(ids, finished):
    return False


def test_cold_rollouts_that_miss_are_dropped_or_made_again(batches_of, logits_of):
    trainer, batches, _ = batches_of(num_cold=1, fault=never, on_miss="drop")
    assert torch.equal(batches[0]["completion_mask"].sum(dim=1) == 0, COLD | STEERED)
    assert logged(trainer, "cold/dropped") == logged(trainer, "steer/dropped") == [2.0]
    settings = {"num_cold": 1, "cold_temperature": 0.4, "rewards": reads_slots, **TRUNCATED}
    trainer, batches, _ = batches_of(fault=never, on_miss="resample", max_resamples=3, **settings)
    assert logged(trainer, "cold/resampled") == logged(trainer, "steer/resampled") == [6.0]
    assert logged(trainer, "cold/hit_rate_resampled") == [0.0]
    batch, advantages = batches[0], torch.tensor(list(trainer._logs["advantages"]))[:, None]
    logits = logits_of(batch)
    weights_of_last = (logps_of_tokens(batch, logits) - logps_of_tokens(batch, logits / 0.4)).exp().clamp(max=5.0)
    inside = batch["completion_mask"].bool() & COLD[:, None]
    assert torch.allclose(batch["advantages"][inside], (advantages * weights_of_last)[inside], atol=1e-3)


def test_dynamic_sampling_looks_at_plain_rollouts_only(batches_of, greedy):
    def same_but_negatives(completion_ids, **kwargs):
        return [[1.0, 1.0, -3.0, -4.0][row % 4] for row in range(len(completion_ids))]

    settings = {"num_cold": 1, "dynamic_sampling": "same", "dynamic_sampling_max_rounds": 2, "temperature": 2.0}
    trainer, batches, _ = batches_of(rewards=same_but_negatives, off_policy_weight="truncated", **settings)
    assert logged(trainer, "dynamic/shortfall") == [1.0]
    assert torch.equal(batches[0]["cold"], COLD) and torch.equal(batches[0]["steered"], STEERED)
    assert torch.equal(same_rows(batches[0]["completion_ids"], greedy(batches[0])), COLD)
    trainer, _, _ = batches_of(rewards=reads_slots, **settings)
    assert logged(trainer, "dynamic/shortfall") == [0.0]


def test_the_controller_follows_the_steered_rollouts(batches_of):
    def only_greedy(ids, finished):
        return set(ids[:4]) != {LOOPING}

    trainer, _, _ = batches_of(num_cold=1, fault=only_greedy, target_hit_rate=0.5, steer_strength=4.0)
    assert logged(trainer, "cold/hit_rate") == [1.0] and logged(trainer, "steer/hit_rate") == [0.0]
    assert trainer.steer_strength > 4.0


# What is taken from the feature set, and what is refused -------------------------------------------------------------


@pytest.fixture
def calibrated(make_model, make_loop_feature):
    def make(**stored):
        feature_set = make_loop_feature(make_model())
        calibration = {"strength": 8.0, "settings": {"temperature": 0.1}, **stored}
        feature_set.notes["calibration"] = calibration
        return feature_set

    return make


def test_the_temperature_that_calibrate_searched_is_taken_and_said(train, calibrated, caplog):
    with caplog.at_level(logging.INFO):
        trainer = train(feature_set=calibrated(temperature=0.1), steer_strength=None, fit=False)
    assert trainer._steered_sampling.temperature == 0.1
    assert "sampled at temperature 0.1, as the feature set has it" in caplog.text
    assert "The strength was calibrated at" not in caplog.text
    assert trainer._moved_settings() == {"steer_strength": 8.0, "steer_temperature": 0.1}


def test_a_temperature_that_was_not_searched_is_warned_of_as_before(train, calibrated, caplog):
    with caplog.at_level(logging.INFO):
        trainer = train(feature_set=calibrated(), steer_strength=None, fit=False)
    assert trainer._steered_sampling.temperature is None
    assert "calibrated at temperature 0.1, the steered rollouts are sampled at 0.5" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(feature_set=calibrated(temperature=0.1), steer_temperature=0.3, steer_strength=None, fit=False)
    assert "calibrated at temperature 0.1, the steered rollouts are sampled at 0.3" in caplog.text


@pytest.mark.parametrize("stored", ["warm", -1.0, True, float("nan")])
def test_a_damaged_temperature_is_refused(train, calibrated, stored):
    with pytest.raises(ValueError, match="holds the temperature .* damaged. Run `calibrate` again"):
        train(feature_set=calibrated(temperature=stored), steer_strength=None, fit=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_transformers_continuous_batching": True}, "not supported with continuous batching yet"),
        ({"generation_kwargs": {"do_sample": False}}, "need sampling, and `generation_kwargs` has `do_sample=False`"),
        ({"mask_truncated_completions": True}, "an endless repetition is one"),
        ({"num_cold": 4}, "`num_steered` is 0 and `num_cold` 4 of `num_generations=4`: no plain rollout"),
        (
            {"num_cold": 2},
            "are the same greedy answer again and again. Set `num_cold=1`, or `cold_temperature` above 0",
        ),
        ({"on_miss": "resample"}, "`on_miss='resample'` with `cold_temperature=0` would generate the same greedy"),
        ({"num_cold": 3, "cold_temperature": 0.2, "dynamic_sampling": "same"}, "leaves a single plain rollout"),
        ({"cold_temperature": -1}, "`cold_temperature` must be a number, 0 or more, got -1"),
        ({"num_cold": 1.5}, "`num_cold` must be a whole number"),
        ({"steer_temperature": 0.3}, "`steer_temperature` does nothing with `num_steered=0`. Leave it out"),
        (
            {"num_steered": 2, "num_cold": 0, "steer_temperature": 0},
            "`num_steered=2` at `steer_temperature=0` are the",
        ),
        ({"num_steered": 1, "steer_temperature": -0.5}, "`steer_temperature` must be a number, 0 or more"),
        ({"num_steered": 1, "steer_top_p": 0.0}, "`steer_top_p` must lie between 0 and 1"),
        ({"num_steered": 1, "steer_top_k": 1.0}, "`steer_top_k` must be a whole number"),
        (
            {"num_steered": 1, "num_cold": 0, "steer_temperature": 0, "on_miss": "resample"},
            "with `steer_temperature=0`",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(train, settings, message):
    with pytest.raises(ValueError, match=message):
        train(fit=False, **{**ONLY_COLD, **settings})


def test_a_stored_greedy_temperature_is_held_to_the_same(train, calibrated):
    with pytest.raises(ValueError, match="`num_steered=2` at `steer_temperature=0`"):
        train(feature_set=calibrated(temperature=0.0), num_steered=2, fit=False)
    with pytest.raises(ValueError, match="with `steer_temperature=0` would generate the same"):
        train(feature_set=calibrated(temperature=0), on_miss="resample", fit=False)
