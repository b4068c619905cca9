"""Names of features are edited with a mapping, and saved."""

from dataclasses import replace

import pytest

from sae_posttrain import FeatureSet
from sae_posttrain.features.set.calibrated_for import calibrated_features


def test_renamed_features_are_saved_under_their_new_names(make_features, tmp_path):
    features = make_features(blocks=(0, 1))
    assert features.names == ("0.3", "0.13", "1.23", "1.33")
    renamed = features.rename({"0.13": "loop", "1.33": "chinese"})
    assert renamed.names == ("0.3", "loop", "1.23", "chinese")
    assert features.names == ("0.3", "0.13", "1.23", "1.33")  # the set itself is not changed
    assert FeatureSet.load(renamed.save(tmp_path)).names == renamed.names


def test_names_can_be_shared_and_a_label_tells_them_apart_again(make_features):
    features = make_features(blocks=(0, 1)).rename({"0.3": "loop", "1.33": "loop"})
    assert features.names == ("loop", "0.13", "1.23", "loop")
    assert features.rename({"loop": "endless"}).names == ("endless", "0.13", "1.23", "endless")
    assert features.rename({features.labels[3]: "late"}).names == ("loop", "0.13", "1.23", "late")


def test_two_names_can_be_exchanged(make_features):
    assert make_features(blocks=(0,)).rename({"0.3": "0.13", "0.13": "0.3"}).names == ("0.13", "0.3")


def test_a_calibration_is_kept_because_the_features_are_the_same(make_features):
    features = make_features(blocks=(0,))
    note = {"calibration": {"strength": 1.5, "features": calibrated_features(features)}}
    assert replace(features, notes=note).rename({"0.3": "loop"}).calibration["strength"] == 1.5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"0.33": "loop"}, "Unknown feature '0.33'. Known: 0.3, 0.13. Did you mean '0.3'"),
        ({"0.3": " "}, "The new name of '0.3' must be a text that is not empty, got ' '"),
        ({"0.3": 7}, "The new name of '0.3' must be a text that is not empty, got 7"),
        (["loop"], "`names` must map old names to new ones, .* got a list"),
    ],
)
def test_what_is_no_new_name_is_refused(make_features, names, message):
    with pytest.raises(ValueError, match=message):
        make_features(blocks=(0,)).rename(names)
