"""SAELens (https://github.com/jbloomAus/SAELens): `cfg.json` beside `sae_weights.safetensors`, versions 3 to 6."""

from typing import Any

from ...sites import parse_hook
from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import StoredTensor, StoredTensors, check_tensors
from .checks import agreed_k, refuse_input_scale, whole_number
from .saelens_config import SAELensConfig, parse_config, site_of
from .weights import origin

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_COMMON = {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D", "scaling_factor": "F?"}

LAYOUTS = {
    "standard": _COMMON,
    "topk": _COMMON,
    "abstopk": _COMMON,
    "jumprelu": {**_COMMON, "threshold": "F"},
    "gated": {
        "W_enc": "DF",
        "W_dec": "FD",
        "b_dec": "D",
        "b_gate": "F",
        "b_mag": "F",
        "r_mag": "F",
        "scaling_factor": "F?",
    },
}
"""Tensors of each architecture. Batch TopK and Matryoshka SAEs are saved as `jumprelu`."""


def list_saelens(files: SAEFiles) -> list[SAEFile]:
    """Folders with a configuration. If a folder's name is a TransformerLens hook point, the file is not read here."""
    there = set(files.names)
    listed = []
    for name in files.names:
        sae = SAEFile(name)
        if name == sae.folder + WEIGHTS and sae.folder + CONFIG in there:
            innermost = f"/{sae.folder}".split("/")[-2]
            named = parse_hook(innermost) if innermost.startswith("blocks.") else None
            block, site = named or site_of(_read_config(files, sae.folder))
            listed.append(SAEFile(name, block, site))
    return listed


def read_saelens(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a SAELens folder.

    With `x' = norm(x) - b_dec` if `apply_b_dec_to_input` (the default), else `norm(x)`, and `pre = x' · W_enc +
    b_enc` (formulas: https://github.com/jbloomAus/SAELens/tree/main/sae_lens/saes):

    - standard: `relu(pre)`; jumprelu: `relu(pre)` where `pre > threshold`
    - topk: `relu(topk(pre))`; abstopk: the `k` values of largest magnitude, with their sign. With
      `rescale_acts_by_decoder_norm`, they are chosen from `pre · ‖W_dec‖`, and decoding divides by `‖W_dec‖`.
    - gated: `relu(x' · W_enc · exp(r_mag) + b_mag)` where `pre = x' · W_enc + b_gate` is above 0. The magnitude is
      `pre · exp(r_mag) + b_mag - b_gate · exp(r_mag)`.

    `normalize_activations` gives `norm`. layer_norm and constant_norm_rescale become the SAE's `input_norm`;
    expected_average_only_in is `x · input_scale`, folded into the weights. If the SAE reads a model in which
    TransformerLens centred the outputs of the blocks, subtracting the mean is folded into `W_enc`; the reconstruction
    of such an SAE has mean 0.
    """
    config_name = found.folder + CONFIG
    raw = _read_config(files, found.folder)
    config = parse_config(raw, config_name, files.full_name)
    if (found.block, found.site) != site_of(raw):
        block, site = site_of(raw)
        raise ValueError(
            f"{found.folder} is named after {found.site} of block {found.block}, but its {CONFIG} says {site} of "
            f"block {block}. Download it again, or rename the folder."
        )
    scale = _input_scale(config, wanted, config_name)

    tensors = files.tensors(found.file, part=wanted.features is not None)
    check_tensors(found.file, tensors, LAYOUTS[config.architecture], wanted.features)
    _refuse_scaling_factor(found.file, tensors.get("scaling_factor"))
    for name, size in zip(("d_in", "d_sae"), tensors["W_enc"].shape):
        said = whole_number(config.sizes, name, size, config_name)
        if said != size:
            raise ValueError(f"{config_name} says {name} = {said}, {found.file} holds {size}. Download both again.")
    return FrozenSAE(
        **_folded(found.file, tensors, config, scale, wanted),
        activation="relu" if config.architecture == "standard" else config.architecture,
        k=agreed_k({config_name: config.k}, wanted, tensors["W_enc"].shape[1]),
        input_norm=config.input_norm,
        base_model=config.base_model,
        **origin(files, found, wanted, "saelens"),
    )


def _folded(
    file: str, tensors: StoredTensors, config: SAELensConfig, scale: float | None, wanted: Wanted
) -> dict[str, Any]:
    """The wanted weights in raw units of the site, by their names in [`FrozenSAE`]."""
    W_enc = wanted.encoder(tensors["W_enc"], "DF")
    W_dec = wanted.decoder(tensors["W_dec"], "FD", needed=config.use_decoder_norm)
    b_dec = tensors["b_dec"].read().float()
    b_pre = wanted.vector(tensors["b_gate" if config.architecture == "gated" else "b_enc"])
    b_enc = b_pre
    if config.subtract_b_dec:
        b_enc = b_pre - b_dec @ W_enc  # both still in scaled units
    computed = {"b_enc": b_enc}
    if config.centred:
        W_enc = computed["W_enc"] = W_enc - W_enc.mean(dim=0)  # (x - mean(x)) · w = x · (w - mean(w))
    if scale is not None:  # as SAELens' `fold_activation_norm_scaling_factor` does
        W_enc, b_dec = W_enc * scale, b_dec / scale
        W_dec = None if W_dec is None else W_dec / scale
        computed |= {"W_enc": W_enc, "b_dec": b_dec} | ({} if W_dec is None else {"W_dec": W_dec})
    if config.architecture == "gated":
        computed["magnitude_scale"] = wanted.vector(tensors["r_mag"]).exp()
        computed["magnitude_shift"] = wanted.vector(tensors["b_mag"]) - b_pre * computed["magnitude_scale"]
    if config.use_decoder_norm:
        computed["decoder_norm"] = W_dec.norm(dim=-1)
    parts = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec, **computed}
    if config.architecture == "jumprelu":
        parts["threshold"] = wanted.vector(tensors["threshold"])
    return parts


def _read_config(files: SAEFiles, folder: str) -> dict[str, Any]:
    config = files.read_json(folder + CONFIG)
    if not isinstance(config.get("metadata", {}), dict):
        raise ValueError(f"{folder + CONFIG} in {files.place} is not the configuration of a SAELens SAE.")
    return config


def _input_scale(config: SAELensConfig, wanted: Wanted, path: str) -> float | None:
    if not config.scaled:
        refuse_input_scale(wanted, path)
    elif wanted.input_scale is None:
        raise ValueError(
            f"{path}: the SAE was trained on inputs times a factor (expected_average_only_in) that is not in its "
            "files. Give it: `load_sae(..., input_scale=…)`. SAELens keeps it as `norm_scaling_factor` in its "
            "pretrained_saes.yaml; for a checkpoint of a training it is `scaling_factor` in activation_scaler.json."
        )
    return wanted.input_scale


def _refuse_scaling_factor(file: str, factor: StoredTensor | None) -> None:
    """Refuse factors other than 1. Old versions saved a factor for each activation with every SAE, mostly 1."""
    if factor is not None and not (factor.read() == 1).all():
        raise ValueError(
            f"{file} holds a `scaling_factor` of finetuned activations, which SAELens dropped in version 6 and which "
            "is not supported."
        )
