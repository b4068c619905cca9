"""What is logged of the penalty: sums of the micro-batches of a window, and the figures made of them."""

import torch
from torch import Tensor

from ..precision import widest_float
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
    device = reading.excess_sum.device
    head = torch.stack([reading.excess_sum.detach(), num_tokens.to(device), reading.num_penalised.to(device)])
    return torch.cat([head, reading.num_above, reading.pre_activation_sum]).to(widest_float(device))


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
    device = reading.mass_sum.device
    return torch.stack(
        [part.to(device, widest_float(device)) for part in (reading.mass_sum.detach(), reading.num_counted)]
    )


def token_metrics(sums: Tensor) -> dict[str, float]:
    """The figures of a window, from the sum of its [`token_sums`]; none if no position counted."""
    mass_sum, num_counted = sums.tolist()
    return {"tokens/mass": mass_sum / num_counted} if num_counted else {}


def group_sums(without_group: Tensor, num_tokens: Tensor) -> Tensor:
    """
    One micro-batch as a vector `(2,)` that can be added up and reduced over processes.

    Args:
        without_group (`torch.Tensor` of shape `()`):
            Tokens that count, of answers without letters.
        num_tokens (`torch.Tensor` of shape `()`):
            Tokens that count.
    """
    return torch.stack([without_group, num_tokens]).to(widest_float(num_tokens.device))


def group_metrics(sums: Tensor) -> dict[str, float]:
    """The share of tokens without a group, from the sum of a window's [`group_sums`]; nothing if there is none."""
    without_group, num_tokens = sums.tolist()
    return {"sae/without_group": without_group / num_tokens} if without_group else {}
