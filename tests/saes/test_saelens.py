import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import load_sae

NEW = {"apply_b_dec_to_input": True, "normalize_activations": "none", "dtype": "float32", "d_in": 6, "d_sae": 16}
NEW |= {"metadata": {"hook_name": "blocks.4.hook_resid_post", "sae_lens_version": "6.20.0"}}
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def save(folder: Path, weights, cfg: dict, names=TENSORS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({name: weights[name] for name in names}, folder / "sae_weights.safetensors")
    return folder


def compare(folder: Path, x, pre, acts, reconstruction, some_acts=True) -> None:
    sae = load_sae(folder, block=4)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.decode(acts), reconstruction)
    some = load_sae(folder, block=4, features=[15, 2])
    torch.testing.assert_close(some.pre_activations(x), pre[..., [15, 2]])
    assert some.direction(2).equal(sae.direction(2))
    if some_acts:
        torch.testing.assert_close(some.encode(x), acts[..., [15, 2]])


@pytest.mark.parametrize("subtract", [True, False])
def test_standard_matches_the_original_formula(tmp_path, weights, x, subtract):
    w = weights
    pre = (x - w["b_dec"] * subtract) @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre)
    folder = save(tmp_path, w, {**NEW, "architecture": "standard", "apply_b_dec_to_input": subtract})
    compare(folder, x, pre, acts, acts @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("rescale", [True, False])
def test_topk_matches_the_original_formula(tmp_path, weights, x, rescale):
    w = weights
    norm = w["W_dec"].norm(dim=-1) if rescale else torch.ones(16)
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    values, indices = (pre * norm).topk(12, dim=-1)
    assert (values < 0).any()  # the ReLU behind TopK matters
    acts = torch.zeros_like(pre).scatter_(-1, indices, torch.relu(values))
    folder = save(tmp_path, w, {**NEW, "architecture": "topk", "k": 12, "rescale_acts_by_decoder_norm": rescale})
    compare(folder, x, pre, acts, (acts / norm) @ w["W_dec"] + w["b_dec"], some_acts=False)


def test_dead_feature_of_a_rescaled_topk_decodes_to_nothing(tmp_path, weights, x):
    weights["W_dec"][3] = 0
    save(tmp_path, weights, {**NEW, "architecture": "topk", "k": 16, "rescale_acts_by_decoder_norm": True})
    sae = load_sae(tmp_path, block=4)
    assert sae.decode(sae.encode(x)).isfinite().all()


def test_jumprelu_matches_the_original_formula(tmp_path, weights, x):
    w = weights
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre) * (pre > w["threshold"])
    folder = save(tmp_path, w, {**NEW, "architecture": "jumprelu"}, (*TENSORS, "threshold"))
    compare(folder, x, pre, acts, acts @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("subtract", [True, False])
def test_gated_matches_the_original_formula(tmp_path, weights, x, subtract):
    w = weights
    x_in = x - w["b_dec"] * subtract
    pre = x_in @ w["W_enc"] + w["b_gate"]
    magnitude = torch.relu(x_in @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
    acts = (pre > 0) * magnitude
    names = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
    folder = save(tmp_path, w, {**NEW, "architecture": "gated", "apply_b_dec_to_input": subtract}, names)
    compare(folder, x, pre, acts, acts @ w["W_dec"] + w["b_dec"])


def test_configuration_from_before_version_6_subtracts_b_dec_and_is_standard(tmp_path, weights, x):
    cfg = {"hook_point": "blocks.4.hook_resid_post", "hook_point_layer": 4, "d_in": 6, "d_sae": 16}
    sae = load_sae(save(tmp_path, weights, {**cfg, "normalize_activations": False}), block=4)
    assert sae.activation == "relu"
    expected = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    torch.testing.assert_close(sae.pre_activations(x), expected)


def test_topk_from_before_version_6(tmp_path, weights):
    cfg = {"hook_name": "blocks.4.hook_resid_post", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}
    for architecture in ("standard", "topk"):
        sae = load_sae(save(tmp_path, weights, {**cfg, "architecture": architecture}), block=4)
        assert (sae.activation, sae.k, sae.relu_after_topk) == ("topk", 7, True)


@pytest.mark.parametrize(
    ("hook", "block", "site"),
    [
        ("blocks.4.hook_resid_post", 4, "resid_post"),
        ("blocks.4.hook_resid_pre", 3, "resid_post"),  # the same tensor as the output of the block before
        ("blocks.0.hook_resid_pre", 0, "resid_pre"),
        ("blocks.4.hook_resid_mid", 4, "resid_mid"),
        ("blocks.4.attn.hook_z", 4, "attn_z"),
        ("blocks.4.hook_mlp_out", 4, "mlp_out"),
        ("model.layers.4", 4, "resid_post"),
        ("model.layers.4.output", 4, "resid_post"),
        ("model.layers.4.mlp", 4, "mlp.output"),
        ("transformer.h.4", 4, "resid_post"),
    ],
)
def test_hook_name_tells_block_and_site(tmp_path, weights, hook, block, site):
    folder = save(tmp_path, weights, {**NEW, "metadata": {"hook_name": hook}})
    assert load_sae(folder, block=block).site == site
    with pytest.raises(FileNotFoundError, match=f"no SAE of block 9; it has blocks {block}"):
        load_sae(folder, block=9)


@pytest.mark.parametrize("hook", ["blocks.4.attn.hook_q", "unembed", None])
def test_other_hooks_are_refused_by_name(tmp_path, weights, hook):
    folder = save(tmp_path, weights, {**NEW, "metadata": {"hook_name": hook}})
    with pytest.raises(ValueError, match=f"reads '{hook}', which is no site of a decoder block"):
        load_sae(folder, block=4)


def test_block_is_found_among_subfolders(tmp_path, weights):
    for block in (3, 4):
        hook = f"blocks.{block}.hook_resid_post"
        save(tmp_path / f"sae_{block}", weights, {**NEW, "metadata": {"hook_name": hook}})
    assert load_sae(tmp_path, block=3).source.file == "sae_3/sae_weights.safetensors"
    with pytest.raises(FileNotFoundError, match="no SAE of block 1; it has blocks 3, 4 .resid_post"):
        load_sae(tmp_path, block=1)
    save(tmp_path / "another", weights, NEW)
    with pytest.raises(ValueError, match=r"2 SAEs of block 4: another, sae_4. Give the folder"):
        load_sae(tmp_path, block=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "matching_pursuit"}, "unknown architecture 'matching_pursuit'. Known: standard, topk"),
        ({"normalize_activations": "layer_norm"}, "normalised activations .'layer_norm'"),
        ({"normalize_activations": True}, "normalised activations"),
        ({"activation_fn_str": "tanh-relu"}, "unknown activation 'tanh-relu'"),
        ({"reshape_activations": "hook_z"}, "`reshape_activations` 'hook_z'"),
        ({"architecture": "topk"}, "does not say how many features"),
        ({"architecture": "jumprelu"}, "expected are exactly .*threshold"),
        ({"d_sae": 17}, "says d_sae = 17, .* holds 16"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path, weights, change, message):
    folder = save(tmp_path, weights, {**NEW, "architecture": "standard", **change})
    with pytest.raises(ValueError, match=message):
        load_sae(folder, block=4)


def test_another_k_than_the_stored_one_is_refused(tmp_path, weights):
    folder = save(tmp_path, weights, {**NEW, "architecture": "topk", "k": 12})
    assert load_sae(folder, block=4, k=12).k == 12
    with pytest.raises(ValueError, match="says k = 12, given was k=3"):
        load_sae(folder, block=4, k=3)


def test_old_scaling_factor_is_ignored_only_where_it_is_one(tmp_path, weights):
    weights["scaling_factor"] = torch.ones(16)
    load_sae(save(tmp_path, weights, NEW, (*TENSORS, "scaling_factor")), block=4)
    weights["scaling_factor"][3] = 2
    with pytest.raises(ValueError, match="finetuned `scaling_factor`"):
        load_sae(save(tmp_path, weights, NEW, (*TENSORS, "scaling_factor")), block=4)


def test_damaged_configuration_is_an_error(tmp_path, weights):
    save(tmp_path, weights, NEW)
    (tmp_path / "cfg.json").write_text('{"d_in": 6, ')
    with pytest.raises(ValueError, match=r"cfg.json is truncated or damaged"):
        load_sae(tmp_path, block=4)
