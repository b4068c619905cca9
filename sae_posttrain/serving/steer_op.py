"""
The op that pushes: opaque to `torch.compile`, so that it stays in compiled graphs and in CUDA graphs.

It reads persistent tensors by the number of a site. Between steps their content changes, never their address. They are
kept here and not on the model, since an engine moves, saves and reloads what is registered on the model.

Legend of the shapes: T tokens of a step with padding, N tokens of the largest step, D width, K pushes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SteeredSite:
    """
    What the op reads and writes for the output of one block.

    Attributes:
        coefficients (`torch.Tensor` of shape `(N, K)`, float32):
            Coefficients of the running step, one row for each token; zero beyond its tokens. All sites of an engine
            share it.
        vectors (`torch.Tensor` of shape `(K, D)`, float32):
            What strength 1 of each push adds.
        counts (`torch.Tensor` of shape `(K,)`, int64):
            Positions that the op has pushed. It is counted here and not where the coefficients are made, because an
            op that is missing from the engine's graph must count nothing.
    """

    coefficients: Tensor
    vectors: Tensor
    counts: Tensor


SITES: dict[int, SteeredSite] = {}
"""The sites of this process, by number. A compiled graph holds the number, so equal numbers mean equal vectors."""


@torch.library.custom_op("sae_posttrain::steer_tokens", mutates_args=())
def steer_tokens(hidden: Tensor, site: int) -> Tensor:
    """
    `hidden + coefficients @ vectors`, summed in float32 and rounded once to the type of `hidden`.

    That is the arithmetic of `sae_posttrain.steer`. Rows whose coefficients are zero come back as they were.

    Args:
        hidden (`torch.Tensor` of shape `(T, D)`):
            What a block adds to the residual stream last, or the stream itself.
        site (`int`):
            Number of the site.

    Returns:
        `torch.Tensor` of shape `(T, D)`: a new tensor.
    """
    here = SITES[site]
    coefficients_TK = here.coefficients[: hidden.shape[0]]
    here.counts.add_((coefficients_TK != 0).sum(dim=0))
    return hidden + (coefficients_TK @ here.vectors).to(hidden.dtype)


@steer_tokens.register_fake
def _(hidden: Tensor, site: int) -> Tensor:
    return torch.empty_like(hidden)
