"""Llama Scope (https://huggingface.co/papers/2410.20526): SAEs of Llama 3.1 8B, as published in 2024."""

from typing import Any

import torch

from ...shown import shown
from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import check_tensors
from .llamascopium_config import (
    EARLY_NAMES,
    base_model_of,
    check_sizes,
    number,
    parse_config,
    place_of,
)
from .weights import origin, read_weights

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"


def list_llama_scope(files: SAEFiles) -> list[SAEFile]:
    names = set(files.names)
    folders = [name.removesuffix(WEIGHTS) for name in files.names if f"/{name}".endswith(f"/{WEIGHTS}")]
    return [
        SAEFile(folder + WEIGHTS, *place_of(files, folder, CONFIG)) for folder in folders if folder + CONFIG in names
    ]


def read_llama_scope(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a Llama Scope folder, `Llama3_1-8B-Base-L{block}{R,A,M}-{8,32}x`.

    The SAE was trained on activations times `s = √D / (their mean norm)`. The reader does what the releasing code does
    (https://github.com/OpenMOSS/Language-Model-SAEs at f0058a58, `SparseAutoEncoder.from_config`). If the training
    included each feature's decoder norm `m = ‖W_dec‖`, the norm is moved from the decoder to the encoder:

    - `pre = m · (x · W_enc + b_enc / s)`; `acts = pre` where `pre > θ`, one `θ` for all features
    - `x̂ = acts · W_dec / m + b_dec / s`

    SAELens leaves `m` out, so its pre-activations are `s · pre / m`. In the published SAEs, `m` is about 1.5.
    """
    folder = found.file.removesuffix(WEIGHTS)
    settings = files.read_json(folder + CONFIG)
    config = parse_config(settings, folder + CONFIG)
    config.require_place(found)
    threshold = settings.get("jump_relu_threshold")
    theta = 0.0 if threshold is None else number(threshold, "jump_relu_threshold", config.path, above_zero=False)
    if config.activation == "jumprelu" and threshold is None:
        raise ValueError(f"{config.path}: act_fn is 'jumprelu', but there is no jump_relu_threshold.")
    if config.activation == "topk" and theta > 0:  # threshold estimated after training: features do not compete
        config = config._replace(activation="jumprelu")

    tensors = files.tensors(found.file, part=wanted.features is not None)
    check_tensors(found.file, tensors, config.layout(EARLY_NAMES), wanted.features)
    num_features, width = tensors[EARLY_NAMES.W_enc].shape
    check_sizes(settings, config.path, {"d_model": width, "d_sae": num_features})
    ratio_in, ratio_out = (
        config.mean_norm_ratio(norm, width, wanted)
        for norm in _mean_norms(settings.get("dataset_average_activation_norm"), config.path)
    )

    weights = read_weights(
        tensors,
        EARLY_NAMES,
        wanted,
        subtract_b_dec=config.subtract_b_dec,
        ratios=(ratio_in, ratio_out),
        needed=config.use_decoder_norm,
    )
    W_enc, b_enc, W_dec = weights["W_enc"], weights["b_enc"], weights["W_dec"]
    # Scaled in place, because these tensors are large and nothing else uses them.
    if W_dec is not None and ratio_out != ratio_in:
        W_dec.mul_(ratio_out / ratio_in)
    if config.use_decoder_norm:
        norm = W_dec.norm(dim=-1)
        W_enc.mul_(norm)
        b_enc.mul_(norm)
        W_dec.div_(norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None])
    jumprelu = config.activation == "jumprelu"
    return FrozenSAE(
        **weights,
        activation=config.activation,
        threshold=b_enc.new_full(b_enc.shape, theta) if jumprelu else None,
        k=config.agreed_k(wanted, num_features),
        input_norm="constant_norm" if config.normalisation == "token-wise" else None,
        base_model=base_model_of(files, folder, settings),
        **origin(files, found, wanted, "llama_scope"),
    )


def _mean_norms(norms: Any, path: str) -> tuple[float | None, float | None]:
    """Mean norms in the data set of the SAE's input and output. If only the input's is given, it is used for both."""
    if norms is None:
        return None, None
    if not isinstance(norms, dict) or "in" not in norms:
        raise ValueError(f"{path}: dataset_average_activation_norm is {shown(norms)}, expected are 'in' and 'out'.")
    read = number(norms["in"], "dataset_average_activation_norm.in", path, above_zero=True)
    if "out" not in norms:
        return read, read
    return read, number(norms["out"], "dataset_average_activation_norm.out", path, above_zero=True)
