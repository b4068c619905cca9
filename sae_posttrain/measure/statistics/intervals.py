"""
Intervals for one rate, for the difference of two rates measured on the same prompts, and for the mean over training
seeds.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np


@dataclass(frozen=True)
class PairedDifference:
    """
    Difference of two rates over the same items.

    Attributes:
        difference: Rate after minus rate before, from -1 to 1; negative if it went down.
        p_value: Two-sided p-value of the exact McNemar test; `None` if the items are clustered, because the test is
            not valid then.
        num_clusters: Number of groups of pairs that were resampled together; equal to `n` if not clustered.
    """

    difference: float
    low: float
    high: float
    p_value: float | None
    n: int
    num_clusters: int


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson score interval of a rate of `n` independent items, without continuity correction. It is also valid for rare
    events and for no events: 0 of 300 gives 0 to 1.26 %.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"A rate needs 0 <= `successes` <= `n` and `n` >= 1, got {successes} of {n}.")
    z2 = _normal_quantile(confidence) ** 2
    rate = successes / n
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half_width = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * n)) / n) / (1 + z2 / n)
    low = 0.0 if successes == 0 else max(0.0, middle - half_width)
    high = 1.0 if successes == n else min(1.0, middle + half_width)
    return low, high


def mcnemar(b: int, c: int) -> float:
    """
    Exact two-sided McNemar test of whether two models differ, judged on the same items: `b` only the first fails, `c`
    only the second.

    The p-value is `min(1, 2 P(X <= min(b, c)))`, where `X` is binomial with `b + c` trials and probability 1/2. Items
    on which the models agree do not count.
    """
    if b < 0 or c < 0:
        raise ValueError(f"The counts of a McNemar test are 0 or more, got {b} and {c}.")
    n = b + c
    ways, tail = 1, 1
    for k in range(min(b, c)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)  # integers of any size: exact until this division


def paired_difference(
    before: Sequence[bool],
    after: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """
    Difference of two rates over the same items, `after` minus `before`, with a percentile bootstrap interval.

    Several answers to one prompt are not independent. Give their prompts as `clusters`, and whole prompts are
    resampled (https://huggingface.co/papers/2411.00640). By default, each item is its own cluster. If all clusters
    have the same difference, usually because no item changed, the bootstrap sees no spread. The interval is then the
    difference ± the upper Wilson bound of 0 out of the number of clusters.
    """
    if not len(before) == len(after) or (clusters is not None and len(clusters) != len(before)):
        raise ValueError(
            f"Pairs need the same items in the same order, got {len(before)} before, {len(after)} after"
            + (f" and {len(clusters)} clusters." if clusters is not None else ".")
        )
    if len(before) == 0:
        raise ValueError("A difference of rates needs at least one pair, got none.")
    before_N, after_N = np.asarray(before), np.asarray(after)
    if not np.isin(before_N, (0, 1)).all() or not np.isin(after_N, (0, 1)).all():
        raise ValueError("`before` and `after` say of each item whether it has the property: only true/false or 1/0.")
    change_N = after_N.astype(int) - before_N.astype(int)

    sums: dict[Hashable, list[int]] = {}
    for cluster, change in zip(clusters if clusters is not None else range(len(change_N)), change_N.tolist()):
        total = sums.setdefault(cluster, [0, 0])
        total[0] += change
        total[1] += 1
    # Clusters of equal sum and size are interchangeable, so a resample only draws how often each kind occurs.
    kinds, num_of_kind = np.unique(np.array(list(sums.values())), axis=0, return_counts=True)
    num_clusters = len(sums)
    difference = float(change_N.mean())

    if len(np.unique(kinds[:, 0] / kinds[:, 1])) == 1:
        margin = wilson(0, num_clusters, confidence)[1]
        low, high = max(-1.0, difference - margin), min(1.0, difference + margin)
    else:
        draws = np.random.default_rng(seed).multinomial(num_clusters, num_of_kind / num_clusters, size=num_resamples)
        differences = (draws @ kinds[:, 0]) / (draws @ kinds[:, 1])
        tail = (1 - confidence) / 2
        low, high = (float(bound) for bound in np.quantile(differences, [tail, 1 - tail]))

    p_value = None
    if clusters is None:
        p_value = mcnemar(int((change_N == -1).sum()), int((change_N == 1).sum()))
    return PairedDifference(difference, low, high, p_value, len(change_N), num_clusters)


def unpaired_difference(
    before: tuple[int, int], after: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float]:
    """
    Interval of `after` minus `before`, two rates that are not paired, given as (items that have the property, all
    items); from their Wilson intervals (Newcombe 1998, method 10,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C873::AID-SIM779%3E3.0.CO;2-I).

    If two models answered the same questions and mostly fail on the same ones, this interval is too wide rather than
    too narrow. If the single answers are known, [`paired_difference`] is better.
    """
    (low_before, high_before), (low_after, high_after) = (wilson(*each, confidence) for each in (before, after))
    rate_before, rate_after = before[0] / before[1], after[0] / after[1]
    difference = rate_after - rate_before
    return (
        difference - math.hypot(rate_after - low_after, high_before - rate_before),
        difference + math.hypot(high_after - rate_after, rate_before - low_before),
    )


def seed_interval(estimates: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """
    Student's t interval of the mean of estimates, one for each training seed: `mean ± t(n - 1) * sd / sqrt(n)`.

    Each seed counts as one observation, so the interval is valid for seeds that were not run, even with few seeds:
    with 3 seeds the factor is 4.30 instead of 1.96. It is valid only for the prompts of this run, not for other
    prompts. For a comparison, give the difference of the two arms for each seed. That is also valid if both arms share
    a seed's data order. Estimates are taken as normally distributed over seeds.
    """
    n = len(estimates)
    if n < 2:
        raise ValueError(f"An interval over seeds needs two seeds or more, got {n}; report three or more.")
    if not all(math.isfinite(estimate) for estimate in estimates):
        raise ValueError(f"An interval over seeds needs one finite number for each seed, got {list(estimates)}.")
    if len(set(estimates)) == 1:
        raise ValueError(
            f"All {n} seeds gave {estimates[0]}, which says nothing about their spread. Use the interval over prompts."
        )
    half_width = t_quantile(confidence, n - 1) * stdev(estimates) / math.sqrt(n)
    mean = fmean(estimates)
    return mean - half_width, mean + half_width


def t_quantile(confidence: float, degrees: int) -> float:
    """
    The `t` for which Student's distribution has probability `confidence` between `-t` and `t`: 0.95 gives the 97.5 %
    quantile.

    It inverts the finite series for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4) by
    bisection of the angle `atan(t / sqrt(degrees))`.
    """
    require_confidence(confidence)
    if degrees < 1:
        raise ValueError(f"Student's distribution has 1 degree of freedom or more, got {degrees}.")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _t_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def require_confidence(confidence: float) -> None:
    """Refuse a coverage that is not between 0 and 1 (`ValueError`), such as 95 for 95 %."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is between 0 and 1, got {confidence}; 0.95 is usual.")


def _t_probability(angle: float, degrees: int) -> float:
    """Probability between `-t` and `t`, where `t = sqrt(degrees) * tan(angle)`."""
    odd = degrees % 2
    cosine = math.cos(angle)
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(degrees // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _normal_quantile(confidence: float) -> float:
    require_confidence(confidence)
    return NormalDist().inv_cdf((1 + confidence) / 2)
