import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import load_sae
from sae_posttrain.saes.formats.saelens import list_saelens
from sae_posttrain.saes.stored.files import SAEFiles

NEW = {"apply_b_dec_to_input": True, "normalize_activations": "none", "dtype": "float32", "d_in": 6, "d_sae": 16}
NEW |= {"metadata": {"hook_name": "blocks.4.hook_resid_post", "sae_lens_version": "6.20.0"}}
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def save(folder: Path, weights, cfg: dict, names=TENSORS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({name: weights[name] for name in names}, folder / "sae_weights.safetensors")
    return folder


def compare(folder: Path, x, pre, acts, reconstruction, some_acts=True, **given) -> None:
    sae = load_sae(folder, block=4, **given)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), reconstruction)
    some = load_sae(folder, block=4, features=[15, 2], **given)
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


@pytest.mark.parametrize("rescale", [True, False])
def test_abstopk_matches_the_original_formula(tmp_path, weights, x, rescale):
    w = weights
    norm = w["W_dec"].norm(dim=-1) if rescale else torch.ones(16)
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    indices = (pre * norm).abs().topk(5, dim=-1).indices
    acts = torch.zeros_like(pre).scatter_(-1, indices, (pre * norm).gather(-1, indices))
    assert (acts < 0).any()  # features keep their sign
    folder = save(tmp_path, w, {**NEW, "architecture": "abstopk", "k": 5, "rescale_acts_by_decoder_norm": rescale})
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


def test_layer_norm_stays_with_the_sae(tmp_path, weights, x):
    w = weights
    std = x.std(dim=-1, keepdim=True)
    x_in = (x - x.mean(dim=-1, keepdim=True)) / (std + 1e-5)
    pre = (x_in - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre)
    reconstruction = (acts @ w["W_dec"] + w["b_dec"]) * std + x.mean(dim=-1, keepdim=True)
    folder = save(tmp_path, w, {**NEW, "normalize_activations": "layer_norm"})
    compare(folder, x, pre, acts, reconstruction)
    with pytest.raises(ValueError, match="normalises each token"):
        load_sae(folder, block=4).require_affine()


def test_constant_norm_rescale_stays_with_the_sae(tmp_path, weights, x):
    w = weights
    scale = 6**0.5 / x.norm(dim=-1, keepdim=True)
    pre = (x * scale - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre)
    folder = save(tmp_path, w, {**NEW, "normalize_activations": "constant_norm_rescale"})
    compare(folder, x, pre, acts, (acts @ w["W_dec"] + w["b_dec"]) / scale)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("written", ["expected_average_only_in", True])
def test_scaled_input_is_folded_into_the_weights(tmp_path, weights, x, subtract, written):
    w = weights
    pre = (3 * x - w["b_dec"] * subtract) @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre)
    cfg = {**NEW, "normalize_activations": written, "apply_b_dec_to_input": subtract}
    compare(save(tmp_path, w, cfg), x, pre, acts, (acts @ w["W_dec"] + w["b_dec"]) / 3, input_scale=3.0)
    assert load_sae(tmp_path, block=4, input_scale=3.0, directions=False).W_dec is None


