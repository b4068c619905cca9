"""
Where an answer repeats itself: endless loops, loops that ended again, and loops in which a little changes each time.

It reads token ids, so it needs no tokenizer and treats all languages alike.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_PERIODS = 4
"""Periods that a loop covers at least."""

MIN_TOKENS = 64
"""Tokens that a loop covers at least."""

NEAR_LIMITS: dict[int, tuple[float, float]] = {512: (0.76, 5.5), 256: (0.65, 4.1), 128: (0.60, 3.4)}
"""
The rep-4 and the zlib ratio above which the last so many tokens are a near loop.
The longest window that fits the answer counts.

Frozen: the 99.9th percentiles over 3,074, 8,784 and 21,077 windows of these lengths, rounded up to two digits. The
windows are those without an exact loop of 8,297 software-help pages in five languages, tokenized with a vocabulary of
8,192 (`benchmarks/help/loop_thresholds.py`; raw output in `results/loop_thresholds.json` beside it). The few that lie
above are people's own near loops: lists of commands in which one word changes. Other kinds of text (code, tables of
numbers) were not measured.
"""


@dataclass(frozen=True)
class Loop:
    """
    What [`find_loop`] found in one answer.

    A loop is an exact one: a stretch in which every token equals the one `period` tokens before it.

    Attributes:
        endless (`bool`):
            The answer loops up to where it was cut: `loop_tail`, and no end token.
        loop_tail (`bool`):
            The answer's last token is in a loop.
        loop_any (`bool`):
            There is a loop somewhere; the answer may have found its way out.
        near_loop (`bool`):
            There is no loop, but the end of the answer repeats more than ordinary text does (`NEAR_LIMITS`), as when
            only a counter changes. Never of an answer below 128 tokens.
        onset (`int` or `None`):
            Index of the first token of the loop. Of several, the one at the end is meant, else the longest.
        period (`int` or `None`):
            Tokens after which the loop repeats: the smallest such number.
        span (`int`):
            Tokens in the loop, the first cycle among them; 0 without one.
        num_tokens (`int`):
            Tokens of the answer.
    """

    endless: bool
    loop_tail: bool
    loop_any: bool
    near_loop: bool
    onset: int | None
    period: int | None
    span: int
    num_tokens: int

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
    Finds the loop of an answer, exact and of any period.

    A stretch counts if it is at least `min_periods` periods and at least `min_tokens` tokens long. It may begin and
    end within a cycle.

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
    tail = _longest_tail(ids.tolist(), min_periods, min_tokens)
    loop = tail or _longest_run(ids, min_periods, min_tokens)
    onset, period, span = loop or (None, None, 0)
    return Loop(
        endless=tail is not None and not finished,
        loop_tail=tail is not None,
        loop_any=loop is not None,
        near_loop=loop is None and _is_near_loop(ids),
        onset=onset,
        period=period,
        span=span,
        num_tokens=num_tokens,
    )


def repetition(token_ids: "Sequence[int] | np.ndarray") -> tuple[float, float]:
    """
    How much tokens repeat, by two measures that a change in every cycle does not fool.

    - rep-4: `1 - distinct 4-grams / 4-grams` (https://huggingface.co/papers/1908.04319).
    - zlib ratio: size over compressed size. Tokens are numbered by their first occurrence and packed into two bytes,
      so that neither the vocabulary's size nor its order matters.

    Args:
        token_ids (`Sequence[int]`):
            At most 65536 tokens. The ratio of ordinary text grows with their number.

    Returns:
        `tuple[float, float]`: rep-4, from 0 to 1, and the zlib ratio.
    """
    ids = np.asarray(token_ids).tolist()
    grams = list(zip(ids, ids[1:], ids[2:], ids[3:]))
    number: dict[int, int] = {}
    packed = np.array([number.setdefault(token, len(number)) for token in ids], dtype="<u2").tobytes()
    rep_4 = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return rep_4, len(packed) / len(zlib.compress(packed))


def _is_near_loop(ids: np.ndarray) -> bool:
    for window, (max_rep_4, max_zlib_ratio) in NEAR_LIMITS.items():
        if len(ids) >= window:
            rep_4, zlib_ratio = repetition(ids[-window:])
            return rep_4 > max_rep_4 or zlib_ratio > max_zlib_ratio
    return False


def _longest_tail(ids: list[int], min_periods: int, min_tokens: int) -> tuple[int, int, int] | None:
    """
    (onset, period, span) of the longest loop that reaches the last token, in linear time.

    The prefix function (Knuth, Morris, Pratt) of the reversed answer: a stretch of `m` tokens whose longest proper
    border has `b` tokens has `m - b` as its smallest period.
    """
    ids = ids[::-1]
    borders = [0] * len(ids)
    border, longest = 0, 0
    for last in range(1, len(ids)):
        token = ids[last]
        while border and token != ids[border]:
            border = borders[border - 1]
        if token == ids[border]:
            border += 1
        borders[last] = border
        if border * min_periods >= (last + 1) * (min_periods - 1):  # span >= min_periods * period
            longest = last + 1
    if longest < min_tokens:
        return None
    return len(ids) - longest, longest - borders[longest - 1], longest


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
