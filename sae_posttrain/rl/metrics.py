"""
What the steered trainer logs, from tensors that were gathered over all processes.

Legend of the shapes: N rollouts of all processes, B of this one, G of a prompt, C completion positions.
"""

import torch
from torch import Tensor

from ..precision import widest_float
from .advantages import SMALLEST_SPREAD, spread


def rollout_metrics(
    rewards: Tensor, lengths: Tensor, steered: Tensor, faulty: Tensor, hit_at_first: Tensor, num_generations: int
) -> dict[str, float]:
    """
    Rates and means of steered and of plain rollouts.

    Args:
        rewards (`torch.Tensor` of shape `(N,)`):
            Total rewards; NaN where there is none.
        lengths (`torch.Tensor` of shape `(N,)`):
            Tokens of the rollouts.
        steered, faulty, hit_at_first (`torch.Tensor` of shape `(N,)`, bool):
            As in [`Rollouts`].
        num_generations (`int`):
            G.

    Returns:
        `dict[str, float]`: of plain rollouts `hit_rate_plain`, `reward_plain`, `length_plain`; if any were steered,
        `hit_rate` (at the first attempt), `reward`, `length`, and `only_signal`, the share of prompts whose plain
        rollouts all score the same, but not all rollouts.
    """
    metrics = {
        "hit_rate_plain": _mean(faulty[~steered].float()),
        "reward_plain": _mean(rewards[~steered]),
        "length_plain": _mean(lengths[~steered].float()),
    }
    if not bool(steered.any()):
        return metrics
    rewards_NG = rewards.view(-1, num_generations)
    plain_NG = rewards_NG.masked_fill(steered.view(-1, num_generations), torch.nan)
    only_signal = (spread(plain_NG) < SMALLEST_SPREAD) & (spread(rewards_NG) >= SMALLEST_SPREAD)
    return metrics | {
        "hit_rate": _mean(hit_at_first[steered].float()),
        "reward": _mean(rewards[steered]),
        "length": _mean(lengths[steered].float()),
        "only_signal": _mean(only_signal.float()),
    }


def loss_sums(mask: Tensor, advantages: Tensor, steered: Tensor) -> Tensor:
    """
    Tokens and `Σ |advantage · weight|` over them, of steered and of all rollouts of one process.

    Args:
        mask (`torch.Tensor` of shape `(B, C)`):
            Tokens in the loss.
        advantages (`torch.Tensor` of shape `(B,)` or `(B, C)`):
            As they enter the loss, weights included.
        steered (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that were steered.

    Returns:
        `torch.Tensor` of shape `(4,)`: tokens steered, tokens, advantage steered, advantage. To be summed.
    """
    size_BC = (advantages if advantages.ndim == 2 else advantages[:, None]).abs() * mask
    sums = [mask[steered].sum(), mask.sum(), size_BC[steered].sum(), size_BC.sum()]
    return torch.stack(sums).to(widest_float(mask.device))


def loss_shares(sums: Tensor) -> dict[str, float]:
    """`token_share` and `advantage_share` of the steered rollouts, from the summed [`loss_sums`]."""
    tokens_steered, tokens, advantage_steered, advantage = sums.tolist()
    return {
        "token_share": tokens_steered / max(tokens, 1),
        "advantage_share": advantage_steered / advantage if advantage else 0.0,
    }


def pass_sums(logps: Tensor, entropies: Tensor, mask: Tensor, steered: Tensor) -> Tensor:
    """
    Sums over the tokens of one loss pass: what [`pass_means`] divides once they are summed over passes and processes.

    Args:
        logps, entropies, mask (`torch.Tensor` of shape `(B, C)`):
            Of the unsteered policy.
        steered (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that were steered.

    Returns:
        `torch.Tensor` of shape `(4,)`: log-probability and tokens of steered rollouts, entropy and tokens of plain.
    """
    logp_BC, entropy_BC = logps * mask, entropies * mask
    return torch.stack(
        [logp_BC[steered].sum(), mask[steered].sum(), entropy_BC[~steered].sum(), mask[~steered].sum()]
    ).to(widest_float(mask.device))


def pass_means(sums: Tensor) -> dict[str, float]:
    """`logp` per token of the steered rollouts and `entropy_plain` per token of the others, where there are any."""
    logp, num_steered, entropy, num_plain = sums.tolist()
    metrics = {"logp": logp / num_steered} if num_steered else {}
    return metrics | ({"entropy_plain": entropy / num_plain} if num_plain else {})


def _mean(values: Tensor) -> float:
    return values.nanmean().item()
