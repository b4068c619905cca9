import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_posttrain.saes import load_sae

TRAINER = {"activation_dim": 6, "dict_size": 16, "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped"}
TRAINER |= {"submodule_name": "resid_post_layer_3"}


@pytest.fixture
def stored(weights) -> dict[str, dict[str, Tensor]]:
    """What each class saves, all of the same weights."""
    w = weights
    linear = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    biased = {**linear, "encoder.bias": w["b_enc"]}
    topk = {**biased, "b_dec": w["b_dec"], "k": torch.tensor(5, dtype=torch.int), "threshold": torch.tensor(0.5)}
    matrices = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    gates = {"decoder_bias": w["b_dec"], "gate_bias": w["b_gate"], "mag_bias": w["b_mag"], "r_mag": w["r_mag"]}
    groups = {"k": topk["k"], "threshold": topk["threshold"], "group_sizes": torch.tensor([4, 12])}
    return {
        "AutoEncoder": {**biased, "bias": w["b_dec"]},
        "AutoEncoderNew": {**biased, "decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": topk,
        "BatchTopKSAE": topk,
        "MatryoshkaBatchTopKSAE": {**matrices, **groups},
        "JumpReluAutoEncoder": {**matrices, "threshold": w["threshold"]},
        "GatedAutoEncoder": {**linear, **gates},
    }


def save(folder: Path, content, kind: str | None = None, buffer=None, **trainer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "ae.pt")
    if kind is not None:
        config = {"trainer": {**TRAINER, "dict_class": kind, **trainer}, "buffer": {"io": "out", **(buffer or {})}}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def encoded(kind: str, w, x) -> tuple[Tensor, Tensor]:
    """Pre-activations and activations by the class's own formula, and no more of our own than the names."""
    shifted = x - w["b_dec"]
    if kind in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        shifted = x
    norm = w["W_dec"].norm(dim=1) if kind == "AutoEncoder" else 1.0
    pre = shifted @ w["W_enc"] * norm + w["b_enc"] * norm
    if kind == "GatedAutoEncoder":
        pre = shifted @ w["W_enc"] + w["b_gate"]
        magnitude = torch.relu(w["r_mag"].exp() * (shifted @ w["W_enc"]) + w["b_mag"])
        return pre, (pre > 0) * magnitude
    post = torch.relu(pre)
    if kind == "AutoEncoderTopK":
        values, indices = post.topk(5, dim=-1)
        return pre, torch.zeros_like(pre).scatter_(-1, indices, values)
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        return pre, post * (post > 0.5)
    return pre, post * (pre > w["threshold"]) if kind == "JumpReluAutoEncoder" else post


KINDS = ["AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"]
KINDS += ["JumpReluAutoEncoder", "GatedAutoEncoder"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_matches_its_formula(tmp_path, stored, weights, x, kind):
    save(tmp_path, stored[kind], kind)
    sae = load_sae(tmp_path, block=3)
    pre, acts = encoded(kind, weights, x)
    assert (acts > 0).any() and (acts == 0).any()
    norm = weights["W_dec"].norm(dim=1) if kind == "AutoEncoder" else torch.ones(16)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), acts / norm @ weights["W_dec"] + weights["b_dec"])
    assert (sae.block, sae.site, sae.base_model) == (3, "resid_post", "EleutherAI/pythia-70m-deduped")

    some = load_sae(tmp_path, block=3, features=[11, 4])
    torch.testing.assert_close(some.pre_activations(x), pre[..., [11, 4]])
    torch.testing.assert_close(some.direction(4), weights["W_dec"][4] / norm[4])
    if kind != "AutoEncoderTopK":
        torch.testing.assert_close(some.encode(x), acts[..., [11, 4]])


def test_directions_of_norm_1_are_left_as_they_are(tmp_path, stored, weights):
    unit = weights["W_dec"] / weights["W_dec"].norm(dim=1, keepdim=True)
    save(tmp_path, {**stored["AutoEncoder"], "decoder.weight": unit.T.contiguous()}, "AutoEncoder")
    sae = load_sae(tmp_path, block=3)
    assert sae.W_dec.equal(unit)
    assert sae.W_enc.equal(weights["W_enc"])


