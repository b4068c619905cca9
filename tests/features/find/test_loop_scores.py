"""The maths of the scores, on cases worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_posttrain import FeatureSet, FrozenSAE
from sae_posttrain.features.find.answers import Question, Sampling
from sae_posttrain.features.find.loop_scores import increase, loop_rates, mean_increase, ranking, repeated_tokens
from sae_posttrain.features.find.loop_texts import RepeatedText
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.saes.stored.source import SAESource

NO_QUESTION = Question((), ())


def relu_sae(W_enc, bias=0.0, W_dec=None, block=1):
    width, num_features = W_enc.shape
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=torch.full((num_features,), float(bias)),
        W_dec=torch.randn(num_features, width) if W_dec is None else W_dec,
        b_dec=torch.zeros(width),
        activation="relu",
        block=block,
        source=SAESource("", None, "made_here", "made", Path("nowhere")),
    )


def test_each_token_of_a_loop_is_compared_with_its_own_first_occurrence_in_the_text():
    #      position 0  1  2  3  4  5  6  7
    text = RepeatedText((9, 7, 5, 5, 6, 5, 6, 9), start=3, end=7, question=NO_QUESTION)
    # 5 stands first at 2, before the loop, and last at 5; 6 first at 4 and last at 6; 9 lies behind the loop
    assert repeated_tokens(text) == [(2, 5), (4, 6)]
    assert repeated_tokens(text, specials={6}) == [(2, 5)]


def test_first_position_and_tokens_that_stand_once_are_left_out():
    text = RepeatedText((5, 5, 6), start=0, end=3, question=NO_QUESTION)
    assert repeated_tokens(text) == []


def test_increase_is_the_weighted_rise_of_the_activation():
    sae = relu_sae(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    first = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    last = torch.tensor([[4.0, 0.0], [1.0, 0.0]])
    # feature 0: relu(4) - relu(1) = 3 and relu(1) - relu(-2) = 1; feature 1 reads the negative: 0 and 0 - 2
    expected = [0.5 * 3 + 0.25 * 1, 0.25 * -2]
    assert increase(first, last, torch.tensor([0.5, 0.25]), sae).tolist() == expected


def test_feature_that_grows_inside_loops_rises_most_and_one_that_is_merely_strong_does_not():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(40, 8, generator=generator)
    first[:, 1] = 9.0  # strong, and as strong at the end
    last = first.clone()
    last[:, 0] = first[:, 0] + 3.0
    rises = increase(first, last, torch.full((40,), 1 / 40), relu_sae(torch.eye(8)))
    assert rises.argmax() == 0
    assert rises[1] == 0


def test_mean_is_over_the_tokens_of_a_loop_and_then_over_loops_however_texts_are_batched(make_model):
    model, sae = make_model().eval(), relu_sae(torch.randn(32, 6), bias=0.5)
    texts = [
        RepeatedText((3, *([40, 41, 42] * 5)), start=1, end=16, question=NO_QUESTION),
        RepeatedText((3, 50, 51, *([60] * 6), 70), start=3, end=9, question=NO_QUESTION),
        RepeatedText((3, 4, 5), start=1, end=3, question=NO_QUESTION),  # nothing repeats: not in the mean
    ]

    by_hand = torch.zeros(6)
    for text in texts[:2]:
        with torch.inference_mode(), record_blocks(model, [1]) as outputs:
            model(torch.tensor([text.ids]))
        encoded = sae.encode(outputs[1][0][0])
        pairs = repeated_tokens(text)
        by_hand += sum(encoded[last] - encoded[first] for first, last in pairs) / len(pairs) / 2
    for batch_size in (1, 3):
        torch.testing.assert_close(mean_increase(model, texts, [sae], batch_size=batch_size)[1, "resid_post"], by_hand)


def test_increase_is_read_at_the_saes_own_site(make_model):
    model, sae = make_model().eval(), replace(relu_sae(torch.randn(32, 6), bias=0.5), site="mlp_out")
    text = RepeatedText((3, *([40, 41, 42] * 5)), start=1, end=16, question=NO_QUESTION)
    seen = []
    with torch.no_grad(), model.model.layers[1].mlp.register_forward_hook(lambda _m, _a, output: seen.append(output)):
        model(torch.tensor([text.ids]))
    encoded, pairs = sae.encode(seen[0][0]), repeated_tokens(text)
    by_hand = sum(encoded[last] - encoded[first] for first, last in pairs) / len(pairs)
    torch.testing.assert_close(mean_increase(model, [text], [sae])[1, "mlp_out"], by_hand)


def test_texts_in_which_nothing_repeats_are_an_error(make_model):
    texts = [RepeatedText((3, 4, 5), start=1, end=3, question=NO_QUESTION)]
    with pytest.raises(ValueError, match="No token of these texts repeats"):
        mean_increase(make_model(), texts, [relu_sae(torch.randn(32, 6))])


def test_each_row_is_pushed_along_its_own_feature_alone(make_model, tokenizer):
    model = make_model()
    loops_on_a = model.lm_head.weight[50].detach()
    features = FeatureSet.from_directions(
        torch.stack([loops_on_a, loops_on_a]),
        blocks=[0, 1],
        names=["weak", "emits one token"],
        residual_norms=[0.01, 10.0],
    )
    questions = [Question((10 + i, 11 + i), ()) for i in range(6)]
    rates = loop_rates(model, tokenizer, questions, Sampling(70, 0.0, batch_size=5), features, 3.0)
    assert rates.endless.tolist() == [0.0, 1.0]
    assert rates.share[1] > 0.9
    assert rates.num_answers == 6
    plain = loop_rates(model, tokenizer, questions, Sampling(70, 0.0))
    assert plain.endless.tolist() == [0.0]


def test_equal_causal_scores_are_told_apart_by_the_share_of_loops_and_then_by_increase():
    scores = {
        "causal": torch.tensor([0.5, 0.5, 0.7, 0.5]),
        "causal_share": torch.tensor([0.1, 0.2, 0.0, 0.2]),
        "increase": torch.tensor([9.0, 1.0, 0.0, 2.0]),
    }
    assert ranking(scores, "causal") == [2, 3, 1, 0]
    assert ranking(scores, "increase") == [0, 3, 1, 2]
