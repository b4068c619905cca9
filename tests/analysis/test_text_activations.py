import numpy as np
import pytest

from sae_posttrain.analysis import read_activations

ROWS = [{"text": text, "lang": text[0]} for text in ("hello", "world and more", "again", "the end")]


@pytest.fixture
def activations(make_model, make_sae, tokenizer):
    return read_activations(make_model(), [make_sae(0), make_sae(1)], ROWS, tokenizer=tokenizer, residuals=True)


def test_some_texts_are_chosen_by_slice_list_or_mask(activations):
    whole = activations.at(1).toarray()
    for rows, numbers in [
        (slice(1, 3), [1, 2]),
        ([3, 0], [3, 0]),
        (np.array([True, False, False, True]), [0, 3]),
    ]:
        some = activations[rows]
        np.testing.assert_array_equal(some.at(1).toarray(), whole[numbers])
        assert some.groups == tuple(activations.groups[i] for i in numbers)
        assert len(some.residuals[0, "resid_post"]) == len(numbers)
        assert some.origin["texts"] != activations.origin["texts"]
    with pytest.raises(IndexError, match="Give several texts"):
        activations[0]


def test_parts_that_are_merged_are_the_whole(activations):
    merged = activations[:1].merge(activations[1:])
    np.testing.assert_array_equal(merged.at(0).toarray(), activations.at(0).toarray())
    np.testing.assert_array_equal(merged.residuals[1, "resid_post"], activations.residuals[1, "resid_post"])
    assert (merged.keys, merged.groups) == (activations.keys, activations.groups)


def test_other_settings_or_saes_do_not_merge(make_model, make_sae, tokenizer):
    def read(sae, pool="max"):
        return read_activations(make_model(), sae, ROWS, tokenizer=tokenizer, pool=pool)

    with pytest.raises(ValueError, match="`pool` is max here, mean there"):
        read(make_sae()).merge(read(make_sae(), "mean"))
    with pytest.raises(ValueError, match="different saes"):
        read(make_sae()).merge(read(make_sae(k=5)))


def test_a_place_is_named_by_its_block_where_that_is_clear(activations):
    assert activations.find_place(1) == (1, "resid_post")
    with pytest.raises(ValueError, match="No place is named"):
        activations.at()
    with pytest.raises(ValueError, match="7 is not one place"):
        activations.at(7)


def test_a_feature_fires_where_its_activation_is_above_0(activations):
    fired = activations.fires(0)
    assert fired.dtype == bool
    np.testing.assert_array_equal(fired.toarray(), activations.at(0).toarray() > 0)


def test_file_keeps_everything_and_is_not_replaced_by_accident(activations, tmp_path):
    path = activations.save(tmp_path / "a.safetensors")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        activations.save(path)
    activations.save(path, overwrite=True)
    again = type(activations).load(path)
    assert again.places == activations.places and again.keys == activations.keys
    np.testing.assert_array_equal(again.feature_ids[0, "resid_post"], np.arange(24))


def test_a_file_of_another_kind_is_refused(tmp_path, make_features):
    path = make_features().save(tmp_path / "features.safetensors")
    from sae_posttrain.analysis import TextActivations

    with pytest.raises(ValueError, match="holds no activations"):
        TextActivations.load(path)
    with pytest.raises(FileNotFoundError, match="cache="):
        TextActivations.load(tmp_path / "none.safetensors")
