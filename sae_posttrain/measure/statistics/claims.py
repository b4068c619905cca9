"""What may be claimed: that an ability was kept within a margin, and which of several tests hold together."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .resampling import ResampledEstimate, Row, bootstrap_difference


@dataclass(frozen=True)
class NonInferiority:
    """
    Whether an ability was kept.

    Attributes:
        difference ([`~sae_posttrain.measure.statistics.resampling.ResampledEstimate`]):
            After minus before, with its interval, and the difference for each training seed.
        margin (`float`):
            The largest acceptable loss, declared before the run.
        verdict (`str`):
            `"non-inferior"`: the whole interval lies above `-margin`. `"inferior"`: it lies below. `"undecided"`:
            neither.
        prompts_needed (`int` or `None`):
            If undecided, about how many prompts would decide at the same difference, if trainings agree. Differences
            between trainings shrink only with more seeds, not with more prompts. `None` if decided, or if the
            difference is exactly `-margin`.
    """

    difference: ResampledEstimate
    margin: float
    verdict: str
    prompts_needed: int | None

    def __str__(self) -> str:
        text = f"{self.verdict}: {self.difference}; margin {self.margin:g}"
        if self.verdict != "undecided":
            return text
        if self.prompts_needed is None:
            return f"{text}. The difference is the margin itself: no number of prompts decides."
        return f"{text}. Too few prompts: at this difference it takes about {self.prompts_needed:,}."


def non_inferiority(
    before: Iterable[Row],
    after: Iterable[Row],
    margin: float,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    bootstrap_seed: int = 0,
) -> NonInferiority:
    """
    Test whether values that should be high are at most `margin` lower after than before.

    The claim holds only if the lower bound of after minus before lies above `-margin`. Set the margin before the run.
    Finding no difference does not show that there is none. The interval is that of [`bootstrap_difference`]; its
    warning about few training seeds applies here too.

    Args:
        before, after (`Iterable` of `(prompt, seed, value)`):
            Both arms on the same prompts and training seeds. Higher is better: give right answers as 1, and minus the
            loss.
        margin (`float`):
            Largest acceptable loss, above 0, in the unit of the values: 0.02 for 2 percentage points of a rate.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage of the two-sided interval. The claim uses only the lower side, so its error rate is
            `(1 - confidence) / 2`.
        num_resamples (`int`, *optional*, defaults to `10000`):
            Bootstrap samples.
        bootstrap_seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap: the same rows give the same verdict.

    Returns:
        [`NonInferiority`]: difference, interval, margin and verdict.

    Raises:
        ValueError: If `margin` is not above 0, or as [`bootstrap_difference`].
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"`margin` is the acceptable loss, above 0 and in the unit of the values, got {margin}.")
    difference = bootstrap_difference(
        before, after, confidence=confidence, num_resamples=num_resamples, bootstrap_seed=bootstrap_seed
    )
    if difference.low > -margin:
        return NonInferiority(difference, margin, "non-inferior", None)
    if difference.high < -margin:
        return NonInferiority(difference, margin, "inferior", None)
    gap = difference.estimate + margin
    half_width = difference.estimate - difference.low if gap > 0 else difference.high - difference.estimate
    # the width of an interval over prompts falls with the square root of their number
    needed = math.floor(difference.num_prompts * (half_width / gap) ** 2) + 1 if gap else None
    return NonInferiority(difference, margin, "undecided", needed)


class HolmTest(NamedTuple):
    """One test of a family: its p-value, its p-value adjusted for the family, and whether the test holds."""

    p_value: float
    adjusted: float
    rejected: bool


def holm(p_values: Mapping[str, float], alpha: float = 0.05) -> dict[str, HolmTest]:
    """
    Which tests of a family hold, with a probability of at most `alpha` that any test holds by chance.

    The step-down method of Holm (1979, *Scandinavian Journal of Statistics* 6, 65-70) multiplies the i-th smallest of
    `m` p-values by `m - i + 1`. An adjusted p-value is never below the one before it. The method is valid for any
    dependence between the tests.

    Args:
        p_values (`Mapping[str, float]`):
            The p-value of **every** test that was declared before the run, by name, including those with bad results.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level of the whole family.

    Returns:
        `dict[str, HolmTest]`: the tests, in the order in which they were given.

    Raises:
        ValueError: If there is no test, or a p-value or `alpha` is not within 0 and 1.
    """
    if not p_values:
        raise ValueError("There is no test to adjust: give the p-values of all declared tests, by name.")
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise ValueError(f"A p-value is from 0 to 1, got {p_value} for {name!r}; run the test before adjusting.")
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` is between 0 and 1, got {alpha}; 0.05 is usual.")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: HolmTest(p, adjusted[name], adjusted[name] <= alpha) for name, p in p_values.items()}


def benjamini_hochberg(p_values: Iterable[float]) -> np.ndarray:
    """
    P-values adjusted for the share of false discoveries: calling all tests below `q` a finding makes at most `q` of
    the findings false, in expectation.

    The step-up method of Benjamini and Hochberg (1995, *Journal of the Royal Statistical Society B* 57, 289-300)
    multiplies the i-th smallest of `m` p-values by `m / i`; an adjusted p-value is never above the one after it. It is
    valid for independent tests and for positively dependent ones. [`holm`] is stricter: it bounds the probability of
    a single false finding.

    Args:
        p_values (`Iterable[float]`):
            The p-value of **every** test that was made.

    Returns:
        `numpy.ndarray` of shape `(m,)`, float64: the adjusted p-values, in the order in which they were given.

    Raises:
        ValueError: If there is no test, or a p-value is not within 0 and 1.
    """
    p_M = np.asarray(list(p_values) if not isinstance(p_values, np.ndarray) else p_values, dtype=np.float64)
    if p_M.ndim != 1 or not len(p_M):
        raise ValueError("There is no test to adjust: give the p-values of all tests that were made.")
    if not ((p_M >= 0) & (p_M <= 1)).all():
        wrong = p_M[~((p_M >= 0) & (p_M <= 1))][0]
        raise ValueError(f"A p-value is from 0 to 1, got {wrong}; run the test before adjusting.")
    order = np.argsort(p_M, kind="stable")
    scaled = p_M[order] * len(p_M) / np.arange(1, len(p_M) + 1)
    adjusted = np.empty_like(p_M)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return adjusted
