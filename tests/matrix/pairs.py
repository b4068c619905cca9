"""
A small set of cases that holds every allowed pair of values of two axes at least once.

Greedy, one case at a time, as in AETG (Cohen et al. 1997, https://doi.org/10.1109/32.605761): of many ways to fill the
axes in turn, the one that covers the most new pairs. `python tests/matrix/pairs.py` writes `pairs.json`.
"""

import json
import random
from pathlib import Path

from axes import AXES, Pair, all_pairs, pairs_of, reason_against

FILE = Path(__file__).with_name("pairs.json")
_TRIES = 60


def covering_set(seed: int = 0) -> list[dict[str, str]]:
    """Cases, each a value for every axis; the same ones at every call with the same seed."""
    shuffler = random.Random(seed)
    missing = {pair for pair in all_pairs() if reason_against(dict(pair)) is None}
    order = {pair: i for i, pair in enumerate(all_pairs())}
    cases = []
    while missing:
        first = min(missing, key=order.__getitem__)
        tries = [_fill(dict(first), missing, shuffler) for _ in range(_TRIES)]
        case = max((made for made in tries if made is not None), key=lambda made: len(pairs_of(made) & missing))
        cases.append({axis: case[axis] for axis in AXES})
        missing -= pairs_of(case)
    return cases


def _fill(case: dict[str, str], missing: set[Pair], shuffler: random.Random) -> dict[str, str] | None:
    """Give the other axes values, in a random order; `None` if a dead end was met."""
    axes = [axis for axis in AXES if axis not in case]
    shuffler.shuffle(axes)
    for axis in axes:
        allowed = [value for value in AXES[axis] if reason_against({**case, axis: value}) is None]
        if not allowed:
            return None
        case[axis] = max(allowed, key=lambda value: len(pairs_of({**case, axis: value}) & missing))
    return case


if __name__ == "__main__":
    FILE.write_text(json.dumps(covering_set(), indent=1) + "\n")
