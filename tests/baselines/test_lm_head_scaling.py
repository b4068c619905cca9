import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sae_posttrain.baselines.lm_head_scaling import scale_lm_head

IDS = [7, 50, 51]
PROMPT = torch.tensor([[10, 20, 30]])


@pytest.fixture
def tied(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(PROMPT).logits


@pytest.mark.parametrize("factor", [0.25, [0.5, 0.25, 1.0]])
def test_logits_of_the_tokens_are_multiplied_and_no_others(make_model, factor):
    model = make_model()
    before = logits(model)
    scale_lm_head(model, IDS, factor)
    expected = before.clone()
    expected[..., IDS] *= torch.tensor(factor)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert bool((expected[..., IDS] > before[..., IDS]).any())  # what is below 0 rises: the caveat of the docstring


def test_tied_head_is_untied_and_the_change_survives_saving(tied, tmp_path):
    before, embedded = logits(tied), tied.get_input_embeddings().weight.detach().clone()
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    scale_lm_head(tied, IDS, 0.5)
    tied.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = before.clone()
    expected[..., IDS] *= 0.5
    for model in (tied, loaded):
        assert torch.equal(model.get_input_embeddings().weight, embedded)
        assert torch.allclose(logits(model), expected, atol=1e-5)
        assert not model.config.tie_word_embeddings
    scale_lm_head(loaded, IDS, 0.5)  # again, on a head of its own
    expected[..., IDS] *= 0.5
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_untied_model_stays_untied_when_weights_are_tied_anew(tied):
    scale_lm_head(tied, IDS, 0.5)
    tied.tie_weights()
    assert tied.lm_head.weight is not tied.get_input_embeddings().weight


def test_half_precision_rows_are_rounded_once(make_model):
    model = make_model().bfloat16()
    row = model.lm_head.weight[7].float()
    scale_lm_head(model, [7], 0.3)
    assert torch.equal(model.lm_head.weight[7], (row * 0.3).bfloat16())


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "factor", "message"),
    [
        ([], 0.5, "`token_ids` is empty"),
        ([3, 3], 0.5, "names a token twice"),
        ([3, 4000], 0.5, "tokens 0 to .*names 4000"),
        ([-1], 0.5, "names -1"),
        ([3], 1.0, "below 1 for some token, got 1"),
        ([3, 4], [0.5, 1.5], "got 0.5 to 1.5"),
        ([3, 4], [0.5], "one for each of the 2 tokens"),
        ([3], math.nan, "from 0 to 1"),
    ],
)
def test_what_would_change_nothing_or_the_wrong_rows_is_refused(make_model, ids, factor, message):
    with pytest.raises(ValueError, match=message):
        scale_lm_head(make_model(), ids, factor)


def test_adapters_are_refused_since_they_do_not_save_the_head(make_model):
    wrapped = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="would not be saved with it.*merge_and_unload"):
        scale_lm_head(wrapped, [3], 0.5)
    adapted = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["lm_head"])).get_base_model()
    with pytest.raises(ValueError, match="has no LM head with a row"):
        scale_lm_head(adapted, [3], 0.5)
