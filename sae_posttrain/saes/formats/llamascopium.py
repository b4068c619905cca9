"""llamascopium (https://github.com/OpenMOSS/Llamascopium), lm-saes until 2026: `config.json` beside `sae_weights`."""

import torch

from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import StoredTensors, check_tensors
from .llamascopium_config import (
    EARLY_NAMES,
    LlamascopiumConfig,
    base_model_of,
    check_sizes,
    number,
    parse_config,
    place_of,
)
from .weights import Names, origin, read_weights

CONFIG, SAELENS_CONFIG = "config.json", "cfg.json"
DISTRIBUTED = "sae_weights.dcp/.metadata"
WEIGHTS = ("sae_weights.safetensors", "sae_weights.pt", DISTRIBUTED)
"""Weight files in the order in which the library looks for them."""

PRESENT_NAMES = Names("W_E", "DF", "b_E", "W_D", "FD", "b_D")
LOG_THRESHOLD = {
    PRESENT_NAMES: "activation_function.log_jumprelu_threshold",
    EARLY_NAMES: "log_jumprelu_threshold",
}
"""Name of the thresholds' logarithms beside those of the other tensors."""


def list_llamascopium(files: SAEFiles) -> list[SAEFile]:
    names = set(files.names)
    listed = []
    for folder in [name.removesuffix(CONFIG) for name in files.names if f"/{name}".endswith(f"/{CONFIG}")]:
        weights = [folder + file for file in WEIGHTS if folder + file in names]
        if weights and folder + SAELENS_CONFIG not in names:  # with SAELens' cfg.json, the weights are SAELens'
            listed.append(SAEFile(weights[0], *place_of(files, folder, CONFIG)))
    return listed


def read_llamascopium(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read an SAE of llamascopium 2, or of lm-saes since 2025 (Llama Scope R1).

    `norm_activation` says on what the SAE was trained: on `x · s` with `s = √D / (mean norm of x)` (dataset-wise), or
    on `x · √D / ‖x‖` (token-wise). With `inference`, the scale is already in the weights and `s = 1`. For each
    feature, `m` is `‖W_dec‖` if `sparsity_include_decoder_norm`, else 1. The library's `x · s · W_enc + b_enc` is
    `s · pre` here:

    - `pre = x · W_enc + b_enc / s`
    - relu: `relu(pre)`; topk: the `k` largest of `relu(pre · m)`, divided by `m`; jumprelu: `pre` where
      `pre > θ / (s · m)`, `θ = exp(log_jumprelu_threshold)`
    - `x̂ = acts · W_dec + b_dec / s`

    This is what the SAE computed in training. The library's own `fold_activation_scale` does not divide `θ` of an SAE
    by `s`, although it does so for a cross-layer transcoder.

    `config.json` says whether the scale is in the weights. The library's training writes this file first and may fold
    the scale into the weights afterwards. In that case, change `norm_activation` in the file to "inference" by hand.
    """
    file = next(file for file in WEIGHTS if f"/{found.file}".endswith(f"/{file}"))
    folder = found.file.removesuffix(file)
    if file == DISTRIBUTED:
        raise ValueError(
            f"{folder}sae_weights.dcp is a distributed checkpoint, which is not read. Convert it with llamascopium: "
            f"`SparseDictionary.from_pretrained(folder).save_pretrained(folder)` writes {WEIGHTS[0]} beside it."
        )
    settings = files.read_json(folder + CONFIG)
    config = parse_config(settings, folder + CONFIG)
    config.require_place(found)
    jumprelu = config.activation == "jumprelu"

    tensors = files.tensors(found.file, part=wanted.features is not None)
    if file.endswith(".pt"):
        tensors = tensors.below("sae")  # the file also holds the library's version
    names = EARLY_NAMES if EARLY_NAMES.W_enc in tensors else PRESENT_NAMES
    log_threshold = LOG_THRESHOLD[names]
    mean_norm = f"dataset_average_activation_norm.{config.hook}"
    layout = config.layout(names) | {mean_norm: "?"} | ({log_threshold: "F"} if jumprelu else {})
    check_tensors(found.file, tensors, layout, wanted.features)
    sizes = dict(zip(names.encoder_dims, tensors[names.W_enc].shape))
    width, num_features = sizes["D"], sizes["F"]
    check_sizes(settings, config.path, {"d_model": width})
    ratio = config.mean_norm_ratio(_mean_norm(tensors, mean_norm, config), width, wanted)  # 1 / s

    use_norm = config.use_decoder_norm and config.activation != "relu"  # relu(pre · m) / m is relu(pre)
    weights = read_weights(
        tensors, names, wanted, subtract_b_dec=config.subtract_b_dec, ratios=(ratio, ratio), needed=use_norm
    )
    norm = weights["W_dec"].norm(dim=-1) if use_norm else None
    threshold = None
    if jumprelu:
        threshold = wanted.vector(tensors[log_threshold]).exp() * ratio
        if norm is not None:
            threshold = threshold / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        threshold = threshold.clamp_max(torch.finfo(threshold.dtype).max)
    return FrozenSAE(
        **weights,
        activation=config.activation,
        k=config.agreed_k(wanted, num_features),
        decoder_norm=norm if config.activation == "topk" else None,
        norm_in_acts=False,
        threshold=threshold,
        input_norm="constant_norm" if config.normalisation == "token-wise" else None,
        base_model=base_model_of(files, folder, settings),
        **origin(files, found, wanted, "llamascopium"),
    )


def _mean_norm(tensors: StoredTensors, name: str, config: LlamascopiumConfig) -> float | None:
    """The mean norm in the data set. If the SAE was trained without it, the value in the file has no meaning."""
    if name not in tensors or config.normalisation != "dataset-wise":
        return None
    return number(tensors[name].read().item(), name, config.path, above_zero=True)
