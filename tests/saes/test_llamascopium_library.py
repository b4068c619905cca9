"""
What the readers make of SAEs that llamascopium itself made and saved, and of Llama Scope's as SAELens reads it.

Needs environments of their own, with Python below 3.13 (llamascopium's `transformer-lens` is not the newest):

    pip install -c constraints.txt -e '.[dev]' llamascopium==2.0.0b34 'transformer-lens<4'
    pip install -c constraints.txt -e '.[dev]' sae-lens==6.54.12

In each: `pytest -m slow tests/saes/test_llamascopium_library.py`. What is not installed is skipped.
"""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import load_sae

pytestmark = pytest.mark.slow

HOOK = "blocks.4.hook_resid_post"
MEAN_NORM = 20.0
D, F = 32, 128


def library(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about CUDA, and about what these libraries' own imports deprecate
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture
def x():
    return torch.randn(3, 7, D, generator=torch.Generator().manual_seed(1)) * MEAN_NORM / D**0.5


def make(**changes):
    """An SAE of llamascopium with random weights, its thresholds among the pre-activations of its scaled inputs."""
    llamascopium_sae = library("llamascopium.models.sae")
    settings = {"d_model": D, "expansion_factor": F / D, "hook_point_in": HOOK, "hook_point_out": HOOK, "top_k": 9}
    sae = llamascopium_sae.SparseAutoEncoder(llamascopium_sae.SAEConfig(**{**settings, **changes}))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
            if name == "W_E":
                parameter.div_(D**0.5)
            if "log_jumprelu_threshold" in name:
                parameter.mul_(0.3)
    sae.set_dataset_average_activation_norm({HOOK: MEAN_NORM})
    return sae


def save(sae, folder, suffix=".safetensors"):
    folder.mkdir(exist_ok=True)
    sae.cfg.save_hyperparameters(folder)
    sae.save_checkpoint(folder / f"sae_weights{suffix}")
    return load_sae(folder, block=4)


@torch.no_grad()
def assert_same(ours, sae, x):
    """
    Compare on activations as the model has them: llamascopium wants them normalised before `encode`, and undoes it
    behind `decode`; the factor of both is 1 where the scale is in its weights.
    """
    scaled, factors = sae.normalize_activations({HOOK: x}, return_scale_factor=True)
    acts, pre = sae.encode(scaled[HOOK], return_hidden_pre=True)
    output = sae.denormalize_activations({HOOK: sae.decode(acts)}, factors)[HOOK]
    factor = factors[HOOK] if sae.cfg.norm_activation == "dataset-wise" else 1.0
    assert (acts > 0).any()
    assert sae.cfg.act_fn == "relu" or ((pre > 0) & (acts == 0)).any()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(ours.pre_activations(x), pre / factor, **close)
    torch.testing.assert_close(ours.encode(x), acts / factor, **close)
    torch.testing.assert_close(ours.reconstruct(x), output, **close)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize("normalisation", ["dataset-wise", "token-wise", "inference"])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_an_sae_saved_by_llamascopium_computes_the_same(tmp_path, x, activation, normalisation, include_norm, suffix):
    sae = make(act_fn=activation, norm_activation=normalisation, sparsity_include_decoder_norm=include_norm)
    assert_same(save(sae, tmp_path, suffix), sae, x)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_scale_folded_by_the_library_is_the_one_folded_here(tmp_path, x, activation):
    sae = make(act_fn=activation)
    unfolded = save(sae, tmp_path / "unfolded")
    sae.standardize_parameters_of_dataset_norm()
    folded = save(sae, tmp_path / "folded")
    assert sae.cfg.norm_activation == "inference"
    assert_same(folded, sae, x)
    torch.testing.assert_close(unfolded.encode(x), folded.encode(x), rtol=1e-4, atol=1e-4)


def test_without_a_decoder_bias(tmp_path, x):
    sae = make(act_fn="topk", use_decoder_bias=False)
    assert_same(save(sae, tmp_path), sae, x)


def test_distributed_checkpoint_is_converted_as_its_refusal_says(tmp_path, x):
    sae = make(act_fn="topk")
    sae.cfg.save_hyperparameters(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about saving in one process
        torch.distributed.checkpoint.save(sae.full_state_dict(), checkpoint_id=tmp_path / "sae_weights.dcp")
        with pytest.raises(ValueError, match="is a distributed checkpoint"):
            load_sae(tmp_path, block=4)
        sparse_dictionary = library("llamascopium.models.sparse_dictionary")
        folder = str(tmp_path)
        sparse_dictionary.SparseDictionary.from_pretrained(folder).save_pretrained(folder)
    assert_same(load_sae(tmp_path, block=4), sae, x)


def save_for_saelens(folder, config_name, weights_name, settings, extra):
    """An SAE with the names of Llama Scope's tensors, and those tensors."""
    (folder / weights_name).parent.mkdir(parents=True)
    common = {"d_model": D, "hook_point_in": HOOK, "hook_point_out": HOOK, "act_fn": "jumprelu"}
    (folder / config_name).write_text(json.dumps({**common, **settings}))
    random = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
    tensors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()} | extra
    save_file(tensors, folder / weights_name)
    return tensors


def read_with_saelens(folder, loader, monkeypatch):
    sae_lens = library("sae_lens")
    loaders = library("sae_lens.loading.pretrained_sae_loaders")

    def in_folder(repo_id, filename, subfolder="", force_download=False):
        return str(folder.parent / subfolder / filename)

    def convert(path, device, cfg_overrides):
        return getattr(loaders, loader)("repository", folder.name, device, cfg_overrides=cfg_overrides)[:2]

    monkeypatch.setattr(loaders, "hf_hub_download", in_folder)
    sae = sae_lens.SAE.load_from_disk(folder, dtype="float32", converter=convert)
    sae.fold_activation_norm_scaling_factor(D**0.5 / MEAN_NORM)  # it stands in `pretrained_saes.yaml`
    return sae


@torch.no_grad()
def test_saelens_reads_llama_scope_in_scaled_units_and_without_the_decoder_norm(tmp_path, x, monkeypatch):
    folder = tmp_path / "Llama3_1-8B-Base-L4R-8x"
    settings = {"d_sae": F, "jump_relu_threshold": 2.5, "sparsity_include_decoder_norm": True}
    settings |= {"dataset_average_activation_norm": {"in": MEAN_NORM, "out": MEAN_NORM}}
    tensors = save_for_saelens(folder, "hyperparams.json", "checkpoints/final.safetensors", settings, {})
    theirs = read_with_saelens(folder, "llama_scope_sae_huggingface_loader", monkeypatch)
    ours = load_sae(folder, block=4)

    factor = D**0.5 / MEAN_NORM / tensors["decoder.weight"].norm(dim=0)  # s / m
    pre = ours.pre_activations(x) * factor
    torch.testing.assert_close(x @ theirs.W_enc + theirs.b_enc, pre, rtol=1e-4, atol=1e-4)
    acts, expected = theirs.encode(x), ours.encode(x) * factor
    both = (acts > 0) & (expected > 0)
    assert both.any()
    torch.testing.assert_close(acts[both], expected[both], rtol=1e-4, atol=1e-4)
    assert ((acts > 0) != (expected > 0)).any()  # their threshold is meant for pre-activations with the norm


@torch.no_grad()
def test_saelens_reads_llama_scope_r1_in_scaled_units(tmp_path, x, monkeypatch):
    folder = tmp_path / "L4R"
    settings = {"sae_type": "sae", "expansion_factor": F // D, "sparsity_include_decoder_norm": False}
    extra = {"log_jumprelu_threshold": torch.randn(F, generator=torch.Generator().manual_seed(2))}
    extra[f"dataset_average_activation_norm.{HOOK}"] = torch.tensor(MEAN_NORM)
    save_for_saelens(folder, "config.json", "sae_weights.safetensors", settings, extra)
    theirs = read_with_saelens(folder, "llama_scope_r1_distill_sae_huggingface_loader", monkeypatch)
    ours = load_sae(folder, block=4)

    scale = D**0.5 / MEAN_NORM
    expected = ours.encode(x) * scale
    assert (expected > 0).any()
    pre = ours.pre_activations(x) * scale
    torch.testing.assert_close(x @ theirs.W_enc + theirs.b_enc, pre, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.encode(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.decode(theirs.encode(x)), ours.reconstruct(x), rtol=1e-4, atol=1e-4)
