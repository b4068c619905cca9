"""
How steered rollouts count in the loss: the options of [`SteeredGRPOConfig`], applied to a batch.

Legend of the shapes: N rollouts of all processes, B rows of this one, R chosen rows, C completion positions.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from .advantages import floor_weights, group_advantages, truncated_weights
from .config import SteeredGRPOConfig
from .rollouts import Rollouts, cut_loops, rows_in_step

LogProbabilities = Callable[..., Tensor]
"""From row numbers `(R,)` and, for steered ones, a strength: log-probabilities of their completions `(R, C)`."""


def new_advantages(
    args: SteeredGRPOConfig, rewards: Tensor, steered: Tensor, faulty: Tensor, scale_rewards: str
) -> Tensor | None:
    """
    Advantages `(N,)` with the baseline and the rollouts that the settings ask for, or `None` if those are TRL's own.
    Rewards are NaN where there is none.
    """
    if args.steered_baseline != "plain" and args.on_miss != "drop":
        return None
    everyone = torch.ones_like(steered)
    assert args.num_generations is not None
    return group_advantages(
        rewards,
        args.num_generations,
        scale_rewards=scale_rewards,
        in_baseline=~steered if args.steered_baseline == "plain" else everyone,
        in_group=~(steered & ~faulty) if args.on_miss == "drop" else everyone,
    )


def weigh(
    args: SteeredGRPOConfig,
    batch: dict[str, Any],
    rollouts: Rollouts,
    advantages: Tensor | None,
    log_probabilities: LogProbabilities,
    *,
    accelerator: Any,
    end_ids: Collection[int],
) -> None:
    """
    Apply the settings to the batch of this process that `GRPOTrainer` made of its rollouts, in place, and add its
    column `steered`. `advantages` `(N,)` are [`new_advantages`] of all processes.
    """
    # The weights need the whole rollout as the policy saw it, so they come before any token is masked.
    token_weights = off_policy_weights(args, batch, rollouts, log_probabilities, accelerator)
    mask = loss_mask(args, batch, rollouts, end_ids)
    if mask is not None:
        batch["completion_mask"] = mask
        batch["num_items_in_batch"] = accelerator.gather(mask.sum()).sum()  # as TRL counts them
    own = batch["advantages"]
    if advantages is not None:
        start = accelerator.process_index * len(own)
        own = advantages[start : start + len(own)]
    batch["steered"] = rollouts.steered.to(own.device)
    batch["advantages"] = weighted_advantages(args, own, batch["steered"], token_weights)


def loss_mask(
    args: SteeredGRPOConfig, batch: dict[str, Any], rollouts: Rollouts, end_ids: Collection[int]
) -> Tensor | None:
    """The completion mask `(B, C)` without cut loops and dropped rollouts; `None` if it stays as it is."""
    whole = mask = batch["completion_mask"]
    steered, faulty = rollouts.steered.to(mask.device), rollouts.faulty.to(mask.device)
    if args.loop_cut is not None:
        mask = cut_loops(batch["completion_ids"], mask, steered, args.loop_cut, end_ids)
    if args.on_miss == "drop":
        mask = mask * ~(steered & ~faulty)[:, None]
    return None if mask is whole else mask


def weighted_advantages(
    args: SteeredGRPOConfig, advantages: Tensor, steered: Tensor, token_weights: Tensor | None
) -> Tensor:
    """
    Advantages `(B,)` of steered rollouts, capped and weighed as the settings ask: `(B, C)` with token weights, which
    TRL's loss takes as well.
    """
    if args.cap_steered_advantage:
        advantages = torch.where(steered, advantages.clamp(max=0), advantages)
    if args.steered_weight != 1:
        advantages = torch.where(steered, advantages * args.steered_weight, advantages)
    return advantages if token_weights is None else advantages[:, None] * token_weights


def off_policy_weights(
    args: SteeredGRPOConfig,
    batch: dict[str, Any],
    rollouts: Rollouts,
    log_probabilities: LogProbabilities,
    accelerator: Any,
) -> Tensor | None:
    """
    Weight of each token `(B, C)`, 1 on plain rollouts; `None` if the settings ask for no weights.

    Every process makes as many forward passes as the others.
    """
    if args.off_policy_weight == "none":
        return None
    assert args.num_generations is not None
    rows = rows_in_step(
        rollouts.steered,
        accelerator.process_index,
        accelerator.num_processes,
        args.num_generations,
        args.num_steered,
    )
    asked = rollouts.steered[rows]  # not the rows that only keep in step
    old = batch.get("old_per_token_logps")
    logps = old[rows] if old is not None else log_probabilities(rows)
    if args.off_policy_weight == "floor":
        weights_RC = floor_weights(logps, args.off_policy_floor)
    else:
        weights_RC = truncated_weights(logps, log_probabilities(rows, rollouts.strength), args.off_policy_clip)
    weights = torch.ones_like(batch["completion_mask"], dtype=torch.float32)
    weights[rows[asked]] = weights_RC[asked.to(weights_RC.device)]
    return weights
