"""Which tokens of a continuation repeat, and what their probability costs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...measure.faults.loops import find_loop

_SMALLEST_REST = 1e-6


def repeated_ngram_mask(token_ids: Sequence[int], n: int = 4) -> list[bool]:
    """
    Tokens that belong to an n-gram which began earlier in the same sequence (Welleck et al. 2019, equation 7).

    All n-grams count; the code of the paper leaves out the last one. Give the continuation alone, without padding and
    end token: what is copied from the prompt is no repetition.
    """
    if n < 1:
        raise ValueError(f"An n-gram has 1 token or more, got `n={n}`.")
    ids = list(token_ids)
    mask = [False] * len(ids)
    seen: set[tuple[int, ...]] = set()
    for start in range(len(ids) - n + 1):
        ngram = tuple(ids[start : start + n])
        if ngram in seen:
            mask[start : start + n] = [True] * n
        seen.add(ngram)
    return mask


def loop_mask(token_ids: Sequence[int], *, finished: bool) -> list[bool]:
    """
    Tokens of the loop that [`find_loop`] finds in a continuation, from its second cycle on: the first one says nothing
    twice. `finished`: it ended with an end token.
    """
    loop = find_loop(token_ids, finished=finished)
    if loop.onset is None or loop.period is None:
        return [False] * loop.num_tokens
    repeated = range(loop.onset + loop.period, loop.onset + loop.span)
    return [position in repeated for position in range(loop.num_tokens)]


def log_one_minus(log_probs: Tensor) -> Tensor:
    """
    `log(1 - p)` from `log p` in float32, with a gradient that never breaks off: it is bounded as if `1 - p` were at
    least 1e-6.

    In a loop `p` comes so close to 1 that `1 - p` is 0 in float32. Clamped there, as in the code of the paper, the
    worst tokens would have no gradient at all.
    """
    excess = (log_probs + _SMALLEST_REST).clamp(min=0).detach()
    return torch.log(-torch.expm1(log_probs - excess))
