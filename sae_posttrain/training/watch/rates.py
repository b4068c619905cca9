"""The rates that a watch of the training gives: which flag of a judged answer each counts, and which way is better."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...measure.statistics.intervals import wilson

JudgedAnswer = Mapping[str, Any]
"""An answer as [`evaluate`] writes it to `answers.jsonl`, with its prompt, its language, its spans and its loop."""

Judge = Callable[[JudgedAnswer], bool | None]
"""Tells whether a judged answer is faulty; `None` if it cannot be told, and the answer is left out of the rate."""

JUDGES: dict[str, Judge] = {
    "switched": lambda answer: answer["unexpected"],
    "endless": lambda answer: answer["loop"]["endless"],
    "near_loop": lambda answer: answer["loop"]["near_loop"],
    "right_language": lambda answer: answer["right_language"],
}
"""The flags of this package, by the name that a user writes."""

HIGHER_IS_BETTER = ("right_language",)

_COSTS = ("num_answers", "mean_tokens", "seconds", "tokens")


def choose_judges(faults: Sequence[str], own: Mapping[str, Judge]) -> dict[str, Judge]:
    """The judges of a watch by name. Raise a `ValueError` for a name that is unknown or cannot be a metric's name."""
    known = f"Known: {', '.join(JUDGES)}; `judges` takes functions of your own."
    if isinstance(faults, str):
        raise ValueError(f"`faults` is a list of names, got the text {faults!r}; write [{faults!r}].")
    for name in faults:
        if name not in JUDGES:
            raise ValueError(f"Unknown fault {name!r} in `faults`. {known}")
    for name, judge in own.items():
        if name in JUDGES or name in _COSTS or not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"`judges` has the name {name!r}, which is taken or is more than letters, digits and underscores. "
                "Choose another."
            )
        if not callable(judge):
            raise ValueError(f"`judges[{name!r}]` is a {type(judge).__name__}; it must be a function of an answer.")
    chosen = {name: JUDGES[name] for name in faults} | dict(own)
    if not chosen:
        raise ValueError(f"`faults` is empty: there is nothing to watch. {known}")
    return chosen


def add_flags(answer: JudgedAnswer, judges: Mapping[str, Judge]) -> dict[str, Any]:
    """The answer with `flags`: for each judge `True`, `False`, or `None` if it cannot tell."""
    flags: dict[str, bool | None] = {}
    for name, judge in judges.items():
        flag = judge(answer)
        if flag is not None and not isinstance(flag, (bool, int)) and not hasattr(flag, "item"):
            raise ValueError(
                f"The judge {name!r} gave {type(flag).__name__} for an answer; it must give True, False, or None if "
                "it cannot tell."
            )
        flags[name] = None if flag is None else bool(flag)
    return {**answer, "flags": flags}


def rates_of(answers: Iterable[JudgedAnswer], names: Iterable[str]) -> dict[str, dict[str, float]]:
    """
    `count`, `n`, `rate` and the ends `low` and `high` of its 95 % Wilson interval, for each name. A rate that no
    answer can show is left out.
    """
    answers = list(answers)
    rates = {}
    for name in names:
        flags = [answer["flags"][name] for answer in answers if answer["flags"][name] is not None]
        if flags:
            low, high = wilson(sum(flags), len(flags))
            rates[name] = {
                "count": sum(flags),
                "n": len(flags),
                "rate": sum(flags) / len(flags),
                "low": low,
                "high": high,
            }
    return rates


def as_metrics(rates: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`watch/NAME`, `watch/NAME_low` and `watch/NAME_high` of each rate, from 0 to 1."""
    metrics = {}
    for name, rate in rates.items():
        metrics[f"watch/{name}"] = rate["rate"]
        metrics[f"watch/{name}_low"] = rate["low"]
        metrics[f"watch/{name}_high"] = rate["high"]
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
