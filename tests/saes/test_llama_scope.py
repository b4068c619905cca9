import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import FrozenSAE, load_sae
from sae_posttrain.saes.formats.llama_scope import list_llama_scope
from sae_posttrain.saes.stored.files import SAEFile, SAEFiles

FOLDER = "Llama3_1-8B-Base-L4R-8x"
HOOK = "blocks.4.hook_resid_post"
MEAN_NORM, THRESHOLD = 1.5, 0.8
SCALE = 6**0.5 / MEAN_NORM

SETTINGS = {
    "dtype": "torch.bfloat16",
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": 32,
    "d_model": 6,
    "d_sae": 16,
    "act_fn": "jumprelu",
    "jump_relu_threshold": THRESHOLD,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": MEAN_NORM, "out": MEAN_NORM},
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "top_k": 5,
}
"""As published, but for the sizes."""


def save(folder: Path, weights, dtype=torch.float32, without=(), **changes) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in {**SETTINGS, **changes}.items() if name not in without}
    (folder / "hyperparams.json").write_text(json.dumps(settings))
    tensors = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T,
        "decoder.bias": weights["b_dec"],
    }
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items() if name not in without}
    save_file(stored, folder / "checkpoints/final.safetensors")
    return folder


def trained_hidden(weights, x):
    """What the SAE computed in training, on activations of mean norm √D, before its activation."""
    return (x * SCALE) @ weights["W_enc"] + weights["b_enc"]


@pytest.mark.parametrize("include_norm", [True, False])
def test_it_matches_the_original_formula_in_raw_units(tmp_path, weights, x, include_norm):
    folder = save(tmp_path / FOLDER, weights, sparsity_include_decoder_norm=include_norm)
    norm = weights["W_dec"].norm(dim=-1) if include_norm else torch.ones(16)
    hidden = trained_hidden(weights, x)
    pre = hidden * norm / SCALE  # the unit in which the published threshold was estimated
    fires = pre > THRESHOLD
    assert fires.any() and ((pre > 0) & ~fires).any()
    trained_output = (hidden * fires) @ weights["W_dec"] + weights["b_dec"]

    sae = load_sae(folder, block=4)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), pre * fires)
    torch.testing.assert_close(sae.reconstruct(x), trained_output / SCALE)
    torch.testing.assert_close(sae.directions, weights["W_dec"] / norm[:, None])
    assert (sae.site, sae.activation, sae.k) == ("resid_post", "jumprelu", None)

    some = load_sae(folder, block=4, features=[11, 3], directions=False)
    torch.testing.assert_close(some.pre_activations(x), pre[..., [11, 3]])
    torch.testing.assert_close(some.encode(x), (pre * fires)[..., [11, 3]])
    assert (some.W_dec is None) == (not include_norm)  # the norm is read from it


def test_mean_norms_of_input_and_output_may_differ(tmp_path, weights, x):
    save(tmp_path, weights, dataset_average_activation_norm={"in": MEAN_NORM, "out": 4.0})
    scale_out = 6**0.5 / 4.0
    hidden = trained_hidden(weights, x)
    pre = hidden / SCALE * (weights["W_dec"].norm(dim=-1) * SCALE / scale_out)
    trained_output = (hidden * (pre > THRESHOLD)) @ weights["W_dec"] + weights["b_dec"]
    sae = load_sae(tmp_path, block=4)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.reconstruct(x), trained_output / scale_out)


def test_topk_without_a_threshold_keeps_the_largest(tmp_path, weights, x):
    save(tmp_path, weights, act_fn="topk", without=["jump_relu_threshold"])
    pre = trained_hidden(weights, x) * weights["W_dec"].norm(dim=-1) / SCALE
    values, indices = torch.relu(pre).topk(5, dim=-1)
    torch.testing.assert_close(
        load_sae(tmp_path, block=4).encode(x), torch.zeros_like(pre).scatter_(-1, indices, values)
    )


def test_topk_with_a_threshold_is_jumprelu(tmp_path, weights, x):
    as_topk = load_sae(save(tmp_path / "a", weights, act_fn="topk"), block=4)
    as_published = load_sae(save(tmp_path / "b", weights), block=4)
    assert as_topk.activation == "jumprelu"
    assert as_topk.encode(x).equal(as_published.encode(x))


def test_relu(tmp_path, weights, x):
    save(tmp_path, weights, act_fn="relu")
    pre = trained_hidden(weights, x) * weights["W_dec"].norm(dim=-1) / SCALE
    torch.testing.assert_close(load_sae(tmp_path, block=4).encode(x), torch.relu(pre))


