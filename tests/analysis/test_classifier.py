import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import (
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
)

from sae_posttrain import FeatureSet
from sae_posttrain.analysis import FeatureClassifier
from sae_posttrain.analysis.feature_rule import f1_score, firing_differences, split_rows

from .synthetic import PLACES, labelled, make_activations

LETTERS = ["aaaa aa", "zzzz zz", "aaa aaaa", "zzz zzzz", "aa aa a", "zz zz z", "aaaaaa", "zzzzzz"] * 2


def test_firing_difference_is_the_difference_of_two_rates():
    rows = make_activations({PLACES[0]: [[1, 0, 0.2], [2, 0, 0], [0, 3, 0.2], [1, 3, 0.2]]}).at()
    positive = np.array([True, True, False, False])
    # feature 0 fires on 2 of 2 and 1 of 2; feature 1 on 0 and 2; feature 2 on 1 of 2 and 2 of 2
    np.testing.assert_allclose(firing_differences(rows, positive), [0.5, -1.0, -0.5])
    np.testing.assert_allclose(firing_differences(rows, positive, epsilon=0.5), [0.5, -1.0, 0.0])


def test_f1_is_that_of_the_positive_label():
    truth, said = np.array([1, 1, 1, 0, 0], dtype=bool), np.array([1, 1, 0, 1, 0], dtype=bool)
    assert f1_score(truth, said) == pytest.approx(2 * 2 / (3 + 3))
    assert f1_score(~truth & truth, ~said & said) == 0


def test_copies_are_on_one_side_of_the_split():
    keys = [f"{i % 30}" for i in range(90)]
    find, dev = split_rows(keys, np.arange(90) % 2 == 0, 0.25, seed=0)
    assert sorted([*find, *dev]) == list(range(90))
    assert not {keys[i] for i in find} & {keys[i] for i in dev}
    assert 15 <= len(dev) <= 30


def test_the_published_rule_finds_the_feature_and_its_block():
    read, labels = labelled()
    classifier = FeatureClassifier(pos_label="bad").fit(read, labels)
    assert (classifier.rule_.places, classifier.rule_.feature_ids) == ((PLACES[1],), (3,))
    assert classifier.rule_.differences[0] == pytest.approx(0.9)
    assert classifier.score(read, labels) == pytest.approx(1 - 6 / 120)  # it misses 1 of 10 bad texts
    assert classifier.choices_[0].f1 == max(each.f1 for each in classifier.choices_)
    assert not hasattr(classifier, "predict_proba")


def test_more_features_are_joined_by_or():
    read, labels = labelled()
    classifier = FeatureClassifier(pos_label="bad", num_features=2, num_blocks=1).fit(read, labels)
    acts = classifier.rule_.activations(read)
    assert acts.shape == (120, 2)
    assert (classifier.predict(read) == np.where((acts > 0).any(axis=1), "bad", "good")).all()


def test_the_best_feature_of_each_of_several_blocks_can_be_taken():
    rng = np.random.default_rng(0)
    bad = np.arange(200) % 2 == 0
    half = bad & (np.arange(200) % 4 == 0)  # each block sees one half of the bad texts
    noise = rng.random((200, 3)) < 0.05
    tables = {PLACES[0]: np.c_[half, noise], PLACES[1]: np.c_[noise, bad & ~half]}
    classifier = FeatureClassifier(pos_label="bad", num_features=1).fit(
        make_activations(tables), np.where(bad, "bad", "good")
    )
    assert set(classifier.rule_.places) == set(PLACES)
    assert set(zip(classifier.rule_.places, classifier.rule_.feature_ids)) == {(PLACES[0], 0), (PLACES[1], 3)}
    alone = clone(classifier).set_params(num_blocks=1).fit(make_activations(tables), np.where(bad, "bad", "good"))
    assert len(set(alone.rule_.places)) == 1


