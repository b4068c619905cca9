"""
What share of a data set's features a part of it covers, and how far its examples repeat each other.

Qwen-Scope, section 4 (https://huggingface.co/papers/2605.11887): `F(x)` are the features that fire on example `x`,
`F(D)` those of a set. Shape suffixes: N examples, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from ..hooks.sites import Place
from ..tables import align
from .scipy_sparse import scipy_sparse
from .text_activations import TextActivations

_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class SetCoverage:
    """
    Coverage of one set of examples by its random subsets.

    Attributes:
        num_examples, num_features (`int`):
            `N`, and `|F(D)|`, the features that fire on one of them.
        sizes (`tuple[int, ...]`), shares (`tuple[float, ...]`):
            The curve: `c_n`, the expected share of `F(D)` that a random subset of `n` examples covers.
        mean_share (`float`):
            Mean of `c_n` over all n, from 0 to 1: near 1 if a few examples cover what all do. It does not hold
            `N / |F(D)|`, so it is the redundancy that sets of different sizes can be compared by, roughly.
        redundancy (`float`):
            `R̂ = Σ c_n / |F(D)|`, as published. It is `mean_share · N / |F(D)|`, so that size alone moves it.
        equal_size (`int`):
            Size at which all sets of one call are compared: that of the smallest.
        mean_share_at_equal_size, redundancy_at_equal_size (`float`):
            The same two of a random subset of this size: sums of expected features over the expected number of
            features of the subset (a ratio of expectations).
    """

    num_examples: int
    num_features: int
    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    mean_share: float
    redundancy: float
    equal_size: int
    mean_share_at_equal_size: float
    redundancy_at_equal_size: float

    @property
    def cells(self) -> list[str]:
        """The figures as tables show them."""
        return [
            f"{self.num_examples:,}",
            f"{self.num_features:,}",
            f"{self.redundancy:.4f}",
            f"{self.mean_share:.3f}",
            f"{self.redundancy_at_equal_size:.4f}",
            f"{self.mean_share_at_equal_size:.3f}",
        ]


@dataclass(frozen=True)
class Coverage:
    """
    What [`coverage`] measured. `str(coverage)` is a table.

    Attributes:
        sets (`dict[str, SetCoverage]`):
            By name.
        untouched (`tuple[int, ...]`):
            Features, by their number in the SAE, that fire on no example of any set.
        num_features (`int`):
            Features of the SAE that were read.
    """

    sets: dict[str, SetCoverage]
    untouched: tuple[int, ...]
    num_features: int

    def __str__(self) -> str:
        rows = [["set", "examples", "features", "R̂", "mean c_n", "R̂ at equal N", "mean c_n at equal N"]]
        rows += [[name, *each.cells] for name, each in self.sets.items()]
        equal = next(iter(self.sets.values())).equal_size
        never = f"{len(self.untouched):,} of {self.num_features:,} features fire in no set. Equal N: {equal} examples."
        return "\n".join([*align(rows, 1), never])


def coverage(
    activations: TextActivations | dict[str, TextActivations],
    place: Place | int | None = None,
    *,
    num_points: int = 200,
) -> Coverage:
    """
    The expected coverage curve and the redundancy of each set, exactly: nothing is sampled.

    A feature that fires on `m` of `N` examples is missed by a random subset of `n` with probability
    `C(N − m, n) / C(N, n)`. So `c_n = 1 − mean over features of C(N − m, n) / C(N, n)`, and since
    `Σ_{n = 0}^{N} C(N − m, n) / C(N, n) = (N + 1) / (m + 1)`, the sum over n needs no curve.

    ```python
    read = read_activations(model, sae, rows, pool="last", text_options=TextOptions(group_column="task"))
    print(coverage(read))
    ```

    Args:
        activations ([`TextActivations`] or `dict[str, TextActivations]`):
            Examples whose groups are the sets, or the sets by name. `pool="last"` gives the published `F(x)`, that of
            the last token; `"max"` that of all tokens.
        place (`Place` or `int`, *optional*):
            Which block, where several were read.
        num_points (`int`, *optional*, defaults to `200`):
            Most points of a curve; sums are over all n whatever it is.

    Returns:
        [`Coverage`].

    Raises:
        ValueError: If a set is empty or fires no feature, or the place is not clear.
    """
    incidence = incidences(activations, place)
    counts = {name: fired.sum(axis=0) for name, fired in incidence.items()}
    smallest = min(fired.shape[0] for fired in incidence.values())
    sets = {}
    for name, fired in incidence.items():
        num, count_F = fired.shape[0], np.asarray(counts[name]).ravel().astype(np.int64)
        count_F = count_F[count_F > 0]
        if not len(count_F):
            raise ValueError(f"No feature fires on the set {name!r}. Read other tokens or another block.")
        sizes = np.unique(np.linspace(1, num, min(num, num_points)).round().astype(np.int64))
        published = _sum_of_curve(count_F, num)
        expected = len(count_F) * coverage_curve(count_F, num, np.arange(1, smallest + 1))
        sets[name] = SetCoverage(
            num_examples=num,
            num_features=len(count_F),
            sizes=tuple(sizes.tolist()),
            shares=tuple(coverage_curve(count_F, num, sizes).tolist()),
            mean_share=published / num,
            redundancy=published / len(count_F),
            equal_size=smallest,
            mean_share_at_equal_size=float(expected.sum() / (smallest * expected[-1])),
            redundancy_at_equal_size=float(expected.sum() / expected[-1] ** 2),
        )
    touched = sum(np.asarray(each).ravel() for each in counts.values()) > 0
    ids = _feature_ids(activations, place)
    return Coverage(sets, tuple(ids[~touched].tolist()), len(ids))


def redundancy(
    activations: TextActivations | dict[str, TextActivations], place: Place | int | None = None
) -> dict[str, float]:
    """
    `R̂` of each set as published, by name: how far its examples repeat each other. See [`coverage`], whose table also
    has the two values that do not hold the size of the set.
    """
    return {name: each.redundancy for name, each in coverage(activations, place, num_points=1).sets.items()}


def coverage_curve(counts: np.ndarray, num_examples: int, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """
    Expected share of features that a random subset covers, for each size of the subset.

    Args:
        counts (`numpy.ndarray` of shape `(F,)`, int):
            Number of examples on which each feature fires, 1 or more.
        num_examples (`int`):
            `N`.
        sizes (`Sequence[int]`):
            Sizes `n` of the subset, from 0 to `N`.

    Returns:
        `numpy.ndarray` of the shape of `sizes`: `c_n`, from 0 to 1.
    """
    values, times = np.unique(np.asarray(counts), return_counts=True)
    weight, sizes = times / times.sum(), np.asarray(sizes)
    missed = np.zeros(len(sizes))
    chunk = max(1, _CHUNK_ELEMENTS // max(1, len(sizes)))
    for start in range(0, len(values), chunk):
        m, n = values[start : start + chunk, None], sizes[None]
        possible = n <= num_examples - m
        rest = np.where(possible, num_examples - m - n, 0)
        log_share = (
            gammaln(num_examples - m + 1)
            - gammaln(rest + 1)
            - gammaln(num_examples + 1)
            + gammaln(num_examples - n + 1)
        )
        missed += weight[start : start + chunk] @ np.where(possible, np.exp(log_share), 0.0)
    return 1 - missed


def incidences(
    activations: TextActivations | dict[str, TextActivations], place: Place | int | None = None
) -> dict[str, Any]:
    """
    Which features fire on which examples, by set: sparse, `(N, F)`, int32, 1 where one does.

    Raises:
        ValueError: If there are no sets, one is empty, or they are of different SAEs.
    """
    if not isinstance(activations, dict):
        groups = np.array(activations.groups)
        fired = activations.fires(place)
        held = {name: fired[np.flatnonzero(groups == name)] for name in sorted(set(activations.groups))}
    else:
        held = {name: each.fires(place) for name, each in activations.items()}
    if not held:
        raise ValueError("There are no sets of examples. Give activations of some texts.")
    for name, fired in held.items():
        if not fired.shape[0]:
            raise ValueError(f"The set {name!r} has no examples. Leave it out.")
    if len({fired.shape[1] for fired in held.values()}) > 1:
        raise ValueError("The sets were read with different SAEs. Read all with one.")
    return {name: scipy_sparse().csr_array(fired, dtype=np.int32) for name, fired in held.items()}


def _feature_ids(activations: Any, place: Place | int | None) -> np.ndarray:
    one = next(iter(activations.values())) if isinstance(activations, dict) else activations
    return one.feature_ids[one.find_place(place)]


def _sum_of_curve(counts: np.ndarray, num_examples: int) -> float:
    """`Σ_{n = 1}^{N} c_n`, in closed form."""
    return float(num_examples - ((num_examples + 1) / (counts + 1) - 1).mean())
