import pytest
import torch

from sae_posttrain.baselines.unlikelihood.loss import repeated_ngram_mask
from sae_posttrain.baselines.unlikelihood.rows import sample_unlikely_rows
from sae_posttrain.measure.answers.generate import generate_answers

LOOPING = 50


@pytest.fixture
def looping(make_model):
    """A model that says one token for ever."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for block in model.model.layers:
            block.mlp.down_proj.weight.zero_()
            block.self_attn.o_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight.abs())
        model.lm_head.weight[LOOPING] = 1.0
    return model


def test_rows_are_the_prompt_and_the_models_own_continuation_with_its_repetitions_marked(make_model, tokenizer):
    model, prompts = make_model(), ["a file", "xyz", "keys"]
    rows = sample_unlikely_rows(model, tokenizer, prompts, max_new_tokens=60, batch_size=2)
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    settings = {"max_new_tokens": 60, "temperature": 0.0}
    first, _ = generate_answers(model, tokenizer, prompt_ids[:2], seed=0, **settings)
    second, _ = generate_answers(model, tokenizer, prompt_ids[2:], seed=1, **settings)
    masks = [[int(bit) for bit in repeated_ngram_mask(answer)] for answer in first + second]
    expected = [
        {"input_ids": [*asked, *answer], "unlikely": [0] * len(asked) + mask}
        for asked, answer, mask in zip(prompt_ids, first + second, masks)
    ]
    assert rows.to_list() == [row for row in expected if any(row["unlikely"])]
    assert len(rows) > 0


def test_conversations_go_through_the_chat_template(looping, tokenizer):
    conversation = [{"role": "user", "content": "a"}]
    (row,) = sample_unlikely_rows(looping, tokenizer, [conversation], max_new_tokens=6)
    asked = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert row["input_ids"] == [*asked, *[LOOPING] * 6]
    assert row["unlikely"] == [0] * len(asked) + [0, 1, 1, 1, 1, 1]


def test_loops_can_be_marked_alone(looping, tokenizer):
    (row,) = sample_unlikely_rows(looping, tokenizer, ["ab"], rule="loop", max_new_tokens=70)
    assert row["unlikely"] == [0, 0, 0] + [1] * 69
    with pytest.raises(ValueError, match="None of 1 continuations of up to 60 tokens holds a loop"):
        sample_unlikely_rows(looping, tokenizer, ["ab"], rule="loop", max_new_tokens=60)


def test_model_that_repeats_nothing_has_nothing_to_unlearn(make_model, tokenizer):
    with pytest.raises(ValueError, match="holds a repeated 4-gram: there is nothing to unlearn. Sample more"):
        sample_unlikely_rows(make_model(), tokenizer, ["a"], max_new_tokens=3)


def test_senseless_settings_are_refused(make_model, tokenizer):
    with pytest.raises(ValueError, match="`rule` must be one of 'ngram', 'loop', got 'ngrams'"):
        sample_unlikely_rows(make_model(), tokenizer, ["a"], rule="ngrams")
    for prompts in ([], "a file"):
        with pytest.raises(ValueError, match="`prompts` is a list"):
            sample_unlikely_rows(make_model(), tokenizer, prompts)
