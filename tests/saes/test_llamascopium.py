import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import FrozenSAE, load_sae

HOOK = "blocks.4.hook_resid_post"
MEAN_NORM = 1.5
SCALE = 6**0.5 / MEAN_NORM

SETTINGS = {
    "sae_type": "sae",
    "d_model": 6,
    "expansion_factor": 16 / 6,
    "use_decoder_bias": True,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "top_k": 5,
    "use_triton_kernel": False,
    "sparsity_threshold_for_triton_spmm_kernel": 0.996,
    "jumprelu_threshold_window": 2.0,
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "use_glu_encoder": False,
}
"""As llamascopium 2 writes it, but for the sizes."""


def save(folder: Path, weights, early=False, torch_save=False, without=(), **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in {**SETTINGS, **changes}.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(settings))
    if early:
        tensors = {"encoder.weight": weights["W_enc"].T, "encoder.bias": weights["b_enc"]}
        tensors |= {"decoder.weight": weights["W_dec"].T, "decoder.bias": weights["b_dec"]}
    else:
        tensors = {"W_E": weights["W_enc"], "b_E": weights["b_enc"], "W_D": weights["W_dec"], "b_D": weights["b_dec"]}
    if settings.get("act_fn") == "jumprelu":
        tensors[f"{'' if early else 'activation_function.'}log_jumprelu_threshold"] = weights["threshold"].log()
    tensors[f"dataset_average_activation_norm.{HOOK}"] = torch.tensor(MEAN_NORM)
    stored = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in without}
    if torch_save:
        torch.save({"sae": stored, "version": "2.0.0b34"}, folder / "sae_weights.pt")
    else:
        save_file(stored, folder / "sae_weights.safetensors")
    return folder


def trained(weights, x_in, activation, include_norm=True):
    """Pre-activations, activations and output as the library's `encode` and `decode` compute them on scaled `x_in`."""
    norm = weights["W_dec"].norm(dim=-1) if include_norm else torch.ones(16)
    pre = x_in @ weights["W_enc"] + weights["b_enc"]
    seen = pre * norm
    if activation == "jumprelu":
        acts = seen * (seen > weights["threshold"])
    elif activation == "topk":
        values, indices = torch.relu(seen).topk(5, dim=-1)
        acts = torch.zeros_like(seen).scatter_(-1, indices, values)
    else:
        acts = torch.relu(seen)
    acts = acts / norm
    return pre, acts, acts @ weights["W_dec"] + weights["b_dec"]


@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize("activation", ["jumprelu", "topk", "relu"])
@pytest.mark.parametrize("layout", ["present", "early", "torch_save"])
def test_it_matches_the_original_formula_in_raw_units(tmp_path, weights, x, layout, activation, include_norm):
    settings = {"act_fn": activation, "sparsity_include_decoder_norm": include_norm}
    folder = save(tmp_path, weights, early=layout == "early", torch_save=layout == "torch_save", **settings)
    pre, acts, output = trained(weights, x * SCALE, activation, include_norm)
    assert (acts > 0).any()

    sae = load_sae(folder, block=4)
    torch.testing.assert_close(sae.pre_activations(x), pre / SCALE)
    torch.testing.assert_close(sae.encode(x), acts / SCALE)
    torch.testing.assert_close(sae.reconstruct(x), output / SCALE)
    assert sae.directions.equal(weights["W_dec"])
    assert (sae.site, sae.activation, sae.k) == ("resid_post", activation, 5 if activation == "topk" else None)

    some = load_sae(folder, block=4, features=[11, 3])
    torch.testing.assert_close(some.pre_activations(x), pre[..., [11, 3]] / SCALE)
    assert some.direction(3).equal(weights["W_dec"][3])
    if activation != "topk":
        torch.testing.assert_close(some.encode(x), acts[..., [11, 3]] / SCALE)


@pytest.mark.parametrize("activation", ["jumprelu", "topk", "relu"])
def test_directions_stay_in_the_file_where_no_activation_needs_their_norm(tmp_path, weights, x, activation):
    folder = save(tmp_path, weights, act_fn=activation)
    sae = load_sae(folder, block=4, directions=False)
    assert (sae.W_dec is None) == (activation == "relu")
    torch.testing.assert_close(sae.encode(x), load_sae(folder, block=4).encode(x))


@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_weights_that_hold_their_scale_are_taken_as_they_are(tmp_path, weights, x, activation):
    folder = save(tmp_path, weights, act_fn=activation, norm_activation="inference")
    pre, acts, output = trained(weights, x, activation)
    sae = load_sae(folder, block=4)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), output)


