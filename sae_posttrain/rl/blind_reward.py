"""Finds out when the rewards do not see the fault: then a steered rollout teaches nothing, or worse, is rewarded."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_SEE_REPETITION = {
    ("sae_posttrain.rl.rewards", "EndlessRepetitionReward"),
    ("trl.rewards.other_rewards", "_RepetitionPenalty"),
    ("trl.rewards.other_rewards", "_SoftOverlongPunishment"),
}


def sees_repetition(reward_func: Callable | Any) -> bool:
    """
    Whether a reward is known to score endless repetition lower.

    Those of this package and of TRL are known. Any other reward says so by an attribute `sees_repetition = True`.
    """
    kind = type(reward_func)
    return bool(getattr(reward_func, "sees_repetition", False)) or (kind.__module__, kind.__name__) in _SEE_REPETITION


def warn_of_blind_rewards(reward_funcs: Sequence[Any], reward_names: Sequence[str]) -> None:
    """Warn if no reward is known to score endless repetition lower."""
    if not any(sees_repetition(reward_func) for reward_func in reward_funcs):
        logger.warning(
            "None of the rewards (%s) is known to score endless repetition lower, and then the steered rollouts teach "
            "nothing. Add `EndlessRepetitionReward(tokenizer.eos_token_id)`; if one of yours sees it, set its "
            "attribute `sees_repetition = True`.",
            ", ".join(reward_names),
        )


class BlindRewardCheck:
    """
    Counts prompts in a row whose rollouts show the fault and whose rewards do not see it.

    A prompt counts if a steered rollout shows the fault and a plain one does not. The count starts anew if a faulty
    steered rollout scores below the mean of the plain ones. After `patience` such prompts, [`BlindRewardCheck.update`]
    raises; with 0 never.
    """

    def __init__(self, patience: int, reward_names: Sequence[str]):
        self._patience = patience
        self._reward_names = list(reward_names)
        self.num_blind = 0

    def update(self, rewards: Tensor, steered: Tensor, faulty: Tensor, num_generations: int) -> None:
        """
        Take in the prompts of one generation, in their order: rewards and flags are `(N,)`, NaN where there is no
        reward.
        """
        rewards_NG, steered_NG, faulty_NG = (x.view(-1, num_generations) for x in (rewards, steered, faulty))
        plain_mean_N1 = rewards_NG.masked_fill(steered_NG, torch.nan).nanmean(dim=1, keepdim=True)
        bad_NG = steered_NG & faulty_NG & ~rewards_NG.isnan()
        counts_N = bad_NG.any(dim=1) & (~steered_NG & ~faulty_NG).any(dim=1) & ~plain_mean_N1.isnan().flatten()
        seen_N = (bad_NG & (rewards_NG < plain_mean_N1)).any(dim=1)
        for seen in seen_N[counts_N].tolist():
            self.num_blind = 0 if seen else self.num_blind + 1
            if self._patience and self.num_blind >= self._patience:
                raise ValueError(
                    f"In the last {self.num_blind} prompts with a faulty steered rollout, no faulty rollout scored "
                    f"below the plain ones: the rewards ({', '.join(self._reward_names)}) do not see the fault, so "
                    "steering teaches nothing. Add a reward that does (for loops, "
                    "`EndlessRepetitionReward(tokenizer.eos_token_id)`), or raise its weight in `reward_weights`; "
                    "`blind_reward_patience=0` turns this off."
                )
