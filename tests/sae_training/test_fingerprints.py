import torch

from sae_posttrain.features.read.texts import Text
from sae_posttrain.sae_training.fingerprints import texts_fingerprint, weights_fingerprint


def test_weights_are_told_by_their_values_and_dtype(make_model):
    first = weights_fingerprint(make_model())
    assert weights_fingerprint(make_model()) == first
    assert weights_fingerprint(make_model(seed=1)) != first
    assert weights_fingerprint(make_model().to(torch.bfloat16)) != first
    nearly = make_model()
    with torch.no_grad():
        nearly.model.layers[1].mlp.up_proj.weight.mul_(1.0001)
    assert weights_fingerprint(nearly) != first


def test_texts_are_told_by_their_tokens_order_and_what_counts():
    one, other = Text("", (1, 2), (False, True)), Text("", (3,), (True,))
    first = texts_fingerprint([one, other])
    assert texts_fingerprint([Text("en", (1, 2), (False, True), "key"), other]) == first
    assert texts_fingerprint([other, one]) != first
    assert texts_fingerprint([Text("", (1, 2), (True, True)), other]) != first
