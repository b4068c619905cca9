"""
Every file format that is read, written as its publisher writes it: files, names, orientation, dtypes, configuration.

`write(LAYOUTS["sparsify_topk"], folder)` makes a small valid SAE of random weights and says how to load it. The sizes
are free, so that benchmarks write the same files at full size; weights are made as they are stored.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

BLOCK = 3
HOOK = f"blocks.{BLOCK}.hook_resid_post"


class Layout(NamedTuple):
    """
    One layout of files.

    Args:
        format (`str`):
            Its name in `FORMATS`.
        weights (`str`):
            Path of the weight file below the folder that is loaded.
        tensors (`dict[str, str]`):
            Dimensions of each tensor, a letter each: `F` counts features, `D` is the width.
        config (`str` or `None`):
            Path of the configuration.
        settings (`Callable[[int, int], dict]`):
            Content of the configuration, from `F` and `D`.
        others (`Callable[[int, int], dict]`):
            What else the weight file holds, by name, from `F` and `D`; replaces random values.
        wrap (`Callable[[dict], dict]`):
            What `torch.save` is given, from the tensors by name.
        dtype (`torch.dtype`):
            As published.
        activation (`str`), site (`str`):
            What [`load_sae`] is to make of it.
        arguments (`dict[str, Any]`):
            What [`load_sae`] has to be told beside the block.
    """

    format: str
    weights: str
    tensors: Mapping[str, str]
    config: str | None = None
    settings: Callable[[int, int], dict[str, Any]] = lambda F, D: {}
    others: Callable[[int, int], dict[str, Any]] = lambda F, D: {}
    wrap: Callable[[dict[str, Any]], dict[str, Any]] = lambda content: content
    dtype: torch.dtype = torch.float32
    activation: str = "relu"
    site: str = "resid_post"
    arguments: Mapping[str, Any] = {}


def write(layout: Layout, folder: Path, num_features: int = 24, width: int = 6, seed: int = 0) -> dict[str, Any]:
    """Write an SAE below `folder` (`num_features` is a multiple of `width`); what to call [`load_sae`] with."""
    path = folder / layout.weights
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, layout.wrap(make_tensors(layout, num_features, width, seed)))
    if layout.config is not None:
        (folder / layout.config).write_text(json.dumps(layout.settings(num_features, width)))
    return {"block": BLOCK, "format": layout.format, **layout.arguments}


def make_tensors(layout: Layout, num_features: int, width: int, seed: int = 0) -> dict[str, Any]:
    """Random weights, thresholds above 0, in the dimensions in which they are stored."""
    random = torch.Generator().manual_seed(seed)
    sizes = {"F": num_features, "D": width}
    content: dict[str, Any] = {}
    for name, dims in layout.tensors.items():
        values = torch.randn([sizes[dim] for dim in dims], generator=random, dtype=layout.dtype)
        content[name] = values.abs_() if "threshold" in name else values
    return content | layout.others(num_features, width)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a weight file of the kind that its name says."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(tensor) for name, tensor in content.items()})
    else:
        torch.save(content, path)


def _saelens(architecture: str, dims: Mapping[str, str], activation: str, **changes: Any) -> Layout:
    """As `SAE.save_model` of SAELens 6 writes it."""

    def settings(F: int, D: int) -> dict[str, Any]:
        common = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
        common |= {"normalize_activations": "none", "reshape_activations": "none"}
        metadata = {"sae_lens_version": "6.54.12", "model_name": "gpt2-small", "hook_name": HOOK}
        return {**common, "metadata": metadata, "architecture": architecture, **changes}

    return Layout("saelens", "sae_weights.safetensors", dims, "cfg.json", settings, activation=activation)


def _dictionary_learning(dict_class: str, dims: Mapping[str, str], activation: str, **kwargs: Any) -> Layout:
    """As `trainSAE` writes it."""

    def settings(F: int, D: int) -> dict[str, Any]:
        trainer = {"dict_class": dict_class, "activation_dim": D, "dict_size": F, "layer": BLOCK, "k": 4}
        trainer |= {"trainer_class": "Trainer", "lr": 3e-4, "steps": 9, "seed": 0, "device": "cuda:0"}
        trainer |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": f"resid_post_layer_{BLOCK}"}
        return {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128, "n_ctxs": 9}}

    config = "trainer_0/config.json"
    return Layout("dictionary_learning", "trainer_0/ae.pt", dims, config, settings, activation=activation, **kwargs)


def _k_and_threshold(F: int, D: int) -> dict[str, Tensor]:
    return {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(0.25)}


def _llamascopium(activation: str, **changes: Any) -> Layout:
    """As `SparseAutoEncoder.save_pretrained` of llamascopium 2 writes it."""

    def settings(F: int, D: int) -> dict[str, Any]:
        common = {"sae_type": "sae", "d_model": D, "expansion_factor": F // D, "use_decoder_bias": True, "top_k": 4}
        common |= {"act_fn": activation, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}
        common |= {"use_triton_kernel": False, "jumprelu_threshold_window": 2.0, "use_glu_encoder": False}
        return {**common, "hook_point_in": HOOK, "hook_point_out": HOOK}

    def others(F: int, D: int) -> dict[str, Tensor]:
        return {f"dataset_average_activation_norm.{HOOK}": torch.tensor(2.5)}

    dims = {"W_E": "DF", "b_E": "F", "W_D": "FD", "b_D": "D"}
    if activation == "jumprelu":
        dims["activation_function.log_jumprelu_threshold"] = "F"
    weights, config = "sae_weights.safetensors", "config.json"
    layout = Layout("llamascopium", weights, dims, config, settings, others, activation=activation)
    return layout._replace(**changes)


def _llama_scope_settings(F: int, D: int) -> dict[str, Any]:
    norms = {"in": 10.8125, "out": 10.8125}
    common = {"d_model": D, "d_sae": F, "expansion_factor": F // D, "hook_point_in": HOOK, "hook_point_out": HOOK}
    common |= {"act_fn": "jumprelu", "jump_relu_threshold": 0.35546875, "top_k": 4, "use_decoder_bias": True}
    common |= {"apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise"}
    return {**common, "sparsity_include_decoder_norm": True, "dataset_average_activation_norm": norms}


def _gemma_scope_2_settings(F: int, D: int) -> dict[str, Any]:
    hook = f"model.layers.{BLOCK}.output"
    common = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "width": F, "model_name": "google/gemma-3-4b-pt"}
    return {**common, "architecture": "jump_relu", "l0": 4, "affine_connection": False, "type": "sae"}


def _sparsify(activation: str) -> Layout:
    """As `SparseCoder.save_to_disk` of sparsify 1.3 writes it."""

    def settings(F: int, D: int) -> dict[str, Any]:
        common = {"activation": activation, "expansion_factor": F // D, "normalize_decoder": True, "num_latents": 0}
        return {**common, "k": 4, "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}

    dims = {"encoder.weight": "FD", "encoder.bias": "F", "W_dec": "FD", "b_dec": "D"}
    folder = f"layers.{BLOCK}"
    return Layout("sparsify", f"{folder}/sae.safetensors", dims, f"{folder}/cfg.json", settings, activation=activation)


def _openai(version: str, location: str, site: str, activation: str) -> Layout:
    """As `Autoencoder.state_dict` of openai/sparse_autoencoder makes it: a text and a dict beside the tensors."""

    def others(F: int, D: int) -> dict[str, Any]:
        stats = {"stats_last_nonzero": torch.zeros(F, dtype=torch.long)}
        if activation == "relu":
            return {**stats, "activation": "ReLU", "activation_state_dict": {}}
        return {**stats, "activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}

    dims = {"pre_bias": "D", "latent_bias": "F", "encoder.weight": "FD", "decoder.weight": "DF"}
    dims |= {"stats_last_nonzero": "F", "latents_activation_frequency": "F", "latents_mean_square": "F"}
    path = f"{location}{version}/autoencoders/{BLOCK}.pt"
    return Layout("openai", path, dims, others=others, activation=activation, site=site)


PLAIN = {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D"}
LINEAR = {"encoder.weight": "FD", "encoder.bias": "F", "decoder.weight": "DF"}

LAYOUTS: dict[str, Layout] = {
    "qwen_scope": Layout(
        "qwen_scope",
        f"layer{BLOCK}.sae.pt",
        {"W_enc": "FD", "W_dec": "DF", "b_enc": "F", "b_dec": "D"},
        activation="topk",
        arguments={"k": 4},
    ),
    "gemma_scope": Layout(
        "gemma_scope",
        f"gemma-scope-2b-pt-att/layer_{BLOCK}/width_16k/average_l0_71/params.npz",
        {**PLAIN, "threshold": "F"},
        activation="jumprelu",
        site="attn_z",
    ),
    "gemma_scope_2": Layout(
        "gemma_scope_2",
        f"resid_post/layer_{BLOCK}_width_16k_l0_big/params.safetensors",
        {"w_enc": "DF", "w_dec": "FD", "b_enc": "F", "b_dec": "D", "threshold": "F"},
        f"resid_post/layer_{BLOCK}_width_16k_l0_big/config.json",
        _gemma_scope_2_settings,
        activation="jumprelu",
    ),
    "llama_scope": Layout(
        "llama_scope",
        f"Llama3_1-8B-Base-L{BLOCK}R-8x/checkpoints/final.safetensors",
        {**LINEAR, "decoder.bias": "D"},
        f"Llama3_1-8B-Base-L{BLOCK}R-8x/hyperparams.json",
        _llama_scope_settings,
        dtype=torch.bfloat16,
        activation="jumprelu",
    ),
    "llamascopium_jumprelu": _llamascopium("jumprelu"),
    "llamascopium_topk": _llamascopium("topk"),
    "llamascopium_pt": _llamascopium(
        "relu", weights="sae_weights.pt", wrap=lambda content: {"sae": content, "version": "2.0.0b34"}
    ),
    "llama_scope_r1": _llamascopium(
        "jumprelu",
        tensors={**LINEAR, "decoder.bias": "D", "log_jumprelu_threshold": "F"},
        others=lambda F, D: {},
        arguments={"input_scale": 0.5},
    ),
    "saelens_standard": _saelens("standard", PLAIN, "relu"),
    "saelens_topk": _saelens("topk", PLAIN, "topk", k=4, rescale_acts_by_decoder_norm=True),
    "saelens_abstopk": _saelens("abstopk", PLAIN, "abstopk", k=4, rescale_acts_by_decoder_norm=False),
    "saelens_jumprelu": _saelens("jumprelu", {**PLAIN, "threshold": "F"}, "jumprelu"),
    "saelens_gated": _saelens(
        "gated", {"W_enc": "DF", "W_dec": "FD", "b_dec": "D", "b_gate": "F", "b_mag": "F", "r_mag": "F"}, "gated"
    ),
    "saelens_layer_norm": _saelens("standard", PLAIN, "relu", normalize_activations="layer_norm"),
    "saelens_constant_norm": _saelens("standard", PLAIN, "relu", normalize_activations="constant_norm_rescale"),
    "saelens_scaled": _saelens("standard", PLAIN, "relu", normalize_activations="expected_average_only_in")._replace(
        arguments={"input_scale": 0.5}
    ),
    "sparsify_topk": _sparsify("topk"),
    "sparsify_groupmax": _sparsify("groupmax"),
    "dictionary_learning_relu": _dictionary_learning("AutoEncoder", {"bias": "D", **LINEAR}, "relu"),
    "dictionary_learning_new": _dictionary_learning("AutoEncoderNew", {**LINEAR, "decoder.bias": "D"}, "relu"),
    "dictionary_learning_topk": _dictionary_learning(
        "AutoEncoderTopK", {"b_dec": "D", **LINEAR}, "topk", others=_k_and_threshold
    ),
    "dictionary_learning_batchtopk": _dictionary_learning(
        "BatchTopKSAE", {"b_dec": "D", **LINEAR}, "jumprelu", others=_k_and_threshold
    ),
    "dictionary_learning_matryoshka": _dictionary_learning(
        "MatryoshkaBatchTopKSAE",
        PLAIN,
        "jumprelu",
        others=lambda F, D: {**_k_and_threshold(F, D), "group_sizes": torch.tensor([F // 4, F - F // 4])},
    ),
    "dictionary_learning_jumprelu": _dictionary_learning(
        "JumpReluAutoEncoder", {**PLAIN, "threshold": "F"}, "jumprelu"
    ),
    "dictionary_learning_gated": _dictionary_learning(
        "GatedAutoEncoder",
        {"decoder_bias": "D", "encoder.weight": "FD", "r_mag": "F", "gate_bias": "F", "mag_bias": "F"}
        | {"decoder.weight": "DF"},
        "gated",
    ),
    "dictionary_learning_interrupted": _dictionary_learning(
        "AutoEncoder",
        {"bias": "D", **LINEAR},
        "relu",
        wrap=lambda content: {"step": 3, "ae": content, "optimizer": {}, "config": {}, "norm_factor": 1.0},
    ),
    "goodfire": Layout(
        "goodfire",
        f"Llama-3.1-8B-Instruct-SAE-l{BLOCK}.pth",
        {"encoder_linear.weight": "FD", "encoder_linear.bias": "F"}
        | {"decoder_linear.weight": "DF", "decoder_linear.bias": "D"},
    ),
    "openai_v1": _openai("", "resid_delta_mlp", "mlp_out", "relu"),
    "openai_v5": _openai("_v5_32k", "resid_post_mlp", "resid_post", "topk"),
}
"""Every format, and the architectures and normalisations that it knows."""
