"""Small random weights, with the names that the formats use (width D = 6, F = 16 features), and files of weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
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


@pytest.fixture
def write_tensors() -> Callable[[Path, dict[str, Tensor]], Path]:
    """Writes a weight file of the kind its name says."""

    def write(path: Path, tensors: dict[str, Tensor]) -> Path:
        if path.suffix == ".pt":
            torch.save(tensors, path)
        elif path.suffix == ".safetensors":
            save_file(tensors, path)
        else:
            savez = np.savez_compressed if "deflated" in path.name else np.savez
            savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
        return path

    return write


@pytest.fixture(params=["w.pt", "w.safetensors", "w.npz", "deflated.npz"])
def container(request, tmp_path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def matrix() -> Tensor:
    return torch.randn(40, 70, generator=torch.Generator().manual_seed(0))
