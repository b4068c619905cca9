"""What other programs are given is what steering adds."""

from dataclasses import replace

import pytest
import torch

from sae_posttrain import steer
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.steering.export.pushes import pushes_of

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize(("strength", "unit"), [(0.5, "norm"), ({"0.3": -2.0, "1.33": 1.0}, "raw")])
def test_the_push_of_a_place_is_the_sum_that_steering_adds(make_model, make_features, strength, unit):
    model, features = make_model().eval(), make_features()
    pushes = pushes_of(features, strength, unit=unit)
    assert list(pushes) == [(0, "resid_post"), (1, "resid_post")]
    with torch.no_grad(), record_blocks(model, [0]) as plain:
        model(IDS)
    with torch.no_grad(), steer(model, features, strength, unit=unit, positions="all"):
        with record_blocks(model, [0]) as steered:
            model(IDS)
    added = (steered[0][0] - plain[0][0])[0]
    torch.testing.assert_close(added, pushes[0, "resid_post"].expand_as(added), atol=1e-5, rtol=1e-5)


def test_a_norm_is_needed_only_for_what_is_pushed(make_features):
    features = make_features(blocks=(1,))
    features = replace(features, sites=("resid_post", "mlp_out"), residual_norms=torch.tensor([5.0, torch.nan]))
    assert list(pushes_of(features, {"1.3": 1.0})) == [(1, "resid_post")]
    with pytest.raises(ValueError, match="residual norm at the site of '1.13' is not known"):
        pushes_of(features, {"1.13": 1.0})


@pytest.mark.parametrize(
    ("strength", "unit", "message"),
    [
        ({"loop": 1.0}, "norm", "names 'loop', which is not in the feature set"),
        ({"0.3": 0.0}, "norm", "Every strength is 0"),
        (1.0, "std", "`unit` must be one of 'norm', 'raw', got 'std'"),
        (torch.ones(2), "norm", "An export holds one push"),
    ],
)
def test_what_cannot_be_pushed_is_refused(make_features, strength, unit, message):
    with pytest.raises(ValueError, match=message):
        pushes_of(make_features(), strength, unit=unit)
