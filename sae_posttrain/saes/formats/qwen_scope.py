"""Qwen-Scope (https://huggingface.co/papers/2605.11887): TopK SAEs of block outputs, `layer{n}.sae.pt` for block n."""

import re

from ..files import SAEFiles
from ..frozen import FrozenSAE
from ..safe_files import open_tensors
from ..stored_tensor import check_tensors


def find_qwen_scope(files: SAEFiles, block: int) -> str | None:
    file = f"layer{block}.sae.pt"
    if file in files.names:
        return file
    blocks = sorted(int(found[1]) for name in files.names if (found := re.fullmatch(r"layer(\d+)\.sae\.pt", name)))
    if blocks:
        raise FileNotFoundError(
            f"{files.place} holds no SAE of block {block} ({file}); it has blocks {', '.join(map(str, blocks))}."
        )
    return None


def read_qwen_scope(
    files: SAEFiles, file: str, block: int, features: tuple[int, ...] | None, k: int | None
) -> FrozenSAE:
    """
    Read a Qwen-Scope file.

    `pre = x · W_encᵀ + b_enc`; the `k` largest are kept as they are (no ReLU, `b_dec` is not subtracted);
    `x̂ = acts · W_decᵀ + b_dec`. The file holds `W_enc` as (F, D) and `W_dec` as (D, F). `k` stands only in the name
    of the repository (`…-L0_50`).
    """
    path = files.fetch(file)
    tensors = open_tensors(path)
    check_tensors(path, tensors, {"W_enc": "FD", "W_dec": "DF", "b_enc": "F", "b_dec": "D"}, features)
    return FrozenSAE(
        W_enc=tensors["W_enc"].rows(features).float().T,
        b_enc=tensors["b_enc"].rows(features).float(),
        W_dec=tensors["W_dec"].columns(features).float().T,
        b_dec=tensors["b_dec"].read().float(),
        activation="topk",
        relu_after_topk=False,
        k=_k_in_name(files.full_name) if k is None else k,
        block=block,
        features=features,
        source=files.source(file, "qwen_scope"),
    )


def _k_in_name(full_name: str) -> int | None:
    found = re.findall(r"SAE-Res-[^/]+-W\d+K-L0_(\d+)(?=/|$)", full_name)
    return int(found[-1]) if found else None