def test_top1_diff_takes_the_block_of_the_largest_difference_without_evaluation():
    read, labels = labelled()
    classifier = FeatureClassifier(pos_label="bad", rule="top1_diff").fit(read, labels)
    assert (classifier.rule_.places, classifier.rule_.feature_ids) == ((PLACES[1],), (3,))
    assert [each.f1 for each in classifier.choices_] == [None, None]


def test_logistic_has_probabilities_and_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    read, labels = labelled()
    classifier = FeatureClassifier(pos_label="bad", rule="logistic", num_features=8, num_blocks=1).fit(read, labels)
    proba = classifier.predict_proba(read)
    assert proba.shape == (120, 2) and np.allclose(proba.sum(axis=1), 1)
    assert (classifier.classes_[proba.argmax(axis=1)] == classifier.predict(read)).all()
    x = classifier.rule_.activations(read)
    scale = np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    model = LogisticRegression(max_iter=500).fit(x / scale, np.array(labels) == "bad")
    np.testing.assert_allclose(proba[:, 0], model.predict_proba(x / scale)[:, 1], rtol=1e-4)


def test_labels_may_be_numbers_and_the_larger_is_positive():
    read, labels = labelled()
    numbers = [int(label == "bad") for label in labels]
    classifier = FeatureClassifier().fit(read, numbers)
    assert classifier.pos_label_ == 1
    assert classifier.predict(read).dtype.kind == "i"
    assert classifier.rule_.feature_ids == (3,)


@pytest.mark.parametrize(
    "check",
    [
        check_parameters_default_constructible,
        check_no_attributes_set_in_init,
        check_get_params_invariance,
        check_set_params,
    ],
)
def test_scikit_learns_checks_of_an_estimator(check):
    check("FeatureClassifier", FeatureClassifier())


