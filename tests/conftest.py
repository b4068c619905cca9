"""Tiny random models from a config, a byte-level tokenizer, and a feature set that fits them: no network, no files."""

import gc
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sae_posttrain import FeatureSet
from sae_posttrain.features.set.source import FeatureSource

from .hub_server import HubServer

WIDTH = 32


def pytest_collection_finish() -> None:
    """Trainers collect garbage before they train, which takes no time without the many objects of the libraries."""
    gc.collect()
    gc.freeze()


CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}<|end|>"
    "{% endgeneration %}{% else %}<|user|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and four special tokens."""
    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=specials[2:],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def make_model(tokenizer) -> Callable[..., Qwen3ForCausalLM]:
    """Builds a random Qwen3 of two blocks; the same weights at every call with the same seed."""

    def make(seed: int = 0, num_blocks: int = 2) -> Qwen3ForCausalLM:
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=num_blocks,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            # A random model of the default range writes tiny residuals; this one behaves more like a trained one.
            initializer_range=0.2,
        )
        return Qwen3ForCausalLM(config)

    return make


@pytest.fixture
def make_features() -> Callable[..., FeatureSet]:
    """Builds a random feature set of the tiny model's width."""

    def make(
        blocks: tuple[int, ...] = (0, 1),
        per_block: int = 2,
        groups: tuple[str, ...] = ("zh", "ko", "en"),
        targets: tuple[str, ...] = ("zh",),
        seed: int = 0,
        base_model: str = "",
    ) -> FeatureSet:
        generator = torch.Generator().manual_seed(seed)
        num = per_block * len(blocks)
        where = [block for block in blocks for _ in range(per_block)]
        return FeatureSet(
            encoder_rows=torch.randn(num, WIDTH, generator=generator) / math.sqrt(WIDTH),
            encoder_bias=torch.randn(num, generator=generator) * 0.1,
            directions=torch.randn(num, WIDTH, generator=generator),
            blocks=tuple(where),
            feature_ids=tuple(10 * i + 3 for i in range(num)),
            names=tuple(f"{block}.{10 * i + 3}" for i, block in enumerate(where)),
            sites=("resid_post",) * num,
            thresholds=torch.full((num,), math.nan),
            groups=groups,
            mean=torch.randn(num, len(groups), generator=generator) * 0.2,
            std=torch.rand(num, len(groups), generator=generator) + 0.5,
            scores={"monolinguality": torch.rand(num, generator=generator)},
            residual_norms=torch.full((num,), 5.0),
            sources=(FeatureSource("owner/sae", "layer0.sae.pt", "qwen_scope", "a" * 40, "b" * 64),) * num,
            base_model=base_model,
            target_groups=targets,
            notes={"num_texts": 12},
        )

    return make


@pytest.fixture(scope="session")
def help_folder() -> Path:
    """The folder with the help pages and the small model trained on them."""
    folder = os.environ.get("SAE_POSTTRAIN_HELP")
    if not folder:
        pytest.skip("SAE_POSTTRAIN_HELP is not set: it names the folder with the help pages and the help model")
    return Path(folder)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch) -> None:
    """Nothing is asked of the Hub: its cache is all there is. Tests that bring a Hub of their own switch it on."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch) -> Iterator[HubServer]:
    """A Hub on this machine (`hub_server.HubServer`), asked instead of the real one; its caches are empty."""
    here = tmp_path_factory.mktemp("hub")
    server = HubServer()
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
