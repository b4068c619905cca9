from collections import Counter

import torch

from sae_posttrain.features.read.texts import Text, batches
from sae_posttrain.features.read.tokens import read_tokens, sample_tokens

TEXTS = [
    Text("zh", (5, 6, 7, 8), (False, True, False, True)),
    Text("en", (20, 21), (False, True)),
    Text("zh", (9, 10, 11, 12, 13), (False, True, True, True, True)),
]


def read_alone(model, text: Text, block: int) -> torch.Tensor:
    seen = []
    with torch.no_grad(), model.model.layers[block].register_forward_hook(lambda _m, _a, output: seen.append(output)):
        model(torch.tensor([text.ids]))
    return seen[0][0][list(text.counted)]


def test_tokens_that_count_are_read_with_their_group_and_text(make_model):
    model, places = make_model().eval(), [(0, "resid_post"), (1, "resid_post")]
    read = list(read_tokens(model, batches(TEXTS, ["en", "zh"], 2), places))
    by_length = [TEXTS[2], TEXTS[0], TEXTS[1]]
    assert torch.cat([tokens.texts for tokens in read]).tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert torch.cat([tokens.groups for tokens in read]).tolist() == [1, 1, 1, 1, 1, 1, 0]
    for block, site in places:
        alone = torch.cat([read_alone(model, text, block) for text in by_length])
        torch.testing.assert_close(torch.cat([tokens.values[block, site] for tokens in read]), alone)


def test_what_is_read_can_be_trained_on(make_model):
    [tokens] = read_tokens(make_model(), batches(TEXTS, ["en", "zh"], 3), [(0, "resid_post")])
    weight = torch.zeros(32, requires_grad=True)
    (tokens.values[0, "resid_post"] @ weight).sum().backward()
    assert weight.grad is not None


def test_sample_takes_so_many_of_the_tokens_that_count_of_each_group():
    sampled = sample_tokens(TEXTS, {"zh": 3, "en": 9}, seed=0)
    assert Counter(text.group for text in sampled for counts in text.counted if counts) == {"zh": 3, "en": 1}
    whole = {text.ids: text.counted for text in TEXTS}
    assert all(was for text in sampled for was, is_now in zip(whole[text.ids], text.counted) if is_now)
    assert sampled == sample_tokens(TEXTS, {"zh": 3, "en": 9}, seed=0)


def test_every_token_that_counts_is_as_likely_to_be_drawn():
    drawn = Counter(
        (text.ids[0], position)
        for seed in range(600)
        for text in sample_tokens(TEXTS, {"zh": 2, "en": 0}, seed)
        for position, counts in enumerate(text.counted)
        if counts
    )
    # 2 of 6 tokens in 600 draws: 200 each, with a deviation of 11.5
    assert len(drawn) == 6 and all(150 < times < 250 for times in drawn.values())


def test_texts_without_a_drawn_token_are_left_out():
    assert [text.ids for text in sample_tokens(TEXTS, {"zh": 0, "en": 1}, seed=0)] == [TEXTS[1].ids]
