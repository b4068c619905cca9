import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import load_sae

# As sparsify 1.3.3 writes it: the number of features is told by the expansion factor alone.
CONFIG = {"activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": 0, "k": 5}
CONFIG |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": 6}


@pytest.fixture
def weights(weights):
    """24 = 4 · 6 features."""
    random = torch.Generator().manual_seed(3)
    return {
        "encoder.weight": torch.randn(24, 6, generator=random),
        "encoder.bias": torch.randn(24, generator=random),
        "W_dec": torch.randn(24, 6, generator=random),
        "b_dec": torch.randn(6, generator=random),
    }


def save(folder: Path, weights, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(weights, folder / "sae.safetensors")
    return folder


def pre_of(w, x):
    return (x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]


@pytest.mark.parametrize("k", [5, 20])
def test_topk_matches_the_original_formula(tmp_path, weights, x, k):
    w = weights
    save(tmp_path / "layers.3", w, k=k)
    pre = pre_of(w, x)
    values, indices = torch.relu(pre).topk(k, dim=-1)  # the ReLU comes first
    acts = torch.zeros_like(pre).scatter_(-1, indices, values)
    sae = load_sae(tmp_path, block=3)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), acts @ w["W_dec"] + w["b_dec"])
    assert (sae.k, sae.block, sae.site, sae.source.format) == (k, 3, "resid_post", "sparsify")

    some = load_sae(tmp_path, block=3, features=[20, 4])
    torch.testing.assert_close(some.pre_activations(x), pre[..., [20, 4]])
    assert some.direction(4).equal(w["W_dec"][4])


def test_groupmax_keeps_the_largest_feature_of_each_run_of_neighbours(tmp_path, weights, x):
    save(tmp_path / "layers.3", weights, activation="groupmax", k=4)
    pre = torch.relu(pre_of(weights, x))
    acts = torch.zeros_like(pre)
    for start in range(0, 24, 6):  # 4 groups of 6
        group = pre[..., start : start + 6]
        acts[..., start : start + 6] = torch.where(group == group.max(-1, keepdim=True).values, group, 0)
    torch.testing.assert_close(load_sae(tmp_path, block=3).encode(x), acts)


def test_signed_saes_of_old_releases_keep_the_largest_magnitudes(tmp_path, weights, x):
    config = {name: value for name, value in CONFIG.items() if name not in ("activation", "transcode")}
    save(tmp_path / "layers.3", weights)
    (tmp_path / "layers.3/cfg.json").write_text(json.dumps({**config, "signed": True}))
    pre = pre_of(weights, x)
    indices = pre.abs().topk(5, dim=-1).indices
    acts = torch.zeros_like(pre).scatter_(-1, indices, pre.gather(-1, indices))
    assert (acts < 0).any()
    torch.testing.assert_close(load_sae(tmp_path, block=3).encode(x), acts)


def test_configuration_without_an_activation_is_topk(tmp_path, weights):
    save(tmp_path / "layers.3", weights)
    config = {name: value for name, value in CONFIG.items() if name != "activation"}
    (tmp_path / "layers.3/cfg.json").write_text(json.dumps(config))
    assert load_sae(tmp_path, block=3).activation == "topk"


def test_number_of_features_may_stand_in_the_configuration(tmp_path, weights):
    assert load_sae(save(tmp_path / "layers.3", weights, num_latents=24, expansion_factor=32), block=3).k == 5


@pytest.mark.parametrize(
    ("hookpoint", "block", "site"),
    [
        ("layers.10", 10, "resid_post"),
        ("h.5", 5, "resid_post"),
        ("layers.3.mlp", 3, "mlp.output"),
        ("layers.0.attention", 0, "attention.output"),
        ("language_model.layers.2", 2, "resid_post"),
        ("layers.7/seed1", 7, "resid_post"),
    ],
)
def test_folder_tells_block_and_site_also_where_it_is_given_itself(tmp_path, weights, hookpoint, block, site):
    folder = save(tmp_path / "run" / hookpoint, weights)
    for place in (tmp_path, tmp_path / "run", folder):
        assert load_sae(place, block=block).site == site
    with pytest.raises(FileNotFoundError, match=f"no SAE of block 9; it has blocks {block}"):
        load_sae(folder, block=9)


