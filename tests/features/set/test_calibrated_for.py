"""A calibration goes with the features it was measured for, and with no others."""

import logging
from dataclasses import replace

import pytest
import torch

from sae_posttrain import FeatureSet, calibrate, random_directions
from sae_posttrain.features.set.calibrated_for import calibrated_features


@pytest.fixture
def calibrated(make_features) -> FeatureSet:
    features = make_features()
    return replace(
        features,
        notes=features.notes | {"calibration": {"strength": 2.0, "features": calibrated_features(features)}},
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda features: features[:],
        lambda features: features[[3, 1, 0, 2]],
        lambda features: features.select(names=features.names),
        lambda features: replace(features, groups=(), mean=torch.zeros(4, 0), std=torch.zeros(4, 0)),
        lambda features: replace(features, names=("a", "b", "c", "d")),
    ],
)
def test_same_features_keep_their_calibration(calibrated, change, caplog):
    assert change(calibrated).calibration["strength"] == 2.0
    assert not caplog.records


@pytest.mark.parametrize(
    "change",
    [
        lambda features: features[0],
        lambda features: features[[True, True, False, False]],
        lambda features: features.select(block=1),
        lambda features: features.select(names=features.names[:3]),
        lambda features: features[:2].merge(features[2:3]),
    ],
)
def test_other_features_lose_it_with_a_warning(calibrated, change, caplog):
    with caplog.at_level(logging.WARNING):
        changed = change(calibrated)
    assert "calibration" not in changed.notes and changed.notes["num_texts"] == 12
    assert "it was measured for '0.3' (block 0), '0.13' (block 0)" in caplog.text


def test_merging_drops_it_unless_it_is_of_the_whole(calibrated, make_features, caplog):
    other = make_features(blocks=(2,), seed=5)
    assert calibrated.merge(other).calibration == {} and other.merge(calibrated).calibration == {}
    assert "Run `calibrate` on the new set" in caplog.text
    whole = calibrated.merge(other)
    marked = {"calibration": {"strength": 3.0, "features": calibrated_features(whole)}}
    assert replace(other, notes=marked).merge(calibrated).calibration["strength"] == 3.0


def test_calibration_without_names_is_that_of_the_set_which_carries_it(make_features, caplog):
    features = make_features()
    features.notes["calibration"] = {"strength": 2.0}
    assert features.calibration["strength"] == 2.0 == features[:].calibration["strength"]
    assert features[0].calibration == {}
    assert "left out" in caplog.text


def test_calibration_that_names_other_features_is_refused(calibrated, tmp_path):
    turned = replace(calibrated, directions=calibrated.directions.flip(0))
    with pytest.raises(ValueError, match=r"was measured for '0.3' .* run `calibrate` on this set"):
        _ = turned.calibration
    moved = replace(calibrated, blocks=(0, 1, 1, 1))
    with pytest.raises(ValueError, match="was measured for"):
        _ = FeatureSet.load(moved.save(tmp_path)).calibration
    damaged = replace(calibrated, notes={"calibration": {"strength": 2.0, "features": [{"block": "x"}]}})
    with pytest.raises(ValueError, match="its list of features is damaged"):
        _ = damaged.calibration


def test_calculations_of_one_place_say_nothing_of_the_calibration(calibrated, caplog):
    for place in calibrated.places:
        assert calibrated.at(place).notes == {}
    assert calibrated.at((1, "resid_post")).names == calibrated.names[2:]
    assert not caplog.records


def test_calibrate_names_the_features_that_it_pushed(make_model, make_features, tokenizer, tmp_path, caplog):
    model, features = make_model(), random_directions(make_features(), seed=0)
    options = {"tokenizer": tokenizer, "max_new_tokens": 4, "num_prompts": 2}
    options |= {"strengths": [1.0], "fault": lambda ids, finished: False}
    found = calibrate(model, features, ["one", "two"], **options).feature_set
    assert [each["name"] for each in found.notes["calibration"]["features"]] == list(features.names)
    loaded = FeatureSet.load(found.save(tmp_path))
    assert loaded.calibration["features"] == calibrated_features(features)
    assert loaded[0].calibration == {}
