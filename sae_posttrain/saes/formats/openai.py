"""OpenAI's SAEs of GPT-2 small (https://github.com/openai/sparse_autoencoder): `autoencoders/{block}.pt`."""

import re
from typing import Any

from ...shown import shown
from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import INTEGER_DTYPES, Plain, check_tensors
from .checks import agreed_k, refuse_input_scale
from .weights import Names, origin, read_weights

LOCATIONS = {
    "resid_post_mlp": "resid_post",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "mlp_post_act": "mlp.c_proj.input",
}
"""Site of each folder of the release; the folder's name may end with `_v4`, `_v5_32k` or `_v5_128k`."""

BASE_MODEL = "openai-community/gpt2"

NAMES = Names("encoder.weight", "FD", "latent_bias", "decoder.weight", "DF", "pre_bias")
STATISTICS = {"latents_activation_frequency": "F?", "latents_mean_square": "F?"}
"""Statistics of the training, which are not used."""
COUNTS = "stats_last_nonzero"
"""Tokens since each feature was last active: whole numbers that only training uses."""

PLAIN = ("activation", "activation_state_dict/k", "activation_state_dict/postact_fn")


def list_openai(files: SAEFiles) -> list[SAEFile]:
    listed = []
    for name in files.names:
        if found := _parts_of_path(files, name):
            listed.append(SAEFile(name, int(found["block"]), LOCATIONS.get(found["location"])))
    return listed


def read_openai(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a file of OpenAI's release; the reference is the `Autoencoder` class of its repository.

    `pre = (x' - pre_bias) · encoder.weightᵀ + latent_bias`; `x̂' = acts · decoder.weightᵀ + pre_bias`. The file holds
    `encoder.weight` as (F, D) and `decoder.weight` as (D, F), and says what the activation is:

    - `ReLU`, or nothing (v1, v4): `x' = x`, `acts = relu(pre)`
    - `TopK` (v5): `x'` is the layer norm of a token, `(x - mean) / (std + 1e-5)`, which is undone after the decoder.
      `acts` are the `k` largest of `pre`, followed by `postact_fn` (`ReLU` in the release). As in the repository, this
      activation implies that `x` is normalised.

    The repository's example reads the activations from TransformerLens' `gpt2` without centred writing weights. With
    this setting, TransformerLens' default folding does not change these sites, compared with transformers' model. It
    is not published whether the training data was recorded in the same way; for v5, a shift of the mean has no effect.

    The class can train a decoder that is tied to the encoder, but it cannot load one. Such a file is refused here.
    """
    refuse_input_scale(wanted, found.file)
    tensors = files.tensors(found.file, part=wanted.features is not None)
    counts = tensors.pop(COUNTS, None)
    check_tensors(found.file, tensors, NAMES.layout | STATISTICS, wanted.features, plain=PLAIN)
    num_features = tensors["encoder.weight"].shape[0]
    if counts is not None and (counts.shape != (num_features,) or counts.dtype not in INTEGER_DTYPES):
        raise ValueError(
            f"{COUNTS} in {found.file} has shape {counts.shape} and is stored as {counts.dtype}; it must hold a whole "
            f"number for each of the {num_features} features."
        )

    return FrozenSAE(
        **read_weights(tensors, NAMES, wanted, subtract_b_dec=True),
        base_model=BASE_MODEL if found.site is not None else "",
        **origin(files, found, wanted, "openai"),
        **_activation(tensors.plain, wanted, num_features, found.file),
    )


def _activation(plain: dict[str, Plain], wanted: Wanted, num_features: int, file: str) -> dict[str, Any]:
    activation = plain.get("activation", "ReLU")
    if activation == "ReLU":
        return {"activation": "relu", "k": wanted.k}
    if activation != "TopK":
        raise ValueError(f"{file}: unknown activation {shown(activation)}. Known: ReLU, TopK.")
    behind = plain.get("activation_state_dict/postact_fn", "ReLU")
    if behind not in ("ReLU", "Identity"):
        raise ValueError(f"{file}: unknown function after TopK: {shown(behind)}. Known: ReLU, Identity.")
    return {
        "activation": "topk",
        "k": agreed_k({file: plain.get("activation_state_dict/k")}, wanted, num_features),
        "relu_after_topk": behind == "ReLU",
        "input_norm": "layer_norm",
    }


def _parts_of_path(files: SAEFiles, name: str) -> re.Match[str] | None:
    location = rf"(?P<location>{'|'.join(LOCATIONS)})(?:_v\d+(?:_\d+k)?)?"
    folders = rf"(?:{location}/(?:autoencoders/)?|autoencoders/)"
    return re.search(rf"/{folders}(?P<block>\d{{1,4}})\.pt$", f"/{files.full_name}/{name}")