def test_activations_scaled_token_by_token(tmp_path, weights, x):
    folder = save(tmp_path, weights, norm_activation="token-wise")
    scale = 6**0.5 / x.norm(dim=-1, keepdim=True)
    pre, acts, output = trained(weights, x * scale, "jumprelu")
    sae = load_sae(folder, block=4)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), output / scale)
    with pytest.raises(ValueError, match="no affine function of the residual stream"):
        sae.require_affine()


def test_mean_norm_of_an_sae_that_uses_none_is_not_read(tmp_path, weights):
    folder = save(tmp_path, weights, norm_activation="inference")
    before = load_sae(folder, block=4)
    raw = (folder / "sae_weights.safetensors").read_bytes()
    norm = torch.tensor(MEAN_NORM).numpy().tobytes()
    assert raw.count(norm) == 1
    (folder / "sae_weights.safetensors").write_bytes(raw.replace(norm, torch.tensor(torch.nan).numpy().tobytes()))
    assert load_sae(folder, block=4).b_enc.equal(before.b_enc)  # the library saves uninitialised memory there


def test_decoder_bias_is_subtracted_from_the_scaled_input_where_it_was_trained_so(tmp_path, weights, x):
    save(tmp_path, weights, early=True, apply_decoder_bias_to_pre_encoder=True)
    pre, acts, _ = trained(weights, x * SCALE - weights["b_dec"], "jumprelu")
    sae = load_sae(tmp_path, block=4)
    torch.testing.assert_close(sae.pre_activations(x), pre / SCALE)
    torch.testing.assert_close(sae.encode(x), acts / SCALE)


def test_decoder_bias_may_be_missing_where_there_is_none(tmp_path, weights):
    save(tmp_path / "a", weights, use_decoder_bias=False, without=["b_D"])
    assert load_sae(tmp_path / "a", block=4).b_dec.equal(torch.zeros(6))
    with pytest.raises(ValueError, match="expected are exactly .*b_D"):
        load_sae(save(tmp_path / "b", weights, without=["b_D"]), block=4)


@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_feature_without_a_direction_is_never_active(tmp_path, weights, x, activation):
    weights["W_dec"][3] = 0
    sae = load_sae(save(tmp_path, weights, act_fn=activation), block=4)
    assert not sae.encode(x)[..., 3].any()
    assert sae.reconstruct(x).isfinite().all()


def test_saes_in_subfolders_are_found_by_name_or_hook(tmp_path, weights):
    save(tmp_path / "400M-Slimpajama-400M-OpenR1-Math-220k/L4R", weights, early=True)
    hook = "blocks.4.hook_mlp_out"
    changes = {"hook_point_in": hook, "hook_point_out": hook, "norm_activation": "inference"}
    save(tmp_path / "sae/8x", weights, without=[f"dataset_average_activation_norm.{HOOK}"], **changes)
    with pytest.raises(ValueError, match="2 SAEs of block 4.*or a `site` of mlp_out, resid_post"):
        load_sae(tmp_path, block=4)
    assert load_sae(tmp_path, block=4, site="mlp_out").source.file == "sae/8x/sae_weights.safetensors"
    assert load_sae(tmp_path, block=4, site="resid_post").source.file.endswith("L4R/sae_weights.safetensors")
    with pytest.raises(FileNotFoundError, match="no SAE of block 7; it has blocks 4 .mlp_out, resid_post"):
        load_sae(tmp_path, block=7)
    save(tmp_path / "L9R", weights)
    with pytest.raises(ValueError, match="but by its folder's name it is resid_post of block 9"):
        load_sae(tmp_path, block=9)


def test_safetensors_go_before_a_torch_archive(tmp_path, weights):
    save(tmp_path, weights, torch_save=True)
    assert load_sae(tmp_path, block=4).source.file == "sae_weights.pt"
    save(tmp_path, weights)
    assert load_sae(tmp_path, block=4).source.file == "sae_weights.safetensors"