def test_feature_without_a_direction_is_read_as_dead(tmp_path, stored, x):
    stored["AutoEncoder"]["decoder.weight"][:, 7] = 0
    sae = load_sae(save(tmp_path, stored["AutoEncoder"], "AutoEncoder"), block=3)
    assert sae.reconstruct(x).isfinite().all()
    assert (sae.encode(x)[..., 7] == 0).all()


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_threshold_that_was_never_set_lets_every_positive_value_through(tmp_path, stored, weights, x, kind):
    save(tmp_path, {**stored[kind], "threshold": torch.tensor(-1.0)}, kind)
    sae = load_sae(tmp_path, block=3)
    assert sae.threshold is None
    torch.testing.assert_close(sae.encode(x), torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]))


def test_batch_topk_without_a_threshold_is_refused(tmp_path, stored):
    stored["BatchTopKSAE"].pop("threshold")
    with pytest.raises(ValueError, match="batch TopK SAE without a threshold"):
        load_sae(save(tmp_path, stored["BatchTopKSAE"], "BatchTopKSAE"), block=3)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_of_an_interrupted_training_is_read_in_raw_units(tmp_path, stored, weights, x, kind):
    """It encodes `x / norm_factor`, and its activations count in that unit: `scale_biases` brings them to raw ones."""
    checkpoint = {
        "step": 400,
        "ae": stored[kind],
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "config": {**TRAINER, "dict_class": kind},
        "norm_factor": 4.0,
    }
    sae = load_sae(save(tmp_path, checkpoint), block=3)
    pre, acts = encoded(kind, weights, x / 4)
    torch.testing.assert_close(sae.pre_activations(x), 4 * pre)
    torch.testing.assert_close(sae.encode(x), 4 * acts)
    assert sae.base_model == "EleutherAI/pythia-70m-deduped"
    with pytest.raises(ValueError, match="configuration in ae.pt says that the SAE reads resid_post of block 3"):
        load_sae(tmp_path, block=4)


def test_checkpoint_of_a_training_on_raw_activations_has_nothing_to_fold(tmp_path, stored, weights, x):
    for norm_factor in ({}, {"norm_factor": None}, {"norm_factor": torch.tensor(1.0)}):
        content = {"step": 0, "ae": stored["JumpReluAutoEncoder"], "optimizer": {}, "config": {}, **norm_factor}
        save(tmp_path, content, "JumpReluAutoEncoder")
        pre = encoded("JumpReluAutoEncoder", weights, x)[0]
        torch.testing.assert_close(load_sae(tmp_path, block=3).pre_activations(x), pre)


@pytest.mark.parametrize(("kind", "name"), [("GatedAutoEncoder", "r_mag"), ("AutoEncoder", "decoder.weight")])
def test_weights_whose_product_overflows_are_refused(tmp_path, stored, kind, name):
    stored[kind][name].fill_(1e38)
    for features in (None, [1]):
        with pytest.raises(ValueError, match="of ae.pt is not finite in raw units"):
            load_sae(save(tmp_path, stored[kind], kind), block=3, features=features)


@pytest.mark.parametrize("norm_factor", [0, -1.0, float("nan"), float("inf"), "2", True, 10**400])
def test_impossible_norm_factor_is_refused(tmp_path, stored, norm_factor):
    content = {"ae": stored["AutoEncoder"], "norm_factor": norm_factor}
    with pytest.raises(ValueError, match="norm_factor"):
        load_sae(save(tmp_path, content, "AutoEncoder"), block=3)


def test_checkpoint_with_foreign_parts_is_refused(tmp_path, stored):
    with pytest.raises(ValueError, match="no checkpoint of dictionary_learning: it also holds .'scaler'"):
        load_sae(save(tmp_path, {"ae": stored["AutoEncoder"], "scaler": 1}, "AutoEncoder"), block=3)


def test_class_is_told_from_the_tensors_where_they_leave_no_choice(tmp_path, stored, weights, x):
    for kind in KINDS:
        folder = save(tmp_path / kind, stored[kind])
        if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
            with pytest.raises(ValueError, match=r"can be AutoEncoderTopK or BatchTopKSAE. Put the config.json"):
                load_sae(folder, block=3)
        else:
            torch.testing.assert_close(load_sae(folder, block=3).encode(x), encoded(kind, weights, x)[1])
    with pytest.raises(ValueError, match="holds W_x: it can be none of AutoEncoder, AutoEncoderNew"):
        load_sae(save(tmp_path / "other", {"W_x": torch.ones(2)}), block=3)