def test_embeddings_stand_beside_the_blocks_and_are_refused(tmp_path, weights):
    save(tmp_path / "embed_tokens", weights)
    with pytest.raises(ValueError, match="reads embed_tokens, which is in no decoder block"):
        load_sae(tmp_path, block=0)
    save(tmp_path / "layers.0", weights)
    assert load_sae(tmp_path, block=0).source.file == "layers.0/sae.safetensors"


def test_folder_of_another_name_is_of_the_block_that_the_user_gives(tmp_path, weights):
    sae = load_sae(save(tmp_path / "mine", weights), block=8, site="mlp_out")
    assert (sae.block, sae.site) == (8, "mlp_out")


def test_run_configuration_names_the_model(tmp_path, weights):
    save(tmp_path / "layers.3", weights)
    assert load_sae(tmp_path, block=3).base_model == ""
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "sae": CONFIG}))
    assert load_sae(tmp_path, block=3).base_model == "EleutherAI/pythia-160m"
    (tmp_path / "config.json").write_text(json.dumps({"model": ["x"]}))
    assert load_sae(tmp_path, block=3).base_model == ""


def test_transcoders_are_refused(tmp_path, weights):
    for change in ({"transcode": True}, {"skip_connection": True}):
        with pytest.raises(ValueError, match="is a transcoder"):
            load_sae(save(tmp_path / "layers.3.mlp", weights, **change), block=3)
    save(tmp_path / "layers.3.mlp", weights)
    (tmp_path / "config.json").write_text(json.dumps({"transcode": True}))  # where older releases wrote it
    with pytest.raises(ValueError, match="is a transcoder"):
        load_sae(tmp_path, block=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "unknown activation 'relu'. Known: topk, groupmax"),
        ({"activation": ["topk"]}, "unknown activation"),
        ({"signed": "no"}, "signed = 'no'; it must be true or false"),
        ({"transcode": "false"}, "transcode = 'false'; it must be true or false"),
        ({"d_in": 7}, "says 28 features of width 7, .* holds 24 of 6"),
        ({"num_latents": 25}, "says 25 features"),
        ({"num_latents": -1}, "num_latents = -1"),
        ({"d_in": 6.0}, "d_in = 6.0"),
        ({"expansion_factor": True}, "expansion_factor = True"),
        ({"expansion_factor": 10**4000}, "expansion_factor = a huge number"),
        ({"expansion_factor": None}, "expansion_factor = None"),
        ({"k": 25}, "says k = 25; the SAE has 24 features"),
        ({"k": 0}, "says k = 0"),
        ({"k": "5"}, "says k = '5'"),
        ({"k": {"a": [1] * 1000}}, "says k = {'a'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, weights, change, message):
    save(tmp_path / "layers.3", weights, **change)
    for features in (None, [1]):
        with pytest.raises(ValueError, match=message) as refused:
            load_sae(tmp_path, block=3, features=features)
        assert len(str(refused.value)) < 1000


def test_what_the_user_gives_must_fit(tmp_path, weights):
    folder = save(tmp_path / "layers.3", weights)
    assert load_sae(folder, block=3, k=5).k == 5
    with pytest.raises(ValueError, match="says k = 5, but k=6 was given"):
        load_sae(folder, block=3, k=6)
    with pytest.raises(ValueError, match="`input_scale` does not apply"):
        load_sae(folder, block=3, input_scale=2.0)


def test_file_with_a_skip_matrix_is_no_sae(tmp_path, weights):
    folder = save(tmp_path / "layers.3", {**weights, "W_skip": torch.zeros(6, 6)})
    with pytest.raises(ValueError, match="expected are exactly encoder.weight"):
        load_sae(folder, block=3)


def test_weights_whose_product_overflows_are_refused(tmp_path, weights):
    weights["b_dec"].fill_(1e38)
    with pytest.raises(ValueError, match="b_enc of sae.safetensors is not finite in raw units"):
        load_sae(save(tmp_path / "layers.3", weights), block=3)
