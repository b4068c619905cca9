"""
From the activations of single tokens to one number for each text and feature.

Shape suffixes: B texts of a batch, N tokens, D width of the site, F features, K active features of a token.
"""

import torch
from torch import Tensor

from ..saes.frozen import FrozenSAE

_TILE_ELEMENTS = 1 << 24  # tokens × features of one dense tile: 64 MB
_TILE_ELEMENTS_ON_CPU = 1 << 20  # 4 MB: what is done to a tile finds it in the cache
_FEWEST_TOKENS = 64  # of a tile: with fewer, reading the encoder's weights takes longer than multiplying


def pool_activations(sae: FrozenSAE, residual_ND: Tensor, text_N: Tensor, num_texts: int, pool: str) -> Tensor:
    """
    Activations of all features, pooled over the tokens of each text, a tile of tokens at a time.

    Args:
        sae ([`FrozenSAE`]):
            The SAE; activations are those of its authors (after TopK, JumpReLU and the like).
        residual_ND (`torch.Tensor` of shape `(N, D)`):
            What its site holds at the tokens that count, text by text.
        text_N (`torch.Tensor` of shape `(N,)`, int64):
            Text of each token, from 0, not falling.
        num_texts (`int`):
            Number of texts.
        pool (`str`):
            `"max"`: largest activation, at least 0. `"mean"`: mean over the tokens. `"count"`: number of tokens on
            which the activation is above 0. `"last"`: activation at the last token.

    Returns:
        `torch.Tensor` of shape `(B, F)`, float32; 0 for a text without a token.
    """
    if pool == "last":
        is_last_N = _is_last(text_N)
        residual_ND, text_N = residual_ND[is_last_N], text_N[is_last_N]
    pooled_BF = residual_ND.new_zeros((num_texts, sae.num_features), dtype=torch.float32)
    elements = _TILE_ELEMENTS_ON_CPU if residual_ND.device.type == "cpu" else _TILE_ELEMENTS
    per_tile = max(_FEWEST_TOKENS, elements // sae.num_features)
    for residual, text in zip(residual_ND.split(per_tile), text_N.split(per_tile)):
        pre_NF = sae.pre_activations(residual)
        if sae.keeps_largest:
            _add_largest(pooled_BF, *sae.activate_topk(pre_NF), text, pool)
        else:
            _add_dense(pooled_BF, sae.activate(pre_NF), text, pool)
    if pool == "mean":
        num_tokens_B = torch.bincount(text_N, minlength=num_texts).clamp(min=1)
        pooled_BF /= num_tokens_B[:, None]
    return pooled_BF


def _add_largest(pooled_BF: Tensor, values_NK: Tensor, ids_NK: Tensor, text_N: Tensor, pool: str) -> None:
    places = (text_N[:, None] * pooled_BF.shape[1] + ids_NK).flatten()
    if pool == "count":
        values_NK = (values_NK > 0).to(pooled_BF.dtype)
    flat = pooled_BF.view(-1)
    if pool == "max":
        flat.scatter_reduce_(0, places, values_NK.flatten(), "amax")
    else:
        flat.scatter_add_(0, places, values_NK.flatten())


def _add_dense(pooled_BF: Tensor, acts_NF: Tensor, text_N: Tensor, pool: str) -> None:
    if pool == "count":
        acts_NF = (acts_NF > 0).to(pooled_BF.dtype)
    texts, sizes = text_N.unique_consecutive(return_counts=True)
    for text, acts in zip(texts.tolist(), acts_NF.split(sizes.tolist())):
        if pool == "max":
            torch.maximum(pooled_BF[text], acts.amax(dim=0), out=pooled_BF[text])
        else:
            pooled_BF[text] += acts.sum(dim=0)


def pool_residuals(residual_ND: Tensor, text_N: Tensor, num_texts: int, pool: str) -> Tensor:
    """What the site holds, `(B, D)`, float32: the mean over each text's tokens, or its last token's (`"last"`)."""
    pooled_BD = residual_ND.new_zeros((num_texts, residual_ND.shape[1]), dtype=torch.float32)
    if pool == "last":
        is_last_N = _is_last(text_N)
        pooled_BD[text_N[is_last_N]] = residual_ND[is_last_N].float()
        return pooled_BD
    pooled_BD.index_add_(0, text_N, residual_ND.float())
    return pooled_BD / torch.bincount(text_N, minlength=num_texts).clamp(min=1)[:, None]


def _is_last(text_N: Tensor) -> Tensor:
    """Whether each token is the last of its text."""
    is_last_N = torch.ones_like(text_N, dtype=torch.bool)
    is_last_N[:-1] = text_N[1:] != text_N[:-1]
    return is_last_N