def test_early_topk_has_its_k_in_the_configuration(tmp_path, stored):
    early = {name: tensor for name, tensor in stored["AutoEncoderTopK"].items() if name not in ("k", "threshold")}
    assert load_sae(save(tmp_path, early, "AutoEncoderTopK", k=7), block=3).k == 7
    assert load_sae(save(tmp_path, early, "AutoEncoderTopK"), block=3, k=6).k == 6


@pytest.mark.parametrize(
    ("name", "io", "block", "site"),
    [
        ("resid_post_layer_12", "out", 12, "resid_post"),
        ("mlp_out_layer_3", "out", 3, "mlp_out"),
        ("attention_out_layer_5", "out", 5, "attn_out"),
        ("resid_pre_layer_5", "in", 4, "resid_post"),
        ("model.layers.12", "out", 12, "resid_post"),
        (".model.layers.12.mlp", "out", 12, "mlp.output"),
        ("model.layers.12.mlp", "in", 12, "mlp.input"),
        ("gpt_neox.layers.2", "out", 2, "resid_post"),
        (None, "out", 7, None),
        ("embed", "out", 7, None),
    ],
)
def test_submodule_tells_block_and_site(tmp_path, stored, name, io, block, site):
    save(tmp_path, stored["AutoEncoder"], "AutoEncoder", buffer={"io": io}, submodule_name=name, layer=7)
    assert load_sae(tmp_path, block=block).site == (site or "resid_post")
    if site is None:
        assert load_sae(tmp_path, block=block, site="resid_mid").site == "resid_mid"  # nothing says otherwise
    with pytest.raises(FileNotFoundError, match=f"no SAE of block 9; it has blocks {block}"):
        load_sae(tmp_path, block=9)


@pytest.mark.parametrize(
    ("folder", "block", "site"),
    [
        ("sweep/resid_post_layer_12/trainer_0", 12, "resid_post"),
        ("resid_post_layer_4_checkpoints/trainer_0_step_300", 4, "resid_post"),
        ("resid_out_layer3/10_32768", 3, "resid_post"),
        ("mlp_out_layer0", 0, "mlp_out"),
    ],
)
def test_folder_tells_block_and_site_also_where_it_is_given_itself(tmp_path, stored, folder, block, site):
    inner = save(tmp_path / folder, stored["AutoEncoder"])
    for place in (tmp_path, inner):
        sae = load_sae(place, block=block)
        assert (sae.block, sae.site) == (block, site)


def test_trainers_of_a_sweep_are_listed(tmp_path, stored):
    for trainer in (0, 1):
        save(tmp_path / f"resid_post_layer_3/trainer_{trainer}", stored["AutoEncoder"], "AutoEncoder")
    with pytest.raises(ValueError, match="2 SAEs of block 3: .*trainer_0, .*trainer_1. Give the folder"):
        load_sae(tmp_path, block=3)
    assert load_sae(tmp_path / "resid_post_layer_3/trainer_1", block=3).source.file == "ae.pt"


