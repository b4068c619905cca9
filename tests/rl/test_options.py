"""Each option through the trainer: what it does to the batch the loss sees."""

import logging
import math

import pytest
import torch

from sae_posttrain.rl.advantages import group_advantages
from sae_posttrain.rl.weighing import leave_out_of_kl

from ..trained import logged, weights

LOOPING = 50


@pytest.fixture
def batch_of(train, keep_batches):
    """Train for one step and return the trainer and its only batch."""

    def run(**settings):
        trainer = train(fit=False, **settings)
        start = weights(trainer).clone()
        batches, _ = keep_batches(trainer)
        trainer.train()
        assert not torch.equal(start, weights(trainer))
        return trainer, batches[0]

    return run


def rewards_of(trainer) -> torch.Tensor:
    return torch.tensor(list(trainer._logs["rewards"]["SeesLoops"]))


def never(ids, finished):
    return False


def always(ids, finished):
    return True


# Baseline and advantages ---------------------------------------------------------------------------------------------


def test_plain_baseline_takes_the_mean_over_plain_rollouts(batch_of):
    trainer, plain = batch_of(steered_baseline="plain")
    steered, ones = plain["steered"], torch.ones(8, dtype=torch.bool)
    expected = group_advantages(rewards_of(trainer), 4, in_baseline=~steered, in_group=ones)
    assert torch.allclose(plain["advantages"], expected)
    grouped = plain["advantages"].view(2, 4)
    assert grouped[:, :3].sum(dim=1).abs().max() < 1e-5  # plain rollouts among themselves
    assert list(trainer._logs["advantages"]) == pytest.approx(expected.tolist())
    _, whole = batch_of()
    assert whole["advantages"].view(2, 4).sum(dim=1).abs().max() < 1e-5
    assert (whole["advantages"][~steered] > plain["advantages"][~steered]).all()


def test_by_default_the_advantages_are_trls_own(batch_of):
    trainer, batch = batch_of()
    ones = torch.ones(8, dtype=torch.bool)
    expected = group_advantages(rewards_of(trainer), 4, in_baseline=ones, in_group=ones)
    assert torch.allclose(batch["advantages"], expected, atol=1e-6)
    assert batch["advantages"].shape == (8,)


def test_a_capped_steered_rollout_is_never_reinforced(batch_of):
    def likes_loops(completion_ids, **kwargs):
        return [float(ids[-1] == LOOPING) for ids in completion_ids]

    _, free = batch_of(rewards=likes_loops)
    _, capped = batch_of(rewards=likes_loops, cap_steered_advantage=True)
    steered = free["steered"]
    assert (free["advantages"][steered] > 0).all()
    assert (capped["advantages"][steered] == 0).all()
    assert torch.equal(capped["advantages"][~steered], free["advantages"][~steered])


def test_weight_multiplies_the_advantage_of_steered_rollouts_only(batch_of):
    _, whole = batch_of()
    trainer, half = batch_of(steered_weight=0.5)
    steered = whole["steered"]
    assert torch.equal(half["advantages"][steered], whole["advantages"][steered] * 0.5)
    assert torch.equal(half["advantages"][~steered], whole["advantages"][~steered])
    size = half["advantages"].abs()[:, None] * half["completion_mask"]
    assert logged(trainer, "steer/advantage_share") == [pytest.approx((size[steered].sum() / size.sum()).item())]


# KL penalty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steered_kl", [True, False])
def test_penalty_counts_steered_rollouts_only_if_asked_to(batch_of, steered_kl):
    trainer, batch = batch_of(steered_kl=steered_kl)
    trainer.beta, trainer.loss_type = 1.0, "grpo"
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        logps = trainer._logps(batch, torch.arange(len(batch["steered"])))
    given = {
        **batch,
        "advantages": torch.zeros_like(batch["advantages"]),
        "old_per_token_logps": logps,
        "ref_per_token_logps": logps + 0.5,
    }
    loss = trainer._compute_loss(trainer.model, given)
    held = torch.ones(8) if steered_kl else (~batch["steered"]).float()
    assert loss.item() == pytest.approx((math.exp(0.5) - 0.5 - 1) * held.mean().item(), rel=1e-4)
    assert torch.equal(given["ref_per_token_logps"], logps + 0.5)


