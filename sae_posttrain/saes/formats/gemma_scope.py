"""Gemma Scope (https://huggingface.co/papers/2408.05147): JumpReLU SAEs of Gemma 2, `params.npz` in nested folders."""

import re

from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import check_tensors
from .checks import refuse_input_scale
from .weights import Names, origin, read_weights

SITES = {"res": "resid_post", "att": "attn_z", "mlp": "mlp_out"}
"""Site of each kind of repository, for example `gemma-scope-2b-pt-res`."""

NAMES = Names("W_enc", "DF", "b_enc", "W_dec", "FD", "b_dec")


def list_gemma_scope(files: SAEFiles) -> list[SAEFile]:
    listed = []
    for name in files.names:
        if name.rpartition("/")[2] == "params.npz":
            full_name = f"/{files.full_name}/{name}"
            block = re.findall(r"/layer_(\d+)(?=/)", full_name)
            kind = re.findall(r"/gemma-scope-[^/]*-(res|att|mlp)(?=/)", full_name)
            listed.append(SAEFile(name, int(block[-1]) if block else None, SITES[kind[-1]] if kind else None))
    return listed


def read_gemma_scope(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a Gemma Scope file.

    `pre = x · W_enc + b_enc`; `acts = relu(pre)` where `pre > threshold`; `x̂ = acts · W_dec + b_dec`. `b_dec` is not
    subtracted from the input. The file holds `W_enc` as (D, F) and `W_dec` as (F, D). Only the repository's name says
    what the SAE reads: `att` is the concatenated heads, the input of the output projection; `mlp` is the output of
    Gemma's norm after the MLP.
    """
    full_name = f"{files.full_name}/{found.file}"
    other = re.search(r"gemma-scope-[^/]*-(transcoders)(?=/|$)|/(embedding)/", full_name)
    if other:
        raise ValueError(
            f"{full_name} is of the kind {other[1] or other[2]}: it does not read and write one site of a block. Use "
            "a repository gemma-scope-…-res, -att or -mlp."
        )
    refuse_input_scale(wanted, found.file)
    tensors = files.tensors(found.file, part=wanted.features is not None)
    check_tensors(found.file, tensors, NAMES.layout | {"threshold": "F"}, wanted.features)
    return FrozenSAE(
        **read_weights(tensors, NAMES, wanted),
        activation="jumprelu",
        threshold=wanted.vector(tensors["threshold"]),
        k=wanted.k,
        base_model=_model_in_name(files.full_name),
        **origin(files, found, wanted, "gemma_scope"),
    )


def _model_in_name(full_name: str) -> str:
    found = re.findall(r"/gemma-scope-(\d+b)-(pt|it)-", f"/{full_name}")
    if not found:
        return ""
    size, kind = found[-1]
    return f"google/gemma-2-{size}" + ("-it" if kind == "it" else "")
