"""
Probability that a model gives to a set of tokens, from the hidden states that go into its LM head. Pure functions.

Shape suffixes: N positions, D residual width, V vocabulary, K tokens of the set.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..precision import without_autocast

_LOGITS_PER_TILE = 2**26  # in float32 256 MiB; a few tensors of this size live at once


def token_mass(hidden: Tensor, project: Callable[[Tensor], Tensor], ids: Tensor, *, tokens_per_tile: int) -> Tensor:
    """
    Probability of a set of tokens at each position: `p(S | h) = Σ_{v ∈ S} softmax(project(h))_v`.

    Positions are taken a tile at a time, and in the backward pass the logits of a tile are computed again, so that no
    more than one tile of them lives at once. Gradients reach the hidden states and whatever `project` trains: the
    head's weight and bias, shared with the embeddings or not, or an adapter on it. They are those of the whole
    computation. Exponents and sums are in float32, also under autocast; the product with the head's weight is in the
    type of the weight, as the model's own.

    Args:
        hidden (`torch.Tensor` of shape `(N, D)`):
            Input of the LM head.
        project (`Callable`):
            Function from `(n, D)` to the logits `(n, V)`: the head, then what the model does to its logits. Without
            dropout, since a second call has to give the same.
        ids (`torch.Tensor` of shape `(K,)`, int64):
            Ids of the tokens, without repetitions.
        tokens_per_tile (`int`):
            Positions in a tile, see [`tile_size`].

    Returns:
        `torch.Tensor` of shape `(N,)`, float32 or wider: between 0 and 1.
    """

    def mass_of_tile(tile_nD: Tensor) -> Tensor:
        with without_autocast(tile_nD.device):
            logits_nV = project(tile_nD)
            logits_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
            return (logits_nV[:, ids.to(logits_nV.device)].logsumexp(dim=-1) - logits_nV.logsumexp(dim=-1)).exp()

    tiles = hidden.split(tokens_per_tile)
    if not torch.is_grad_enabled():
        return torch.cat([mass_of_tile(tile) for tile in tiles])
    masses = [checkpoint(mass_of_tile, tile, use_reentrant=False, preserve_rng_state=False) for tile in tiles]
    return torch.cat(masses)


def tile_size(vocab_size: int) -> int:
    """Positions whose logits are held at once, for a vocabulary of this size: 67 million logits."""
    return max(1, _LOGITS_PER_TILE // vocab_size)
