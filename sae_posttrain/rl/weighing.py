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
    args: SteeredGRPOConfig, rewards: Tensor, provoked: Tensor, faulty: Tensor, scale_rewards: str
) -> Tensor | None:
    """
    Advantages with the baseline and the rollouts that the settings ask for.

    Args:
        args ([`SteeredGRPOConfig`]):
            Settings.
        rewards (`torch.Tensor` of shape `(N,)`):
            Total rewards; NaN where there is none.
        provoked, faulty (`torch.Tensor` of shape `(N,)`, bool):
            As in [`Rollouts`].
        scale_rewards (`str`):
            The trainer's, as in [`group_advantages`].

    Returns:
        `torch.Tensor` of shape `(N,)`, or `None` if TRL's own advantages are the ones asked for.
    """
    if args.steered_baseline != "plain" and args.on_miss != "drop":
        return None
    everyone = torch.ones_like(provoked)
    assert args.num_generations is not None
    return group_advantages(
        rewards,
        args.num_generations,
        scale_rewards=scale_rewards,
        in_baseline=~provoked if args.steered_baseline == "plain" else everyone,
        in_group=~(provoked & ~faulty) if args.on_miss == "drop" else everyone,
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
    Apply the settings to the batch of this process, in place. Adds its column `steered`, and `cold` if there are cold
    rollouts.

    Args:
        args ([`SteeredGRPOConfig`]):
            Settings.
        batch (`dict[str, Any]`):
            What `GRPOTrainer` made of the rollouts.
        rollouts ([`Rollouts`]):
            The rollouts of this process.
        advantages (`torch.Tensor` of shape `(N,)`, *optional*):
            [`new_advantages`] of all processes.
        log_probabilities (`Callable`):
            Computes log-probabilities; see [`LogProbabilities`].
        accelerator (`accelerate.Accelerator`):
            The trainer's.
        end_ids (`Collection[int]`):
            Token ids that end an answer.
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
    if args.num_cold:
        batch["cold"] = rollouts.cold.to(own.device)
    batch["advantages"] = weighted_advantages(args, own, rollouts.provoked.to(own.device), token_weights)


def loss_mask(
    args: SteeredGRPOConfig, batch: dict[str, Any], rollouts: Rollouts, end_ids: Collection[int]
) -> Tensor | None:
    """The completion mask `(B, C)` without cut loops and dropped rollouts; `None` if it stays as it is."""
    whole = mask = batch["completion_mask"]
    provoked, faulty = rollouts.provoked.to(mask.device), rollouts.faulty.to(mask.device)
    if args.loop_cut is not None:
        mask = cut_loops(batch["completion_ids"], mask, provoked, args.loop_cut, end_ids)
    if args.on_miss == "drop":
        mask = mask * ~(provoked & ~faulty)[:, None]
    return None if mask is whole else mask


def weighted_advantages(
    args: SteeredGRPOConfig, advantages: Tensor, provoked: Tensor, token_weights: Tensor | None
) -> Tensor:
    """
    Advantages of steered and cold rollouts, capped and weighed as the settings ask.

    Args:
        args ([`SteeredGRPOConfig`]):
            Settings.
        advantages (`torch.Tensor` of shape `(B,)`):
            Before any weight.
        provoked (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that were steered or cold.
        token_weights (`torch.Tensor` of shape `(B, C)`, *optional*):
            Weight of each token.

    Returns:
        `torch.Tensor` of shape `(B,)`, or `(B, C)` with token weights, which TRL's loss takes as well.
    """
    if args.cap_steered_advantage:
        advantages = torch.where(provoked, advantages.clamp(max=0), advantages)
    if args.steered_weight != 1:
        advantages = torch.where(provoked, advantages * args.steered_weight, advantages)
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
    provoked = rollouts.provoked
    rows = rows_in_step(
        provoked,
        accelerator.process_index,
        accelerator.num_processes,
        args.num_generations,
        args.num_steered + args.num_cold,
    )
    asked = provoked[rows]  # not the rows that only keep in step
    old = batch.get("old_per_token_logps")
    logps = old[rows] if old is not None else log_probabilities(rows)
    if args.off_policy_weight == "floor":
        weights_RC = floor_weights(logps, args.off_policy_floor)
    else:
        sampling_logps = _sampling_logps(rollouts, rows, logps)
        if sampling_logps is None:  # rollouts whose sampler did not tell: steered, at the policy's temperature
            sampling_logps = log_probabilities(rows, rollouts.strength)
        weights_RC = truncated_weights(logps, sampling_logps, args.off_policy_clip)
    weights = torch.ones_like(batch["completion_mask"], dtype=torch.float32)
    weights[rows[asked]] = weights_RC[asked.to(weights_RC.device)]
    return weights


def _sampling_logps(rollouts: Rollouts, rows: Tensor, like: Tensor) -> Tensor | None:
    """What the sampler recorded of some rows, `(R, C)`, 0 on padding; `None` if it recorded nothing."""
    if rollouts.sampling_logps is None:
        return None
    logps_RC = torch.zeros_like(like)
    for number, row in enumerate(rows.tolist()):
        told = [torch.nan if value is None else value for value in rollouts.sampling_logps[row] or []]
        logps_RC[number, : len(told)] = torch.tensor(told, dtype=like.dtype)
    return torch.where(logps_RC.isnan(), like, logps_RC)  # a token that it could not score gets the weight 1


def leave_out_of_kl(inputs: dict[str, Any], logps: Tensor) -> None:
    """
    Take steered and cold rollouts out of the KL penalty of one loss pass, by changing its inputs.

    Their reference log-probabilities become those of the policy itself, `(B, C)` without gradient. There the penalty
    `exp(r - p) - (r - p) - 1` and its gradient are 0.
    """
    provoked = inputs["steered"] | inputs["cold"] if "cold" in inputs else inputs["steered"]
    inputs["ref_per_token_logps"] = torch.where(provoked[:, None], logps, inputs["ref_per_token_logps"])