def test_decoder_bias_is_subtracted_from_the_scaled_input_where_it_was_trained_so(tmp_path, weights, x):
    save(tmp_path, weights, apply_decoder_bias_to_pre_encoder=True)
    hidden = (x * SCALE - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    pre = hidden * weights["W_dec"].norm(dim=-1) / SCALE
    torch.testing.assert_close(load_sae(tmp_path, block=4).pre_activations(x), pre)


def test_decoder_bias_may_be_missing_where_there_is_none(tmp_path, weights):
    save(tmp_path / "a", weights, use_decoder_bias=False, without=["decoder.bias"])
    assert load_sae(tmp_path / "a", block=4).b_dec.equal(torch.zeros(6))
    with pytest.raises(ValueError, match="expected are exactly .*decoder.bias"):
        load_sae(save(tmp_path / "b", weights, without=["decoder.bias"]), block=4)


def test_activations_that_are_scaled_already_and_those_scaled_token_by_token(tmp_path, weights, x):
    w = weights
    norm = w["W_dec"].norm(dim=-1)
    folded = load_sae(save(tmp_path / "a", w, norm_activation="inference"), block=4)
    torch.testing.assert_close(folded.pre_activations(x), (x @ w["W_enc"] + w["b_enc"]) * norm)
    by_token = load_sae(save(tmp_path / "b", w, norm_activation="token-wise"), block=4)
    x_in = x * 6**0.5 / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(by_token.pre_activations(x), (x_in @ w["W_enc"] + w["b_enc"]) * norm)


def test_bfloat16_weights_are_folded_in_float32(tmp_path, weights, x):
    save(tmp_path, weights, dtype=torch.bfloat16)
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    expected = trained_hidden(rounded, x) * rounded["W_dec"].norm(dim=-1) / SCALE
    torch.testing.assert_close(load_sae(tmp_path, block=4).pre_activations(x), expected)


def test_feature_without_a_direction_is_never_active(tmp_path, weights, x):
    weights["W_dec"][3] = 0
    sae = load_sae(save(tmp_path, weights), block=4)
    assert not sae.encode(x)[..., 3].any()
    assert sae.reconstruct(x).isfinite().all()


def unread(*names: str, full_name: str = "fnlp/Llama3_1-8B-Base-LXR-8x") -> SAEFiles:
    def fetch(name):
        raise AssertionError(f"{name} was fetched")

    return SAEFiles(full_name, full_name, names, fetch)


def test_folder_names_say_block_and_site_so_that_nothing_is_fetched():
    expected = []
    names = ["README.md", "checkpoints/final.safetensors", "Llama3_1-8B-Base-L9R-8x/checkpoints/pruned.safetensors"]
    for name, block, site in [("L15R-8x", 15, "resid_post"), ("L0A-32x", 0, "attn_out"), ("L31M-8x", 31, "mlp_out")]:
        folder = f"Llama3_1-8B-Base-{name}"
        names += [f"{folder}/hyperparams.json", f"{folder}/checkpoints/final.safetensors"]
        expected.append(SAEFile(f"{folder}/checkpoints/final.safetensors", block, site))
    assert list_llama_scope(unread(*names)) == expected
    one = unread("hyperparams.json", "checkpoints/final.safetensors", full_name="fnlp/r/Llama3_1-8B-Base-L7A-8x")
    assert list_llama_scope(one) == [SAEFile("checkpoints/final.safetensors", 7, "attn_out")]


def test_in_a_folder_of_another_name_the_hook_says_it(tmp_path, weights):
    hook = "blocks.9.hook_mlp_out"
    save(tmp_path / "mine", weights, hook_point_in=hook, hook_point_out=hook)
    assert load_sae(tmp_path, block=9).site == "mlp_out"
    with pytest.raises(FileNotFoundError, match="no SAE of block 4; it has blocks 9 .mlp_out"):
        load_sae(tmp_path, block=4)


def test_sites_of_one_block_are_told_apart(tmp_path, weights):
    for letter, hook in [("R", HOOK), ("A", "blocks.4.hook_attn_out")]:
        save(tmp_path / FOLDER.replace("R", letter), weights, hook_point_in=hook, hook_point_out=hook)
    with pytest.raises(ValueError, match="2 SAEs of block 4.*or a `site` of attn_out, resid_post"):
        load_sae(tmp_path, block=4)
    assert load_sae(tmp_path, block=4, site="attn_out").source.file.startswith("Llama3_1-8B-Base-L4A-8x/")


def test_folder_and_hook_that_disagree_are_refused(tmp_path, weights):
    hook = "blocks.4.hook_attn_out"
    folder = save(tmp_path / FOLDER, weights, hook_point_in=hook, hook_point_out=hook)
    with pytest.raises(ValueError, match="reads 'blocks.4.hook_attn_out', but by its folder's name .* resid_post of"):
        load_sae(folder, block=4)


def test_base_model_is_the_stated_one_or_that_of_the_name(tmp_path, weights):
    folder = save(tmp_path / FOLDER, weights)
    assert load_sae(folder, block=4).base_model == "meta-llama/Llama-3.1-8B"
    (folder / "lm_config.json").write_text(json.dumps({"model_name": "org/model"}))
    assert load_sae(folder, block=4).base_model == "org/model"
    assert load_sae(save(tmp_path / "mine", weights), block=4).base_model == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_glu_encoder": True}, "use_glu_encoder is not supported"),
        ({"hook_point_out": "blocks.4.hook_mlp_out"}, "reads .* and writes 'blocks.4.hook_mlp_out': a transcoder"),
        ({"hook_point_in": "unembed", "hook_point_out": "unembed"}, "'unembed', which is no site"),
        ({"hook_point_in": None}, "hook_point_in is None"),
        ({"norm_activation": "batch-wise"}, "depend on the others of its batch"),
        ({"norm_activation": "layer"}, "unknown norm_activation 'layer'. Known: dataset-wise, token-wise"),
        ({"act_fn": "batchtopk"}, "act_fn 'batchtopk' is not supported: .* Save it as 'jumprelu'"),
        ({"act_fn": "tanh"}, "unknown act_fn 'tanh'. Known: relu, topk, jumprelu"),
        ({"jump_relu_threshold": None}, "act_fn is 'jumprelu', but there is no jump_relu_threshold"),
        ({"jump_relu_threshold": -0.5}, "jump_relu_threshold is -0.5, expected is a number, 0 or more"),
        ({"dataset_average_activation_norm": {"in": 0}}, "norm.in is 0, expected is a number above 0"),
        ({"dataset_average_activation_norm": 3.0}, "expected are 'in' and 'out'"),
        ({"dataset_average_activation_norm": None}, "do not say their mean norm. Give `input_scale`"),
        ({"d_sae": 32}, "says d_sae = 32, the weights 16"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path, weights, changes, message):
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path / FOLDER, weights, **changes), block=4)


