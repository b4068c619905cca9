"""
The auxiliary loss of SASFT: how far features rise above the level their language allows. Pure functions of tensors.

Shape suffixes: B batch, T tokens, D residual width, F features, G groups.
"""

import torch
from torch import Tensor

from ..precision import without_autocast

_TOKENS_PER_TILE = 8192


def pre_activations(residual: Tensor, encoder_rows: Tensor, encoder_bias: Tensor) -> Tensor:
    """
    Pre-activations `x · W_enc[:, s] + b_enc[s]` in float32, computed on tiles of tokens.

    One tile at a time is cast to float32, so that no float32 copy of the whole residual is needed.

    Args:
        residual (`torch.Tensor` of shape `(B, T, D)`):
            Residual stream, in any floating-point type.
        encoder_rows (`torch.Tensor` of shape `(F, D)`, float32):
            Encoder row of each feature.
        encoder_bias (`torch.Tensor` of shape `(F,)`, float32):
            Encoder bias of each feature.

    Returns:
        `torch.Tensor` of shape `(B, T, F)`, float32.
    """
    with without_autocast(residual.device):
        tiles = residual.flatten(0, 1).split(_TOKENS_PER_TILE)
        pre_NF = torch.cat([torch.addmm(encoder_bias, tile.float(), encoder_rows.T) for tile in tiles])
    return pre_NF.unflatten(0, residual.shape[:2])


def excess(pre_acts: Tensor, level: Tensor, scale: Tensor, sign: Tensor, margin: float) -> Tensor:
    """
    Height of each feature above what it may reach for free: `relu(sign · (pre_acts − level) / scale − margin)`.

    Args:
        pre_acts (`torch.Tensor` of shape `(B, T, F)`):
            SAE pre-activations of the penalised features.
        level (`torch.Tensor` of shape `(B, T, F)`):
            Mean pre-activation of the token's group, or 0 in the published variant without statistics.
        scale (`torch.Tensor` of shape `(B, T, F)`):
            Unit of the height: standard deviation of the token's group, or 1 for raw residual units.
        sign (`torch.Tensor` of shape `(F,)`):
            1 holds a feature down. −1 holds it up: the height is then the depth below the level.
        margin (`float`):
            Height that costs nothing, in the same unit.

    Returns:
        `torch.Tensor` of shape `(B, T, F)`, 0 or more.

    Raises:
        ValueError: If `level` or `scale` does not hold one value per token and feature.
    """
    for name, tensor in (("level", level), ("scale", scale)):
        if tensor.shape != pre_acts.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(tensor.shape)}, the pre-activations {tuple(pre_acts.shape)}; "
                "both hold one value per token and feature."
            )
    return torch.relu(sign * (pre_acts - level) / scale - margin)


def excess_sum(excess_BTF: Tensor, mask: Tensor) -> Tensor:
    """
    The penalty before division: sum over counted tokens of the mean over features.

    Auxiliary loss of SASFT (https://huggingface.co/papers/2507.14894). It works on pre-activations, where a level can
    be negative. The caller divides, as it divides its token loss.

    Args:
        excess_BTF (`torch.Tensor` of shape `(B, T, F)`):
            What [`excess`] returns.
        mask (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens that count: `False` on prompt, padding and the target groups.

    Returns:
        `torch.Tensor` of shape `()`; 0 if no token counts.

    Raises:
        ValueError: If `mask` does not hold one flag per token.
    """
    if mask.shape != excess_BTF.shape[:2]:
        raise ValueError(f"`mask` has shape {tuple(mask.shape)}, the tokens {tuple(excess_BTF.shape[:2])}.")
    return (excess_BTF.mean(dim=-1) * mask).sum()
