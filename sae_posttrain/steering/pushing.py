"""The features that are pushed, and how far, in the form in which answers are generated."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..features.set.feature_set import FeatureSet
from ..hooks.strength import read_strength
from .export.pushes import UNITS


def chosen_features(
    feature_set: FeatureSet, strengths: Mapping[str, float], unit: str = "norm"
) -> tuple[FeatureSet, Tensor]:
    """
    The features that are given a strength, without the others, and the strength of each.

    Args:
        feature_set ([`FeatureSet`]):
            The features.
        strengths (`Mapping[str, float]`):
            Strength by name.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths. For raw units, the norm of each site is set to 1.

    Returns:
        `tuple[FeatureSet, torch.Tensor]`: F features, and their strengths of shape `(1, F)`.

    Raises:
        ValueError: If a name or the unit is unknown, or a strength is not a finite number.
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {', '.join(map(repr, UNITS))}, got {unit!r}.")
    read = read_strength(dict(strengths), feature_set)
    asked = [i for i, is_asked in enumerate(read.asked) if is_asked]
    chosen = replace(feature_set, notes={})[asked]  # what was measured for the whole set does not concern a part
    if unit == "raw":
        chosen = replace(chosen, residual_norms=torch.ones(len(chosen)))
    return chosen, read.values[:, asked]
