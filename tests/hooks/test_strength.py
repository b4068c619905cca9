"""Strengths by name, by row and by feature, and the unit they are given in."""

import pytest
import torch

from sae_posttrain import steer

INPUTS = {"input_ids": torch.tensor([[7, 8, 9, 10], [40, 41, 42, 43]])}


@pytest.fixture
def model(make_model):
    return make_model().eval()


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_features_that_are_not_named_are_left_alone(model, make_features, mode):
    both = make_features(blocks=(1,), per_block=2)
    first, second = both.names

    def logits(feature_set, strength):
        with torch.no_grad(), steer(model, feature_set, strength=strength, mode=mode):
            return model(**INPUTS).logits

    torch.testing.assert_close(logits(both, {second: 2.0}), logits(both[1], 2.0))
    assert not torch.allclose(logits(both, {second: 2.0}), logits(both[0], 2.0))
    if mode == "add":
        torch.testing.assert_close(logits(both, {first: 1.0, second: 2.0}), logits(both, torch.tensor([[1.0, 2.0]])))


def test_a_feature_without_a_norm_takes_that_of_its_site(model, make_features):
    both = make_features(blocks=(1,), per_block=2)
    bare = make_features(blocks=(1,), per_block=2)
    bare.residual_norms[1] = float("nan")

    def logits(feature_set):
        with torch.no_grad(), steer(model, feature_set, strength=1.5):
            return model(**INPUTS).logits

    assert torch.equal(logits(bare), logits(both))
    with pytest.raises(ValueError, match="residual norm at the site of .* is not known"):
        logits(bare[1])
