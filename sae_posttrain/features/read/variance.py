"""
How much of the variance of what a site holds a reconstruction leaves unexplained.

Shape suffixes: N tokens, D width of the site, G groups.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ...precision import widest_float


class UnexplainedVariance:
    """Sums for `Σ‖x - x̂‖² / Σ‖x - mean(x)‖²`, by group of tokens, about the mean of all tokens."""

    def __init__(self, num_groups: int, width: int, device: torch.device):
        options: dict[str, Any] = {"dtype": widest_float(device), "device": device}
        self._num_tokens_G = torch.zeros(num_groups, **options)
        self._squared_error_G = torch.zeros(num_groups, **options)
        self._squared_G = torch.zeros(num_groups, **options)
        self._sum_GD = torch.zeros(num_groups, width, **options)

    def add(self, x_ND: Tensor, made_ND: Tensor, groups_N: Tensor) -> None:
        """Add tokens, what was made of them, and the number of each token's group."""
        self._num_tokens_G += torch.bincount(groups_N, minlength=len(self._num_tokens_G))
        wide = self._sum_GD.dtype
        self._squared_error_G.index_add_(0, groups_N, (x_ND - made_ND).square().sum(dim=1, dtype=wide))
        self._squared_G.index_add_(0, groups_N, x_ND.square().sum(dim=1, dtype=wide))
        self._sum_GD.index_add_(0, groups_N, x_ND.to(wide))

    def mean(self) -> Tensor:
        """Mean of all tokens `(D,)`."""
        return self._sum_GD.sum(dim=0) / self._num_tokens_G.sum()

    def fractions(self) -> tuple[float, Tensor]:
        """Fraction of variance unexplained over all tokens, and over those of each group `(G,)`."""
        mean_D = self.mean()
        variance_G = self._squared_G - 2 * self._sum_GD @ mean_D + self._num_tokens_G * mean_D.square().sum()
        error, variance = float(self._squared_error_G.sum()), float(variance_G.sum())
        return error / variance if variance > 0 else math.nan, self._squared_error_G / variance_G
