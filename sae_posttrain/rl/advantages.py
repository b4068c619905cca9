"""
Advantages and token weights where some rollouts of a prompt are steered: pure functions.

Legend of the shapes: N rollouts of all processes, M prompts with G rollouts each, K rewards, R rows, C completion
positions. "Group" in a name is TRL's word for the rollouts of one prompt.
"""

import torch
from torch import Tensor

SMALLEST_SPREAD = 1e-6
"""Rewards of a prompt's rollouts that differ by less count as equal; rewards are float32."""

_EPSILON = 1e-4  # as GRPOTrainer


def total_reward(rewards_per_func: Tensor, reward_weights: Tensor) -> Tensor:
    """
    Weighted sum `(N,)` of the rewards `(N, K)`, as `GRPOTrainer` takes it; NaN where every reward function returned
    `None`.
    """
    rewards_N = (rewards_per_func * reward_weights.to(rewards_per_func.device)).nansum(dim=1)
    rewards_N[rewards_per_func.isnan().all(dim=1)] = torch.nan
    return rewards_N


def spread(rewards: Tensor) -> Tensor:
    """
    Largest minus smallest reward `(M, G)` among the rollouts of each prompt; `-inf` for a prompt without any reward.
    """
    return rewards.nan_to_num(nan=-torch.inf).amax(dim=1) - rewards.nan_to_num(nan=torch.inf).amin(dim=1)


def group_advantages(
    rewards: Tensor,
    num_generations: int,
    *,
    scale_rewards: str = "group",
    in_baseline: Tensor,
    in_group: Tensor,
) -> Tensor:
    """
    `A_i = (r_i − mean(r_baseline)) / (std(r_group) + 1e-4)`: GRPO's advantage with a baseline of your choice.

    With all rows in both masks this is GRPO's advantage (https://huggingface.co/papers/2402.03300), as `GRPOTrainer`
    computes it. The scale is taken over all rollouts of the prompt, even if the baseline is not: plain rollouts often
    score the same, and a standard deviation of 0 would raise the steered rollout's advantage to `(r − mean) / 1e-4`.

    Args:
        rewards (`(N,)`): Total rewards of all rollouts of each prompt, one prompt after the other; NaN where there is
            none.
        num_generations: Number of rollouts of a prompt, G.
        scale_rewards (`"group"`, `"batch"` or `"none"`): What the standard deviation is taken over: the rollouts of a
            prompt, or all rollouts.
        in_baseline (`(N,)`, bool): Rollouts whose mean reward is subtracted.
        in_group (`(N,)`, bool): Rollouts that take part. The others have advantage 0 and count neither in the mean nor
            in the scale.

    Returns `(N,)`: 0 where there is no reward, no baseline or no second rollout to compare with.
    """
    rewards_N = rewards.masked_fill(~in_group, torch.nan)
    rewards_NG = rewards_N.view(-1, num_generations)
    baseline_NG = rewards_N.masked_fill(~in_baseline, torch.nan).view(-1, num_generations)
    advantages_NG = rewards_NG - baseline_NG.nanmean(dim=1, keepdim=True)
    if scale_rewards == "group":
        advantages_NG = advantages_NG / (_nanstd(rewards_NG) + _EPSILON)
    elif scale_rewards == "batch":
        advantages_NG = advantages_NG / (_nanstd(rewards_N[None]) + _EPSILON)
    elif scale_rewards != "none":
        raise ValueError(f"`scale_rewards` must be 'group', 'batch' or 'none', got {scale_rewards!r}.")
    return advantages_NG.flatten().nan_to_num(nan=0.0)


def truncated_weights(logps: Tensor, sampling_logps: Tensor, clip: float) -> Tensor:
    """
    `min(π_old / μ, clip)` per token, `(R, C)`: truncated importance sampling. μ is the steered policy that sampled
    them.
    """
    return (logps - sampling_logps).exp().clamp(max=clip)


def floor_weights(logps: Tensor, floor: float) -> Tensor:
    """1 for tokens whose probability under the policy is at least `floor`, else 0; of shape `(R, C)`, as `logps`."""
    return (logps.exp() >= floor).to(logps.dtype)


def _nanstd(values: Tensor) -> Tensor:
    """Standard deviation of each row, with Bessel's correction and without NaNs; NaN for fewer than two values."""
    count = (~values.isnan()).sum(dim=1, keepdim=True)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt().masked_fill(count < 2, torch.nan)
