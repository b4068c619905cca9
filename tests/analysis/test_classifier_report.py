import json

import numpy as np
import pytest

from sae_posttrain.analysis import FeatureClassifier
from sae_posttrain.analysis.classifier_baselines import LabelledTexts
from sae_posttrain.analysis.classifier_report import RULE_NAMES, compare_classifiers, format_transfer, transfer

from .synthetic import labelled


def texts(num=120, seed=0, first_key=0, words=("dirty", "clean")) -> LabelledTexts:
    read, labels = labelled(num, seed, first_key)
    rng = np.random.default_rng(seed)
    held = [f"room {rng.integers(9)} was {words[label == 'good']} {rng.integers(9)}" for label in labels]
    return LabelledTexts(read, labels, held)


@pytest.fixture(scope="module")
def report():
    classifier = FeatureClassifier(pos_label="bad")
    train, test = texts(), texts(80, 1, 1000)
    return compare_classifiers(classifier, train, test, few_shot=(10, 40, 500), num_draws=2, num_resamples=400)


def test_every_rule_and_baseline_is_measured_on_the_same_split(report):
    assert list(report.methods)[:3] == [RULE_NAMES[rule] for rule in ("any", "top1_diff", "logistic")]
    assert set(report.methods) >= {
        "TF-IDF + logistic regression",
        "logistic probe on the residual",
        "difference of means",
        "majority",
    }
    published, words, majority = (
        report.methods[name] for name in (RULE_NAMES["any"], "TF-IDF + logistic regression", "majority")
    )
    # feature 3 of block 2 misses 4 of 40 bad texts and has no false alarm: F1 = 72 / (36 + 40)
    assert published.f1 == pytest.approx(72 / 76) and published.precision == 1 and published.recall == 0.9
    assert published.f1_low < published.f1 < published.f1_high
    assert words.f1 == 1 and 0.9 < words.f1_low < 1 == words.f1_high
    assert majority.f1 == pytest.approx(2 * 40 / 120)
    assert words.difference == pytest.approx(1 - 72 / 76) and words.difference_low <= words.difference
    assert report.top1_diff_loss == 0
    assert report.best == "TF-IDF + logistic regression"


def test_few_shot_curve_ends_with_all_texts_and_gets_no_more_than_there_are(report):
    assert list(report.few_shot) == [10, 40, 120]
    mean, low, high = report.few_shot[10][RULE_NAMES["any"]]
    assert low <= mean <= high
    assert report.few_shot[120][RULE_NAMES["any"]][0] == pytest.approx(72 / 76)


def test_report_is_a_table_and_json(report):
    said = str(report)
    for part in ("Best: TF-IDF + logistic regression", "1 feature of block 2", "top1-diff", "majority"):
        assert part in said
    assert json.loads(json.dumps(report.as_dict()))["best"] == report.best


def test_without_texts_and_residuals_their_baselines_are_left_out():
    (read, labels), (other, truth) = labelled(), labelled(80, 1, 1000)
    read, other = (each.__class__(**{**vars(each), "residuals": {}}) for each in (read, other))
    report = compare_classifiers(
        FeatureClassifier(pos_label="bad"), LabelledTexts(read, labels), LabelledTexts(other, truth)
    )
    assert list(report.methods)[3:] == ["majority"]


def test_texts_on_both_sides_are_refused():
    with pytest.raises(ValueError, match="80 of the texts to test on are among those to learn from"):
        compare_classifiers(FeatureClassifier(), texts(), texts(80, 1, 0))


def test_labels_that_were_never_learnt_are_refused():
    test = texts(80, 1, 1000)
    with pytest.raises(ValueError, match="have the label 'odd'"):
        compare_classifiers(FeatureClassifier(), texts(), LabelledTexts(test.activations, ["odd"] * 80, test.texts))


def test_transfer_has_a_cell_for_each_pair_of_sets():
    train = {"en": texts(), "es": texts(120, 2, 5000, ("sucio", "limpio"))}
    test = {"en": texts(80, 1, 1000), "es": texts(80, 3, 6000, ("sucio", "limpio"))}
    matrix = transfer(FeatureClassifier(pos_label="bad"), train, test)
    words = matrix["TF-IDF + logistic regression"]
    assert words["en"]["en"] == words["es"]["es"] == 1 and words["en"]["es"] < 0.9
    assert matrix[RULE_NAMES["any"]]["en"]["es"] == pytest.approx(72 / 76)
    assert "learnt from" in format_transfer(matrix)
