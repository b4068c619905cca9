import math
from dataclasses import replace

import pytest
import torch

from sae_posttrain.hooks.record import SiteRecorder, training_capture
from sae_posttrain.penalty import term
from sae_posttrain.penalty.feature_penalty import FeaturePenalty
from sae_posttrain.penalty.groups import GroupTable
from sae_posttrain.penalty.term import summable
from sae_posttrain.precision import widest_float


def build(features, unknown_group="error", targets=("zh",), **kwargs) -> FeaturePenalty:
    return FeaturePenalty(features, GroupTable.for_features(features, list(targets), unknown_group), **kwargs)


def batch():
    torch.manual_seed(1)
    residuals = {(0, "resid_post"): torch.randn(2, 3, 32), (1, "resid_post"): torch.randn(2, 3, 32)}
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
            pre = part.pre_activations(residuals[block, "resid_post"][row, token])
            excess = ((pre - part.mean[:, group]) / part.std[:, group] - 0.1).clamp(min=0)
            expected += excess.mean().item()
    reading = build(features, margin=0.1)(residuals, group_ids, mask)
    assert reading.excess_sum.item() == pytest.approx(expected, rel=1e-5)
    assert reading.num_penalised.item() == 3
    assert reading.num_above.shape == (4,)


def test_zero_variant_in_raw_units_needs_no_statistics(make_features):
    features = make_features(groups=())
    residuals, group_ids, mask = batch()
    penalty = build(features, penalty="zero", unit="raw")  # of any group but the target
    expected = sum(
        features.select(block=b).pre_activations(residuals[b, "resid_post"][row, token]).clamp(min=0).mean().item()
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


# Sites beside a block's output ---------------------------------------------------------------------------------------


def test_penalty_is_mean_over_the_features_of_a_site_and_sum_over_sites(make_features):
    features = replace(make_features(blocks=(0,)), sites=("attn_z", "mlp_out"))
    _, group_ids, mask = batch()
    values = {place: torch.randn(2, 3, 32) for place in features.places}
    penalty = build(features)
    assert penalty.places == ((0, "attn_z"), (0, "mlp_out"))
    both = penalty(values, group_ids, mask).excess_sum.item()
    alone = [
        build(features.select(site=site))(values, group_ids, mask).excess_sum.item() for _, site in penalty.places
    ]
    assert both == pytest.approx(sum(alone))
    assert min(alone) > 0


def test_feature_of_the_attention_input_can_be_penalised_and_its_gradient_arrives(make_model, make_features):
    features = replace(make_features(blocks=(1,), per_block=1), sites=("attn_z",))
    model, penalty = make_model(), build(features, penalty="zero", unit="raw")
    ids, group_ids = torch.arange(5, 11)[None], torch.ones(1, 6, dtype=torch.long)
    recorder = SiteRecorder(model, penalty.places)
    with recorder.armed() as captures:
        model(input_ids=ids)
    values = {place: training_capture(captures, place) for place in penalty.places}
    penalty(values, group_ids, torch.ones(1, 6, dtype=torch.bool)).excess_sum.backward()
    last = model.model.layers[1]
    assert last.self_attn.v_proj.weight.grad.abs().max() > 0
    assert model.model.layers[0].mlp.down_proj.weight.grad.abs().max() > 0
    assert last.self_attn.o_proj.weight.grad is None  # it reads the site

    # the site is what the projection reads, so an identity in its place shows it
    other = make_model()
    other.model.layers[1].self_attn.o_proj = torch.nn.Identity()
    recorder = SiteRecorder(other, [(1, "attn_out")])
    with recorder.armed() as captures:
        other(input_ids=ids)
    pre = features.pre_activations(captures[1, "attn_out"][0])
    pre.relu().sum().backward()
    torch.testing.assert_close(
        other.model.layers[1].self_attn.v_proj.weight.grad, last.self_attn.v_proj.weight.grad, rtol=1e-4, atol=1e-5
    )


def test_each_block_is_read_on_its_own_device(make_features):
    """`meta` stands for the second device of a model that is spread over two; groups and mask lie on the first."""
    residuals, group_ids, mask = batch()
    residuals[1, "resid_post"] = residuals[1, "resid_post"].to("meta")
    penalty = build(make_features())
    reading = penalty(residuals, group_ids, mask)
    assert reading.excess_sum.device.type == reading.num_above.device.type == "meta"
    assert [tables.encoder_rows.device.type for tables in penalty._tables] == ["cpu", "meta"]
    assert summable(reading.excess_sum, mask.sum(), reading.num_above).device.type == "meta"


def test_sums_are_kept_in_what_the_device_has(make_features, monkeypatch):
    assert [widest_float(device) for device in ("cpu", "mps")] == [torch.float64, torch.float32]
    reading = build(make_features())(*batch())
    monkeypatch.setattr(term, "widest_float", lambda device: torch.float32)
    assert summable(reading.excess_sum, torch.tensor(3)).dtype == torch.float32
    assert summable(torch.tensor(1), torch.tensor(3)).dtype == torch.float32


def test_feature_that_was_not_measured_is_an_error_unless_nothing_of_it_is_needed(make_features):
    features = make_features()
    rows = torch.tensor([[0.0], [0.0], [math.nan], [0.0]])
    partly = replace(features, mean=features.mean + rows, std=features.std + rows)
    with pytest.raises(ValueError, match="'1.23' has no statistics of the groups. .*`measure_groups`"):
        build(partly)
    residuals, group_ids, mask = batch()
    options = {"penalty": "zero", "unit": "raw"}
    reading = build(partly, **options)(residuals, group_ids, mask)
    assert reading.excess_sum == build(features, **options)(residuals, group_ids, mask).excess_sum > 0


def test_features_that_share_a_name_are_held_alike_and_logged_apart(make_features):
    shared = build(replace(make_features(), names=("a", "a", "a", "b")), hold={"a": "up"})
    apart = build(replace(make_features(), names=("a", "b", "c", "d")), hold={"a": "up", "b": "up", "c": "up"})
    assert shared.names == ("a (0.3)", "a (0.13)", "a (1.23)", "b")
    residuals, group_ids, mask = batch()
    assert shared(residuals, group_ids, mask).excess_sum == apart(residuals, group_ids, mask).excess_sum
