import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import load_sae
from sae_posttrain.saes.loading import list_saes
from sae_posttrain.saes.stored.files import SAEFiles

FOLDER = "resid_post/layer_17_width_16k_l0_big"
CONFIG = {
    "hf_hook_point_in": "model.layers.17.output",
    "hf_hook_point_out": "model.layers.17.output",
    "width": 16,
    "model_name": "google/gemma-3-4b-pt",
    "architecture": "jump_relu",
    "l0": 150,
    "affine_connection": False,
    "type": "sae",
}


def save(folder: Path, weights, config: dict | None = CONFIG, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.lower(): weights[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    save_file({**tensors, **more}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_gemma_scope_2_matches_the_published_formula(tmp_path, weights, x):
    save(tmp_path / FOLDER, weights)
    sae = load_sae(tmp_path, block=17)
    pre = x @ weights["W_enc"] + weights["b_enc"]  # b_dec is not subtracted
    acts = (pre > weights["threshold"]) * torch.relu(pre)
    assert (acts > 0).any()
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.decode(acts), acts @ weights["W_dec"] + weights["b_dec"])
    assert (sae.site, sae.base_model, sae.source.file) == (
        "resid_post",
        "google/gemma-3-4b-pt",
        f"{FOLDER}/params.safetensors",
    )

    some = load_sae(tmp_path, block=17, features=[11, 4])
    torch.testing.assert_close(some.pre_activations(x), pre[..., [11, 4]])
    torch.testing.assert_close(some.encode(x), acts[..., [11, 4]])  # JumpReLU features do not depend on each other
    assert some.direction(4).equal(weights["W_dec"][4])


@pytest.mark.parametrize(
    ("kind", "module", "site"),
    [
        ("resid_post", "output", "resid_post"),
        ("resid_post_all", "output", "resid_post"),
        ("attn_out", "self_attn.o_proj.input", "attn_z"),  # not what the attention adds, in spite of its name
        ("attn_out_all", "self_attn.o_proj.input", "attn_z"),
        ("mlp_out", "post_feedforward_layernorm.output", "mlp_out"),
        ("mlp_out_all", "post_feedforward_layernorm.output", "mlp_out"),
    ],
)
@pytest.mark.parametrize("layers", ["model.layers", "model.language_model.layers", "language_model.model.layers"])
def test_site_is_that_of_the_hook_point(tmp_path, weights, kind, module, site, layers):
    config = {**CONFIG, "hf_hook_point_in": f"{layers}.3.{module}", "hf_hook_point_out": f"{layers}.3.{module}"}
    named = save(tmp_path / f"a/{kind}/layer_3_width_16k_l0_small", weights, config)
    renamed = save(tmp_path / "b/mine", weights, config)
    unconfigured = save(tmp_path / f"c/{kind}/layer_3_width_16k_l0_small", weights, None)
    for folder in (named, tmp_path / "a", renamed, unconfigured, tmp_path / "c"):
        assert load_sae(folder, block=3).site == site
        with pytest.raises(FileNotFoundError, match=rf"no SAE of block 4; it has blocks 3 \({site}\)"):
            load_sae(folder, block=4)


def test_other_modules_are_sites_of_their_own(tmp_path, weights):
    config = {**CONFIG, "hf_hook_point_in": "model.layers.3.mlp.down_proj.input", "hf_hook_point_out": None}
    assert load_sae(save(tmp_path, weights, config), block=3).site == "mlp.down_proj.input"


def test_without_a_name_or_configuration_the_users_word_is_taken(tmp_path, weights):
    sae = load_sae(save(tmp_path / "mine", weights, None), block=3, site="mlp_out")
    assert (sae.block, sae.site, sae.base_model) == (3, "mlp_out", "")


def test_listing_a_repository_reads_no_configuration():
    def fetch(name: str) -> Path:
        raise AssertionError(f"{name} was fetched")

    folders = [f"{kind}/layer_{n}_width_16k_l0_big" for kind in ("resid_post_all", "mlp_out") for n in range(40)]
    folders += [f"transcoder_all/layer_{n}_width_16k_l0_big_affine" for n in range(40)]
    names = tuple(f"{folder}/{name}" for folder in folders for name in ("config.json", "params.safetensors"))
    names += ("clt/width_262k_l0_big/params_layer_3.safetensors",)
    repository = "google/gemma-scope-2-4b-pt"
    listed = list_saes(SAEFiles(repository, repository, names, fetch))
    assert list(listed) == ["gemma_scope_2"]
    assert {(sae.block, sae.site) for sae in listed["gemma_scope_2"]} == {
        (n, site) for n in range(40) for site in ("resid_post", "mlp_out")
    }


def test_several_saes_of_a_block_are_listed_without_transcoders(tmp_path, weights):
    save(tmp_path / "resid_post/layer_17_width_16k_l0_big", weights)
    save(tmp_path / "resid_post/layer_17_width_16k_l0_medium_seed_1", weights)
    save(tmp_path / "transcoder/layer_17_width_16k_l0_big", weights)
    with pytest.raises(ValueError, match=r"2 SAEs of block 17: .*l0_big, .*l0_medium_seed_1. Give the folder of one"):
        load_sae(tmp_path, block=17)


@pytest.mark.parametrize(
    "path",
    [
        "gemma-scope-2-1b-pt/transcoder/layer_17_width_16k_l0_big",
        "transcoder_all/layer_17_width_16k_l0_small_affine",
    ],
)
@pytest.mark.parametrize("configured", [True, False])
def test_transcoders_are_refused(tmp_path, weights, path, configured):
    folder = save(tmp_path / path, weights, CONFIG if configured else None)
    with pytest.raises(ValueError, match="belongs to a transcoder.*Use an SAE of a folder resid_post"):
        load_sae(folder, block=17)


def test_cross_layer_transcoders_are_refused(tmp_path, weights):
    folder = tmp_path / "gemma-scope-2-1b-pt/clt/width_262k_l0_big"
    folder.mkdir(parents=True)
    save_file({"w_enc": weights["W_enc"]}, folder / "params_layer_3.safetensors")
    for place in (folder, folder.parent):
        with pytest.raises(ValueError, match="belongs to a transcoder"):
            load_sae(place, block=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_hook_point_out": "model.layers.17.mlp.output"}, "belongs to a transcoder .it reads 'model.layer"),
        ({"type": "crosscoder"}, "belongs to a transcoder .its type is 'crosscoder'"),
        ({"affine_connection": True}, "belongs to a transcoder .it has an affine connection"),
        ({"affine_connection": "no"}, "affine_connection = 'no'; it must be true or false"),
        ({"architecture": "topk"}, "unknown architecture 'topk'. Known: jump_relu"),
        ({"architecture": ["jump_relu"]}, "unknown architecture"),
        ({"width": 17}, "says 17 features, params.safetensors beside it holds 16"),
        ({"width": 10**400}, "must be a whole number"),
        ({"width": "16k"}, "width = '16k'; it must be a whole number"),
        ({"l0": -3}, "l0 = -3; it must be a number above 0"),
        ({"l0": [150]}, "l0 = .150."),
        (
            {"hf_hook_point_in": "model.embed_tokens.output", "hf_hook_point_out": None},
            "is no site of a decoder block",
        ),
        ({"hf_hook_point_in": 17, "hf_hook_point_out": 17}, "reads 17, which is no site of a decoder block"),
        (
            {"hf_hook_point_in": "model.layers.16.output", "hf_hook_point_out": None},
            "says that the SAE reads resid_post of block 16; by the folders' names it is resid_post of block 17",
        ),
        (
            {"hf_hook_point_in": "model.layers.17.self_attn.o_proj.input", "hf_hook_point_out": None},
            "says that the SAE reads attn_z of block 17; by the folders' names it is resid_post",
        ),
    ],
)
def test_configuration_that_contradicts_is_refused(tmp_path, weights, change, message):
    save(tmp_path / FOLDER, weights, {**CONFIG, **change})
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path, block=17)


