"""SAEs of every kind of activation for the tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae_posttrain import FrozenSAE
from sae_posttrain.saes.stored.source import SAESource

WIDTH, NUM_FEATURES = 32, 24


@pytest.fixture
def make_sae() -> Callable[..., FrozenSAE]:
    def make(block: int = 1, activation: str = "topk", **settings) -> FrozenSAE:
        normal = torch.Generator().manual_seed(block)
        extra = {
            "topk": {"k": 4},
            "abstopk": {"k": 4},
            "groupmax": {"k": 4},
            "jumprelu": {"threshold": torch.full((NUM_FEATURES,), 0.5)},
            "relu": {},
        }[activation]
        return FrozenSAE(
            W_enc=torch.randn(WIDTH, NUM_FEATURES, generator=normal) / 4,
            b_enc=torch.randn(NUM_FEATURES, generator=normal) / 4,
            W_dec=torch.randn(NUM_FEATURES, WIDTH, generator=normal),
            b_dec=torch.zeros(WIDTH),
            activation=activation,
            block=block,
            source=SAESource("owner/sae", "c" * 40, f"layer{block}.sae.pt", "qwen_scope", Path("not here"), "d" * 64),
            **(extra | settings),
        )

    return make
