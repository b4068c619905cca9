"""Several feature sets as one: of one model, from one SAE or several, found or given."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...hooks.sites import place_name
from .calibrated_for import with_own_calibration
from .model_identity import COMPARED, is_same_name

if TYPE_CHECKING:
    from .feature_set import FeatureSet

_TENSORS = ("encoder_rows", "encoder_bias", "directions", "thresholds")
_PER_FEATURE = ("blocks", "sites", "sources")


def merge_sets(sets: Sequence["FeatureSet"]) -> "FeatureSet":
    """The work of [`FeatureSet.merge`]."""
    first = sets[0]
    for other in sets[1:]:
        _require_one_model(first, other)
    groups = next((each.groups for each in sets if each.groups), ())
    for other in sets:
        if other.groups and set(other.groups) != set(groups):
            raise ValueError(f"Cannot merge statistics over the groups {groups} and {other.groups}.")
    nan = [torch.full((len(other),), math.nan) for other in sets]
    all_scores = dict.fromkeys(name for other in sets for name in other.scores)
    joined: dict[str, Any] = {name: torch.cat([getattr(other, name) for other in sets]) for name in _TENSORS}
    joined |= {name: tuple(value for other in sets for value in getattr(other, name)) for name in _PER_FEATURE}
    numbers, names = _numbers_and_names(sets)
    merged = replace(
        first,
        **joined,
        feature_ids=numbers,
        names=names,
        residual_norms=_norms(sets),
        groups=groups,
        mean=torch.cat([_in_order(other, other.mean, groups) for other in sets]),
        std=torch.cat([_in_order(other, other.std, groups) for other in sets]),
        scores={
            name: torch.cat([other.scores.get(name, empty) for other, empty in zip(sets, nan)]) for name in all_scores
        },
        base_model=max((each.base_model for each in sets), key=lambda name: ("/" in name, len(name))),
        fingerprint={key: value for other in sets for key, value in other.fingerprint.items()},
        target_groups=tuple(dict.fromkeys(group for other in sets for group in other.target_groups)),
        notes={key: value for other in sets for key, value in other.notes.items()},
    )
    return replace(merged, notes=with_own_calibration(merged, sets))


def _require_one_model(one: "FeatureSet", other: "FeatureSet") -> None:
    if other.d_model != one.d_model:
        raise ValueError(f"Cannot merge features of width {one.d_model} and {other.d_model}: keep a set of each.")
    unknown = any(not each.base_model and not each.groups for each in (one, other))  # rows that were never measured
    names = one.base_model, other.base_model
    if not unknown and names[0] != names[1] and not (all(names) and is_same_name(*names)):
        raise ValueError(
            f"Cannot merge features of {names[0]!r} and {names[1]!r}: the statistics of each belong to its own model. "
            "Find or measure both on one model."
        )
    for key in one.fingerprint.keys() & other.fingerprint.keys() & COMPARED.keys():
        if one.fingerprint[key] != other.fingerprint[key]:
            raise ValueError(
                f"Cannot merge features of two models: the {COMPARED[key]} of one is {one.fingerprint[key]!r}, of the "
                f"other {other.fingerprint[key]!r}."
            )


def _in_order(feature_set: "FeatureSet", table: Tensor, groups: Sequence[str]) -> Tensor:
    """Statistics with their columns in the order of these groups; NaN where none were measured."""
    if not feature_set.groups:
        return torch.full((len(feature_set), len(groups)), math.nan)
    return table[:, [feature_set.groups.index(group) for group in groups]]


def _norms(sets: Sequence["FeatureSet"]) -> Tensor:
    """Residual norms, also of features that were not measured where others of their place were: it is the site's."""
    norms = torch.cat([each.residual_norms for each in sets]).clone()
    places = [place for each in sets for place in zip(each.blocks, each.sites)]
    known = {place: float(norm) for place, norm in zip(places, norms) if not norm.isnan()}
    for row, place in enumerate(places):
        if norms[row].isnan() and place in known:
            norms[row] = known[place]
    return norms


def _numbers_and_names(sets: Sequence["FeatureSet"]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """
    Features' numbers and names: of directions that share a number, later ones get the next that is free, and names
    made of place and number that would then stand for two features get the number of their source behind them.
    """
    numbers: list[int] = []
    names: list[str] = []
    taken: dict[tuple, int] = {}  # place and number, to the set that has them
    for position, each in enumerate(sets):
        own = zip(each.blocks, each.sites, each.feature_ids, each.names, each.sources)
        for block, site, number, name, source in own:
            clashes = taken.get((block, site, number), position) != position
            is_automatic = name.endswith((place_name((block, site)), f"{place_name((block, site))}.{number}"))
            if clashes and is_automatic and name in names:
                name = f"{name}#{position + 1}"
            if clashes and source.format == "direction":
                while (block, site, number) in taken:
                    number += 1
            taken.setdefault((block, site, number), position)
            numbers.append(number)
            names.append(name)
    return tuple(numbers), tuple(names)
