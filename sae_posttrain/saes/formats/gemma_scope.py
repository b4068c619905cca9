"""Gemma Scope (https://huggingface.co/papers/2408.05147): JumpReLU SAEs of Gemma 2, `params.npz` in nested folders."""

import re

from ..files import SAEFiles
from ..frozen import FrozenSAE
from ..safe_files import open_tensors
from ..stored_tensor import check_tensors


def find_gemma_scope(files: SAEFiles, block: int) -> str | None:
    candidates = [name for name in files.names if name.rpartition("/")[2] == "params.npz"]
    if not candidates:
        return None
    blocks = {name: _block_in_name(f"{files.full_name}/{name}") for name in candidates}
    fitting = [name for name in candidates if blocks[name] == block or candidates == ["params.npz"] == [name]]
    if not fitting:
        known = sorted({found for found in blocks.values() if found is not None})
        raise FileNotFoundError(
            f"{files.place} holds no SAE of block {block}; it has {', '.join(map(str, known)) or 'none'}."
        )
    if len(fitting) > 1:
        raise ValueError(
            f"{files.place} holds {len(fitting)} SAEs of block {block}: "
            f"{', '.join(name.removesuffix('/params.npz') for name in fitting)}. Give the folder of one of them."
        )
    return fitting[0]


def read_gemma_scope(
    files: SAEFiles, file: str, block: int, features: tuple[int, ...] | None, k: int | None
) -> FrozenSAE:
    """
    Read a Gemma Scope file of a residual stream.

    `pre = x · W_enc + b_enc`; `acts = relu(pre)` where `pre > threshold`; `x̂ = acts · W_dec + b_dec`. `b_dec` is not
    subtracted from the input. The file holds `W_enc` as (D, F) and `W_dec` as (F, D). It does not say what it reads:
    that stands in the repository's name, and everything but the block's output is refused.
    """
    full_name = f"{files.full_name}/{file}"
    other_site = re.search(r"gemma-scope-[^/]*-(mlp|att|transcoders)(?=/|$)|/(embedding)/", full_name)
    if other_site:
        raise ValueError(
            f"{full_name} does not read a block's output but {other_site[1] or other_site[2]}; only the residual "
            "stream is supported (repositories gemma-scope-…-res)."
        )
    found = _block_in_name(full_name)
    if found not in (None, block):
        raise ValueError(f"{full_name} is the SAE of block {found}, asked was block {block}.")
    path = files.fetch(file)
    tensors = open_tensors(path)
    layout = {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D", "threshold": "F"}
    check_tensors(path, tensors, layout, features)
    return FrozenSAE(
        W_enc=tensors["W_enc"].columns(features).float(),
        b_enc=tensors["b_enc"].rows(features).float(),
        W_dec=tensors["W_dec"].rows(features).float(),
        b_dec=tensors["b_dec"].read().float(),
        activation="jumprelu",
        threshold=tensors["threshold"].rows(features).float(),
        k=k,
        block=block,
        features=features,
        source=files.source(file, "gemma_scope"),
    )


def _block_in_name(full_name: str) -> int | None:
    found = re.findall(r"/layer_(\d+)(?=/)", f"/{full_name}")
    return int(found[-1]) if found else None
