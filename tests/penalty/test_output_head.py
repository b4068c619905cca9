"""The logits made of what goes into the LM head are the model's own, or the model is refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sae_posttrain.penalty.output_head import OutputHead

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "a tied head": GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2),
    "capped logits": Gemma2Config(**SIZES, final_logit_softcapping=2.0),
    "divided logits": GraniteConfig(**SIZES, logits_scaling=8.0),
    "multiplied logits": CohereConfig(**SIZES, logit_scale=0.0625),
}


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_logits_are_the_models_own(kind):
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(CONFIGS[kind])](CONFIGS[kind]).eval()
    head = OutputHead(model)
    head.listen()
    ids = torch.tensor([[3, 5, 8, 13], [4, 6, 9, 14]])
    with torch.no_grad(), head.armed() as captures:
        logits = model(input_ids=ids).logits
        made = head.logits(head.training_input(captures).flatten(0, 1))
    assert torch.allclose(made, logits.flatten(0, 1), atol=1e-5)
    assert head.vocab_size == 40


def test_half_precision_models_are_compared_within_their_precision(make_model):
    OutputHead(make_model().to(torch.bfloat16))


def test_an_adapter_on_the_head_is_part_of_it(make_model):
    lora = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(make_model(), lora)
    head = OutputHead(model)
    assert head.is_trained
    hidden = torch.randn(3, 32)
    base = model.get_base_model().lm_head.base_layer
    assert not torch.allclose(head.logits(hidden), base(hidden), atol=1e-3)
    head.logits(hidden).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_head_with_dropout_is_refused(make_model):
    lora = LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.1)
    with pytest.raises(ValueError, match="The LM head has dropout.*Set `lora_dropout=0`"):
        OutputHead(get_peft_model(make_model(), lora))


@pytest.mark.parametrize("where", ["logits", "hidden states"])
def test_a_model_that_scales_in_an_unknown_way_is_refused(make_model, where):
    class Scaled(Qwen3ForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.5
            return output

    model = make_model()
    if where == "logits":
        model.__class__ = Scaled
    else:
        model.lm_head.register_forward_pre_hook(lambda module, args: (args[0].sin(),))
        head = model.lm_head  # the hook runs in the model alone, as code between decoder and head does
        model.lm_head = _Between(head)
        model.get_output_embeddings = lambda: head
        head._forward_pre_hooks.clear()
    with pytest.raises(ValueError, match="are not those that its LM head makes of its decoder's output .they differ"):
        OutputHead(model)


class _Between(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, hidden):
        return self.head(hidden.sin())


def test_a_model_without_an_lm_head_is_refused(make_model):
    model = Qwen3ForSequenceClassification(make_model().config)
    with pytest.raises(ValueError, match="has no LM head.*Leave `penalised_tokens` out"):
        OutputHead(model)


def test_looking_at_the_model_leaves_its_mode_and_the_random_numbers_as_they_were(make_model):
    model = make_model().train()
    model.model.layers[0].eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    OutputHead(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and not model.model.layers[0].training
    assert not model.model._forward_hooks


def test_a_head_that_is_trained_as_a_copy_is_the_one_that_is_read(make_model):
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    copy = model.get_base_model().lm_head.modules_to_save["default"]
    copy.weight.data.mul_(2)
    head = OutputHead(model)
    hidden = torch.randn(3, 32)
    assert torch.equal(head.logits(hidden), copy(hidden))
    assert head.vocab_size == len(copy.weight) and head.is_trained


def test_a_frozen_model_is_refused_where_a_penalty_would_change_nothing(make_model):
    model = make_model().requires_grad_(False)
    head = OutputHead(model)
    head.listen()
    with head.armed() as captures:
        model(input_ids=torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="does not depend on a trainable parameter"):
        head.training_input(captures)
    with torch.no_grad():
        assert head.training_input(captures).shape == (1, 2, 32)
    with pytest.raises(ValueError, match="did not reach the model's decoder"):
        head.training_input([])
