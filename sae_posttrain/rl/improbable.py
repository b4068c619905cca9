"""Says once when steered rollouts are no longer text that the policy could write: from there on they teach little."""

import logging

logger = logging.getLogger(__name__)

FAR = 3.0
"""Nats a token; `calibrate` calls pushed answers improbable at the same distance."""


class ImprobableCheck:
    """
    Compares the log-probability of steered rollouts with that of plain ones, whose expected value is the negative
    entropy, and warns the first time it is [`FAR`] nats a token below.
    """

    def __init__(self) -> None:
        self.has_warned = False

    def update(self, means: dict[str, float]) -> None:
        """
        Take in the means of some steps.

        Args:
            means (`dict[str, float]`):
                `steer/logp` and `steer/entropy_plain`, in nats per token; nothing is said if one of them is missing.
        """
        if self.has_warned or not means.keys() >= {"steer/logp", "steer/entropy_plain"}:
            return
        steered, plain = -means["steer/logp"], means["steer/entropy_plain"]
        if steered - plain > FAR:
            self.has_warned = True
            logger.warning(
                "Steered rollouts are improbable to the model: %.1f nats a token, its own rollouts %.1f. If this "
                "comes at the beginning, the push makes text that the model would not write: lower "
                "`steer_strength`, or take another feature. If it comes late, the fault is unlearned. Further steps "
                'then raise the loss of ordinary text: stop, or set `off_policy_weight="floor"`, which leaves '
                "improbable tokens out.",
                steered,
                plain,
            )
