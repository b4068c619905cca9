"""A push baked into biases: the model then answers as under steering, or the refusal says what is missing."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from sae_posttrain import steer
from sae_posttrain.steering.export.bias import bake_bias, write_biased_model

IDS = torch.tensor([[5, 6, 7, 8]])
SIZES = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, initializer_range=0.2)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)).eval()


def steered(model, features, strength, **options):
    with torch.no_grad(), steer(model, features, strength, positions="all", **options):
        return model(IDS).logits


@pytest.mark.parametrize(("make", "name"), [(llama, "mlp.down_proj.bias"), (gpt2, "mlp.c_proj.bias")])
def test_a_biased_model_answers_as_the_steered_one(make, name, make_features):
    model, features = make(), make_features()
    plain, expected = model(IDS).logits, steered(model, features, -0.8)
    added = bake_bias(model, features, -0.8)
    assert [key.split(".", 2)[-1].split(".", 1)[-1] for key in added] == [name, name]
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_features_of_the_attention_go_into_its_bias(make_features):
    model, features = llama(), make_features(blocks=(1,))
    features = replace(features, sites=("attn_out", "resid_post"))
    expected = steered(model, features, 0.5)
    assert [name.split(".", 3)[3] for name in bake_bias(model, features, 0.5)] == [
        "self_attn.o_proj.bias",
        "mlp.down_proj.bias",
    ]
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_written_model_is_loaded_with_its_bias(make_features, tokenizer, tmp_path):
    model, features = llama(), make_features()
    expected = steered(model, features, {"1.23": 2.0})
    folder = write_biased_model(model, features, {"1.23": 2.0}, tmp_path / "calm", tokenizer=tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.mlp_bias is True
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(FileExistsError, match="holds something already"):
        write_biased_model(llama(), features, 1.0, folder, tokenizer=tokenizer)


def test_a_model_without_such_a_bias_is_refused_and_says_what_would_have_to_change(make_model, make_features):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="down_proj has none, and .* Qwen3ForCausalLM has no `mlp_bias` to give it one"
    ):
        bake_bias(model, make_features(), 1.0)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    gemma = Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS))
    with pytest.raises(ValueError, match="its last module there is a Gemma2RMSNorm .post_feedforward_layernorm."):
        bake_bias(gemma, make_features(), 1.0)
    with pytest.raises(ValueError, match="the site is read, not written"):
        bake_bias(llama(), replace(make_features(), sites=("resid_pre",) * 4), 1.0)


def test_a_layout_that_adds_its_output_in_another_way_is_noticed(make_features, monkeypatch):
    model = llama()
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _args, output: 0.5 * output)
    with pytest.raises(ValueError, match="does not agree with the steered one"):
        bake_bias(model, make_features(), 1.0)
