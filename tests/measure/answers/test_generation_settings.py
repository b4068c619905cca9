"""A model's own generation settings change no answer, whatever their names, and are named."""

import pytest
import torch
from transformers import GenerationConfig

from sae_posttrain.measure.answers.generate import generate_answers
from sae_posttrain.measure.answers.generation_settings import (
    HARMLESS,
    NEUTRAL,
    SET,
    describe_unused,
    own_settings_aside,
    unused_settings,
)

LEAKING = {
    "top_k": 1,
    "min_p": 0.9,
    "repetition_penalty": 5.0,
    "typical_p": 0.05,
    "epsilon_cutoff": 0.9,
    "eta_cutoff": 0.9,
    "top_h": 0.05,
    "suppress_tokens": list(range(20, 200)),
    "begin_suppress_tokens": list(range(20, 200)),
    "bad_words_ids": [[i] for i in range(20, 200)],
    "sequence_bias": [[[40], 99.0]],
    "guidance_scale": 9.0,
    "exponential_decay_length_penalty": (1, 9.0),
    "encoder_repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "forced_bos_token_id": 40,
    "forced_eos_token_id": 1,
    "min_length": 200,
    "min_new_tokens": 200,
    "max_time": 1e-9,
    "num_beams": 3,
    "renormalize_logits": True,
    "return_dict_in_generate": True,
    "num_return_sequences": 2,
    "prompt_lookup_num_tokens": 2,
    "prefill_chunk_size": 1,
    "stop_strings": ["a"],
    "token_healing": True,
}


def test_every_setting_of_the_installed_transformers_has_been_looked_at():
    known = SET | set(NEUTRAL) | HARMLESS
    assert set(vars(GenerationConfig())) <= known, "decide for each whether it changes answers, and put it on a list"
    assert not SET & set(NEUTRAL) and not SET & HARMLESS and not set(NEUTRAL) & HARMLESS


def test_what_transformers_fills_in_where_nothing_is_set_does_nothing():
    defaults = GenerationConfig._get_default_generation_params()
    changing = {name: value for name, value in defaults.items() if name not in SET | HARMLESS}
    assert {name: NEUTRAL[name] for name in changing} == changing


@pytest.mark.parametrize("name", sorted(LEAKING))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_setting_of_the_model_changes_an_answer(name, temperature, make_model, tokenizer):
    model = make_model()
    prompts = [tokenizer("저장")["input_ids"], tokenizer("a")["input_ids"]]
    options = {"max_new_tokens": 6, "seed": 3, "temperature": temperature}
    expected = generate_answers(model, tokenizer, prompts, **options)
    setattr(model.generation_config, name, LEAKING[name])
    own = model.generation_config
    assert generate_answers(model, tokenizer, prompts, **options) == expected
    assert model.generation_config is own
    assert unused_settings(model) == {name: LEAKING[name]}


def test_adapter_and_settings_of_unknown_names_are_put_aside_and_back(make_model, tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], r=2))
    own = model.generation_config
    own.of_a_later_version = 7
    own.typical_p = 0.05
    with own_settings_aside(model):
        assert not hasattr(model.generation_config, "of_a_later_version")
        assert model.get_base_model().generation_config.typical_p is None
    assert model.generation_config is own
    assert unused_settings(model) == {"of_a_later_version": 7, "typical_p": 0.05}
    generate_answers(model, tokenizer, [[5, 6]], max_new_tokens=2)
    assert model.generation_config is own
    assert model.get_base_model().generation_config.typical_p == 0.05


def test_settings_are_back_when_generation_fails(make_model, tokenizer, monkeypatch):
    model = make_model()
    own = model.generation_config
    monkeypatch.setattr(model, "forward", lambda **_kwargs: torch.zeros(0)[1])
    with pytest.raises(IndexError):
        generate_answers(model, tokenizer, [[5, 6]], max_new_tokens=2)
    assert model.generation_config is own


def test_only_unusual_settings_are_worth_a_sentence():
    assert describe_unused({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True}) == ""
    assert "suppress_tokens=[1, 2]" in describe_unused({"suppress_tokens": [1, 2], "top_k": 20})
