import pytest
import torch

from sae_posttrain.penalty.feature_penalty import FeaturePenalty
from sae_posttrain.penalty.groups import GroupTable


def build(features, unknown_group="error", targets=("zh",), **kwargs) -> FeaturePenalty:
    return FeaturePenalty(features, GroupTable.for_features(features, list(targets), unknown_group), **kwargs)


def batch():
    torch.manual_seed(1)
    residuals = {0: torch.randn(2, 3, 32), 1: torch.randn(2, 3, 32)}
    group_ids = torch.tensor([[1, 1, 1], [0, 2, -1]])  # ko ko ko / zh en padding
    mask = torch.tensor([[False, True, True], [True, True, False]])
    return residuals, group_ids, mask


def test_penalty_is_mean_over_features_sum_over_blocks_and_tokens(make_features):
    features = make_features()
    residuals, group_ids, mask = batch()
    expected = 0.0
    for block in (0, 1):
        part = features.select(block=block)
        for row, token, group in ((0, 1, 1), (0, 2, 1), (1, 1, 2)):  # the zh token is not penalised
            pre = part.pre_activations(residuals[block][row, token])
            excess = ((pre - part.mean[:, group]) / part.std[:, group] - 0.1).clamp(min=0)
            expected += excess.mean().item()
    reading = build(features, margin=0.1)(residuals, group_ids, mask)
    assert reading.excess_sum.item() == pytest.approx(expected, rel=1e-5)
    assert reading.num_penalised.item() == 3
    assert reading.num_above.shape == (4,)


def test_zero_variant_in_raw_units_needs_no_statistics(make_features):
    features = make_features(groups=())
    residuals, group_ids, mask = batch()
    penalty = build(features, unknown_group="mean", penalty="zero", unit="raw")
    expected = sum(
        features.select(block=b).pre_activations(residuals[b][row, token]).clamp(min=0).mean().item()
        for b in (0, 1)
        for row, token in ((0, 1), (0, 2))
    )
    group_ids = torch.where(group_ids == 1, 1, 0)  # 0 is zh, 1 an unknown group
    assert penalty(residuals, group_ids, mask).excess_sum.item() == pytest.approx(expected, rel=1e-5)


def test_statistics_that_are_missing_are_an_error(make_features):
    with pytest.raises(ValueError, match="`penalty='zero'` and `penalty_unit='raw'`"):
        build(make_features(groups=()))


def test_feature_that_does_not_vary_cannot_be_measured_in_deviations(make_features):
    features = make_features()
    features.std[1, 2] = 0.0
    with pytest.raises(ValueError, match="Feature '0.13' has the same pre-activation"):
        build(features)
    build(features, unit="raw")
    build(features, targets=("zh", "en"))  # the flat group is not penalised


def test_hold_by_name_refuses_unknown_features(make_features):
    features = make_features()
    residuals, group_ids, mask = batch()
    down, up = build(features), build(features, hold="up")
    mixed = build(features, hold={"0.13": "up"})
    assert down(residuals, group_ids, mask).num_above[0] == mixed(residuals, group_ids, mask).num_above[0]
    assert up(residuals, group_ids, mask).num_above[1] == mixed(residuals, group_ids, mask).num_above[1]
    with pytest.raises(ValueError, match="`hold` names the feature 'nobody'. Known: 0.3"):
        build(features, hold={"nobody": "up"})
