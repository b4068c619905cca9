"""sparsify (https://github.com/EleutherAI/sparsify): `cfg.json` and `sae.safetensors`, one folder per hookpoint."""

import re
from typing import Any

from ...shown import shown
from ...sites import parse_hook
from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import check_tensors
from .checks import agreed_k, flag, refuse_input_scale, short_text, whole_number
from .weights import Names, origin, read_weights

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"

EMBEDDINGS = ("embed_tokens", "embed_in", "wte")
"""Hookpoints of published SAEs that are not in a decoder block."""

DEFAULT_EXPANSION = 32

NAMES = Names("encoder.weight", "FD", "encoder.bias", "W_dec", "FD", "b_dec")


def list_sparsify(files: SAEFiles) -> list[SAEFile]:
    listed = []
    for name in files.names:
        folder, _, file = name.rpartition("/")
        config = f"{folder}/{CONFIG}" if folder else CONFIG
        if file == WEIGHTS and config in files.names:
            block, site = parse_hook(_hookpoint(files, folder)) or (None, None)
            listed.append(SAEFile(name, block, site))
    return listed


def read_sparsify(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a sparsify folder.

    `pre = (x - b_dec) · encoder.weightᵀ + encoder.bias`; the activation is `topk` (the `k` largest of `relu(pre)`) or
    `groupmax` (the features form `k` groups of neighbours; the largest `relu(pre)` of each group is kept);
    `x̂ = acts · W_dec + b_dec`. The file holds `encoder.weight` and `W_dec` both as (F, D). `num_latents` 0 means
    `d_in · expansion_factor`. Old releases have `signed`: the `k` values of largest magnitude, with their sign.
    `normalize_decoder` and `multi_topk` concern training only and are ignored.

    The folder's name is the hookpoint: a module of the model without its head (`layers.10`, `h.5`, `layers.3.mlp`, and
    `layers.10/seed1` if several seeds were trained). The SAE reads that module's output. The configuration of the
    training run, one folder above, names the model if it exists.
    """
    config_name = found.folder + CONFIG
    config, run = files.read_json(config_name), _run_config(files, found.folder)
    hookpoint = _hookpoint(files, found.folder)
    if hookpoint.rpartition(".")[2] in EMBEDDINGS:
        raise ValueError(f"{found.file} reads {hookpoint}, which is in no decoder block. Use the SAE of a block.")
    if flag(config, "transcode", config_name) or flag(config, "skip_connection", config_name) or run.get("transcode"):
        raise ValueError(
            f"{found.file} is a transcoder: it reads the input of {hookpoint} and predicts its output, so it has no "
            "one site. Use an SAE of the same model."
        )
    refuse_input_scale(wanted, found.file)

    tensors = files.tensors(found.file, part=wanted.features is not None)
    check_tensors(found.file, tensors, NAMES.layout, wanted.features)
    num_features, d_in = tensors["encoder.weight"].shape
    said_d_in = whole_number(config, "d_in", d_in, config_name)
    expansion = whole_number(config, "expansion_factor", DEFAULT_EXPANSION, config_name)
    said_features = whole_number(config, "num_latents", 0, config_name) or said_d_in * expansion
    if (said_features, said_d_in) != (num_features, d_in):
        raise ValueError(
            f"{config_name} says {said_features} features of width {said_d_in}, {found.file} holds {num_features} "
            f"of {d_in}. Download both again."
        )

    return FrozenSAE(
        **read_weights(tensors, NAMES, wanted, subtract_b_dec=True),
        activation=_activation(config, config_name),
        k=agreed_k({config_name: config.get("k")}, wanted, num_features),
        base_model=short_text(run.get("model")),
        **origin(files, found, wanted, "sparsify"),
    )


def _hookpoint(files: SAEFiles, folder: str) -> str:
    """Name of the innermost folder, except for a seed's folder."""
    path = f"{files.full_name}/{folder}".rstrip("/")
    return re.sub(r"/seed\d+$", "", path).rpartition("/")[2]


def _run_config(files: SAEFiles, folder: str) -> dict[str, Any]:
    """Configuration of the training run, one folder above the hookpoint's; empty if there is none."""
    run = re.fullmatch(r"(|.*/)[^/]+/(?:seed\d+/)?", folder)
    name = f"{run[1]}config.json" if run else ""
    return files.read_json(name) if name in files.names else {}


def _activation(config: dict[str, Any], path: str) -> str:
    activation = config.get("activation", "topk")  # old files do not say it, as there was only this one
    if activation not in ("topk", "groupmax"):
        raise ValueError(f"{path}: unknown activation {shown(activation)}. Known: topk, groupmax.")
    return "abstopk" if activation == "topk" and flag(config, "signed", path) else activation
