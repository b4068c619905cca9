import os
from pathlib import Path

import pytest
import torch

from sae_posttrain.saes import load_sae


@pytest.fixture
def folder(tmp_path, weights) -> Path:
    """Blocks 0 and 3 in Qwen-Scope's layout: W_enc (F, D), W_dec (D, F)."""
    for block in (0, 3):
        stored = {"W_enc": weights["W_enc"].T, "W_dec": weights["W_dec"].T}
        stored = {name: tensor.contiguous() + block for name, tensor in stored.items()}
        torch.save({**stored, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}, tmp_path / f"layer{block}.sae.pt")
    return tmp_path


def test_qwen_scope_matches_the_published_formula(folder, x):
    stored = torch.load(folder / "layer3.sae.pt", weights_only=True)
    pre = x @ stored["W_enc"].T + stored["b_enc"]
    values, indices = pre.topk(4, dim=-1)
    acts = torch.zeros_like(pre).scatter_(-1, indices, values)  # no ReLU
    sae = load_sae(folder, block=3, k=4)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.decode(acts), acts @ stored["W_dec"].T + stored["b_dec"])
    assert (sae.d_model, sae.num_features, sae.block, sae.site, sae.k) == (6, 16, 3, "resid_post", 4)
    assert sae.direction(7).equal(stored["W_dec"][:, 7])


def test_qwen_scope_keeps_negative_values_among_the_k_largest(folder, x):
    assert (load_sae(folder, block=0, k=16).encode(x) < 0).any()


def test_chosen_features_are_those_of_the_full_sae(folder, x):
    full = load_sae(folder, block=3)
    some = load_sae(folder, block=3, features=[9, 0, 15])
    assert some.features == (9, 0, 15)
    assert some.num_features == 3
    torch.testing.assert_close(some.pre_activations(x), full.pre_activations(x)[..., [9, 0, 15]])
    for feature in (9, 0, 15):
        assert some.direction(feature).equal(full.direction(feature))
    with pytest.raises(ValueError, match="Feature 1 was not loaded; loaded are 9, 0, 15"):
        some.direction(1)
    with pytest.raises(ValueError, match="topk compares all features"):
        load_sae(folder, block=3, features=[1], k=4).encode(x)


def test_matrices_saved_as_transposed_views_are_read_alike(folder, weights, x):
    saved = {"W_enc": weights["W_enc"].T, "W_dec": weights["W_dec"].T}  # strides (1, n)
    torch.save({**saved, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}, folder / "layer5.sae.pt")
    for features in (None, [3, 1]):
        straight = load_sae(folder, block=0, features=features)
        transposed = load_sae(folder, block=5, features=features)
        assert transposed.W_enc.equal(straight.W_enc)
        assert transposed.W_dec.equal(straight.W_dec)


def test_half_precision_weights_become_float32(folder, weights, x):
    stored = {"W_enc": weights["W_enc"].T.contiguous(), "W_dec": weights["W_dec"].T.contiguous()}
    stored |= {"b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}
    torch.save({name: tensor.bfloat16() for name, tensor in stored.items()}, folder / "layer1.sae.pt")
    sae = load_sae(folder, block=1, features=[2])
    assert sae.W_enc.dtype == torch.float32
    assert sae.W_enc[:, 0].equal(weights["W_enc"][:, 2].bfloat16().float())


def test_k_stands_in_the_name_of_the_folder(folder):
    named = folder / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_5"
    named.mkdir()
    (folder / "layer0.sae.pt").rename(named / "layer0.sae.pt")
    assert load_sae(named, block=0).k == 5
    assert load_sae(named, block=0, k=3).k == 3  # what is given counts


def test_without_k_only_encode_fails_and_says_what_to_do(folder, x):
    sae = load_sae(folder, block=0)
    sae.decode(sae.pre_activations(x))
    with pytest.raises(ValueError, match=r"load_sae\(\.\.\., k=50\)"):
        sae.encode(x)


def test_missing_block_is_answered_with_the_blocks_there_are(folder):
    with pytest.raises(FileNotFoundError, match=r"no SAE of block 7; it has blocks 0, 3"):
        load_sae(folder, block=7)


def test_real_sae_of_the_test_model():
    bed = os.environ.get("SAE_POSTTRAIN_HELP")
    if bed is None:
        pytest.skip("SAE_POSTTRAIN_HELP, the folder of the test beds, is not set")
    sae = load_sae(Path(bed) / "models/help-qwen3-7m/sae", block=2, features=[5, 4095])
    assert sae.W_enc.shape == (256, 2)
    assert sae.W_dec.shape == (2, 256)