def test_is_cloned_and_cross_validated_as_any_estimator(make_model, make_sae, tokenizer):
    classifier = FeatureClassifier(make_model(), [make_sae(0), make_sae(1)], tokenizer=tokenizer, num_features=(1, 2))
    assert clone(classifier).num_features == (1, 2)
    scores = cross_val_score(classifier, LETTERS, [int(text[0] == "z") for text in LETTERS], cv=2)
    assert scores.min() > 0.6


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"rule": "none"}, None, "`rule` must be one of 'any'"),
        ({"num_features": 0}, None, "`num_features` must be 1 or more"),
        ({"num_features": 61}, None, "61 features are asked for, and there are 60 texts of one label"),
        ({"dev_share": 1.0}, None, "`dev_share` must be between 0 and 1"),
        ({"epsilon": -1.0}, None, "`epsilon` must be 0 or more"),
        ({"pos_label": "worse"}, None, "`pos_label` is 'worse'; the labels are 'bad' and 'good'"),
        ({}, ["bad"] * 120, "tells two labels apart, got 1: 'bad'"),
        ({}, ["a", "b", "c"] * 40, "tells two labels apart, got 3"),
        ({}, ["bad", "good"], "120 texts have 2 labels"),
        ({}, [0.0, 1.0, float("nan")] * 40, "A label is missing"),
        ({}, ["bad", None] * 60, "Labels must be all texts"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(settings, labels, message):
    read, right = labelled()
    with pytest.raises(ValueError, match=message):
        FeatureClassifier(**settings).fit(read, right if labels is None else labels)


def test_features_that_tell_nothing_apart_are_an_error():
    read = make_activations({PLACES[0]: np.ones((40, 3))})
    with pytest.raises(ValueError, match="No feature fires more often on the positive texts"):
        FeatureClassifier().fit(read, [0, 1] * 20)


def test_activations_of_another_pool_or_block_are_refused():
    read, labels = labelled()
    classifier = FeatureClassifier(pos_label="bad").fit(read, labels)
    with pytest.raises(ValueError, match="pooled by 'max', these are pooled by 'mean'"):
        classifier.predict(make_activations({PLACES[1]: np.ones((2, 8))}, pool="mean"))
    with pytest.raises(ValueError, match="The classifier reads block 2; these activations are of block 1"):
        classifier.predict(make_activations({PLACES[0]: np.ones((2, 8))}))


def fitted_on_letters(make_model, make_sae, tokenizer, activation, rule="any"):
    """A classifier of the tiny model that tells texts of one letter from texts of another."""
    classifier = FeatureClassifier(
        make_model(), [make_sae(0, activation), make_sae(1, activation)], rule=rule, tokenizer=tokenizer
    )
    return classifier.fit(LETTERS, [int(text[0] == "z") for text in LETTERS])


@pytest.mark.parametrize("rule", ["any", "logistic"])
@pytest.mark.parametrize("activation", ["topk", "jumprelu", "relu"])
def test_a_saved_classifier_decides_the_same(make_model, make_sae, tokenizer, tmp_path, activation, rule, monkeypatch):
    monkeypatch.setattr("sae_posttrain.saes.stored.source.SAESource.sha256", lambda self: "0" * 64)
    classifier = fitted_on_letters(make_model, make_sae, tokenizer, activation, rule)
    assert classifier.score(LETTERS, [int(text[0] == "z") for text in LETTERS]) > 0.7
    path = classifier.save(tmp_path / "letters.safetensors")
    features = FeatureSet.load(path)  # also an ordinary feature set
    assert len(features) == len(classifier.rule_)
    assert {"firing_difference", "weight"} <= set(features.scores)
    blocks = sorted(set(features.blocks))
    saes = [make_sae(block, activation) for block in blocks] if activation == "topk" else None
    loaded = FeatureClassifier.load(path, model=make_model(), saes=saes, tokenizer=tokenizer)
    np.testing.assert_allclose(
        loaded.decision_function(LETTERS), classifier.decision_function(LETTERS), rtol=1e-4, atol=1e-5
    )
    assert (loaded.predict(LETTERS) == classifier.predict(LETTERS)).all()
    assert loaded.choices_ == classifier.choices_
    assert FeatureSet.load(loaded.save(tmp_path / "again.safetensors")).notes == features.notes
    with pytest.raises(FileExistsError):
        classifier.save(path)


def test_a_loaded_classifier_says_what_it_lacks(make_model, make_sae, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_posttrain.saes.stored.source.SAESource.sha256", lambda self: "0" * 64)
    path = fitted_on_letters(make_model, make_sae, tokenizer, "topk").save(tmp_path / "letters.safetensors")
    with pytest.raises(ValueError, match="give `model`"):
        FeatureClassifier.load(path).predict(["aa"])
    with pytest.raises(ValueError, match="Give `saes`"):
        FeatureClassifier.load(path, model=make_model(), tokenizer=tokenizer).predict(["aa"])
    blocks = sorted(set(FeatureSet.load(path).blocks))
    others = [replace(make_sae(block, "topk"), W_enc=torch.randn(32, 24)) for block in blocks]
    with pytest.raises(ValueError, match="is not the one with which the classifier was made"):
        FeatureClassifier.load(path, model=make_model(), saes=others, tokenizer=tokenizer).predict(["aa"])
    wider = make_model()
    wider.config.vocab_size += 7
    right = [make_sae(block, "topk") for block in blocks]
    with pytest.raises(ValueError, match="vocabulary size differ"):
        FeatureClassifier.load(path, model=wider, saes=right, tokenizer=tokenizer).predict(["aa"])


def test_a_feature_set_without_a_classifier_is_refused(make_features, tmp_path):
    path = make_features().save(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="without a classifier"):
        FeatureClassifier.load(path)


def test_is_pickled(make_model, make_sae, tokenizer):
    read, labels = labelled()
    classifier = FeatureClassifier(pos_label="bad").fit(read, labels)
    again = pickle.loads(pickle.dumps(classifier))
    assert (again.predict(read) == classifier.predict(read)).all()
