"""The vector that steering adds at each place, with everything summed: what other programs are given."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...features.set.feature_set import FeatureSet
from ...hooks.sites import Place
from ...hooks.strength import known_norms, read_strength, require_pushable

UNITS = ("norm", "raw")


def pushes_of(
    feature_set: FeatureSet, strength: float | Mapping[str, float], *, unit: str = "norm"
) -> dict[Place, Tensor]:
    """
    The vector that additive steering adds at each block and site: the sum of `strength · norm · d / ‖d‖`.

    Args:
        feature_set ([`FeatureSet`]):
            The features.
        strength (`float` or `Mapping[str, float]`):
            One strength for all features, or strengths by name.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths, as in [`steer`].

    Returns:
        `dict[tuple[int, str], torch.Tensor]`: a float32 vector `(D,)` for each place, in order of blocks.

    Raises:
        ValueError: If a strength, a name, a norm or the unit is not usable, or nothing would be pushed.
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {', '.join(map(repr, UNITS))}, got {unit!r}.")
    strengths = read_strength(strength, feature_set)
    if strengths.values.shape[0] != 1:
        raise ValueError("An export holds one push: give one strength for all rows, or strengths by name.")
    asked = torch.tensor(strengths.asked)
    lengths_F, norms_F = feature_set.directions.norm(dim=1), known_norms(feature_set)
    ones_F = torch.ones_like(lengths_F)
    require_pushable(feature_set, lengths_F.where(asked, ones_F), norms_F.where(asked, ones_F), unit)
    values_F = strengths.values.expand(1, len(feature_set))[0]
    scales_F = values_F * (norms_F if unit == "norm" else ones_F) / lengths_F
    pushes: dict[Place, Tensor] = {}
    for i in asked.nonzero().flatten().tolist():
        place = feature_set.blocks[i], feature_set.sites[i]
        push = scales_F[i] * feature_set.directions[i].float()
        pushes[place] = pushes[place] + push if place in pushes else push
    if not any(bool(push.any()) for push in pushes.values()):
        raise ValueError("Every strength is 0: nothing would be pushed.")
    return dict(sorted(pushes.items()))
