"""
Find the real tokens of a forward pass from the model's arguments. Padding is neither steered nor counted.

Legend of the shapes: B rows, T positions of the pass, K positions with those in the cache before them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PACK_LENGTHS = ("cu_seq_lens_q", "cu_seqlens", "seq_idx")

_HIDDEN = -5e3
"""Bound for additive masks: what hides a token is far below it, in any dtype; biases by distance are above it."""

_WAY_OUT = (
    "Pad with a 2-D `attention_mask` of ones and zeros, one text per row, or say yourself which positions are pushed: "
    "pass a mask of rows and positions as `positions=`."
)


def real_tokens(given: Mapping[str, Any], num_rows: int, num_tokens: int) -> Tensor | None:
    """
    Real tokens of a forward pass.

    A 2-D attention mask marks them. In a 4-D mask, a real token attends to itself and to the real token before it, and
    no token attends to padding. Without a mask, all tokens are real if the position ids count up as in one text.

    Args:
        given (`Mapping[str, Any]`):
            Arguments of the decoder by name: `attention_mask`, `position_ids`, and the lengths of packed texts.
        num_rows, num_tokens (`int`):
            Rows and positions of the pass, B and T.

    Returns:
        `torch.Tensor` of shape `(B, T)`, bool, on the mask's device; `None` if every token is real.

    Raises:
        ValueError: If several texts are in one row, or padding cannot be recognised from the mask's form.
    """
    if any(given.get(name) is not None for name in _PACK_LENGTHS):
        raise ValueError(f"Several texts are packed into one row, and each has an end of its own. {_WAY_OUT}")
    mask = given.get("attention_mask")
    if isinstance(mask, Mapping):  # one mask per kind of layer
        mask = mask["full_attention"] if "full_attention" in mask else next(iter(mask.values()), None)
    if mask is None:
        _require_one_text(given.get("position_ids"), num_tokens)
        return None
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= num_tokens:
        real = mask[:, -num_tokens:] != 0
    elif isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[3] >= num_tokens == mask.shape[2]:
        real = _attended(mask, num_tokens)
    else:
        found = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"the type {type(mask).__name__}"
        raise ValueError(
            f"Padding cannot be told from an `attention_mask` of {found} in a pass of {num_tokens} tokens. {_WAY_OUT}"
        )
    return real.expand(num_rows, num_tokens)


def last_real(real: Tensor) -> Tensor:
    """The last real position of each row, `(B, 1)`; -1 for a row without real tokens."""
    positions = torch.arange(real.shape[1], device=real.device)
    return torch.where(real, positions, -1).amax(dim=1, keepdim=True)


def _attended(mask: Tensor, num_tokens: int) -> Tensor:
    """Real tokens `(B, T)` of a 4-D mask, which holds ones for visible tokens or values added to the scores."""
    mask_BTT = mask[:, 0, :, -num_tokens:]
    attends_BTT = mask_BTT > _HIDDEN if mask.is_floating_point() else mask_BTT != 0
    shown_all_BT = attends_BTT.all(dim=-1)
    # A padding query may see everything, so that its softmax is not empty. The last query of a whole text does too.
    is_padding_BT = shown_all_BT & ~shown_all_BT.all(dim=1, keepdim=True)
    real_BT = attends_BTT.diagonal(dim1=1, dim2=2) & ~is_padding_BT
    real_BT[:, -1] |= shown_all_BT[:, -1] & real_BT[:, :-1].all(dim=1)
    latest_BT = torch.where(real_BT, torch.arange(num_tokens, device=mask.device), -1).cummax(dim=1).values
    before_BT = torch.nn.functional.pad(latest_BT[:, :-1], (1, 0), value=-1)
    sees_before_BT = attends_BTT.gather(2, before_BT.clamp(min=0)[:, :, None])[:, :, 0]
    if bool((real_BT & (before_BT >= 0) & ~sees_before_BT).any()):
        raise ValueError(
            "The 4-D `attention_mask` is not for one text per row: a token does not see the token before it. "
            f"{_WAY_OUT}"
        )
    return real_BT


def _require_one_text(position_ids: Any, num_tokens: int) -> None:
    if not isinstance(position_ids, Tensor) or position_ids.ndim != 2 or num_tokens == 1:
        return
    steps = position_ids.diff(dim=1)
    has_begun = (steps > 0).cumsum(dim=1) > 0  # padding on the left repeats the first position
    if bool((has_begun & (steps <= 0)).any()):
        raise ValueError(
            "The position ids of a row start again and there is no `attention_mask`: either several texts are packed "
            f"into the row, or it ends in padding. {_WAY_OUT}"
        )
