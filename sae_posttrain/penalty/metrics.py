"""What is logged of the penalty: sums of the micro-batches of a window, and the figures made of them."""

import torch
from torch import Tensor

from .feature_penalty import FeaturePenalty, PenaltyReading
from .token_penalty import TokenReading

_MAX_FEATURES_LOGGED_BY_NAME = 32


def reading_sums(reading: PenaltyReading, num_tokens: Tensor) -> Tensor:
    """
    One micro-batch as a vector `(3 + 2F,)` that can be added up and reduced over processes.

    Args:
        reading ([`PenaltyReading`]):
            What the micro-batch gave.
        num_tokens (`torch.Tensor` of shape `()`):
            Tokens that count, those of the target groups included.
    """
    head = torch.stack([reading.excess_sum.detach(), num_tokens, reading.num_penalised])
    return torch.cat([head, reading.num_above, reading.pre_activation_sum]).double()


def penalty_metrics(sums: Tensor, penalty: FeaturePenalty) -> dict[str, float]:
    """The figures of a window, from the sum of its [`reading_sums`]."""
    names = penalty.names
    head, above, pre_sums = sums.split([3, len(names), len(names)])
    excess_sum, num_tokens, num_penalised = head.tolist()
    mean_pre = (pre_sums / max(num_penalised, 1)).tolist()
    metrics = {
        "sae/penalty": excess_sum / max(num_tokens, 1),
        "sae/excess_rate": above.sum().item() / max(num_penalised * len(names), 1),
    }
    if num_penalised and len(names) <= _MAX_FEATURES_LOGGED_BY_NAME:
        metrics |= {f"sae/pre_activation/{name}": value for name, value in zip(names, mean_pre)}
    elif num_penalised:
        metrics["sae/pre_activation"] = sum(mean_pre) / len(mean_pre)
    return metrics


def token_sums(reading: TokenReading) -> Tensor:
    """One micro-batch as a vector `(2,)` that can be added up and reduced over processes."""
    return torch.stack([reading.mass_sum.detach().double(), reading.num_counted.double()])


def token_metrics(sums: Tensor) -> dict[str, float]:
    """The figures of a window, from the sum of its [`token_sums`]; none if no position counted."""
    mass_sum, num_counted = sums.tolist()
    return {"tokens/mass": mass_sum / num_counted} if num_counted else {}
