"""
Find loops at the end of an answer in which a little changes each time: counters, names, numbers, lines that grow.

The answer is aligned with itself, from its last token backwards, to find the passage one cycle earlier that says the
same. Tokens may differ (a counter), and cycles may differ in length (a name of two tokens instead of three).
Approximate repeats in genomes are found in the same way (https://doi.org/10.1093/nar/27.2.573; scores and the stopping
rule are as in https://doi.org/10.1093/nar/25.17.3389).
"""

import numpy as np

MATCH, CHANGE, SHIFT = 3, -2, -2
"""Scores of a token that repeats, of a token that does not, and of each token by which a cycle's length changes."""

SCORE_PER_TOKEN = 2
"""A loop must score at least this much for each of its `min_tokens` tokens. If all repeat, each scores 3."""

BEGUN = 8
"""Tokens of the next copy that must be present. A line break before and after a chorus is not a fourth copy."""

MAX_DROP = 24
"""How far below 0 the score may fall: 12 tokens at the end that do not repeat, for example if a name was cut."""

WINDOW = 2048
"""Number of tokens at the end of the answer that are searched."""

MAX_PERIOD = 512
"""Longest cycle in which something may change."""

_LAG_BITS = 10
_OUT = -(1 << 50)


def near_loop_at_end(ids: np.ndarray, min_periods: int, min_tokens: int) -> tuple[int, float]:
    """
    Find the loop at the end of the token ids `(T,)` of an answer in which a little may change each time.

    A token `i` counts as repeated if it equals token `i - lag`. The lag may change from token to token, at a cost. The
    best sum of scores wins, over all beginnings, lags and changes of lag. The score of `min_periods - 2` unchanged
    copies of a cycle is subtracted. So a passage must occur more than `min_periods - 1` times (3 or more), and more
    often if more of it changes. The loop scores at least `SCORE_PER_TOKEN` for each of `min_tokens`.

    The time does not grow with the sequence: it takes at most `WINDOW` times `MAX_PERIOD` comparisons, and few if the
    end repeats nothing. The constants were chosen on one half of a set of real texts and made-up loops, and tested on
    the other half (`benchmarks/bench_near_loops.py`).

    Returns the number of tokens from the beginning of the loop to the end of the answer, and the share of them that
    repeat the previous cycle (minus the cost of `SHIFT`); 0 and 0.0 if there is no such loop.
    """
    num = min(len(ids), WINDOW)
    num_lags = min(MAX_PERIOD, num // (min_periods - 1))
    if num < min_tokens or not num_lags:
        return 0, 0.0
    _, numbers = np.unique(ids[len(ids) - num :], return_inverse=True)
    backwards = np.concatenate([numbers[::-1], np.full(num_lags, -1)]).astype(np.int32)  # no tokens before the first

    # A state is the score of a lag's best alignment so far and, in the low bits, the lag with which it began.
    unit = 1 << _LAG_BITS
    lags = np.arange(1, num_lags + 1)
    states = unit - 1 - lags  # at equal scores, the shorter lag wins
    shifts = SHIFT * unit * lags
    free = MATCH * (min_periods - 2)
    best_above, best_score, num_aligned, lag = 0, 0, 0, 0
    for i in range(num - 1):
        last = states
        repeats = backwards[i + 1 : i + 1 + num_lags] == backwards[i]
        states = last + repeats * ((MATCH - CHANGE) * unit)
        # a token that the previous cycle does not have: earlier tokens have a lag that is smaller by one
        np.maximum(states[:-1], last[1:] + SHIFT * unit, out=states[:-1])
        # tokens that only the previous cycle has: the lag grows by their number
        states -= shifts
        np.maximum.accumulate(states, out=states)
        states += CHANGE * unit + shifts
        scores = states >> _LAG_BITS
        top = scores.max()
        if top < -MAX_DROP:
            break
        if top - free > best_above:
            above = scores - free * np.maximum(lags, unit - 1 - (states & (unit - 1)))
            highest = int(above.argmax())
            if above[highest] > best_above:
                best_above, best_score = int(above[highest]), int(scores[highest])
                num_aligned, lag = i + 1, highest + 1
        np.putmask(states, scores < -MAX_DROP, _OUT)
    span = num_aligned + lag
    if best_above < MATCH * BEGUN or best_score < SCORE_PER_TOKEN * min_tokens or span < min_tokens:
        return 0, 0.0
    return span, (best_score - CHANGE * num_aligned) / (MATCH - CHANGE) / span
