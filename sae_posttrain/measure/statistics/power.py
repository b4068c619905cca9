"""How many prompts are needed to see a change of a rate. Use it before the run."""

import math
from statistics import NormalDist


def sample_size(
    before: float,
    after: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    paired: bool = False,
    overlap: float = 0.0,
    answers_per_prompt: int = 1,
    icc: float | None = None,
) -> int:
    """
    Number of prompts that a two-sided test needs to see a change of a rate.

    With rates `p` before and `q` after, `d = p - q`, and the normal quantiles `a` of `1 - alpha / 2`, `b` of `power`:

    - two arms on different prompts, each answered once: `(a * sqrt((p + q) * (2 - p - q) / 2) + b * sqrt(p * (1 - p) +
      q * (1 - q)))² / d²` in each arm (Fleiss, Levin and Paik 2003, *Statistical Methods for Rates and Proportions*,
      section 4.3, without continuity correction; `power.prop.test` of R gives the same);
    - both arms on the same prompts: `(a * sqrt(m) + b * sqrt(m - d²))² / d²`, where `m = p + q - 2 * overlap * q` is
      the share of prompts on which the arms differ (Connor 1987, *Biometrics* 43, 207-211).

    The result is rounded to the nearest prompt. Both formulas are approximations, and are poor if only a few failures
    are expected. The second formula is for McNemar's test without correction. The exact test, [`mcnemar`], is
    stricter: where the formula says 80 %, its power is 76 to 79 % (simulated: halved rates of 3 to 30 %).

    Several answers to one prompt count less than the same number of prompts. With `K` answers to each prompt, the
    number of prompts is divided by `K` and multiplied by [`design_effect`].

    Args:
        before (`float`):
            Rate of the first arm, from 0 to 1.
        after (`float`):
            Rate that the second arm is expected to have, from 0 to 1.
        power (`float`, *optional*, defaults to `0.8`):
            Probability that the test sees a change of this size.
        alpha (`float`, *optional*, defaults to `0.05`):
            Probability that the test reports a change if there is none.
        paired (`bool`, *optional*, defaults to `False`):
            Whether both arms answer the same prompts and are compared prompt by prompt.
        overlap (`float`, *optional*, defaults to `0.0`):
            If paired, share of the second arm's failures that also fail in the first arm. For rare faults in sampled
            answers it is near 0, and pairing then has no advantage.
        answers_per_prompt (`int`, *optional*, defaults to `1`):
            Answers that each arm gives to each prompt.
        icc (`float`, *optional*):
            Correlation of two answers to one prompt, from 0 to 1; needed with several answers. If paired, correlation
            of the differences.

    Returns:
        `int`: prompts in each arm.

    Raises:
        ValueError: If a rate or probability is outside its range, the rates are equal, the rates cannot overlap as
            much as `overlap` says, `overlap` or `icc` is given but has no meaning, or `icc` is missing.
    """
    answers = _answers(before, after, power, alpha, paired, overlap)
    return max(1, round(answers * design_effect(answers_per_prompt, icc) / answers_per_prompt))


def design_effect(answers_per_prompt: int, icc: float | None) -> float:
    """
    Number of answers that count as much as one independent answer: `1 + (K - 1) * icc` (Kish 1965, *Survey Sampling*),
    with `K` answers to each prompt, two of which have the correlation `icc`.
    """
    if answers_per_prompt < 1:
        raise ValueError(f"`answers_per_prompt` is 1 or more, got {answers_per_prompt}.")
    if answers_per_prompt == 1:
        if icc is not None:
            raise ValueError(f"`icc` is {icc}, but with one answer to each prompt it has no meaning; leave it out.")
        return 1.0
    if icc is None or not 0 <= icc <= 1:
        raise ValueError(
            f"{answers_per_prompt} answers to a prompt need their correlation `icc`, from 0 to 1, got {icc}. Measure "
            "it in an earlier run; 0.1 to 0.5 is common."
        )
    return 1 + (answers_per_prompt - 1) * icc


def _answers(before: float, after: float, power: float, alpha: float, paired: bool, overlap: float) -> float:
    """Number of independent answers (if paired, of pairs) that the test needs, not rounded."""
    if not 0 <= before <= 1 or not 0 <= after <= 1:
        raise ValueError(f"Rates are from 0 to 1, got {before:g} before and {after:g} after; 3 % is 0.03.")
    if before == after:
        raise ValueError(f"Both rates are {before:g}: no number of prompts shows a change where there is none.")
    if not 0 < alpha < 1 or not alpha < power < 1:
        raise ValueError(f"`alpha` is above 0 and `power` between `alpha` and 1, got {alpha:g} and {power:g}.")
    if overlap and not paired:
        raise ValueError(f"`overlap` is {overlap:g}, but only arms on the same prompts overlap: set `paired`.")
    difference = before - after
    a, b = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    if not paired:
        pooled = (before + after) * (2 - before - after) / 2
        root = a * math.sqrt(pooled) + b * math.sqrt(before * (1 - before) + after * (1 - after))
        return root**2 / difference**2
    both = overlap * after
    if not 0 <= overlap <= 1 or both > before or before + after - both > 1:
        raise ValueError(
            f"With rates {before:g} before and {after:g} after, a share of {overlap:g} of the failures after cannot "
            "fail before too; change `overlap`, a share from 0 to 1."
        )
    discordant = before + after - 2 * both
    root = a * math.sqrt(discordant) + b * math.sqrt(max(0.0, discordant - difference**2))
    return root**2 / difference**2
