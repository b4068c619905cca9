import numpy as np
import pytest
import torch

from sae_posttrain.saes import FORMATS, FrozenSAE, SAEFile, SAEFormat, load_sae


@pytest.fixture
def folder(tmp_path, weights):
    stored = {"W_enc": weights["W_enc"].T.contiguous(), "W_dec": weights["W_dec"].T.contiguous()}
    torch.save({**stored, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}, tmp_path / "layer0.sae.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([3, 16], "Feature 16 does not exist: .* holds 16 features, 0 to 15"),
        ([3, -1], "Features count from 0, got -1"),
        ([3, 5, 3], "names 3 more than once"),
        ([], "`features` is empty"),
    ],
)
def test_features_that_cannot_be_read_are_an_error(folder, features, message):
    with pytest.raises(ValueError, match=message):
        load_sae(folder, block=0, features=features)


def test_features_may_be_a_tensor_or_array(folder):
    assert load_sae(folder, block=0, features=torch.tensor([3, 5])).features == (3, 5)
    assert load_sae(folder, block=0, features=np.array([3, 5])).features == (3, 5)


@pytest.mark.parametrize("block", [-1, 1.0, True, "0"])
def test_block_must_be_a_number_from_0(folder, block):
    with pytest.raises(ValueError, match="`block` counts decoder blocks from 0"):
        load_sae(folder, block=block)


def test_unknown_format_is_answered_with_the_known_ones(folder):
    with pytest.raises(ValueError, match=r"Unknown SAE format 'foo'. Known: qwen_scope, saelens, gemma_scope"):
        load_sae(folder, block=0, format="foo")


def test_wrong_format_is_answered_with_what_was_found(folder):
    with pytest.raises(ValueError, match=r"No saelens SAE.*Found in .*layer0\.sae\.pt.*Known formats: qwen_scope"):
        load_sae(folder, block=0, format="saelens")


def test_folder_without_an_sae_is_answered_with_what_was_found(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"No SAE of a known format.*: model\.safetensors\. Known formats"):
        load_sae(tmp_path, block=0)


def test_folder_with_two_formats_asks_which(folder, weights):
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    np.savez(folder / "params.npz", **{name: weights[name].numpy() for name in names})
    with pytest.raises(ValueError, match=r"several formats: qwen_scope .*, gemma_scope .*Say which with `format`"):
        load_sae(folder, block=0)
    assert load_sae(folder, block=0, format="gemma_scope").activation == "jumprelu"


def test_users_can_add_a_format(tmp_path, monkeypatch, weights):
    def list_mine(files):
        return [SAEFile(name) for name in files.names if name == "mine.npy"]

    def read_mine(files, found, wanted):
        tensors = {name: weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return FrozenSAE(**tensors, activation="relu", block=wanted.block, source=files.source(found.file, "mine"))

    monkeypatch.setitem(FORMATS, "mine", SAEFormat(list_mine, read_mine, "mine.npy"))
    (tmp_path / "mine.npy").touch()
    assert load_sae(tmp_path, block=7).source.format == "mine"