def test_configurations_of_other_saes_are_not_fetched(tmp_path, stored):
    save(tmp_path / "resid_post_layer_4/trainer_0", stored["AutoEncoder"], "AutoEncoder")
    (tmp_path / "resid_post_layer_4/trainer_0/config.json").write_text("{")
    save(tmp_path / "resid_post_layer_3/trainer_0", stored["AutoEncoder"], "AutoEncoder")
    assert load_sae(tmp_path, block=3).block == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dict_class": "CrossCoder"}, "unknown `dict_class` 'CrossCoder'. Known: AutoEncoder"),
        ({"dict_class": ["AutoEncoder"]}, "unknown `dict_class`"),
        ({"dict_class": "GatedAutoEncoder"}, "expected are exactly encoder.weight .F, D.*r_mag"),
        ({"activation_dim": 7}, "activation_dim = 7, ae.pt holds 6"),
        ({"dict_size": "16"}, "dict_size = '16'; it must be a whole number"),
        ({"k": 6}, "config.json .k = 6. and ae.pt .k = 5. do not agree"),
        ({"k": 1.5}, "config.json says k = 1.5"),
        ({"k": [[[[[[[[]]]]]]]]}, "config.json says k = "),
        (
            {"submodule_name": "mlp_out_layer_3"},
            "says that the SAE reads mlp_out of block 3; .* resid_post of block 3",
        ),
        ({"submodule_name": "resid_post_layer_4"}, "reads resid_post of block 4"),
        ({"submodule_name": None, "layer": 4}, "reads something of block 4"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, stored, change, message):
    folder = tmp_path / "resid_post_layer_3/trainer_0"
    save(
        folder, stored["AutoEncoderTopK"], "AutoEncoderTopK", **{k: v for k, v in change.items() if k != "dict_class"}
    )
    if "dict_class" in change:
        (folder / "config.json").write_text(json.dumps({"trainer": {**TRAINER, **change}}))
    for features in (None, [1]):
        with pytest.raises(ValueError, match=message) as refused:
            load_sae(folder, block=3, features=features)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trainer": []}, "trainer = ..; it must be an object"),
        ({"trainer": {}, "buffer": 3}, "buffer = 3; it must be an object"),
        ({"trainer": {"layer": -1, "lm_name": 3, "submodule_name": 9}}, None),
        ({"trainer": {"layer": True, "lm_name": "x" * 500, "submodule_name": "layers." + "9" * 9000}}, None),
        ({}, None),
    ],
)
def test_strange_configurations_are_refused_or_say_nothing(tmp_path, stored, config, message):
    folder = save(tmp_path, stored["AutoEncoder"])
    (folder / "config.json").write_text(json.dumps(config))
    if message:
        with pytest.raises(ValueError, match=message):
            load_sae(folder, block=3)
    else:
        assert load_sae(folder, block=3).base_model == ""


def test_transcoders_and_inputs_of_unknown_modules_are_refused(tmp_path, stored):
    save(tmp_path, stored["AutoEncoder"], "AutoEncoder", buffer={"io": "in_and_out"})
    with pytest.raises(ValueError, match="io = 'in_and_out': a transcoder"):
        load_sae(tmp_path, block=3)
    save(tmp_path, stored["AutoEncoder"], "AutoEncoder", buffer={"io": "in"})
    with pytest.raises(ValueError, match="io = 'in' but names no module"):
        load_sae(tmp_path, block=3)


def test_word_for_an_output_with_a_norm_behind_it_is_refused(tmp_path, stored):
    gemma = {"lm_name": "google/gemma-2-2b"}
    save(tmp_path, stored["AutoEncoder"], "AutoEncoder", submodule_name="mlp_out_layer_3", **gemma)
    with pytest.raises(ValueError, match="mlp_out before or after the norm .*model.layers.3.mlp"):
        load_sae(tmp_path, block=3)
    save(tmp_path, stored["AutoEncoder"], "AutoEncoder", submodule_name="model.layers.3.mlp", **gemma)
    assert load_sae(tmp_path, block=3).site == "mlp.output"
    save(tmp_path, stored["AutoEncoder"], "AutoEncoder", submodule_name=None, **gemma)
    assert load_sae(tmp_path, block=3, site="mlp_out").site == "mlp_out"  # the user knows


def test_what_the_user_gives_must_fit(tmp_path, stored):
    folder = save(tmp_path / "topk", stored["AutoEncoderTopK"], "AutoEncoderTopK")
    assert load_sae(folder, block=3, k=5).k == 5
    with pytest.raises(ValueError, match="ae.pt says k = 5, but k=6 was given"):
        load_sae(folder, block=3, k=6)
    with pytest.raises(ValueError, match="`input_scale` does not apply"):
        load_sae(folder, block=3, input_scale=2.0)
    folder = save(tmp_path / "batch", stored["BatchTopKSAE"], "BatchTopKSAE")
    with pytest.raises(ValueError, match="`k` belongs to TopK SAEs; this one is a jumprelu SAE"):
        load_sae(folder, block=3, k=5)
