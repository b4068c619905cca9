"""Features that no set fires, on texts in which they do."""

from dataclasses import replace

import numpy as np
import pytest

from sae_posttrain.analysis import coverage, find_untouched, read_activations

SETS = [{"text": "aa aa aa"}]
REFERENCE = [{"text": f"{word} number {i} {word}"} for i in range(4) for word in ("zebra", "quick", "aa")]


def test_features_are_those_that_fire_in_most_reference_texts_and_in_no_set(make_model, make_sae, tokenizer):
    model, sae = make_model(), make_sae(1)
    measured = coverage(read_activations(model, sae, SETS, tokenizer=tokenizer))
    found = find_untouched(measured, model, sae, REFERENCE, num_features=3, tokenizer=tokenizer)
    read = read_activations(model, sae, REFERENCE, tokenizer=tokenizer, positions="all")
    firing = np.asarray(read.fires().sum(axis=0)).ravel()
    left = {feature: int(firing[feature]) for feature in measured.untouched if firing[feature]}
    assert found.num_fire == len(left) > 3 and found.num_texts == len(REFERENCE)
    assert list(found.num_firing_texts) == sorted(left.values(), reverse=True)[:3]
    assert [left[feature] for feature in found.features] == list(found.num_firing_texts)
    for view in found.views:  # every snippet has the token on which the feature fires most
        assert view.columns[0].snippets
        for snippet in view.columns[0].snippets:
            assert any(piece.shade for piece in snippet.pieces)


def test_nothing_is_shown_where_the_reference_fires_nothing_new(make_model, make_sae, tokenizer):
    model, sae = make_model(), make_sae(1)
    measured = coverage(read_activations(model, sae, REFERENCE, tokenizer=tokenizer))
    found = find_untouched(measured, model, sae, REFERENCE, tokenizer=tokenizer)
    assert found.features == () and found.views == () and found.num_fire == 0


def test_another_sae_is_refused(make_model, make_sae, tokenizer):
    measured = coverage(read_activations(make_model(), make_sae(1), SETS, tokenizer=tokenizer))
    with pytest.raises(ValueError, match="read with 25 features, this SAE has 24"):
        find_untouched(replace(measured, num_features=25), "not loaded", make_sae(1), REFERENCE)
