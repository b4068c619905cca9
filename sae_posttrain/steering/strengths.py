"""Strengths as they are written on a command line: `loop=-0.8 chinese=-0.5`, or one number for all features."""

import math
from collections.abc import Sequence

from ..features.set.feature_set import FeatureSet
from ..hooks.strength import read_strength


def parse_strengths(words: Sequence[str], feature_set: FeatureSet) -> dict[str, float]:
    """
    Strength of each named feature.

    Args:
        words (`Sequence[str]`):
            `name=number` for one or several names, or a single number for every feature of the set. A number that is
            a feature's name (`14.4245`) is refused.
        feature_set ([`FeatureSet`]):
            The features.

    Returns:
        `dict[str, float]`: strength by name, for the names that were given.

    Raises:
        ValueError: If a word has another form, a number is not finite, or a name is unknown or given twice.
    """
    if len(words) == 1 and words[0] in feature_set.names:  # a name such as 14.4245 reads as a number too
        raise ValueError(f"`strength` names {words[0]!r} without a number: write {words[0]}=-0.8, for example.")
    if len(words) == 1 and "=" not in words[0]:
        return dict.fromkeys(feature_set.names, _number(words[0], words[0]))
    found: dict[str, float] = {}
    for word in words:
        name, is_pair, value = word.rpartition("=")
        if not is_pair or not name:
            raise ValueError(
                f"`strength` is written name=number, such as {feature_set.names[0]}=-0.8, or as one number for all "
                f"features; got {word!r}."
            )
        if name in found:
            raise ValueError(f"`strength` names {name!r} twice.")
        found[name] = _number(value, word)
    read_strength(found, feature_set)  # an unknown name is an error here
    return found


def describe_strengths(strengths: dict[str, float]) -> str:
    """The strengths as they are written: `loop=-0.8 chinese=-0.5`."""
    return " ".join(f"{name}={value:g}" for name, value in strengths.items())


def _number(text: str, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"The strength in {word!r} is not a finite number: write name=number, such as loop=-0.8.")
    return number
