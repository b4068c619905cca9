"""A tiny random model of each family of decoder blocks, made from a config."""

from collections.abc import Callable

import pytest
import torch
import transformers
from transformers import PreTrainedModel

WIDTH, HEADS = 32, 48
"""Widths of the residual stream and of all heads together: not the same, so that no site is taken for another."""

DENSE = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEADS // 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": HEADS // 2,
}
GPT2 = {"vocab_size": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}

FAMILIES: dict[str, tuple[str, dict]] = {
    "qwen2": ("Qwen2", DENSE),
    "qwen3": ("Qwen3", DENSE),
    "qwen3_5": ("Qwen3_5", DENSE | LINEAR_ATTENTION),
    "qwen3_moe": ("Qwen3Moe", DENSE | MOE),
    "gemma2": ("Gemma2", DENSE | {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("Gemma3", DENSE | {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "llama": ("Llama", DENSE),
    "mistral": ("Mistral", DENSE),
    "phi": ("Phi", DENSE),
    "phi3": ("Phi3", DENSE),
    "olmo2": ("Olmo2", DENSE),
    "gpt_neox": ("GPTNeoX", DENSE),
    "gpt2": ("GPT2", GPT2),
}
"""Family to the name its classes begin with, and its config."""

MORE_FAMILIES: dict[str, tuple[str, dict]] = {
    name.lower(): (name, DENSE)
    for name in "Gemma Granite Starcoder2 Cohere Cohere2 Olmo Olmo3 Mixtral Glm4 SmolLM3 Exaone4 Ministral Nemotron "
    "Bloom GPTBigCode OPT Mamba Jamba Lfm2 GraniteMoe MiniMax RecurrentGemma".split()
}
MORE_FAMILIES["jamba"] = ("Jamba", DENSE | {"attn_layer_period": 2, "attn_layer_offset": 1})
MORE_FAMILIES["recurrentgemma"] = ("RecurrentGemma", DENSE | {"block_types": ["recurrent", "attention"]})
"""Families whose blocks are of other kinds: factors, experts, convolutions, recurrence; not all sites are known."""


@pytest.fixture
def make_family() -> Callable[[str], PreTrainedModel]:
    """Builds the model of a family in evaluation mode, its norms drawn at random so that none is the identity."""

    def make(family: str) -> PreTrainedModel:
        torch.manual_seed(0)
        if family == "gemma3_multimodal":
            model = _gemma3_multimodal()
        else:
            name, settings = (FAMILIES | MORE_FAMILIES)[family]
            if hasattr(transformers, f"{name}TextConfig"):  # those of multimodal families
                config = getattr(transformers, f"{name}TextConfig")(**settings)
            else:
                config = getattr(transformers, f"{name}Config")(**settings)
            config._attn_implementation = "eager"
            model = getattr(transformers, f"{name}{'LMHeadModel' if family == 'gpt2' else 'ForCausalLM'}")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5)
        return model.eval()

    return make


def _gemma3_multimodal() -> PreTrainedModel:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=FAMILIES["gemma3"][1],
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)
