"""Tables that the reports share: arms with their runs, estimates with intervals, verdicts, declared claims."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from claims import holm, non_inferiority

from sae_posttrain.measure.statistics.resampling import ResampledEstimate, bootstrap_difference

MARGIN = 0.02  # what may be lost of anything that should stay, set before the first run

Run = dict[str, Any]
Rows = list[tuple[str, int, float]]
"""Prompt, seed and value."""


def by_arm(runs: Sequence[Run], names: Mapping[str, str]) -> dict[str, list[Run]]:
    """Runs of each arm in order of seeds, the arms in the order of their names."""
    return {
        arm: sorted((run for run in runs if run["arm"] == arm), key=lambda run: run["seed"])
        for arm in names
        if any(run["arm"] == arm for run in runs)
    }


def same_seeds(reference: Sequence[Run], own: Sequence[Run]) -> list[Run]:
    """
    The runs of a reference with the seeds of an arm, in the arm's order.

    Raises:
        ValueError: If the reference has not been run with one of them.
    """
    by_seed = {run["seed"]: run for run in reference}
    missing = sorted({run["seed"] for run in own} - by_seed.keys())
    if missing:
        name = reference[0]["arm"] if reference else "the reference"
        raise ValueError(f"{name!r} has not been run with seed {missing[0]}, which {own[0]['arm']!r} has.")
    return [by_seed[run["seed"]] for run in own]


def verdict(before: Rows, after: Rows) -> str:
    """Difference in points with its interval, and whether it is within the margin."""
    claim = non_inferiority(before, after, MARGIN)
    difference = claim.difference
    points = f"{100 * difference.estimate:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"{points}, {claim.verdict}"


def percent(estimate: ResampledEstimate, form: str = ".1f", least: float = -1.0, most: float = float("inf")) -> str:
    """An estimate with its interval, the wider of the two where seeds give one, cut off at what is possible."""
    low, high = widest(estimate)
    low, high = max(low, least), min(high, most)
    return f"{100 * estimate.estimate:{form}} % ({100 * low:{form}} to {100 * high:{form}})"


def widest(estimate: ResampledEstimate) -> tuple[float, float]:
    """The wider of the intervals over prompts and seeds and over seeds alone."""
    other = estimate.seed_interval or (estimate.low, estimate.high)
    own = (estimate.low, estimate.high)
    return own if own[1] - own[0] >= other[1] - other[0] else other


def claims_table(
    claims: Mapping[str, Sequence[Sequence[str]]],
    arms: Mapping[str, Sequence[Run]],
    names: Mapping[str, str],
    rows_of: Mapping[str, Callable[[Sequence[Run]], Rows]],
) -> str:
    """Every pair that was declared: whether the first arm has less of a measure, after Holm over all of them."""
    found = {}
    for measure, pairs in claims.items():
        for less, more in pairs:
            both = [
                run for run in arms.get(less, []) if run["seed"] in {other["seed"] for other in arms.get(more, [])}
            ]
            if both:
                before = rows_of[measure](same_seeds(arms[more], both))
                name = f"{measure}: {names[less]} < {names[more]}"
                found[name] = bootstrap_difference(before, rows_of[measure](both))
    if not found:
        return ""
    held = holm({name: 1.0 if one.p_value is None else one.p_value for name, one in found.items()})
    head = ["declared claim", "difference in points (95 % interval)", "seeds that agree", "p", "p after Holm", "holds"]
    lines = [head, ["---"] * len(head)]
    for name, difference in found.items():
        low, high = widest(difference)
        agreeing = sum(value < 0 for value in difference.per_seed.values())
        test = held[name]
        lines.append(
            [
                name,
                f"{100 * difference.estimate:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                f"{agreeing} of {difference.num_seeds}",
                f"{test.p_value:.4f}",
                f"{test.adjusted:.4f}",
                verdict_of_claim(difference.estimate, high, test.rejected),
            ]
        )
    return markdown(lines)


def verdict_of_claim(estimate: float, high: float, rejected: bool) -> str:
    """A claim holds if the difference is significant in its direction, and over seeds too where they tell."""
    if not rejected:
        return "not shown"
    if estimate > 0:
        return "**no, the reverse**"
    return "yes" if high < 0 else "yes, but not over seeds alone"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
