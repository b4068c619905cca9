import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_posttrain import FeatureSet, FrozenSAE
from sae_posttrain.saes.stored.source import SAESource


def test_pre_activation_is_the_affine_value_in_raw_units(make_features):
    features = make_features(blocks=(1,))
    x = torch.randn(3, 4, 32)
    assert torch.allclose(features.pre_activations(x), x @ features.encoder_rows.T + features.encoder_bias, atol=1e-6)


def test_pre_activation_over_several_blocks_is_an_error(make_features):
    with pytest.raises(ValueError, match=r"resid_post of block 0, .*; `select\(block=…, site=…\)`"):
        make_features().pre_activations(torch.randn(1, 1, 32))


def test_residual_of_another_width_is_an_error(make_features):
    with pytest.raises(ValueError, match="The features read width 32, the residual has 16"):
        make_features(blocks=(0,)).pre_activations(torch.randn(1, 1, 16))


def test_slices_keep_everything_of_the_features(make_features):
    features = make_features()
    block = features.select(block=1)
    assert block.blocks == (1, 1)
    assert torch.equal(block.mean, features.mean[2:])
    assert torch.equal(features[1:3].encoder_rows, features.encoder_rows[1:3])
    assert features[-1].names == features.names[-1:]
    assert features.select(names=[features.names[2]]).feature_ids == (23,)
    with pytest.raises(ValueError, match="Unknown feature 'x'. Known"):
        features.select(names=["x"])
    with pytest.raises(ValueError, match="No feature of block 5"):
        features.select(block=5)


def test_merge_joins_features_and_matches_groups_by_name(make_features):
    first, second = make_features(blocks=(0,)), make_features(blocks=(1,), groups=("en", "zh", "ko"), targets=("ko",))
    merged = first.merge(second)
    assert merged.blocks == (0, 0, 1, 1)
    assert merged.groups == ("zh", "ko", "en")
    assert torch.equal(merged.mean[2:, 0], second.mean[:, 1])  # zh is second's second group
    assert merged.target_groups == ("zh", "ko")


def test_merge_refuses_what_does_not_belong_together(make_features):
    features = make_features(blocks=(0,))
    with pytest.raises(ValueError, match="stands twice"):
        features.merge(features)
    with pytest.raises(ValueError, match="Cannot merge features of"):
        features.merge(make_features(blocks=(1,), base_model="other"))
    with pytest.raises(ValueError, match="Cannot merge statistics"):
        features.merge(make_features(blocks=(1,), groups=("zh", "en")))


def test_print_shows_features_scores_and_groups(make_features):
    text = str(make_features(base_model="owner/model"))
    assert "4 features for zh, found on owner/model (width 32)" in text
    assert "monolinguality" in text
    assert "mean[ko]" in text
    assert len(text.splitlines()) == 6


def test_another_width_or_base_model_is_refused(make_features, make_model):
    model = make_model()
    make_features().check_model(model)
    with pytest.raises(ValueError, match="the model has blocks 0 to 1"):
        make_features(blocks=(0, 2)).check_model(model)
    model.config._name_or_path = "runs/mine"
    features = make_features(base_model="owner/base")
    with pytest.raises(ValueError, match="allow_base_model='mine'"):
        features.check_model(model)
    features.check_model(model, allow_base_model="mine")
    model.config._name_or_path = "/somewhere/else/base"
    features.check_model(model)
    model.config.hidden_size = 64
    with pytest.raises(ValueError, match="The features read width 32, block 0 writes 64"):
        features.check_model(model)


@pytest.fixture
def sae_at():
    def make(site: str) -> FrozenSAE:
        return FrozenSAE(
            W_enc=torch.randn(32, 8),
            b_enc=torch.randn(8),
            W_dec=torch.randn(8, 32),
            b_dec=torch.zeros(32),
            activation="topk",
            block=1,
            site=site,
            source=SAESource("owner/sae", None, "layer1.sae.pt", "qwen_scope", Path("layer1.sae.pt")),
        )

    return make


def test_set_from_known_features_of_an_sae(sae_at):
    sae = sae_at("resid_post")
    features = FeatureSet.from_sae(sae, [5, 2], target_groups=["zh"])
    x = torch.randn(4, 32)
    assert torch.allclose(features.pre_activations(x), sae.pre_activations(x)[:, [5, 2]], atol=1e-5)
    assert torch.equal(features.directions[1], sae.direction(2))
    assert features.names == ("1.5", "1.2")
    with pytest.raises(ValueError, match="8"):
        FeatureSet.from_sae(sae, [8])


# Sites beside a block's output ---------------------------------------------------------------------------------------

SITES = ("resid_post", "mlp_out", "attn_z", "mlp_out")


