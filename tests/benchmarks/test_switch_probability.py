import sys
from pathlib import Path

import pytest
import torch

from sae_posttrain.measure.answers.generate import generate_answers

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "evidence"))

from switch_probability import switch_probability

PROMPTS = [[5, 6, 7], [8, 9]]
FAULTS = range(40, 60)


def test_one_token_switches_with_the_probability_of_the_nucleus(make_model, tokenizer):
    model = make_model()
    measured = switch_probability(model, tokenizer, [PROMPTS[0]], FAULTS, max_new_tokens=1, temperature=0.7, top_p=0.9)
    with torch.inference_mode():
        probs = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.7).softmax(dim=-1)
    ordered, order = probs.sort(descending=True)
    kept = ordered * (ordered.cumsum(dim=-1) - ordered < 0.9)
    expected = kept[torch.isin(order, torch.tensor(FAULTS))].sum() / kept.sum()
    assert measured[0].probability == pytest.approx(float(expected), abs=1e-5)
    assert measured[0].first_token == pytest.approx(float(expected), abs=1e-5)


def test_its_mean_is_the_rate_that_sampling_counts(make_model, tokenizer):
    model, rare = make_model(), range(40, 42)
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
    prompts = [PROMPTS[0]] * 600
    answers, _ = generate_answers(model, tokenizer, prompts, seed=1, **options)
    counted = sum(any(token in rare for token in ids) for ids in answers) / 600
    measured = [found.probability for found in switch_probability(model, tokenizer, prompts, rare, seed=2, **options)]
    # three standard errors of the count
    assert sum(measured) / 600 == pytest.approx(counted, abs=3 * (counted * (1 - counted) / 600) ** 0.5)
    spread_of_a_count = (counted * (1 - counted)) ** 0.5
    assert torch.tensor(measured).std() < spread_of_a_count / 3


def test_an_answer_that_can_hold_nothing_else_switches_surely(make_model, tokenizer):
    model = make_model()
    everything = [token for token in range(model.config.vocab_size) if token != tokenizer.eos_token_id]
    measured = switch_probability(model, tokenizer, PROMPTS, everything, max_new_tokens=4, top_p=0.01)
    assert [found.probability for found in measured] == [1.0, 1.0]


def test_what_cannot_be_measured_is_refused(make_model, tokenizer):
    model = make_model()
    with pytest.raises(ValueError, match="needs sampling"):
        switch_probability(model, tokenizer, PROMPTS, FAULTS, temperature=0.0)
    with pytest.raises(ValueError, match="No tokens were given"):
        switch_probability(model, tokenizer, PROMPTS, [])
    with pytest.raises(ValueError, match="not in the model's vocabulary"):
        switch_probability(model, tokenizer, PROMPTS, [model.config.vocab_size])
    with pytest.raises(ValueError, match="ends answers"):
        switch_probability(model, tokenizer, PROMPTS, [tokenizer.eos_token_id])
