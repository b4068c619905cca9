"""Strength and temperature searched together, on a model that a push makes emit one token for ever."""

import pytest

from sae_posttrain import FeatureSet
from sae_posttrain.features.calibrate import temperatures as temperatures_module
from sae_posttrain.features.calibrate.calibration import Calibration, CalibrationRow
from sae_posttrain.features.calibrate.temperatures import calibrate_temperatures

PROMPTS = [[10 + i, 11 + i, 12 + i] for i in range(6)]


@pytest.fixture
def search(make_model, tokenizer):
    model = make_model()
    features = FeatureSet.from_directions(
        model.lm_head.weight[50:51], blocks=[1], names=["emits one token"], residual_norms=[10.0]
    )

    def run(temperatures, **options):
        settings = {"strengths": [0.5, 3.0], "max_new_tokens": 70, "tokenizer": tokenizer, **options}
        return calibrate_temperatures(model, features, PROMPTS, temperatures=temperatures, **settings)

    return run


def test_the_pair_that_reaches_the_target_is_stored_with_its_temperature(search, tmp_path):
    found = search([4.0, 0.0])
    assert found.sweeps[4.0].strength is None and found.sweeps[0.0].strength == 3.0
    assert found.temperature == 0.0 and found.chosen is found.sweeps[0.0]
    assert "0 *" in str(found) and "(best)" in str(found)
    stored = FeatureSet.load(found.feature_set.save(tmp_path / "both.safetensors")).calibration
    assert (stored["strength"], stored["temperature"], stored["settings"]["temperature"]) == (3.0, 0.0, 0.0)
    assert [sweep["temperature"] for sweep in stored["temperatures"]] == [4.0, 0.0]


def test_without_a_temperature_that_reaches_the_target_nothing_is_stored(search):
    found = search([4.0])
    assert found.temperature is None and found.chosen is None
    assert "calibration" not in found.feature_set.notes
    assert "reached at none of the temperatures" in str(found)


def test_of_two_that_reach_it_the_likelier_text_is_taken(search):
    found = search([0.3, 0.0], strengths=[6.0])
    losses = {each: sweep.chosen.loss for each, sweep in found.sweeps.items()}
    assert len(losses) == 2 and losses[found.temperature] == min(losses.values())


def test_loops_of_a_single_token_are_taken_last_though_they_are_likelier(search, monkeypatch):
    def swept(_model, feature_set, _prompts, *, temperature, **_options):
        period, loss = {1.0: (1.0, 0.3), 0.7: (6.0, 0.9), 0.4: (3.0, 0.8)}[temperature]
        row = CalibrationRow(1.5, 8, 8, 1.0, 0.6, 1.0, 70.0, loss, period)
        return Calibration(1.5, 0.8, (row,), {}, feature_set)

    monkeypatch.setattr(temperatures_module, "calibrate", swept)
    assert search([1.0, 0.7, 0.4]).temperature == 0.4
    assert search([1.0]).temperature == 1.0


def test_temperatures_that_cannot_be_tried_are_refused(search):
    for temperatures in ([], [0.5, 0.5], [-1.0]):
        with pytest.raises(ValueError, match="`temperatures` must be different numbers of 0 or more"):
            search(temperatures)
    with pytest.raises(ValueError, match="nothing to provoke"):
        search([0.0], fault=lambda ids, finished: True)
