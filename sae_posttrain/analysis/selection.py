"""[`select`]: the few examples that cover most features, for a smaller evaluation or a smaller training set."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hooks.sites import Place
from .scipy_sparse import scipy_sparse
from .text_activations import TextActivations

BOUND = 1 - 1 / np.e
"""No other choice of as many examples covers more than the greedy one divided by this (Nemhauser et al. 1978)."""


@dataclass(frozen=True, eq=False)
class Selection:
    """
    What [`select`] chose.

    Attributes:
        rows (`numpy.ndarray` of shape `(n,)`, int64):
            Numbers of the examples, the one that covers most first.
        covered (`numpy.ndarray` of shape `(n,)`):
            Share of all features that fire, or of their weight, that the examples up to each one cover.
        expected (`float`):
            The share that as many random examples cover on average.
        bound (`float`):
            Largest share that any choice of as many examples can cover: from `1 − 1/e`, and from the gains that are
            left, whichever is lower.
    """

    rows: np.ndarray
    covered: np.ndarray
    expected: float
    bound: float

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return (
            f"{len(self)} examples cover {self.covered[-1]:.1%} of what all do; as many random ones "
            f"{self.expected:.1%} on average, and no choice more than {self.bound:.1%}."
        )


def select(
    activations: TextActivations,
    n: int,
    place: Place | int | None = None,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Selection:
    """
    The examples that together fire most features, by lazy greedy choice.

    Each step takes the example that adds most to what is covered. Coverage is submodular, so the result covers at
    least `1 − 1/e` (63 %) of what the best choice of as many covers (Nemhauser, Wolsey and Fisher 1978); gains only
    shrink, so most need not be computed again (Minoux 1978). Once everything is covered, the rest is chosen to cover
    it once more.

    ```python
    chosen = select(read, n=len(read) // 10)
    small = dataset.select(chosen.rows)
    ```

    Args:
        activations ([`TextActivations`]):
            The examples.
        n (`int`):
            How many to choose.
        place (`Place` or `int`, *optional*):
            Which block, where several were read.
        weights (`Sequence[float]` of length F, *optional*):
            What covering each feature is worth, 0 or more; all the same by default.

    Returns:
        [`Selection`].

    Raises:
        ValueError: If `n` is not from 1 to the number of examples, no feature fires, or weights do not fit.
    """
    fired = scipy_sparse().csr_array(activations.fires(place))
    num, num_features = fired.shape
    if not 1 <= n <= num:
        raise ValueError(f"`n` must be from 1 to the number of examples, {num}; got {n}.")
    weight_F = np.ones(num_features) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight_F.shape != (num_features,) or not np.isfinite(weight_F).all() or (weight_F < 0).any():
        raise ValueError(
            f"`weights` holds one number of 0 or more for each of {num_features} features, got shape {weight_F.shape}."
        )
    count_F = np.asarray(fired.sum(axis=0)).ravel()
    total = float(weight_F[count_F > 0].sum())
    if not total > 0:
        raise ValueError("No feature that counts fires on these examples, so that there is nothing to cover.")
    rows, covered, left = _greedy(fired, n, weight_F)
    shares = np.array(covered) / total
    bound = min(1.0, shares[-1] / BOUND, shares[-1] + left / total)
    return Selection(np.array(rows, dtype=np.int64), shares, _expected(count_F, weight_F, num, n, total), bound)


def _greedy(fired: Any, n: int, weight_F: np.ndarray) -> tuple[list[int], list[float], float]:
    """The examples, what is covered after each, and the sum of the `n` largest gains that are left."""
    starts, ids = fired.indptr, fired.indices
    of_row = [ids[starts[i] : starts[i + 1]] for i in range(fired.shape[0])]
    is_left = weight_F.copy()
    queue = [(-float(weight_F[features].sum()), i) for i, features in enumerate(of_row)]
    heapq.heapify(queue)
    rows: list[int] = []
    covered: list[float] = []
    done, again = 0.0, False
    while len(rows) < n:
        _, i = heapq.heappop(queue)
        gain = float(is_left[of_row[i]].sum())
        if queue and -gain > queue[0][0]:
            heapq.heappush(queue, (-gain, i))
            continue
        if gain == 0 and is_left is not weight_F and (is_left != weight_F).any():
            is_left, again = weight_F.copy(), True  # all is covered: cover it once more
            queue = [(-float(weight_F[of_row[j]].sum()), j) for _, j in [*queue, (0.0, i)]]
            heapq.heapify(queue)
            continue
        rows.append(i)
        done += 0.0 if again else gain
        covered.append(done)
        is_left[of_row[i]] = 0
    left = 0.0 if again else sum(sorted((float(is_left[of_row[j]].sum()) for _, j in queue), reverse=True)[:n])
    return rows, covered, left


def _expected(count_F: np.ndarray, weight_F: np.ndarray, num: int, n: int, total: float) -> float:
    from .covered import coverage_curve

    touched = np.flatnonzero(count_F)
    values = np.unique(count_F[touched])
    share = {int(m): float(coverage_curve(np.array([m]), num, [n])[0]) for m in values}
    return float(sum(weight_F[f] * share[int(count_F[f])] for f in touched) / total)
