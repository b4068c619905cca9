from pathlib import Path

import numpy as np
import pytest
import torch

from sae_posttrain.saes import load_sae


def save(folder: Path, weights, write=np.savez) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "params.npz", **{n: weights[n].numpy() for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})
    return folder


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_gemma_scope_matches_the_published_formula(tmp_path, weights, x, write):
    save(tmp_path / "layer_2/width_16k/average_l0_71", weights, write)
    sae = load_sae(tmp_path, block=2)
    pre = x @ weights["W_enc"] + weights["b_enc"]  # b_dec is not subtracted
    acts = (pre > weights["threshold"]) * torch.relu(pre)
    assert (acts > 0).any()
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.decode(acts), acts @ weights["W_dec"] + weights["b_dec"])
    assert sae.source.file == "layer_2/width_16k/average_l0_71/params.npz"

    some = load_sae(tmp_path, block=2, features=[11, 4])
    torch.testing.assert_close(some.pre_activations(x), pre[..., [11, 4]])
    torch.testing.assert_close(some.encode(x), acts[..., [11, 4]])  # JumpReLU features do not depend on each other
    assert some.direction(4).equal(weights["W_dec"][4])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_stored_column_by_column_are_read_alike(tmp_path, weights, write):
    arrays = {n: weights[n].numpy() for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    write(tmp_path / "params.npz", **{name: np.asfortranarray(array) for name, array in arrays.items()})
    for features in ([11, 4], None):
        sae = load_sae(tmp_path, block=0, features=features)
        chosen = slice(None) if features is None else features
        assert sae.W_enc.equal(weights["W_enc"][:, chosen])
        assert sae.W_dec.equal(weights["W_dec"][chosen])


def test_any_folder_on_the_way_may_be_given(tmp_path, weights):
    inner = save(tmp_path / "layer_2/width_16k/average_l0_71", weights)
    for folder in (inner, inner.parent, inner.parent.parent):
        assert load_sae(folder, block=2).num_features == 16


def test_several_saes_of_a_block_are_listed(tmp_path, weights):
    save(tmp_path / "layer_2/width_16k/average_l0_71", weights)
    save(tmp_path / "layer_2/width_16k/average_l0_150", weights)
    with pytest.raises(ValueError, match=r"2 SAEs of block 2: .*average_l0_150, .*average_l0_71. Give the folder"):
        load_sae(tmp_path, block=2)


def test_missing_block_is_answered_with_the_blocks_there_are(tmp_path, weights):
    inner = save(tmp_path / "layer_2/width_16k/average_l0_71", weights)
    for folder in (tmp_path, inner):
        with pytest.raises(FileNotFoundError, match="no SAE of block 12; it has blocks 2"):
            load_sae(folder, block=12)


@pytest.mark.parametrize(("kind", "site"), [("res", "resid_post"), ("att", "attn_z"), ("mlp", "mlp_out")])
def test_site_stands_in_the_repositorys_name(tmp_path, weights, kind, site):
    folder = save(tmp_path / f"gemma-scope-2b-pt-{kind}/layer_2/width_16k/average_l0_71", weights)
    sae = load_sae(folder, block=2)
    assert (sae.site, sae.base_model) == (site, "google/gemma-2-2b")
    with pytest.raises(FileNotFoundError, match=rf"no SAE of resid_mid of block 2; it has blocks 2 \({site}\)"):
        load_sae(folder, block=2, site="resid_mid")


def test_transcoders_and_embeddings_are_refused(tmp_path, weights):
    for path in ("gemma-scope-2b-pt-transcoders/layer_2/x", "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"):
        with pytest.raises(ValueError, match="is of the kind (transcoders|embedding)"):
            load_sae(save(tmp_path / path, weights), block=2)


def test_k_for_an_sae_without_topk_is_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="`k` belongs to TopK SAEs; this one is a jumprelu SAE"):
        load_sae(save(tmp_path, weights), block=2, k=50)
