import pytest
import torch

from sae_posttrain.rl.metrics import loss_shares, loss_sums, pass_means, pass_sums, rollout_metrics

STEERED = torch.tensor([False, False, True] * 2)


def test_rates_and_means_by_hand():
    faulty = torch.tensor([True, False, True, False, False, False])
    metrics = rollout_metrics(
        rewards=torch.tensor([0.0, 1.0, -1.0, 0.5, float("nan"), 0.5]),
        lengths=torch.tensor([10, 20, 30, 40, 50, 60]),
        steered=STEERED,
        faulty=faulty,
        hit_at_first=torch.zeros(6, dtype=torch.bool),
        num_generations=3,
    )
    assert metrics["steer/hit_rate_plain"] == 0.25 and metrics["steer/hit_rate"] == 0.0
    assert metrics["steer/reward_plain"] == 0.5 and metrics["steer/reward"] == -0.25
    assert metrics["steer/length_plain"] == 30 and metrics["steer/length"] == 45
    assert metrics["steer/only_signal"] == 0
    assert metrics["steer/endless_rate"] == 0.5  # of the faulty ones, unless told otherwise
    assert not any(name.startswith("cold/") for name in metrics)


def test_cold_rollouts_are_neither_plain_nor_steered():
    cold = torch.tensor([False, True, False] * 2)
    faulty = torch.tensor([False, True, True, False, False, True])
    rewards = torch.tensor([1.0, 0.0, -1.0, 3.0, 2.0, 0.0])
    lengths = torch.tensor([10, 20, 30, 40, 50, 60])
    metrics = rollout_metrics(rewards, lengths, STEERED, faulty, faulty, 3, cold=cold, endless=~faulty)
    assert (metrics["steer/reward_plain"], metrics["steer/reward"], metrics["cold/reward"]) == (2.0, -0.5, 1.0)
    assert (metrics["steer/length_plain"], metrics["steer/length"], metrics["cold/length"]) == (25, 45, 35)
    assert (metrics["steer/hit_rate"], metrics["cold/hit_rate"], metrics["steer/hit_rate_plain"]) == (1.0, 0.5, 0.0)
    assert (metrics["steer/endless_rate"], metrics["cold/endless_rate"]) == (0.0, 0.5)
    assert metrics["steer/only_signal"] == 1.0  # one plain rollout a prompt
    only_cold = rollout_metrics(rewards, lengths, ~(cold | True), faulty, faulty, 3, cold=cold)
    assert "steer/hit_rate" not in only_cold and only_cold["cold/hit_rate"] == 0.5


def test_groups_whose_plain_rollouts_score_the_same_live_on_the_steered_one():
    rewards = torch.tensor([1.0, 1.0, -1.0, 2.0, 2.0, 2.0])  # the second group has no signal at all
    nothing = torch.zeros(6, dtype=torch.bool)
    metrics = rollout_metrics(rewards, torch.ones(6), STEERED, nothing, nothing, 3)
    assert metrics["steer/only_signal"] == 0.5


def test_without_steered_rollouts_only_plain_ones_are_reported():
    nothing = torch.zeros(6, dtype=torch.bool)
    metrics = rollout_metrics(torch.ones(6), torch.ones(6), nothing, nothing, nothing, 3)
    assert set(metrics) == {"steer/hit_rate_plain", "steer/reward_plain", "steer/length_plain"}


def test_shares_of_the_loss_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    steered = torch.tensor([False, False, True])
    # tokens 3 of 8; by row |advantage| · tokens = 1·2, 0·3, 2·3
    shares = loss_shares(loss_sums(mask, torch.tensor([1.0, 0.0, -2.0]), steered))
    assert shares == {"token_share": 3 / 8, "advantage_share": 6 / 8}
    per_token = torch.tensor([[1.0, 1.0, 9.0], [0.0, 0.0, 0.0], [-2.0, -1.0, -1.0]])
    assert loss_shares(loss_sums(mask, per_token, steered))["advantage_share"] == 4 / 6
    assert loss_shares(loss_sums(mask, torch.zeros(3), steered))["advantage_share"] == 0.0


def test_means_over_the_tokens_of_the_loss_passes():
    mask = torch.tensor([[1, 1], [1, 0]])
    steered = torch.tensor([True, False])
    sums = pass_sums(torch.tensor([[-2.0, -4.0], [-9.0, -9.0]]), torch.tensor([[7.0, 7.0], [3.0, 7.0]]), mask, steered)
    assert pass_means(sums) == {"steer/logp": -3.0, "steer/entropy_plain": 3.0}
    only_plain = pass_sums(torch.ones(2, 2), torch.ones(2, 2), mask, torch.tensor([False, False]))
    both = {"steer/logp": -3.0, "steer/entropy_plain": pytest.approx((3 + 3) / 4)}
    assert pass_means(sums + only_plain) == both
    assert pass_means(only_plain) == {"steer/entropy_plain": 1.0}
    cold = pass_sums(
        torch.tensor([[-2.0, -4.0], [-9.0, -9.0]]),
        torch.ones(2, 2),
        mask,
        torch.tensor([True, False]),
        ~mask[:, 1].bool(),
    )
    assert pass_means(cold) == {"steer/logp": -3.0, "cold/logp": -9.0}
