from itertools import islice

import pytest
import torch

from sae_posttrain.features.read.texts import Text
from sae_posttrain.sae_training.activations import mean_and_scale, split_texts, texts_of_passes


def test_copies_of_a_text_are_not_both_trained_and_measured_on(texts):
    copies = [*texts, *texts, *texts]
    kept, held_out = split_texts(copies, 0.3, at_most=100, seed=0)
    assert not {copies[number].ids for number in kept} & {copies[number].ids for number in held_out}
    assert len(held_out) == 2
    assert len(kept) == 3 * 5


def test_no_more_texts_are_held_out_than_asked_for(texts):
    kept, held_out = split_texts(texts, 0.9, at_most=1, seed=0)
    assert sorted(kept + held_out) == list(range(7))
    assert len(held_out) == 1


def test_a_text_without_a_token_that_counts_is_left_out(texts):
    empty = Text("", (5,), (False,))
    kept, held_out = split_texts([empty, texts[0], texts[1]], 0.01, at_most=100, seed=0)
    assert sorted(kept + held_out) == [1, 2]
    with pytest.raises(ValueError, match="1 of the 3 texts .* give two or more"):
        split_texts([empty, texts[0], texts[0]], 0.5, at_most=100, seed=0)


def test_scale_brings_a_dimension_to_variance_1_around_the_mean():
    place = (0, "resid_post")
    x = torch.tensor([[103.0, 0.0], [97.0, 0.0], [100.0, 1.0], [100.0, -1.0]])
    mean, scale = mean_and_scale([{place: x[:2]}, {place: x[2:]}], place)
    assert mean.tolist() == [100.0, 0.0]
    # squares around the mean: 9 + 9 + 1 + 1 over 8 numbers
    assert scale == pytest.approx((20 / 8) ** -0.5)
    with pytest.raises(ValueError, match="No SAE can be trained on block 0: the standard deviation .* is nan"):
        mean_and_scale([{place: x * torch.inf}], place)


def test_passes_begin_anywhere_in_the_same_endless_order(texts):
    whole = list(islice(texts_of_passes(texts, 2, seed=3), 20))
    for first in (0, 1, 4, 7, 12):
        assert list(islice(texts_of_passes(texts, 2, seed=3, first=first), 5)) == whole[first : first + 5]
    for start in range(0, 20, 4):  # seven texts, two at a time
        assert sorted(text.ids for members in whole[start : start + 4] for text in members) == sorted(
            text.ids for text in texts
        )
    assert whole[:4] != whole[4:8]
