from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from sae_posttrain.saes import load_sae

TOPK = {"activation": "TopK", "activation_state_dict": {"k": 5, "postact_fn": "ReLU"}}
RELU = {"activation": "ReLU", "activation_state_dict": {}}


def save(file: Path, weights, **others) -> Path:
    """As `Autoencoder.state_dict()` of openai/sparse_autoencoder saves it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = OrderedDict(
        {
            "pre_bias": weights["b_dec"],
            "latent_bias": weights["b_enc"],
            "stats_last_nonzero": torch.arange(16),
            "latents_activation_frequency": torch.ones(16),
            "latents_mean_square": torch.zeros(16),
            "encoder.weight": weights["W_enc"].T.contiguous(),
            "decoder.weight": weights["W_dec"].T.contiguous(),
        }
    )
    torch.save(OrderedDict({**stored, **others}), file)
    return file.parent


@pytest.mark.parametrize("others", [RELU, {}])
def test_v1_matches_the_original_formula(tmp_path, weights, x, others):
    w = weights
    save(tmp_path / "resid_delta_mlp/autoencoders/4.pt", w, **others)
    sae = load_sae(tmp_path, block=4)
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), acts @ w["W_dec"] + w["b_dec"])
    some = load_sae(tmp_path, block=4, features=[11, 4])
    torch.testing.assert_close(some.encode(x), acts[..., [11, 4]])
    assert some.direction(4).equal(w["W_dec"][4])


@pytest.mark.parametrize("behind", ["ReLU", "Identity"])
def test_v5_matches_the_original_formula_with_its_layer_norm(tmp_path, weights, x, behind):
    w = weights
    topk = {"activation": "TopK", "activation_state_dict": {"k": 12, "postact_fn": behind}}
    save(tmp_path / "resid_post_mlp_v5_32k/autoencoders/8.pt", w, **topk)
    sae = load_sae(tmp_path, block=8)
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    pre = ((x - mean) / (std + 1e-5) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    values, indices = pre.topk(12, dim=-1)
    assert (values < 0).any()
    acts = torch.zeros_like(pre).scatter_(-1, indices, torch.relu(values) if behind == "ReLU" else values)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), (acts @ w["W_dec"] + w["b_dec"]) * std + mean)
    assert sae.k == 12
    some = load_sae(tmp_path, block=8, features=[11, 4])
    torch.testing.assert_close(some.pre_activations(x), pre[..., [11, 4]])
    with pytest.raises(ValueError, match="normalises each token"):
        sae.require_affine()


@pytest.mark.parametrize(
    ("folder", "site"),
    [
        ("resid_post_mlp_v5_32k", "resid_post"),
        ("resid_post_attn_v5_128k", "resid_mid"),
        ("resid_delta_mlp_v4", "mlp_out"),
        ("resid_delta_attn_v5_32k", "attn_out"),
        ("mlp_post_act", "mlp.c_proj.input"),
    ],
)
def test_folder_tells_the_site_also_where_it_is_given_itself(tmp_path, weights, folder, site):
    inner = save(tmp_path / folder / "autoencoders/8.pt", weights)
    for place in (tmp_path, inner.parent, inner):
        sae = load_sae(place, block=8)
        assert (sae.block, sae.site, sae.base_model) == (8, site, "openai-community/gpt2")
    with pytest.raises(FileNotFoundError, match="no SAE of block 2; it has blocks 8"):
        load_sae(tmp_path, block=2)


def test_sites_and_sizes_of_a_block_are_told_apart(tmp_path, weights):
    for folder in ("resid_post_mlp_v5_32k", "resid_delta_mlp_v5_32k"):
        save(tmp_path / folder / "autoencoders/8.pt", weights, **TOPK)
    assert load_sae(tmp_path, block=8, site="mlp_out").source.file == "resid_delta_mlp_v5_32k/autoencoders/8.pt"
    save(tmp_path / "resid_post_mlp_v5_128k/autoencoders/8.pt", weights, **TOPK)
    with pytest.raises(ValueError, match="2 SAEs of block 8: .*_128k.*_32k.*Give the folder"):
        load_sae(tmp_path, block=8, site="resid_post")


def test_numbered_files_elsewhere_are_not_taken_for_saes(tmp_path, weights):
    save(tmp_path / "checkpoints/8.pt", weights)
    with pytest.raises(ValueError, match="No SAE of a known format"):
        load_sae(tmp_path, block=8)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"activation": "Identity"}, "unknown activation 'Identity'. Known: ReLU, TopK"),
        ({"activation": 3}, "unknown activation 3"),
        ({"activation": "TopK", "activation_state_dict": {"k": 17}}, "says k = 17; the SAE has 16 features"),
        ({"activation": "TopK", "activation_state_dict": {"k": "many"}}, "says k = 'many'"),
        ({"activation": "TopK", "activation_state_dict": {"k": 2**62}}, "says k = a huge number"),
        ({**TOPK, "activation_state_dict": {"k": 5, "postact_fn": "GELU"}}, "after TopK: 'GELU'"),
        ({"normalize": True}, "in addition to its tensors it holds normalize"),
        ({"stats_last_nonzero": torch.arange(15)}, "must hold a whole number for each of the 16 features"),
        ({"stats_last_nonzero": torch.ones(16)}, "stored as torch.float32"),
        ({"latents_mean_square": torch.ones(15)}, "expected is .F."),
        ({"decoder.linear.weight": torch.zeros(16, 6)}, "expected are exactly"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path, weights, others, message):
    save(tmp_path / "resid_post_mlp_v5_32k/autoencoders/8.pt", weights, **others)
    for features in (None, [1]):
        with pytest.raises(ValueError, match=message):
            load_sae(tmp_path, block=8, features=features)


def test_what_the_user_gives_must_fit(tmp_path, weights):
    folder = save(tmp_path / "resid_post_mlp_v5_32k/autoencoders/8.pt", weights, **TOPK)
    assert load_sae(folder, block=8, k=5).k == 5
    with pytest.raises(ValueError, match="says k = 5, but k=6 was given"):
        load_sae(folder, block=8, k=6)
    with pytest.raises(ValueError, match="`input_scale` does not apply"):
        load_sae(folder, block=8, input_scale=2.0)
    folder = save(tmp_path / "resid_post_mlp/autoencoders/8.pt", weights, **RELU)
    with pytest.raises(ValueError, match="this one is a relu SAE"):
        load_sae(folder, block=8, k=5)


def test_weights_whose_product_overflows_are_refused(tmp_path, weights):
    weights["b_dec"].fill_(1e38)
    with pytest.raises(ValueError, match="b_enc of 8.pt is not finite in raw units"):
        load_sae(save(tmp_path / "resid_post_mlp/autoencoders/8.pt", weights, **RELU), block=8)
