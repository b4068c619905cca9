"""Small random weights, with the names that the formats use: width D = 6, F = 16 features."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Encoder (D, F), decoder (F, D) and every other tensor that one of the formats has."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "W_enc": normal(6, 16),
        "b_enc": normal(16),
        "W_dec": normal(16, 6),
        "b_dec": normal(6),
        "threshold": normal(16).abs(),
        "b_gate": normal(16),
        "b_mag": normal(16),
        "r_mag": normal(16),
    }


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
