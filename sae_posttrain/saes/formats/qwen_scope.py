"""Qwen-Scope (https://huggingface.co/papers/2605.11887): TopK SAEs of block outputs, `layer{n}.sae.pt` for block n."""

import re

from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import check_tensors
from .checks import refuse_input_scale
from .weights import Names, origin, read_weights

NAMES = Names("W_enc", "FD", "b_enc", "W_dec", "DF", "b_dec")


def list_qwen_scope(files: SAEFiles) -> list[SAEFile]:
    return [
        SAEFile(name, int(found[1]), "resid_post")
        for name in files.names
        if (found := re.fullmatch(r"layer(\d+)\.sae\.pt", name))
    ]


def read_qwen_scope(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a Qwen-Scope file.

    `pre = x · W_encᵀ + b_enc`; the `k` largest are kept as they are (no ReLU, `b_dec` is not subtracted);
    `x̂ = acts · W_decᵀ + b_dec`. The file holds `W_enc` as (F, D) and `W_dec` as (D, F). Only the name of the
    repository gives `k` (`…-L0_50`).
    """
    refuse_input_scale(wanted, found.file)
    tensors = files.tensors(found.file, part=wanted.features is not None)
    check_tensors(found.file, tensors, NAMES.layout, wanted.features)
    return FrozenSAE(
        **read_weights(tensors, NAMES, wanted),
        activation="topk",
        relu_after_topk=False,
        k=_k_in_name(files.full_name) if wanted.k is None else wanted.k,
        base_model=_model_in_name(files.full_name),
        **origin(files, found, wanted, "qwen_scope"),
    )


def _k_in_name(full_name: str) -> int | None:
    found = re.findall(r"SAE-Res-[^/]+-W\d+K-L0_(\d+)(?=/|$)", full_name)
    return int(found[-1]) if found else None


def _model_in_name(full_name: str) -> str:
    found = re.findall(r"SAE-Res-([^/]+)-W\d+K-L0_\d+(?=/|$)", full_name)
    return f"Qwen/{found[-1]}" if found else ""