def test_distributed_checkpoint_is_refused_with_the_way_to_convert_it(tmp_path, weights):
    save(tmp_path, weights)
    (tmp_path / "sae_weights.safetensors").unlink()
    (tmp_path / "sae_weights.dcp").mkdir()
    (tmp_path / "sae_weights.dcp/.metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="distributed checkpoint, .* `SparseDictionary.from_pretrained"):
        load_sae(tmp_path, block=4)


def test_base_model_is_the_stated_one_or_that_of_the_name(tmp_path, weights):
    folder = save(tmp_path / "Llama-Scope-R1-Distill/L4R", weights, early=True)
    assert load_sae(folder, block=4).base_model == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    (folder / "lm_config.json").write_text(json.dumps({"model_name": "org/model"}))
    assert load_sae(folder, block=4).base_model == "org/model"


@pytest.mark.parametrize("sae_type", ["crosscoder", "clt", "lorsa", "molt", "transcoder", 3, None])
def test_other_types_are_refused_by_name(tmp_path, weights, sae_type):
    with pytest.raises(ValueError, match=f"sae_type {sae_type!r} is not supported"):
        load_sae(save(tmp_path, weights, sae_type=sae_type), block=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_glu_encoder": True}, "use_glu_encoder is not supported"),
        ({"hook_point_out": "blocks.4.hook_mlp_out"}, "reads .* and writes 'blocks.4.hook_mlp_out': a transcoder"),
        ({"hook_point_in": "in", "hook_point_out": "in"}, "reads 'in', which is no site"),
        ({"norm_activation": "batch-wise"}, "depend on the others of its batch"),
        ({"act_fn": "BatchTopK"}, "act_fn 'batchtopk' is not supported: .* Save it as 'jumprelu'"),
        ({"act_fn": "batchlayertopk"}, "act_fn 'batchlayertopk' is not supported"),
        ({"act_fn": "topk", "top_k": 17}, "k = 17; the SAE has 16 features"),
        ({"d_model": 8}, "says d_model = 8, the weights 6"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path, weights, changes, message):
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path, weights, **changes), block=4)


def test_users_word_counts_where_files_say_nothing_and_must_not_contradict_them(tmp_path, weights, x):
    folder = save(tmp_path / "full", weights)
    expected = load_sae(folder, block=4, input_scale=SCALE)
    with pytest.raises(ValueError, match="say a scale of 1.63299, but input_scale=2.0 was given"):
        load_sae(folder, block=4, input_scale=2.0)
    with pytest.raises(ValueError, match="`k` belongs to TopK SAEs"):
        load_sae(folder, block=4, k=5)
    silent = save(tmp_path / "silent", weights, without=[f"dataset_average_activation_norm.{HOOK}"])
    with pytest.raises(ValueError, match="do not say their mean norm. Give `input_scale`"):
        load_sae(silent, block=4)
    torch.testing.assert_close(load_sae(silent, block=4, input_scale=SCALE).encode(x), expected.encode(x))
    with pytest.raises(ValueError, match="reads no activations scaled by a constant"):
        load_sae(save(tmp_path / "raw", weights, norm_activation="inference"), block=4, input_scale=SCALE)
    topk = save(tmp_path / "topk", weights, act_fn="topk")
    assert load_sae(topk, block=4, k=5).k == 5
    with pytest.raises(ValueError, match="says k = 5, but k=7 was given"):
        load_sae(topk, block=4, k=7)
    unsaid = save(tmp_path / "unsaid", weights, act_fn="topk", without=["top_k"])
    assert load_sae(unsaid, block=4, k=7).k == 7


HOSTILE = [None, True, -1, 0, 3, 1e-320, 1e300, float("inf"), float("nan"), 10**400, "", "x", [], [[[]]], {}]


@pytest.mark.parametrize("name", [*SETTINGS, "apply_decoder_bias_to_pre_encoder", "model_name"])
def test_any_value_in_the_configuration_gives_an_sae_or_our_error(tmp_path, weights, name):
    folder = save(tmp_path, weights)
    for value in HOSTILE:
        (folder / "config.json").write_text(json.dumps({**SETTINGS, name: value}))
        try:
            sae = load_sae(folder, block=4)
        except ValueError:
            continue
        assert isinstance(sae, FrozenSAE)
        assert all(tensor.isfinite().all() for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))


@pytest.mark.parametrize("mean_norm", [0.0, -1.0, 1e-44, 3e38])
def test_scale_that_is_none_is_refused(tmp_path, weights, mean_norm):
    name = f"dataset_average_activation_norm.{HOOK}"
    folder = save(tmp_path, weights, without=[name])
    (folder / "sae_weights.safetensors").unlink()
    tensors = {"W_E": weights["W_enc"], "b_E": weights["b_enc"], "W_D": weights["W_dec"], "b_D": weights["b_dec"]}
    tensors["activation_function.log_jumprelu_threshold"] = weights["threshold"].log()
    save_file({**tensors, name: torch.tensor(mean_norm)}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="expected is a number above 0|nothing can be multiplied|is not finite once"):
        load_sae(folder, block=4)
