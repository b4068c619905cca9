"""`steer` as users call it: from a file, checked against the model, with messages that say what to do."""

from types import SimpleNamespace

import pytest
import torch

from sae_posttrain import FeatureSet, steer
from sae_posttrain.hooks.steer import steer as push_along

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def logits(model, features, strength=2.0, push=steer, **options):
    with torch.no_grad(), push(model, features, strength=strength, **options):
        return model(input_ids=IDS).logits


@pytest.fixture
def model(make_model):
    return make_model().eval()


def test_a_file_a_folder_and_a_hub_repository_are_taken_for_the_set(model, make_features, tmp_path, monkeypatch):
    features = make_features()
    expected = logits(model, features)
    path = features.save(tmp_path)
    for given in (path, str(path), tmp_path):
        assert torch.equal(logits(model, given), expected)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_args, **_kwargs: str(path))
    assert torch.equal(logits(model, "owner/features"), expected)
    with pytest.raises(FileNotFoundError, match="No feature set at .*nothing.safetensors"):
        logits(model, tmp_path / "nothing.safetensors")


def test_a_mapping_of_names_needs_no_keyword(model, make_features):
    features = make_features(blocks=(1,)).rename({"1.3": "chinese"})
    with torch.no_grad(), steer(model, features, {"chinese": -0.8}):
        found = model(input_ids=IDS).logits
    assert torch.equal(found, logits(model, features, torch.tensor([[-0.8, 0.0]])))
    assert not torch.equal(found, model(input_ids=IDS).logits)


def test_features_of_another_model_are_refused_unless_they_are_allowed(model, make_features):
    model.config._name_or_path = "owner/Tuned-1B"
    features = make_features(base_model="owner/Base-1B")
    with pytest.raises(ValueError, match="found on 'owner/Base-1B', this model is 'owner/Tuned-1B'.*allow_base_model"):
        logits(model, features)
    allowed = logits(model, features, allow_base_model="owner/Tuned-1B")
    assert torch.equal(allowed, logits(model, make_features()))
    assert not any(module._forward_hooks for module in model.modules())


def test_features_that_share_a_name_are_pushed_together(model, make_features):
    features = make_features(blocks=(0, 1), per_block=2)
    fields = ("directions", "encoder_rows", "encoder_bias", "residual_norms", "blocks", "sites")
    shared = SimpleNamespace(
        **{name: getattr(features, name) for name in fields}, names=("fault", "other", "fault", "fault")
    )
    by_name = logits(model, shared, {"fault": 2.0}, push=push_along)
    assert torch.equal(by_name, logits(model, features, torch.tensor([[2.0, 0.0, 2.0, 2.0]])))
    with pytest.raises(ValueError, match="names 'faults', .* Known: fault, other. Did you mean 'fault'"):
        logits(model, shared, {"faults": 2.0}, push=push_along)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(32), r"got a tensor of shape \(32,\). Of vectors .*`FeatureSet.from_directions\(vector\[None\]"),
        (torch.ones(2, 32), r"got a tensor of shape \(2, 32\). .*from_directions\(vectors, blocks"),
        ([0.5] * 32, r"got a list. .*from_directions\(torch.tensor\(vectors\)"),
        ("model.layers.1", r"'model.layers.1', the name of a module.*blocks=\[1\], sites=\['resid_post'\]"),
        ("layers.3.mlp", r"'layers.3.mlp', the name of a module.*blocks=\[3\], sites=\['mlp.output'\]"),
        (None, "`features` must be a feature set, got a NoneType. Give a `FeatureSet`, its file or its Hub"),
        (3, "must be a feature set, got a int"),
    ],
)
def test_what_is_no_feature_set_is_answered_with_what_to_do(model, given, message):
    with pytest.raises(ValueError, match=message):
        logits(model, given)


def test_several_sets_are_answered_with_how_to_merge_them(model, make_features):
    with pytest.raises(ValueError, match=r"got a list. Merge the sets into one: `first.merge\(second\)`"):
        logits(model, [make_features(), make_features(seed=1)])


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("layers.3.mlp", "Unknown site 'layers.3.mlp'. Known: .*Did you mean the site 'mlp.output' of block 3"),
        ("model.layers.1", "Did you mean the site 'resid_post' of block 1"),
        ("blocks.1.hook_mlp_out", "Did you mean the site 'mlp_out' of block 1"),
        ("layers.1.mlp.output", "has no module 'layers'.*Did you mean the site 'mlp.output' of block 1"),
        ("hook_attn_out", "Did you mean 'attn_out'"),
        ("mlp", "Did you mean 'mlp.output'"),
        ("self_attn.o_proj", "Did you mean 'self_attn.o_proj.output'"),
        ("resid-post", "Did you mean 'resid_post'"),
        ("mlp.up.output", "has no module 'up'; .*Did you mean 'up_proj'"),
    ],
)
def test_a_site_that_is_none_gets_its_near_name(model, site, message):
    features = FeatureSet.from_directions(torch.ones(1, 32), blocks=[0], sites=[site], names=["a"])
    for use in (features.check_model, lambda given: logits(given, features, unit="raw")):
        with pytest.raises(ValueError, match=message):
            use(model)


def test_a_block_given_by_its_path_gets_its_number(model, make_features):
    features = make_features()
    fields = ("directions", "encoder_rows", "encoder_bias", "residual_norms", "sites", "names")
    by_path = SimpleNamespace(**{name: getattr(features, name) for name in fields}, blocks=("model.layers.1",) * 4)
    with pytest.raises(ValueError, match="A block is given by its number, .*got 'model.layers.1': .* 0 to 1.*block 1"):
        logits(model, by_path, push=push_along)
