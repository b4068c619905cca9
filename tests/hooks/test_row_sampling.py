"""What a user of `sample_rows` can rely on: each row is sampled as in a call of its own, and nothing else changes."""

import inspect

import pytest
import torch
from transformers import GenerationMixin

from sae_posttrain.hooks.row_sampling import SAME_AS_CALL, RowSampling, sample_rows

ROWS = [
    SAME_AS_CALL,
    RowSampling(temperature=0.3),
    RowSampling(temperature=1.7, top_p=0.5),
    RowSampling(top_k=3),
    RowSampling(temperature=0),
    SAME_AS_CALL,
    RowSampling(temperature=0.6, top_p=0.9, top_k=20),
]
LENGTH = 24


@pytest.fixture
def sample(make_model):
    model = make_model().eval()
    prompts = torch.randint(3, 90, (len(ROWS), 5), generator=torch.Generator().manual_seed(1))

    def run(**settings):
        torch.manual_seed(7)
        given = {"do_sample": True, "temperature": 1.2, "top_p": 0.95, "top_k": 50, "min_p": 0.001, "pad_token_id": 0}
        given |= {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, **settings}
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), **given)[:, 5:]

    run.model, run.prompts = model, prompts
    return run


def test_each_row_is_sampled_as_in_a_call_with_its_settings(sample):
    """The random numbers of a row depend on its place only, so a whole batch with its settings gives the same row."""
    with sample_rows(sample.model, ROWS):
        mixed = sample()
    for number, row in enumerate(ROWS):
        given = {name: value for name, value in vars(row).items() if value is not None}
        alone = sample(**({"do_sample": False} if row.is_greedy else given))
        assert torch.equal(mixed[number], alone[number]), row
    plain = sample()
    assert (mixed == plain).all(dim=1).tolist() == [row == SAME_AS_CALL for row in ROWS]
    with sample_rows(sample.model, [SAME_AS_CALL] * len(ROWS), record=[0]):
        assert torch.equal(sample(), plain)


def test_the_recorded_probability_is_that_of_the_draw(sample):
    with sample_rows(sample.model, ROWS, record=[1, 2, 3, 4, 6]) as recorded:
        mixed = sample()
    lengths = [LENGTH, LENGTH, LENGTH, 7, LENGTH, LENGTH, LENGTH]  # one row is cut, as behind an end token
    told = recorded.logps([row[:length].tolist() for row, length in zip(mixed, lengths)])
    assert [row is not None for row in told] == [False, True, True, True, True, False, True]
    assert len(told[3]) == 7 and told[4] == [0.0] * LENGTH
    logits = sample.model(torch.cat([sample.prompts, mixed], dim=1)).logits[:, 4:-1].detach().double()
    logits[:, :, sample.model.config.eos_token_id] = -torch.inf  # `min_new_tokens` forbids the end

    def truncated(scores, top_k, top_p, min_p=0.001):
        """Log-probabilities of one row by the definitions, `(C, V)`."""
        probs = scores.softmax(-1)
        probs = torch.where(probs >= probs.topk(top_k).values[:, -1:], probs, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
        ordered, places = probs.sort(descending=True)
        inside = torch.zeros_like(probs, dtype=torch.bool).scatter(1, places, ordered.cumsum(-1) - ordered < top_p)
        probs = torch.where(inside & (probs >= min_p * probs.amax(-1, keepdim=True)), probs, 0.0)
        return (probs / probs.sum(-1, keepdim=True)).log()

    by_hand = {1: (0.3, 50, 0.95), 2: (1.7, 50, 0.5), 3: (1.2, 3, 0.95), 6: (0.6, 20, 0.9)}
    for number, (temperature, top_k, top_p) in by_hand.items():
        expected = truncated(logits[number] / temperature, top_k, top_p).gather(1, mixed[number][:, None]).squeeze(1)
        assert torch.allclose(torch.tensor(told[number]).double(), expected[: len(told[number])], atol=1e-4), number
        assert expected.isfinite().all() and expected.min() < -0.1


def test_a_call_that_cannot_be_mixed_is_refused(sample):
    with pytest.raises(ValueError, match="only where `generate` samples: set `do_sample=True`"):
        with sample_rows(sample.model, ROWS):
            sample(do_sample=False)
    with pytest.raises(ValueError, match="has 7 rows, and settings were given for 6"):
        with sample_rows(sample.model, ROWS[1:]):
            sample()
    with pytest.raises(ValueError, match="No call of `generate` on this model was made"):
        with sample_rows(sample.model, ROWS):
            pass
    assert "_get_logits_processor" not in vars(sample.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "`temperature` must be 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "`temperature` must be 0 or more"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1"),
        ({"top_k": 2.5}, "`top_k` must be a whole number, 0 or more, got 2.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RowSampling(**settings)


def test_names_inside_transformers_are_there():
    body = inspect.getsource(GenerationMixin.generate)
    assert "self._get_logits_processor(\n            generation_config=generation_config," in body
    assert "if generation_config.do_sample:" in inspect.getsource(GenerationMixin._get_logits_processor)
    sampling = inspect.getsource(GenerationMixin._sample)
    assert "next_token_scores = logits_processor(input_ids, next_token_logits)" in sampling
