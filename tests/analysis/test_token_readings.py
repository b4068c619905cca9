import numpy as np
import pytest
import torch

from sae_posttrain import FeatureSet, measure_groups
from sae_posttrain.analysis.token_readings import read_along_texts, token_pieces
from sae_posttrain.features.read.texts import tokenize

ROWS = [{"lang": "", "text": text} for text in ("short", "a longer text than that", "ñ 好 é")]


@pytest.mark.parametrize("activation", ["topk", "groupmax", "jumprelu"])
def test_values_are_the_saes_own_at_each_token(make_model, make_sae, tokenizer, activation):
    model, saes = make_model(), [make_sae(0, activation), make_sae(1, activation)]
    features = FeatureSet.from_sae(saes[1], [5, 2]).merge(FeatureSet.from_sae(saes[0], [7]))
    texts = tokenize(ROWS, tokenizer)
    read = read_along_texts(model, features, texts, saes, batch_size=2).activations
    for text, values in zip(texts, read):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        first = saes[0].encode(hidden[1][0])[:, [7]]
        assert values.shape == (len(text.ids), 3) and (values[0] == 0).all()
        np.testing.assert_allclose(values[1:, 2:], first[1:].numpy(), rtol=1e-4, atol=1e-5)


def test_without_the_sae_values_are_the_pre_activations_above_the_threshold(make_model, make_sae, tokenizer):
    model, sae = make_model(), make_sae(0, "jumprelu")
    features = FeatureSet.from_sae(sae, [5, 2])
    texts = tokenize(ROWS, tokenizer)
    alone = read_along_texts(model, features, texts).activations
    with_sae = read_along_texts(model, features, texts, [sae]).activations
    for one, other in zip(alone, with_sae):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["plain words", "ñandú 好好 é\n\nпривет", "🙂🙂 end", "好"])
def test_pieces_joined_are_the_text_and_no_character_is_torn(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    pieces = token_pieces(ids, tokenizer)
    assert len(pieces) == len(ids) and "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_statistics_are_those_that_measure_groups_finds(make_model, make_sae, tokenizer):
    model = make_model()
    features = FeatureSet.from_sae(make_sae(0), [5, 2]).merge(FeatureSet.from_sae(make_sae(1), [7]))
    rows = [{"lang": lang, "text": f"text {n} {lang}"} for n in range(4) for lang in ("en", "ko")]
    texts = tokenize(rows, tokenizer)
    measured = measure_groups(model, features, rows, tokenizer=tokenizer, held_out=0.0)
    ours = read_along_texts(model, features, texts).with_statistics(features, texts, ("en", "ko"))
    for name in ("mean", "std", "residual_norms"):
        torch.testing.assert_close(getattr(ours, name), getattr(measured, name), rtol=1e-4, atol=1e-4)