def test_features_of_one_block_are_told_apart_by_their_site(make_features):
    features = replace(make_features(), sites=SITES)  # blocks 0, 0, 1, 1
    assert features.places == ((0, "mlp_out"), (0, "resid_post"), (1, "attn_z"), (1, "mlp_out"))
    assert features.select(site="mlp_out").feature_ids == features.feature_ids[1::2]
    assert features.select(block=0, site="mlp_out").feature_ids == features.feature_ids[1:2]
    with pytest.raises(
        ValueError, match="No feature of block 0 and the site 'attn_z' in the set; it holds .*attn_z of"
    ):
        features.select(block=0, site="attn_z")
    with pytest.raises(ValueError, match="resid_post of block 0.*first"):
        features.select(block=0).pre_activations(torch.randn(1, 32))
    features.select(block=0, site="mlp_out").pre_activations(torch.randn(1, 32))


def test_print_names_the_site_where_one_is_not_a_blocks_output(make_features):
    assert "mlp_out" in str(replace(make_features(), sites=SITES)).splitlines()[3]
    assert "site" not in str(make_features())


def test_sites_are_saved_and_loaded(make_features, tmp_path):
    replace(make_features(), sites=SITES).save(tmp_path)
    assert FeatureSet.load(tmp_path).sites == SITES


def test_features_of_any_site_that_the_model_has_belong_to_it(make_features, make_model):
    model, features = make_model(), make_features()
    replace(features, sites=SITES).check_model(model)
    replace(features, sites=("self_attn.v_proj.input",) * 4).check_model(model)
    with pytest.raises(
        ValueError, match="The features read width 32, mlp.down_proj.input of block 1 has 48; they were"
    ):
        replace(features, sites=("resid_mid",) * 3 + ("mlp.down_proj.input",)).check_model(model)
    with pytest.raises(ValueError, match="The Qwen3MLP of block 0 has no module 'up'"):
        replace(features, sites=("mlp.up.input",) * 4).check_model(model)
    with pytest.raises(ValueError, match="Unknown site '../../x'"):
        replace(features, sites=("../../x",) * 4).check_model(model)


def test_names_of_features_at_other_sites_hold_the_site(sae_at):
    assert FeatureSet.from_sae(sae_at("mlp_out"), [5]).names == ("1.mlp_out.5",)
    merged = FeatureSet.from_sae(sae_at("mlp_out"), [5]).merge(FeatureSet.from_sae(sae_at("resid_post"), [5]))
    assert merged.names == ("1.mlp_out.5", "1.5")
    assert merged.sites == ("mlp_out", "resid_post")


# Indexing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        [True, False, True, False],
        (True, False, True, False),
        torch.tensor([True, False, True, False]),
        np.array([True, False, True, False]),
        [np.True_, np.False_, np.True_, np.False_],
    ],
)
def test_bools_are_a_mask(make_features, mask):
    features = make_features()
    assert features[mask].names == (features.names[0], features.names[2])


@pytest.mark.parametrize("index", [[2, 0], torch.tensor([2, 0]), np.array([2, 0]), [-2, 0], (np.int64(2), 0)])
def test_whole_numbers_are_positions(make_features, index):
    features = make_features()
    assert features[index].names == (features.names[2], features.names[0])
    assert features[np.int64(1)].names == features[torch.tensor(1)].names == (features.names[1],)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([True, False], ValueError, "The mask has 2 entries, the feature set 4 features"),
        (torch.ones(5, dtype=torch.bool), ValueError, "The mask has 5 entries, the feature set 4"),
        ([True, 1, False, False], TypeError, "A mask holds True and False only"),
        (True, TypeError, "a list of positions or a mask, got True"),
        ("0.3", TypeError, r"By name: `feature_set.select\(names=\[...\]\)`"),
        ([0.5, 1.0], TypeError, "Positions in a feature set are whole numbers"),
        ([9], IndexError, "Position 9 does not exist: the set has features 0 to 3"),
        (-5, IndexError, "Position -5 does not exist"),
        ([False] * 4, ValueError, "needs at least one feature"),
        (torch.zeros(2, 2, dtype=torch.bool), TypeError, "whole numbers"),
    ],
)
def test_what_is_no_index_is_an_error(make_features, index, error, message):
    with pytest.raises(error, match=message):
        make_features()[index]


@pytest.mark.parametrize("name", ["mean", "std", "thresholds", "encoder_bias", "encoder_rows"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 1, 1)])
def test_tensors_of_another_shape_are_refused(make_features, name, shape):
    with pytest.raises(ValueError, match=f"`{name}` of a feature set has shape"):
        replace(make_features(), **{name: torch.zeros(shape)})


