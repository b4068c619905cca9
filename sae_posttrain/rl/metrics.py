"""
What the steered trainer logs, from tensors that were gathered over all processes.

Legend of the shapes: N rollouts of all processes, B rollouts of this one, G rollouts of a prompt, C completion
positions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..precision import widest_float
from .advantages import SMALLEST_SPREAD, spread
from .config import SteeredGRPOConfig
from .rollouts import Rollouts


def rollout_metrics(
    rewards: Tensor,
    lengths: Tensor,
    steered: Tensor,
    faulty: Tensor,
    hit_at_first: Tensor,
    num_generations: int,
    *,
    cold: Tensor | None = None,
    endless: Tensor | None = None,
) -> dict[str, float]:
    """
    Rates and means of steered, of cold and of plain rollouts, by the names they are logged under.

    Args:
        rewards (`torch.Tensor` of shape `(N,)`):
            Total rewards; NaN where there is none.
        lengths (`torch.Tensor` of shape `(N,)`):
            Number of tokens of each rollout.
        steered, faulty, hit_at_first (`torch.Tensor` of shape `(N,)`, bool):
            As in [`Rollouts`].
        num_generations (`int`):
            Number of rollouts of a prompt, G.
        cold (`torch.Tensor` of shape `(N,)`, bool, *optional*):
            As in [`Rollouts`]. By default none.
        endless (`torch.Tensor` of shape `(N,)`, bool, *optional*):
            Rollouts that [`find_loop`] calls endless. By default these are the faulty ones.

    Returns:
        `dict[str, float]`: means over plain rollouts, `steer/hit_rate_plain`, `steer/reward_plain`,
        `steer/length_plain`. For steered rollouts, if there are any, means under `steer/`, for cold ones under
        `cold/`: `hit_rate` (at the first attempt), `endless_rate`, `reward`, `length`; and with either
        `steer/only_signal`, the share of prompts whose plain rollouts all score the same while the others differ.
    """
    cold = torch.zeros_like(steered) if cold is None else cold
    endless = faulty if endless is None else endless
    provoked = steered | cold
    metrics = {
        "steer/hit_rate_plain": _mean(faulty[~provoked].float()),
        "steer/reward_plain": _mean(rewards[~provoked]),
        "steer/length_plain": _mean(lengths[~provoked].float()),
    }
    if not bool(provoked.any()):
        return metrics
    for prefix, rows in (("steer", steered), ("cold", cold)):
        if bool(rows.any()):
            metrics |= {
                f"{prefix}/hit_rate": _mean(hit_at_first[rows].float()),
                f"{prefix}/endless_rate": _mean(endless[rows].float()),
                f"{prefix}/reward": _mean(rewards[rows]),
                f"{prefix}/length": _mean(lengths[rows].float()),
            }
    rewards_NG = rewards.view(-1, num_generations)
    plain_NG = rewards_NG.masked_fill(provoked.view(-1, num_generations), torch.nan)
    only_signal = (spread(plain_NG) < SMALLEST_SPREAD) & (spread(rewards_NG) >= SMALLEST_SPREAD)
    return metrics | {"steer/only_signal": _mean(only_signal.float())}


def loss_sums(mask: Tensor, advantages: Tensor, chosen: Tensor) -> Tensor:
    """
    Tokens and `Σ |advantage · weight|` over them, of some and of all rollouts of one process.

    Args:
        mask (`torch.Tensor` of shape `(B, C)`):
            Tokens in the loss.
        advantages (`torch.Tensor` of shape `(B,)` or `(B, C)`):
            Advantages as they enter the loss, weights included.
        chosen (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts whose share is asked for: steered or cold ones.

    Returns:
        `torch.Tensor` of shape `(4,)`: their tokens, all tokens, their advantage, all advantage; to be summed over
        processes.
    """
    size_BC = (advantages if advantages.ndim == 2 else advantages[:, None]).abs() * mask
    sums = [mask[chosen].sum(), mask.sum(), size_BC[chosen].sum(), size_BC.sum()]
    return torch.stack(sums).to(widest_float(mask.device))


def loss_shares(sums: Tensor) -> dict[str, float]:
    """`token_share` and `advantage_share` of the chosen rollouts, from [`loss_sums`] summed over processes."""
    tokens_chosen, tokens, advantage_chosen, advantage = sums.tolist()
    return {
        "token_share": tokens_chosen / max(tokens, 1),
        "advantage_share": advantage_chosen / advantage if advantage else 0.0,
    }


def provoked_metrics(
    args: SteeredGRPOConfig,
    batch: dict[str, Tensor],
    rollouts: Rollouts,
    everyone: tuple[Tensor, Tensor, Tensor],
    accelerator: Any,
) -> dict[str, float]:
    """
    What became of the steered rollouts (`steer/`) and of the cold ones (`cold/`).

    Args:
        args ([`SteeredGRPOConfig`]):
            Settings.
        batch (`dict[str, torch.Tensor]`):
            The weighed batch of this process; see [`weigh`].
        rollouts ([`Rollouts`]):
            The rollouts of this process.
        everyone (`tuple` of three `torch.Tensor` of shape `(N,)`, bool):
            Which rollouts of all processes are steered, cold and faulty.
        accelerator (`accelerate.Accelerator`):
            The trainer's. Every process has to call this function.

    Returns:
        `dict[str, float]`: `token_share` and `advantage_share`; `dropped`, with `on_miss="drop"`; `resampled` and
        `hit_rate_resampled`, with `on_miss="resample"`.
    """
    steered_N, cold_N, faulty_N = everyone
    metrics: dict[str, float] = {}
    for prefix, column, num, rows_N, num_resampled in (
        ("steer", "steered", args.num_steered, steered_N, rollouts.num_resampled),
        ("cold", "cold", args.num_cold, cold_N, rollouts.num_cold_resampled),
    ):
        if not num:
            continue
        if args.on_miss == "drop":
            metrics[f"{prefix}/dropped"] = float((rows_N & ~faulty_N).sum())
        if args.on_miss == "resample":
            resampled = torch.tensor(num_resampled, device=rows_N.device)
            metrics[f"{prefix}/resampled"] = float(accelerator.reduce(resampled, reduction="sum"))
            metrics[f"{prefix}/hit_rate_resampled"] = faulty_N[rows_N].float().mean().item()
        sums = loss_sums(batch["completion_mask"], batch["advantages"], batch[column])
        shares = loss_shares(accelerator.reduce(sums, reduction="sum"))
        metrics |= {f"{prefix}/{name}": value for name, value in shares.items()}
    return metrics


class LossPasses:
    """
    Log-probability of steered and cold and entropy of plain rollouts, over the loss passes since the last log.

    TRL computes both inside its loss and returns neither, so they are taken on their way: a loss pass is made inside
    [`LossPasses.recording`], and whatever computes them tells [`LossPasses.see`]. Sums stay tensors until the logging
    step.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._rows: tuple[Tensor, Tensor, Tensor] | None = None
        self._on_logps: Callable[[Tensor], None] | None = None

    @contextmanager
    def recording(
        self,
        mask: Tensor,
        steered: Tensor,
        cold: Tensor | None = None,
        on_logps: Callable[[Tensor], None] | None = None,
    ) -> Iterator[None]:
        """
        Record the loss pass that is made inside.

        Args:
            mask (`torch.Tensor` of shape `(B, C)`):
                Tokens in the loss.
            steered, cold (`torch.Tensor` of shape `(B,)`, bool):
                Rollouts that were steered, and cold ones; none of these by default.
            on_logps (`Callable`, *optional*):
                Called with the log-probabilities `(B, C)` of the pass, without gradient, before TRL uses them.
        """
        self._rows = (mask, steered, torch.zeros_like(steered) if cold is None else cold)
        self._on_logps = on_logps
        try:
            yield
            assert self._rows is None, "TRL's loss made no forward pass"
        finally:
            self._rows = self._on_logps = None

    def see(self, logps: Tensor, entropies: Tensor) -> None:
        """Take in what a forward pass of the unsteered policy gave, `(B, C)` each; nothing outside a recording."""
        if self._rows is None:
            return
        sums = pass_sums(logps.detach(), entropies.detach(), *self._rows)
        self._sums = sums if self._sums is None else self._sums + sums
        if self._on_logps is not None:
            self._on_logps(logps.detach())
        self._rows = None

    def take(self) -> Tensor | None:
        """The [`pass_sums`] of all passes, of this process, which starts anew; `None` if there were none."""
        sums, self._sums = self._sums, None
        return sums


def pass_sums(logps: Tensor, entropies: Tensor, mask: Tensor, steered: Tensor, cold: Tensor | None = None) -> Tensor:
    """
    Sums over the tokens of one loss pass: what [`pass_means`] divides once they are summed over passes and processes.

    Args:
        logps, entropies, mask (`torch.Tensor` of shape `(B, C)`):
            Log-probability and entropy of each token under the unsteered policy, and which tokens are in the loss.
        steered, cold (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that were steered, and cold ones; none of these by default.

    Returns:
        `torch.Tensor` of shape `(6,)`: log-probability and tokens of steered rollouts, the same of cold ones, then
        entropy and tokens of plain ones.
    """
    logp_BC, entropy_BC = logps * mask, entropies * mask
    cold = torch.zeros_like(steered) if cold is None else cold
    plain = ~(steered | cold)
    sums = [logp_BC[steered], mask[steered], logp_BC[cold], mask[cold], entropy_BC[plain], mask[plain]]
    return torch.stack([each.sum() for each in sums]).to(widest_float(mask.device))


def pass_means(sums: Tensor) -> dict[str, float]:
    """
    Mean log-probability per token of the steered rollouts (`steer/logp`) and of the cold ones (`cold/logp`), and
    entropy per token of the others (`steer/entropy_plain`), where there are any.
    """
    names = ("steer/logp", "cold/logp", "steer/entropy_plain")
    return {name: total / num for name, (total, num) in zip(names, sums.view(3, 2).tolist()) if num}


def _mean(values: Tensor) -> float:
    return values.nanmean().item()
