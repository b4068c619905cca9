"""SAELens (https://github.com/jbloomAus/SAELens): `cfg.json` beside `sae_weights.safetensors`, versions 3 to 6."""

from typing import Any

import torch

from ...sites import parse_hook
from ..files import SAEFile, SAEFiles, Wanted
from ..frozen import FrozenSAE
from ..stored_tensor import StoredTensor, check_tensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

LAYOUTS = {
    "standard": {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D"},
    "topk": {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D"},
    "jumprelu": {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D", "threshold": "F"},
    "gated": {"W_enc": "DF", "W_dec": "FD", "b_dec": "D", "b_gate": "F", "b_mag": "F", "r_mag": "F"},
}
"""Tensors of each architecture. Batch TopK and Matryoshka SAEs are saved as `jumprelu`."""


def list_saelens(files: SAEFiles) -> list[SAEFile]:
    folders = [name.removesuffix(WEIGHTS) for name in files.names if name.rpartition("/")[2] == WEIGHTS]
    listed = []
    for folder in folders:
        if folder + CONFIG in files.names:
            block, site = parse_hook(_hook_name(_read_config(files, folder))) or (None, None)
            listed.append(SAEFile(folder + WEIGHTS, block, site))
    return listed


def read_saelens(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a SAELens folder: architectures standard, topk, jumprelu and gated, without input normalisation.

    With `x' = x - b_dec` if `apply_b_dec_to_input` (the default) else `x`, and `pre = x' · W_enc + b_enc`:

    - standard: `relu(pre)`; jumprelu: `relu(pre)` where `pre > threshold`
    - topk: `relu(topk(pre))`; with `rescale_acts_by_decoder_norm`, `relu(topk(pre · ‖W_dec‖))`, and decoding divides
      by `‖W_dec‖`
    - gated: `relu(x' · W_enc · exp(r_mag) + b_mag)` where `pre = x' · W_enc + b_gate` is above 0. The magnitude is
      `pre · exp(r_mag) + b_mag - b_gate · exp(r_mag)`.
    """
    config_name = found.folder + CONFIG
    config = _read_config(files, found.folder)
    architecture = _architecture(config, config_name)
    if found.block is None:
        raise ValueError(f"{config_name}: the SAE reads {_hook_name(config)!r}, which is no site of a decoder block.")

    tensors = files.tensors(found.file, part=wanted.features is not None)
    _drop_scaling_factor(tensors)
    check_tensors(found.file, tensors, LAYOUTS[architecture], wanted.features)
    for key, size in zip(("d_in", "d_sae"), tensors["W_enc"].shape):
        if config.get(key, size) != size:
            raise ValueError(
                f"{config_name} says {key} = {config[key]}, {found.file} holds {size}. Download both again."
            )

    W_enc = wanted.encoder(tensors["W_enc"], "DF")
    rescale = architecture == "topk" and bool(config.get("rescale_acts_by_decoder_norm", False))
    W_dec = wanted.decoder(tensors["W_dec"], "FD", needed=rescale)
    b_dec = tensors["b_dec"].read().float()
    b_pre = wanted.vector(tensors["b_gate" if architecture == "gated" else "b_enc"])
    shift = -b_dec @ W_enc if config.get("apply_b_dec_to_input", True) else torch.zeros_like(b_pre)
    sae: dict[str, Any] = {"activation": "relu" if architecture == "standard" else architecture, "k": wanted.k}
    if architecture == "topk":
        sae["k"] = _k(config, wanted.k, config_name)
        sae["decoder_norm"] = W_dec.norm(dim=-1) if rescale else None
    elif architecture == "jumprelu":
        sae["threshold"] = wanted.vector(tensors["threshold"])
    elif architecture == "gated":
        scale = wanted.vector(tensors["r_mag"]).exp()
        sae["magnitude_scale"] = scale
        sae["magnitude_shift"] = wanted.vector(tensors["b_mag"]) - b_pre * scale
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=b_pre + shift,
        W_dec=W_dec,
        b_dec=b_dec,
        block=wanted.block,
        site=wanted.site,
        base_model=_text(config.get("metadata", {}).get("model_name") or config.get("model_name")),
        features=wanted.features,
        source=files.source(found.file, "saelens"),
        **sae,
    )


def _read_config(files: SAEFiles, folder: str) -> dict[str, Any]:
    config = files.read_json(folder + CONFIG)
    if not isinstance(config.get("metadata", {}), dict):
        raise ValueError(f"{folder + CONFIG} in {files.place} is not the configuration of a SAELens SAE.")
    return config


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _hook_name(config: dict[str, Any]) -> str:
    """What the SAE reads: in `metadata` since version 6, before that in the configuration itself."""
    return str(config.get("metadata", {}).get("hook_name") or config.get("hook_name") or config.get("hook_point"))


def _architecture(config: dict[str, Any], path: str) -> str:
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if architecture == "standard" and activation == "topk":  # so written before topk became an architecture
        architecture = "topk"
    if architecture not in LAYOUTS:
        raise ValueError(f"{path}: unknown architecture {architecture!r}. Known: {', '.join(LAYOUTS)}.")
    if activation not in ("relu", "topk"):
        raise ValueError(f"{path}: unknown activation {activation!r}. Known: relu, topk.")
    if config.get("normalize_activations") not in (None, False, "none"):
        raise ValueError(
            f"{path}: the SAE reads normalised activations ({config['normalize_activations']!r}), which is not "
            "supported. Use an SAE with `normalize_activations` 'none'."
        )
    if config.get("reshape_activations", "none") not in (None, "none"):
        raise ValueError(f"{path}: `reshape_activations` {config['reshape_activations']!r} is not supported.")
    return architecture


def _k(config: dict[str, Any], k: int | None, path: str) -> int:
    stored = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k", k))
    if isinstance(stored, bool) or not isinstance(stored, int):
        raise ValueError(f"{path} does not say how many features are active per token (k = {stored!r}); give `k`.")
    if k not in (None, stored):
        raise ValueError(f"{path} says k = {stored}, given was k={k}. Leave it out.")
    return stored


def _drop_scaling_factor(tensors: dict[str, StoredTensor]) -> None:
    """Old versions saved one for every SAE; it means something only where it is not 1."""
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not (factor.read() == 1).all():
        raise ValueError(f"{factor.path} holds a finetuned `scaling_factor`, which is not supported.")
