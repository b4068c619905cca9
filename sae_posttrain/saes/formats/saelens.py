"""SAELens (https://github.com/jbloomAus/SAELens): `cfg.json` beside `sae_weights.safetensors`, versions 3 to 6."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from ..files import SAEFiles
from ..frozen import FrozenSAE
from ..safe_files import open_tensors
from ..stored_tensor import StoredTensor, check_tensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

LAYOUTS = {
    "standard": {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D"},
    "topk": {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D"},
    "jumprelu": {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D", "threshold": "F"},
    "gated": {"W_enc": "DF", "W_dec": "FD", "b_dec": "D", "b_gate": "F", "b_mag": "F", "r_mag": "F"},
}
"""Tensors of each architecture. Batch TopK and Matryoshka SAEs are saved as `jumprelu`."""


def find_saelens(files: SAEFiles, block: int) -> str | None:
    folders = [name.removesuffix(WEIGHTS) for name in files.names if name.rpartition("/")[2] == WEIGHTS]
    folders = [folder for folder in folders if folder + CONFIG in files.names]
    if not folders:
        return None
    if "" in folders:  # the folder itself is an SAE: `read_saelens` checks its block
        return WEIGHTS
    hooks = {folder: _hook_name(_read_config(files.fetch(folder + CONFIG))) for folder in folders}
    fitting = [folder for folder, hook in hooks.items() if _block_of_hook(hook) == block]
    if not fitting:
        held = ", ".join(f"{folder.rstrip('/')} ({hook})" for folder, hook in hooks.items())
        raise FileNotFoundError(f"{files.place} holds no SAE of block {block}'s output. It has: {held}.")
    if len(fitting) > 1:
        raise ValueError(
            f"{files.place} holds {len(fitting)} SAEs of block {block}: "
            f"{', '.join(folder.rstrip('/') for folder in fitting)}. Give the folder of one of them."
        )
    return fitting[0] + WEIGHTS


def read_saelens(files: SAEFiles, file: str, block: int, features: tuple[int, ...] | None, k: int | None) -> FrozenSAE:
    """
    Read a SAELens folder: architectures standard, topk, jumprelu and gated, without input normalisation.

    With `x' = x - b_dec` if `apply_b_dec_to_input` (the default) else `x`, and `pre = x' · W_enc + b_enc`:

    - standard: `relu(pre)`; jumprelu: `relu(pre)` where `pre > threshold`
    - topk: `relu(topk(pre))`; with `rescale_acts_by_decoder_norm`, `relu(topk(pre · ‖W_dec‖))`, and decoding divides
      by `‖W_dec‖`
    - gated: `relu(x' · W_enc · exp(r_mag) + b_mag)` where `pre = x' · W_enc + b_gate` is above 0. The magnitude is
      `pre · exp(r_mag) + b_mag - b_gate · exp(r_mag)`.
    """
    path = files.fetch(file)
    config_path = files.fetch(file.removesuffix(WEIGHTS) + CONFIG)
    config = _read_config(config_path)
    architecture = _architecture(config, config_path)
    _check_block(_hook_name(config), block, config_path)

    tensors = open_tensors(path)
    _drop_scaling_factor(tensors)
    check_tensors(path, tensors, LAYOUTS[architecture], features)
    for key, size in zip(("d_in", "d_sae"), tensors["W_enc"].shape):
        if config.get(key, size) != size:
            raise ValueError(f"{config_path} says {key} = {config[key]}, {path} holds {size}. Download both again.")

    W_enc = tensors["W_enc"].columns(features).float()
    W_dec = tensors["W_dec"].rows(features).float()
    b_dec = tensors["b_dec"].read().float()
    b_pre = tensors["b_gate" if architecture == "gated" else "b_enc"].rows(features).float()
    shift = -b_dec @ W_enc if config.get("apply_b_dec_to_input", True) else torch.zeros_like(b_pre)
    sae: dict[str, Any] = {"activation": "relu" if architecture == "standard" else architecture, "k": k}
    if architecture == "topk":
        sae["k"] = _k(config, k, config_path)
        sae["decoder_norm"] = W_dec.norm(dim=-1) if config.get("rescale_acts_by_decoder_norm", False) else None
    elif architecture == "jumprelu":
        sae["threshold"] = tensors["threshold"].rows(features).float()
    elif architecture == "gated":
        scale = tensors["r_mag"].rows(features).float().exp()
        sae["magnitude_scale"] = scale
        sae["magnitude_shift"] = tensors["b_mag"].rows(features).float() - b_pre * scale
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=b_pre + shift,
        W_dec=W_dec,
        b_dec=b_dec,
        block=block,
        features=features,
        source=files.source(file, "saelens"),
        **sae,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}. Download it again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("metadata", {}), dict):
        raise ValueError(f"{path} is not the configuration of a SAELens SAE.")
    return config


def _hook_name(config: dict[str, Any]) -> str:
    """What the SAE reads: in `metadata` since version 6, before that in the configuration itself."""
    return str(config.get("metadata", {}).get("hook_name") or config.get("hook_name") or config.get("hook_point"))


def _architecture(config: dict[str, Any], path: Path) -> str:
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


def _block_of_hook(hook: str) -> int | None:
    """Block whose output the hook is; `None` for any other tensor. `resid_pre` of a block is the previous's output."""
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook):
        return int(found[1])
    if found := re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", hook):
        return int(found[1]) - 1
    if found := re.fullmatch(r"(?:[A-Za-z_]\w*\.)*(?:layers|h)\.(\d+)(?:\.output)?", hook):  # a module of Transformers
        return int(found[1])
    return None


def _check_block(hook: str, block: int, path: Path) -> None:
    found = _block_of_hook(hook)
    if found is None:
        raise ValueError(
            f"{path}: the SAE reads {hook}, which is no block's output. Supported are blocks.N.hook_resid_post, "
            "blocks.N.hook_resid_pre with N from 1, and module paths such as model.layers.N."
        )
    if found != block:
        raise ValueError(
            f"{path}: the SAE reads {hook}, the output of block {found}; asked was block {block}. Use block={found} "
            "or another folder."
        )


def _k(config: dict[str, Any], k: int | None, path: Path) -> int:
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