def test_rows_left_out_of_the_penalty_have_no_gradient():
    policy = torch.randn(3, 5, requires_grad=True)
    inputs = {
        "steered": torch.tensor([False, True, False]),
        "cold": torch.tensor([False, False, True]),
        "ref_per_token_logps": torch.randn(3, 5),
    }
    given = inputs["ref_per_token_logps"]
    leave_out_of_kl(inputs, policy.detach())
    away = inputs["ref_per_token_logps"] - policy
    penalty = torch.exp(away) - away - 1
    penalty.sum().backward()
    assert torch.equal(penalty[1:], torch.zeros(2, 5)) and torch.equal(policy.grad[1:], torch.zeros(2, 5))
    assert (penalty[0] > 0).all() and policy.grad[0].all()
    assert torch.equal(inputs["ref_per_token_logps"][0], given[0])


# Off-policy weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positions", "iterations"), [("generated", 1), ("all", 2)])
def test_truncated_weights_are_policy_over_steered_policy(train, keep_batches, make_model, positions, iterations):
    settings = {"steer_strength": 0.5, "off_policy_clip": 0.9, "steer_positions": positions}
    trainer = train(off_policy_weight="truncated", num_iterations=iterations, fit=False, **settings)
    batches, _ = keep_batches(trainer)
    trainer.train()
    batch = batches[0]
    plain = train(num_iterations=iterations, fit=False, **settings)
    (plain_batches, _) = keep_batches(plain)
    plain.train()
    advantages = plain_batches[0]["advantages"]
    trainer.model.load_state_dict(make_model().state_dict())
    rows = torch.tensor([3, 7])
    ratio = (trainer._logps(batch, rows) - trainer._logps(batch, rows, 0.5)).exp()
    assert torch.allclose(batch["advantages"][rows], advantages[rows, None] * ratio.clamp(max=0.9), atol=1e-4)
    assert ratio.min() < 0.8 and ratio.max() > 0.9  # both sides of the clip occur
    others = ~batch["steered"]
    assert torch.equal(batch["advantages"][others], advantages[others, None].expand(-1, ratio.shape[1]))
    assert ("old_per_token_logps" in batch) == (iterations == 2)


def test_floor_takes_tokens_the_policy_finds_impossible_out_of_the_loss(batch_of, make_model):
    trainer, batch = batch_of(off_policy_weight="floor", off_policy_floor=1e-3)
    trainer.model.load_state_dict(make_model().state_dict())
    rows = batch["steered"].nonzero().flatten()
    impossible = trainer._logps(batch, rows) < math.log(1e-3)
    assert impossible.any() and not impossible.all()
    assert torch.equal(batch["advantages"][rows] == 0, impossible)
    assert (batch["advantages"][~batch["steered"]] != 0).any()


# Rollouts that miss, and loops ---------------------------------------------------------------------------------------


def test_dropped_rollouts_leave_the_loss_and_the_statistics(batch_of):
    trainer, batch = batch_of(on_miss="drop", fault=never)
    steered = batch["steered"]
    assert (batch["completion_mask"][steered] == 0).all()
    assert (batch["advantages"][steered] == 0).all()
    assert batch["advantages"][~steered].view(2, 3).sum(dim=1).abs().max() < 1e-5
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum() > 0
    assert logged(trainer, "steer/dropped") == [2.0]
    assert logged(trainer, "steer/token_share") == [0.0]


def test_rollouts_that_show_the_fault_are_not_dropped(batch_of):
    trainer, batch = batch_of(on_miss="drop")
    _, kept = batch_of()
    assert torch.equal(batch["completion_mask"], kept["completion_mask"])
    assert torch.allclose(batch["advantages"], kept["advantages"], atol=1e-6)
    assert logged(trainer, "steer/dropped") == [0.0]


