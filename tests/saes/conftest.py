"""Small random weights, with the names that the formats use (width D = 6, F = 16 features), and files of weights."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import close_session, constants
from safetensors.torch import save_file
from torch import Tensor

spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
hub_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub_server)


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


@pytest.fixture
def hub(tmp_path_factory, monkeypatch) -> Iterator[Any]:
    """A Hub on this machine (`hub_server.HubServer`), asked instead of the real one; its caches are empty."""
    here = tmp_path_factory.mktemp("hub")
    server = hub_server.HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(here / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()  # its client may know another proxy
    yield server
    close_session()
    server.close()