def test_users_word_counts_where_files_say_nothing_and_must_not_contradict_them(tmp_path, weights, x):
    folder = save(tmp_path / "full", weights)
    expected = load_sae(folder, block=4, input_scale=SCALE)
    with pytest.raises(ValueError, match="say a scale of 1.63299, but input_scale=2.0 was given"):
        load_sae(folder, block=4, input_scale=2.0)
    with pytest.raises(ValueError, match="`k` belongs to TopK SAEs"):
        load_sae(folder, block=4, k=5)
    silent = save(tmp_path / "silent", weights, dataset_average_activation_norm=None)
    torch.testing.assert_close(load_sae(silent, block=4, input_scale=SCALE).encode(x), expected.encode(x))
    with pytest.raises(ValueError, match="reads no activations scaled by a constant"):
        load_sae(save(tmp_path / "raw", weights, norm_activation="inference"), block=4, input_scale=SCALE)
    topk = save(tmp_path / "topk", weights, act_fn="topk", jump_relu_threshold=0.0)
    with pytest.raises(ValueError, match="says k = 5, but k=7 was given"):
        load_sae(topk, block=4, k=7)


HOSTILE = [
    None,
    True,
    -1,
    0,
    3,
    1e-320,
    1e300,
    float("inf"),
    float("nan"),
    10**400,
    "",
    "x",
    [],
    [[[]]],
    {},
    {"in": []},
]


@pytest.mark.parametrize("name", SETTINGS)
def test_any_value_in_the_configuration_gives_an_sae_or_our_error(tmp_path, weights, name):
    folder = save(tmp_path / FOLDER, weights)
    for value in [*HOSTILE, {"in": 1e-320}, {"in": 1e300, "out": 1e-300}]:
        (folder / "hyperparams.json").write_text(json.dumps({**SETTINGS, name: value}))
        try:
            sae = load_sae(folder, block=4)
        except ValueError:
            continue
        assert isinstance(sae, FrozenSAE)
        assert all(tensor.isfinite().all() for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