def test_affine_connection_in_the_weights_is_refused_too(tmp_path, weights):
    save(tmp_path / FOLDER, weights, None, affine_skip_connection=torch.eye(6))
    with pytest.raises(ValueError, match="belongs to a transcoder .it holds an affine_skip_connection"):
        load_sae(tmp_path, block=17)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("google/gemma-3-4b-pt", "google/gemma-3-4b-pt"),
        ("gemma-v3-12b-it", "google/gemma-3-12b-it"),
        ("google/gemma-3-270m-pt", "google/gemma-3-270m"),
        ("google/gemma-3-270m-it", "google/gemma-3-270m-it"),
        ("somebody/gemma-3-4b-pt-finetuned", "somebody/gemma-3-4b-pt-finetuned"),
        (["google/gemma-3-4b-pt"], ""),
    ],
)
def test_base_model_is_a_hub_id(tmp_path, weights, name, model):
    save(tmp_path / FOLDER, weights, {**CONFIG, "model_name": name})
    assert load_sae(tmp_path, block=17).base_model == model


def test_base_model_without_a_configuration_stands_in_the_repositorys_name(tmp_path, weights):
    folder = save(tmp_path / "gemma-scope-2-270m-pt" / FOLDER, weights, None)
    assert load_sae(folder, block=17).base_model == "google/gemma-3-270m"


@pytest.mark.parametrize(
    ("given", "message"), [({"k": 50}, "`k` belongs to TopK"), ({"input_scale": 2.0}, "input_sc")]
)
def test_what_does_not_apply_is_refused(tmp_path, weights, given, message):
    save(tmp_path / FOLDER, weights)
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path, block=17, **given)