def test_rollouts_that_miss_are_generated_again_under_steering(batch_of):
    calls = []

    def second_time(ids, finished):
        calls.append(ids)
        return len(calls) > 8  # misses in the whole batch of 8, hits when asked again

    trainer, batch = batch_of(on_miss="resample", fault=second_time)
    assert len(calls) == 10
    assert all(set(ids) == {LOOPING} for ids in calls[8:])  # still steered
    assert logged(trainer, "steer/hit_rate") == [0.0]
    assert logged(trainer, "steer/hit_rate_resampled") == [1.0]
    assert logged(trainer, "steer/resampled") == [2.0]
    assert (batch["completion_ids"][batch["steered"]] == LOOPING).all()


def test_resampling_gives_up_and_keeps_the_last_rollout(batch_of):
    trainer, batch = batch_of(on_miss="resample", max_resamples=3, fault=never)
    assert logged(trainer, "steer/resampled") == [6.0]
    assert logged(trainer, "steer/hit_rate_resampled") == [0.0]
    assert (batch["completion_mask"][batch["steered"]].sum(dim=1) > 0).all()


def test_a_loop_is_cut_in_the_loss_and_not_in_the_reward(batch_of):
    seen = []

    def reward(completion_ids, **kwargs):
        seen.append([len(ids) for ids in completion_ids])
        return [-float(set(ids) == {LOOPING}) for ids in completion_ids]

    greedy = {"do_sample": False}
    trainer, batch = batch_of(
        loop_cut=5, max_completion_length=64, fault=None, rewards=reward, generation_kwargs=greedy
    )
    steered = batch["steered"]
    assert batch["completion_mask"][steered].sum(dim=1).tolist() == [5, 5]  # one token a period, from the first on
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    assert [seen[0][3], seen[0][7]] == [64, 64]
    assert logged(trainer, "steer/length") == [64.0]
    assert logged(trainer, "steer/hit_rate") == [1.0]
    assert logged(trainer, "steer/token_share") == [pytest.approx(10 / batch["num_items_in_batch"].item())]


# Controller ----------------------------------------------------------------------------------------------------------


def test_the_controller_moves_the_strength_towards_the_target(train):
    settings = {"target_hit_rate": 0.5, "steer_strength": 4.0, "max_steer_strength": 4.2, "max_steps": 3}
    rising = logged(train(fault=never, **settings), "steer/strength")
    falling = logged(train(fault=always, **settings), "steer/strength")
    assert rising == pytest.approx([4.0, 4.2, 4.2])  # 4 · exp(0.1) = 4.42 is above the bound
    assert falling == pytest.approx([4.0 * math.exp(-0.1 * step) for step in range(3)])


def test_the_strength_survives_a_checkpoint(train, tmp_path):
    settings = {
        "target_hit_rate": 0.5,
        "steer_strength": 4.0,
        "fault": never,
        "max_steps": 4,
        "save_strategy": "steps",
    }
    whole = train(save_steps=1, **settings)
    resumed = train(save_steps=1, fit=False, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert logged(resumed, "steer/strength")[-2:] == logged(whole, "steer/strength")[-2:]
    assert resumed.steer_strength == whole.steer_strength > 4.0


def test_a_start_above_the_largest_strength_is_refused(train):
    with pytest.raises(ValueError, match="starts at 10.0, above `max_steer_strength=8.0`"):
        train(target_hit_rate=0.5)


# Rewards that see nothing --------------------------------------------------------------------------------------------


def blind(completion_ids, **kwargs):
    return [1.0 if set(ids) == {LOOPING} else 0.5 for ids in completion_ids]


def test_a_reward_that_does_not_see_the_fault_stops_training(train):
    with pytest.raises(ValueError, match="last 2 prompts .* the rewards \\(blind\\) do not see the fault"):
        train(rewards=blind, blind_reward_patience=2)
    train(rewards=blind, blind_reward_patience=0)


def test_a_reward_that_may_not_see_the_fault_is_warned_of(train, sees_loops, caplog):
    settings = {"fault": None, "max_completion_length": 64, "fit": False}
    with caplog.at_level(logging.WARNING):
        train(rewards=[sees_loops, blind], **settings)
        assert "known to score endless repetition" not in caplog.text
        train(rewards=blind, **settings)
    assert "None of the rewards (blind) is known to score endless repetition lower" in caplog.text
