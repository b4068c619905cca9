"""
What the steered trainer logs, from tensors that were gathered over all processes.

Legend of the shapes: N rollouts of all processes, B rollouts of this one, G rollouts of a prompt, C completion
positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..precision import widest_float
from .advantages import SMALLEST_SPREAD, spread


def rollout_metrics(
    rewards: Tensor, lengths: Tensor, steered: Tensor, faulty: Tensor, hit_at_first: Tensor, num_generations: int
) -> dict[str, float]:
    """
    Rates and means of steered and of plain rollouts. Rewards are NaN where there is none; flags are as in
    [`Rollouts`].

    Returns the means over plain rollouts, `hit_rate_plain`, `reward_plain`, `length_plain`. If any rollout was
    steered, also the means over steered rollouts, `hit_rate` (at the first attempt), `reward`, `length`, and
    `only_signal`, the share of prompts whose plain rollouts all score the same while the steered ones differ.
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

    `mask` is `(B, C)`, `advantages` `(B,)` or `(B, C)` with weights included. Returns `(4,)`: steered tokens, all
    tokens, steered advantage, all advantage; to be summed over processes.
    """
    size_BC = (advantages if advantages.ndim == 2 else advantages[:, None]).abs() * mask
    sums = [mask[steered].sum(), mask.sum(), size_BC[steered].sum(), size_BC.sum()]
    return torch.stack(sums).to(widest_float(mask.device))


def loss_shares(sums: Tensor) -> dict[str, float]:
    """`token_share` and `advantage_share` of the steered rollouts, from [`loss_sums`] summed over processes."""
    tokens_steered, tokens, advantage_steered, advantage = sums.tolist()
    return {
        "token_share": tokens_steered / max(tokens, 1),
        "advantage_share": advantage_steered / advantage if advantage else 0.0,
    }


class LossPasses:
    """
    Log-probability of steered and entropy of plain rollouts, over the loss passes since the last log.

    TRL computes both inside its loss and returns neither, so they are taken on their way: a loss pass is made inside
    [`LossPasses.recording`], and whatever computes them tells [`LossPasses.see`]. Sums stay tensors until the logging
    step.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._rows: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def recording(self, mask: Tensor, steered: Tensor) -> Iterator[None]:
        """
        Record the loss pass that is made inside: `mask` `(B, C)` marks its tokens, `steered` `(B,)` the steered
        rollouts.
        """
        self._rows = (mask, steered)
        try:
            yield
            assert self._rows is None, "TRL's loss made no forward pass"
        finally:
            self._rows = None

    def see(self, logps: Tensor, entropies: Tensor) -> None:
        """Take in what a forward pass of the unsteered policy gave, `(B, C)` each; nothing outside a recording."""
        if self._rows is None:
            return
        sums = pass_sums(logps.detach(), entropies.detach(), *self._rows)
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows = None

    def take(self) -> Tensor | None:
        """The [`pass_sums`] of all passes, of this process, which starts anew; `None` if there were none."""
        sums, self._sums = self._sums, None
        return sums


def pass_sums(logps: Tensor, entropies: Tensor, mask: Tensor, steered: Tensor) -> Tensor:
    """
    Sums over the tokens of one loss pass: what [`pass_means`] divides once they are summed over passes and processes.

    Log-probabilities and entropies `(B, C)` are those of the unsteered policy. Returns `(4,)`: log-probability and
    tokens of steered rollouts, then entropy and tokens of plain ones.
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
