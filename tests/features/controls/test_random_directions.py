from dataclasses import replace

import pytest
import torch

from sae_posttrain.features.controls.random_directions import difference_of_means, random_directions
from sae_posttrain.features.read.texts import Text
from sae_posttrain.hooks.record import record_blocks


def unit(feature_set):
    return torch.nn.functional.normalize(feature_set.directions, dim=1)


def test_random_directions_take_the_place_of_a_set(make_features):
    features = make_features(blocks=(0, 1), per_block=1, base_model="owner/model")
    random = random_directions(features, seed=3)
    assert random.blocks == features.blocks
    assert random.residual_norms.tolist() == features.residual_norms.tolist()
    assert random.base_model == "owner/model"
    torch.testing.assert_close(random.directions.norm(dim=1), torch.ones(2))
    assert (unit(random) * unit(features)).sum(dim=1).abs().max() < 0.7
    assert torch.equal(random.directions, random_directions(features, seed=3).directions)
    assert not torch.equal(random.directions, random_directions(features, seed=4).directions)


def test_summed_push_of_random_directions_is_as_long_as_that_of_the_features(make_features):
    features = make_features(blocks=(0,), per_block=3)
    features = replace(features, directions=features.directions + 2.0)  # not at right angles
    random = random_directions(features, seed=0)
    torch.testing.assert_close(unit(random) @ unit(random).T, unit(features) @ unit(features).T)


def test_random_directions_keep_the_site_and_turn_the_features_of_each_by_themselves(make_features):
    features = make_features(blocks=(0,), per_block=4)
    features = replace(features, sites=("mlp_out", "attn_z") * 2, directions=features.directions + 2.0)
    random = random_directions(features, seed=0)
    assert random.sites == features.sites
    assert random.names[0] == "random0.0.mlp_out.0"
    own, turned = unit(features) @ unit(features).T, unit(random) @ unit(random).T
    torch.testing.assert_close(turned[::2, ::2], own[::2, ::2])
    torch.testing.assert_close(turned[1::2, 1::2], own[1::2, 1::2])
    assert (turned[::2, 1::2] - own[::2, 1::2]).abs().max() > 0.1


def test_random_directions_are_isotropic(make_features):
    features = make_features(blocks=(0,), per_block=1)
    drawn = torch.cat([random_directions(features, seed).directions for seed in range(400)])
    # the mean of 400 unit vectors in 32 dimensions has length 1/20; each coordinate has mean square 1/32
    assert drawn.mean(dim=0).norm() < 0.1
    assert (32 * drawn.square().mean(dim=0) - 1).abs().max() < 0.5


def test_zero_direction_has_no_random_counterpart(make_features):
    features = make_features(blocks=(0,), per_block=1)
    with pytest.raises(ValueError, match="A direction at block 0 is zero"):
        random_directions(replace(features, directions=torch.zeros(1, 32)), seed=0)


def test_difference_of_means_is_that_of_the_counted_tokens(make_model):
    model = make_model()
    positives = [Text("loop", (5, 6, 7, 6, 7), (False, False, True, True, True)), Text("loop", (8, 9), (False, True))]
    negatives = [Text("normal", (20, 21, 22), (False, True, True))]
    found = difference_of_means(model, positives, negatives, blocks=[0, 1], batch_size=2)

    def residuals(text, block):
        with torch.inference_mode(), record_blocks(model.eval(), [block]) as outputs:
            model(torch.tensor([text.ids]))
        return outputs[block][0][0][list(text.counted)]

    for block in (0, 1):
        above = torch.cat([residuals(text, block) for text in positives]).mean(dim=0)
        below = residuals(negatives[0], block)
        torch.testing.assert_close(found.select(block=block).directions[0], above - below.mean(dim=0))
        torch.testing.assert_close(found.select(block=block).residual_norms[0], below.norm(dim=1).median())
    assert found.names == ("difference_of_means.0", "difference_of_means.1")


def test_difference_of_means_of_another_site(make_model):
    model = make_model().eval()
    positive, negative = Text("", (5, 6, 7), (False, True, True)), Text("", (20, 21, 22), (False, True, True))
    found = difference_of_means(model, [positive], [negative], blocks=[1], site="mlp_out")
    seen = []
    with torch.no_grad(), model.model.layers[1].mlp.register_forward_hook(lambda _m, _a, out: seen.append(out[0, 1:])):
        model(torch.tensor([positive.ids]))
        model(torch.tensor([negative.ids]))
    torch.testing.assert_close(found.directions[0], seen[0].mean(dim=0) - seen[1].mean(dim=0))
    assert (found.places, found.names) == (((1, "mlp_out"),), ("difference_of_means.1.mlp_out",))


def test_means_without_tokens_or_without_a_difference_are_refused(make_model):
    text = Text("", (5, 6, 7), (False, True, True))
    nothing = Text("", (5, 6, 7), (False, False, False))
    with pytest.raises(ValueError, match="No token of the negatives counts"):
        difference_of_means(make_model(), [text], [nothing], blocks=[0])
    with pytest.raises(ValueError, match="The means at block 0 are equal"):
        difference_of_means(make_model(), [text], [text], blocks=[0])
