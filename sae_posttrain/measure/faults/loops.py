"""
Where an answer repeats itself: endless loops, loops that ended again, and loops in which a little changes each time.

It reads token ids, so it needs no tokenizer and treats all languages alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .near_loops import BEGUN, near_loop_at_end

MIN_PERIODS = 4
"""Periods that a loop covers at least."""

MIN_TOKENS = 64
"""Tokens that a loop covers at least."""


@dataclass(frozen=True)
class Loop:
    """
    What [`find_loop`] found in one answer.

    A loop is an exact one: a stretch in which every token equals the one `period` tokens before it. A near loop is one
    in which a little changes each time.

    Attributes:
        endless (`bool`):
            The answer loops up to where it was cut: `loop_tail`, and no end token.
        loop_tail (`bool`):
            The answer's last token is in a loop.
        loop_any (`bool`):
            There is a loop somewhere; the answer may have found its way out.
        near_loop (`bool`):
            The answer was cut in a loop that is not, or not yet, an exact one of `min_periods` periods: a counter,
            a name or a number changes, lines grow, or a long passage is in its fourth copy. An exact loop earlier in
            the answer does not matter. Never of an answer that the model ended: a table, a calendar or a refrain that
            comes to its end is structure, and no tokens tell it from a loop except the end.
        onset (`int` or `None`):
            Index of the first token of the loop. Of several, the one at the end is meant, else the longest.
        period (`int` or `None`):
            Tokens after which the loop repeats: the smallest such number.
        span (`int`):
            Tokens in the loop, the first cycle among them; 0 without one.
        num_tokens (`int`):
            Tokens of the answer.
        tail_repetition (`float`):
            Share of the tokens of the loop or near loop at the answer's end that repeat what stood a cycle before,
            from 0 to 1. For an exact loop of `n` cycles it is `(n - 1) / n`. 0 if there is neither.
        near_span (`int`):
            Tokens in the near loop, the first cycle among them; 0 without one.
    """

    endless: bool
    loop_tail: bool
    loop_any: bool
    near_loop: bool
    onset: int | None
    period: int | None
    span: int
    num_tokens: int
    tail_repetition: float
    near_span: int

    @property
    def share(self) -> float:
        """Share of the answer that is in the loop, from 0 to 1."""
        return self.span / self.num_tokens if self.num_tokens else 0.0


def find_loop(
    token_ids: "Sequence[int] | np.ndarray",
    *,
    finished: bool,
    min_periods: int = MIN_PERIODS,
    min_tokens: int = MIN_TOKENS,
) -> Loop:
    """
    Find the loop of an answer, exact and of any period; of a cut answer also a loop with changes at its end.

    A stretch counts as a loop if it is at least `min_periods` periods and at least `min_tokens` tokens long. It may
    begin and end within a cycle. A near loop goes round more than `min_periods - 1` times, and its tokens repeat more
    than they change ([`near_loop_at_end`]); its cycles have up to 512 tokens, or any number if nothing changes.

    Args:
        token_ids (`Sequence[int]`):
            The answer's tokens, without the end token and without padding: one strange token behind a loop ends it.
        finished (`bool`):
            Whether the model ended the answer with an end token. `False` means that it was cut at the length limit.
        min_periods (`int`, *optional*, defaults to `4`):
            Periods that a loop covers, 3 or more: tables, choruses and quoted questions say things twice.
        min_tokens (`int`, *optional*, defaults to `64`):
            Tokens that a loop covers: four full stops are none.

    Returns:
        [`Loop`]: what kind of loop, where, and how long.

    Raises:
        ValueError: If `token_ids` is not one sequence of integers, or a minimum is too small.
    """
    if min_periods < 3 or min_tokens < 1:
        raise ValueError(
            f"A loop has `min_periods` of 3 or more and `min_tokens` of 1 or more, got {min_periods} and {min_tokens}."
        )
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"`token_ids` are the token ids of one answer, got shape {ids.shape} and type {ids.dtype}. "
            "Tokenize text first; give the answers of a batch one by one, without padding."
        )
    num_tokens = len(ids)
    tail, begun = _longest_tails(ids.tolist(), min_periods, min_tokens)
    loop = tail or _longest_run(ids, min_periods, min_tokens)
    onset, period, span = loop or (None, None, 0)
    near_span, tail_repetition = 0, 0.0
    if tail is not None:
        tail_repetition = (tail[2] - tail[1]) / tail[2]
    elif not finished:
        near_span, tail_repetition = near_loop_at_end(ids, min_periods, min_tokens)
        if begun is not None and begun[2] - begun[1] > near_span * tail_repetition:
            near_span, tail_repetition = begun[2], (begun[2] - begun[1]) / begun[2]
    return Loop(
        endless=tail is not None and not finished,
        loop_tail=tail is not None,
        loop_any=loop is not None,
        near_loop=near_span > 0,
        onset=onset,
        period=period,
        span=span,
        num_tokens=num_tokens,
        tail_repetition=tail_repetition,
        near_span=near_span,
    )


def _longest_tails(ids: list[int], min_periods: int, min_tokens: int) -> list[tuple[int, int, int] | None]:
    """
    (onset, period, span) of two loops that reach the last token, in linear time.

    The first is the longest of at least `min_periods` periods, the second the longest in which the last of these has
    begun, by `BEGUN` tokens.

    The prefix function (Knuth, Morris, Pratt) of the reversed answer: a stretch of `m` tokens whose longest proper
    border has `b` tokens has `m - b` as its smallest period.
    """
    ids = ids[::-1]
    borders = [0] * len(ids)
    border, whole, begun = 0, 0, 0
    for last in range(1, len(ids)):
        token = ids[last]
        while border and token != ids[border]:
            border = borders[border - 1]
        if token == ids[border]:
            border += 1
        borders[last] = border
        span = last + 1
        # span - BEGUN >= (min_periods - 1) * period, and the same of min_periods
        if border * (min_periods - 1) >= span * (min_periods - 2) + BEGUN:
            begun = span
        if border * min_periods >= span * (min_periods - 1):
            whole = span
    return [
        (len(ids) - span, span - borders[span - 1], span) if span >= min_tokens else None for span in (whole, begun)
    ]


def _longest_run(ids: np.ndarray, min_periods: int, min_tokens: int) -> tuple[int, int, int] | None:
    """
    (onset, period, span) of the longest loop anywhere, in O(n log² n) at worst.

    Within a loop of smallest period `p`, every window of `w >= p` tokens, but those that begin in the first cycle,
    last stood exactly `p` tokens earlier. So the loops of a period up to `w` are the stretches in which the distance
    from a window to its last occurrence stays the same. `w` doubles; windows are compared by number, equal windows
    having equal numbers. Ordinary text is done as soon as no window occurs twice.
    """
    # The shortest loop repeats so many tokens: windows above this could miss it.
    num_repeated = -(-min_tokens * (min_periods - 1) // min_periods)
    best = None
    window = 1
    _, numbers = np.unique(ids, return_inverse=True)
    while window <= len(ids) and numbers.max() + 1 < len(numbers):
        if 2 * window > num_repeated:
            distances = _distance_to_last(numbers)
            onsets = np.flatnonzero(np.diff(distances, prepend=-1))
            periods = distances[onsets]
            repeated = np.diff(onsets, append=len(distances)) + window - 1
            spans = np.where((0 < periods) & (periods <= window), repeated + periods, 0)
            spans[spans < np.maximum(min_periods * periods, min_tokens)] = 0
            longest = int(spans.argmax())
            if spans[longest] > (best[2] if best else 0):
                best = (int(onsets[longest] - periods[longest]), int(periods[longest]), int(spans[longest]))
        pairs = numbers[:-window].astype(np.int64) * len(ids) + numbers[window:]
        _, numbers = np.unique(pairs, return_inverse=True)
        window *= 2
    return best


def _distance_to_last(numbers: np.ndarray) -> np.ndarray:
    """How far back each number last stood; 0 where it stands for the first time."""
    order = np.argsort(numbers, kind="stable")
    again = np.diff(numbers[order]) == 0
    distances = np.zeros(len(numbers), dtype=np.int64)
    distances[order[1:][again]] = np.diff(order)[again]
    return distances
