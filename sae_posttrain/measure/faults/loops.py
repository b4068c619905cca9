"""
Find where an answer repeats itself: endless loops, loops that ended, and loops in which a little changes each time.

The search reads token ids, so it needs no tokenizer and treats all languages equally.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .near_loops import BEGUN, near_loop_at_end

MIN_PERIODS = 4
"""Smallest number of periods in a loop."""

MIN_TOKENS = 64
"""Smallest number of tokens in a loop."""


@dataclass(frozen=True)
class Loop:
    """
    What [`find_loop`] found in one answer.

    In an exact loop, every token equals the token `period` places before it. In a near loop, a little changes each
    time.

    Attributes:
        endless: The answer loops until it was cut: `loop_tail` without an end token.
        loop_tail: The answer's last token is in a loop.
        loop_any: There is a loop somewhere in the answer; it may have ended.
        near_loop: The answer was cut in a loop that is not (or not yet) an exact loop of `min_periods` periods: a
            counter, a name or a number changes, lines grow, or a long passage is in its fourth copy. An exact loop
            earlier in the answer does not matter. It is `False` if the model ended the answer: a table, a calendar or
            a refrain looks like a loop, and only its end shows that it is intended.
        onset: Index of the first token of the loop. If there are several loops, it is the one at the end, else the
            longest.
        period: Smallest number of tokens after which the loop repeats.
        span: Number of tokens in the loop, including the first cycle; 0 without a loop.
        num_tokens: Number of tokens in the answer.
        tail_repetition: Share of tokens in the loop or near loop at the answer's end that repeat the previous cycle,
            from 0 to 1. For an exact loop of `n` cycles it is `(n - 1) / n`. It is 0 if there is neither.
        near_span: Number of tokens in the near loop, including the first cycle; 0 without a near loop.
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
    Find the exact loop of an answer, of any period. In a cut answer, also find a near loop at its end.

    A part of the answer is a loop if it is at least `min_periods` periods and at least `min_tokens` tokens long. It
    may begin and end within a cycle. A near loop has more than `min_periods - 1` cycles, and more of its tokens repeat
    than change ([`near_loop_at_end`]). Its cycles have up to 512 tokens, or any number if nothing changes.

    Args:
        token_ids (`Sequence[int]`):
            The answer's tokens, without end token and padding, because one other token after a loop ends the loop.
        finished (`bool`):
            Whether the model ended the answer with an end token. `False` means that it was cut at the length limit.
        min_periods (`int`, *optional*, defaults to `4`):
            Smallest number of periods in a loop, 3 or more: tables, choruses and quoted questions say things twice.
        min_tokens (`int`, *optional*, defaults to `64`):
            Smallest number of tokens in a loop, so that four full stops are not a loop.

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

    The first is the longest with at least `min_periods` periods. The second is the longest whose last required period
    has begun, with at least `BEGUN` tokens.

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
        # span - BEGUN >= (min_periods - 1) * period, and the same for min_periods
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

    In a loop with smallest period `p`, take a window of `w >= p` tokens that does not begin in the first cycle. Its
    last occurrence is exactly `p` tokens earlier. So the loops with a period up to `w` are the parts in which the
    distance from a window to its last occurrence is constant. `w` doubles in each round. Windows are compared by
    number; equal windows have equal numbers. In ordinary text, the search ends as soon as no window occurs twice.
    """
    # The shortest loop repeats this many tokens, so larger windows could miss it.
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
    """Distance from each number to its last occurrence; 0 at the first occurrence."""
    order = np.argsort(numbers, kind="stable")
    again = np.diff(numbers[order]) == 0
    distances = np.zeros(len(numbers), dtype=np.int64)
    distances[order[1:][again]] = np.diff(order)[again]
    return distances
