"""
Loops in which a little changes each time: counters, names, numbers, lines that grow. Judged at the end of an answer.

The answer is aligned with itself, from its last token backwards: which earlier passage, a cycle before, says the
same? Tokens may differ (a counter), and cycles may differ in length (a name of two tokens for one of three). Such
approximate repeats are found in genomes in the same way (https://doi.org/10.1093/nar/27.2.573; scores and the stop as
in https://doi.org/10.1093/nar/25.17.3389).
"""

import numpy as np

MATCH, CHANGE, SHIFT = 3, -2, -2
"""Score of a token that repeats, of one that does not, and of each token by which the length of a cycle changes."""

SCORE_PER_TOKEN = 2
"""A loop of at least `min_tokens` scores this much for each of them; if all of them repeat, they score 3 each."""

BEGUN = 8
"""Tokens of the next copy that must stand there: a line break before a chorus and at its end is no fourth time."""

MAX_DROP = 24
"""How far below 0 the score may fall: 12 tokens at the end in which nothing repeats, as where a name was cut."""

WINDOW = 2048
"""Tokens at the end of the answer that are looked at."""

MAX_PERIOD = 512
"""Longest cycle in which something may change."""

_LAG_BITS = 10
_OUT = -(1 << 50)


def near_loop_at_end(ids: np.ndarray, min_periods: int, min_tokens: int) -> tuple[int, float]:
    """
    The loop at the end of a token sequence in which a little may change each time.

    A token `i` counts as repeated if it equals token `i - lag`. The lag may change from token to token, at a cost. The
    best sum of scores wins, over all beginnings, lags and changes of lag, less what `min_periods - 2` copies of a
    cycle of that length score if nothing changes. So a passage has to come more than `min_periods - 1` times, and the
    more often, the more changes in it.

    The time does not grow with the sequence: at most `WINDOW` times `MAX_PERIOD` comparisons, and few where the end
    repeats nothing. The numbers were chosen on half of real texts and made-up loops, and tried on the other half
    (`benchmarks/bench_near_loops.py`).

    Args:
        ids (`numpy.ndarray` of shape `(T,)`):
            Token ids of the answer.
        min_periods (`int`):
            The stretch goes round more than `min_periods - 1` times; 3 or more.
        min_tokens (`int`):
            The stretch is at least so long, and scores `SCORE_PER_TOKEN` for each.

    Returns:
        `tuple[int, float]`: tokens from the loop's first to the answer's last, and the share of them that repeat what
        stood a cycle before (less what `SHIFT` costs); 0 and 0.0 if there is no such loop.
    """
    num = min(len(ids), WINDOW)
    num_lags = min(MAX_PERIOD, num // (min_periods - 1))
    if num < min_tokens or not num_lags:
        return 0, 0.0
    _, numbers = np.unique(ids[len(ids) - num :], return_inverse=True)
    backwards = np.concatenate([numbers[::-1], np.full(num_lags, -1)]).astype(np.int32)  # nothing stands before

    # A state is the score of the best alignment of one lag so far and, in the low bits, the lag at which that began.
    unit = 1 << _LAG_BITS
    lags = np.arange(1, num_lags + 1)
    states = unit - 1 - lags  # of equal scores the shorter lag
    shifts = SHIFT * unit * lags
    free = MATCH * (min_periods - 2)
    best_above, best_score, num_aligned, lag = 0, 0, 0, 0
    for i in range(num - 1):
        last = states
        repeats = backwards[i + 1 : i + 1 + num_lags] == backwards[i]
        states = last + repeats * ((MATCH - CHANGE) * unit)
        # a token that the cycle before lacks: the lag of what comes earlier is one less
        np.maximum(states[:-1], last[1:] + SHIFT * unit, out=states[:-1])
        # tokens that only the cycle before has: the lag grows by as many
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