def test_scaled_input_of_a_gated_sae(tmp_path, weights, x):
    w = weights
    x_in = 3 * x - w["b_dec"]
    pre = x_in @ w["W_enc"] + w["b_gate"]
    acts = (pre > 0) * torch.relu(x_in @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
    cfg = {**NEW, "architecture": "gated", "normalize_activations": "expected_average_only_in"}
    folder = save(tmp_path, w, cfg, ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"))
    compare(folder, x, pre, acts, (acts @ w["W_dec"] + w["b_dec"]) / 3, input_scale=3.0)


def test_scaled_input_needs_its_scale_and_says_where_it_stands(tmp_path, weights):
    save(tmp_path, weights, {**NEW, "normalize_activations": "expected_average_only_in"})
    with pytest.raises(ValueError, match=r"load_sae\(..., input_scale=….*norm_scaling_factor.*pretrained_saes.yaml"):
        load_sae(tmp_path, block=4)
    with pytest.raises(ValueError, match="not finite in raw units"):
        load_sae(tmp_path, block=4, input_scale=1e-44)


def test_scale_of_an_sae_that_reads_inputs_as_they_are_is_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="`input_scale` does not apply"):
        load_sae(save(tmp_path, weights, NEW), block=4, input_scale=3.0)


GPT2 = {"model_name": "gpt2-small", "hook_name": "blocks.4.hook_mlp_out"}


@pytest.mark.parametrize("changes", [None, {}, {"center_writing_weights": False, "fold_ln": True, "n_devices": 2}])
def test_model_that_transformer_lens_left_as_it_is(tmp_path, weights, x, changes):
    cfg = {**NEW, "metadata": {**GPT2, "model_from_pretrained_kwargs": changes}}
    sae = load_sae(save(tmp_path, weights, cfg), block=4)
    torch.testing.assert_close(sae.pre_activations(x), (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])


@pytest.mark.parametrize(
    "place",
    [
        "metadata",
        "before version 6",
        f"models--jbloom--GPT2-Small-SAEs-Reformatted/snapshots/{'0' * 40}/blocks.4.hook_mlp_out",
        "jbloom/GPT2-Small-SAEs-Reformatted",
    ],
)
def test_model_that_transformer_lens_centred_is_read_centred(tmp_path, weights, x, place):
    w, folder, centred = weights, tmp_path, {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    if place == "metadata":
        cfg = {**NEW, "metadata": {**GPT2, **centred}}
    elif place == "before version 6":
        cfg = {**GPT2, **centred}
    else:  # the files of three repositories do not say it, SAELens' directory of them does
        cfg = GPT2
        folder = tmp_path / place
    pre = (x - x.mean(dim=-1, keepdim=True) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre)
    compare(save(folder, w, cfg), x, pre, acts, acts @ w["W_dec"] + w["b_dec"])


def test_heads_are_not_centred(tmp_path, weights, x):
    centred = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    cfg = {**NEW, "metadata": {**GPT2, "hook_name": "blocks.4.attn.hook_z", **centred}}
    sae = load_sae(save(tmp_path, weights, cfg), block=4)
    torch.testing.assert_close(sae.pre_activations(x), (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])


def test_normalisation_that_only_saelens_directory_knows(tmp_path, weights):
    folder = tmp_path / f"models--JoshEngels--Mistral-7B-Residual-Stream-SAEs/snapshots/{'0' * 40}/mistral_7b_layer_4"
    assert load_sae(save(folder, weights, NEW), block=4).input_norm == "constant_norm"


def test_folder_that_is_a_hook_name_is_listed_unread(tmp_path, weights):
    names = []
    for block in range(30):
        folder = f"snap/blocks.{block}.hook_resid_post"
        names += [f"{folder}/cfg.json", f"{folder}/sae_weights.safetensors"]
    unread = SAEFiles("o/r", "o/r", tuple(names), fetch=lambda name: pytest.fail(f"{name} was fetched"))
    assert {(sae.block, sae.site) for sae in list_saelens(unread)} == {(n, "resid_post") for n in range(30)}

    save(tmp_path / "blocks.5.hook_resid_pre", weights, {**NEW, "metadata": {"hook_name": "blocks.5.hook_resid_pre"}})
    save(tmp_path / "layers.9", weights, {**NEW, "metadata": {"hook_name": "blocks.2.hook_mlp_out"}})  # any other name
    assert load_sae(tmp_path, block=4).site == "resid_post"
    assert load_sae(tmp_path, block=2).site == "mlp_out"
    save(tmp_path / "blocks.5.hook_resid_pre", weights, {**NEW, "metadata": {"hook_name": "blocks.3.hook_mlp_out"}})
    with pytest.raises(
        ValueError, match="is named after resid_post of block 4, but its cfg.json says mlp_out of block 3"
    ):
        load_sae(tmp_path, block=4)


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


@pytest.mark.parametrize("reshape", ["none", "hook_z"])
def test_heads_side_by_side_are_what_the_site_holds(tmp_path, weights, x, reshape):
    cfg = {**NEW, "reshape_activations": reshape, "metadata": {"hook_name": "blocks.4.attn.hook_z"}}
    sae = load_sae(save(tmp_path, weights, cfg), block=4)
    assert sae.site == "attn_z"
    torch.testing.assert_close(sae.pre_activations(x), (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])


@pytest.mark.parametrize("hook", ["blocks.4.attn.hook_q", "unembed", None, 4])
def test_other_hooks_are_refused_by_name(tmp_path, weights, hook):
    folder = save(tmp_path, weights, {**NEW, "metadata": {"hook_name": hook}})
    with pytest.raises(ValueError, match=f"reads {hook!r}, which is no site of a decoder block"):
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


ONE_HEAD = {"metadata": {"hook_name": "blocks.4.attn.hook_z", "hook_head_index": 0}}
CENTRED = {"center_writing_weights": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "skip_transcoder"},
            "skip_transcoder is not supported: it reads one site and writes another",
        ),
        ({"architecture": "jumprelu_transcoder"}, "is not supported: it reads one site and writes another"),
        ({"architecture": "temporal"}, "temporal is not supported: .* depends on the tokens before it"),
        ({"architecture": "matching_pursuit"}, "matching_pursuit is not supported: .* has no pre-activation"),
        ({"architecture": "batchtopk"}, "batchtopk is not supported: it is a checkpoint.*`save_inference_model`"),
        ({"architecture": "crosscoder"}, "unknown architecture 'crosscoder'. Known: standard, topk, abstopk"),
        ({"architecture": ["standard"]}, "unknown architecture"),
        ({"metadata": {**NEW["metadata"], "hook_name_out": "blocks.4.hook_mlp_out"}}, "a transcoder, which is not"),
        ({"normalize_activations": "covariance_whitening"}, "whitening .* is not folded"),
        ({"normalize_activations": "batch_norm"}, "unknown `normalize_activations` 'batch_norm'. Known: none, expec"),
        ({"normalize_activations": 0}, "unknown `normalize_activations` 0"),
        ({"activation_fn_str": "tanh-relu"}, "unknown activation 'tanh-relu'"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "postact_fn": "Identity"}}, "known is only k"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": [3]}, "known is only k"),
        ({"architecture": "gated", "activation_fn_str": "topk"}, "gated with the activation topk is not supported"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input = 'yes'; it must be true or false"),
        ({"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": 1}, "must be true or false"),
        ({"architecture": "topk", "k": 3.5}, "says k = 3.5; the SAE has 16 features"),
        ({"architecture": "topk", "k": 17}, "says k = 17; the SAE has 16 features"),
        ({"reshape_activations": "hook_z"}, "`reshape_activations` 'hook_z' is not supported for resid_post"),
        (ONE_HEAD, "reads attention head 0 only"),
        ({"hook_point_head_index": 3}, "reads attention head 3 only"),
        ({"architecture": "jumprelu"}, "expected are exactly .*threshold"),
        ({"d_sae": 17}, "says d_sae = 17, .* holds 16"),
        ({"d_in": [6]}, "says d_in = .6.; it must be a whole number"),
        ({"metadata": [3]}, "is not the configuration of a SAELens SAE"),
        ({"model_from_pretrained_kwargs": "fold_ln"}, "`model_from_pretrained_kwargs` is 'fold_ln'"),
        ({"model_from_pretrained_kwargs": CENTRED}, "`center_writing_weights` on the model ''.*supported for GPT-2"),
        ({"model_from_pretrained_kwargs": CENTRED, "model_name": "meta-llama/Llama-3.1-8B"}, "on the model 'meta-ll"),
        (
            {**GPT2, "model_from_pretrained_kwargs": CENTRED, "normalize_activations": "constant_norm_rescale"},
            "constant_norm_rescale with `center_writing_weights` is not supported",
        ),
        (
            {
                "metadata": {"hook_name": "blocks.4.attn.hook_z"},
                "model_from_pretrained_kwargs": {"fold_value_biases": True},
            },
            "attention heads that TransformerLens changed .fold_value_biases",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path, weights, change, message):
    folder = save(tmp_path, weights, {**NEW, "architecture": "standard", **change})
    with pytest.raises(ValueError, match=message):
        load_sae(folder, block=4)


def test_topk_without_a_k_has_pre_activations_only(tmp_path, weights, x):
    sae = load_sae(save(tmp_path, weights, {**NEW, "architecture": "topk"}), block=4)
    assert sae.pre_activations(x).isfinite().all()
    with pytest.raises(ValueError, match=r"load_sae\(..., k=50"):
        sae.encode(x)


def test_another_k_than_the_stored_one_is_refused(tmp_path, weights):
    folder = save(tmp_path, weights, {**NEW, "architecture": "topk", "k": 12})
    assert load_sae(folder, block=4, k=12).k == 12
    with pytest.raises(ValueError, match="says k = 12, but k=3 was given"):
        load_sae(folder, block=4, k=3)


def test_old_scaling_factor_is_ignored_only_where_it_is_one(tmp_path, weights):
    weights["scaling_factor"] = torch.ones(16)
    load_sae(save(tmp_path, weights, NEW, (*TENSORS, "scaling_factor")), block=4)
    weights["scaling_factor"][3] = 2
    with pytest.raises(ValueError, match="`scaling_factor` of finetuned activations"):
        load_sae(save(tmp_path, weights, NEW, (*TENSORS, "scaling_factor")), block=4)


def test_weights_that_overflow_when_folded_are_refused(tmp_path, weights):
    weights["W_dec"] *= 1e30  # finite, but its norm is not
    save(tmp_path, weights, {**NEW, "architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True})
    with pytest.raises(ValueError, match="decoder_norm of .* is not finite in raw units"):
        load_sae(tmp_path, block=4)


def test_damaged_configuration_is_an_error(tmp_path, weights):
    save(tmp_path, weights, NEW)
    (tmp_path / "cfg.json").write_text('{"d_in": 6, ')
    with pytest.raises(ValueError, match=r"cfg.json is truncated or damaged"):
        load_sae(tmp_path, block=4)