# What is given by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"directions": torch.ones(32)},
            r"has shape \(32,\), expected is \(F, D\).*One vector .*`directions\[None\]`",
        ),
        ({"directions": [torch.ones(32)]}, r"`directions` of a feature set is a list, .*`torch.stack\(\[...\]\)`"),
        ({"directions": np.ones((1, 32))}, r"is a ndarray, expected is a tensor.*`torch.as_tensor\(...\)`"),
        ({"directions": torch.zeros(1, 32)}, "A direction is zero: row 0"),
        ({"directions": torch.full((1, 32), math.nan)}, "`encoder_rows` of a feature set holds NaN"),
        (
            {"blocks": ["model.layers.1"]},
            "A block is a whole number counted from 0, got 'model.layers.1'.* is block 1",
        ),
        ({"blocks": ["model.layers.1.mlp"]}, r"is block 1, with `sites=\['mlp.output'\]`"),
        ({"blocks": ["1"]}, "got '1'. Write it without quotes: 1"),
        ({"blocks": [1.0]}, "got 1.0. Write block 20 as 20"),
        ({"blocks": [True]}, "got True"),
        ({"blocks": 1}, r"`blocks` names the block of each direction, got 1. For one: `blocks=\[1\]`"),
        ({"blocks": "model.layers.1"}, "got 'model.layers.1'.* is block 1"),
        ({"blocks": [-1]}, "count from 0"),
        ({"names": "mine"}, r"`names` holds one text for each feature, got 'mine'. For one: `names=\['mine'\]`"),
        ({"sites": "mlp_out"}, r"For one: `sites=\['mlp_out'\]`"),
        ({"names": ["a", "b"]}, "`names` has 2 entries for 1 features"),
        ({"residual_norms": [1.0, 2.0]}, "`residual_norms` of a feature set has shape"),
    ],
)
def test_directions_given_by_hand_are_checked(change, message):
    given = {"directions": torch.ones(1, 32), "blocks": [1], "names": ["mine"]} | change
    with pytest.raises(ValueError, match=message):
        FeatureSet.from_directions(given.pop("directions"), **given)


def test_blocks_of_numpy_and_torch_are_numbers_that_can_be_saved(tmp_path):
    features = FeatureSet.from_directions(
        torch.eye(2, 32), blocks=np.array([1, 2]), names=["a", "b"], residual_norms=[1.0, 2.0]
    )
    assert FeatureSet.load(features.save(tmp_path)).blocks == (1, 2)


@pytest.mark.parametrize("name", ["encoder_rows", "directions", "mean", "residual_norms"])
def test_a_list_in_place_of_a_tensor_is_an_error(make_features, name):
    features = make_features()
    with pytest.raises(ValueError, match=f"`{name}` of a feature set is a list, expected is a tensor of shape"):
        replace(features, **{name: getattr(features, name).tolist()})


def test_a_modules_path_in_place_of_a_block_is_answered_with_its_number(make_features):
    with pytest.raises(ValueError, match="got 'model.layers.1'. 'model.layers.1' is block 1"):
        replace(make_features(), blocks=("model.layers.1",) * 4)


def test_one_number_in_place_of_features_is_an_error(sae_at):
    with pytest.raises(ValueError, match=r"`features` lists the SAE's features by number, got 5. For one: `\[5\]`"):
        FeatureSet.from_sae(sae_at("resid_post"), 5)


# Shown in a notebook -------------------------------------------------------------------------------------------------


def test_repr_is_one_line_without_tensors(make_features):
    assert repr(make_features(base_model="owner/model")) == (
        "FeatureSet(4 features for zh, found on owner/model (width 32), blocks 0, 1: 0.3, 0.13, 1.23, 1.33)"
    )
    many = make_features(per_block=20)
    assert repr(many).endswith("0.23, 0.33, …)") and len(repr(many)) < 200


def test_notebook_shows_a_table_in_which_names_are_escaped(make_features):
    html = replace(make_features(), names=("<script>", "b", "c", "d"))._repr_html_()
    assert html.count("<tr>") == 5 and "&lt;script&gt;" in html and "<script>" not in html
    assert "mean[ko]" in html
    many = make_features(per_block=40)._repr_html_()
    assert many.count("<tr>") == 51 and "and 30 more" in many


# Files that are there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zh.safetensors", "folder"])
def test_a_file_is_replaced_only_when_that_is_asked_for(make_features, tmp_path, name):
    file = make_features(seed=0).save(tmp_path / name)
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="exists already.*`overwrite=True`"):
        make_features(seed=1).save(tmp_path / name)
    assert file.read_bytes() == before
    assert make_features(seed=1).save(tmp_path / name, overwrite=True) == file
    assert file.read_bytes() != before
