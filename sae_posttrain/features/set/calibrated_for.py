"""The features a stored calibration was measured for: a strength belongs to those, pushed together, and no others."""

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...hooks.sites import describe_place

if TYPE_CHECKING:
    from .feature_set import FeatureSet

logger = logging.getLogger(__name__)

_NOTE = "calibration"


def calibrated_features(feature_set: "FeatureSet") -> list[dict[str, Any]]:
    """
    What identifies the features of a set, to be kept with what was measured for them: JSON. Returns for each feature
    `name`, `block`, `site`, `feature_id`, and a hash of its `direction`.
    """
    return [
        {"name": name, "block": block, "site": site, "feature_id": number, "direction": _hash(direction)}
        for name, block, site, number, direction in zip(
            feature_set.names,
            feature_set.blocks,
            feature_set.sites,
            feature_set.feature_ids,
            feature_set.directions,
        )
    ]


def calibration_of(feature_set: "FeatureSet") -> dict[str, Any]:
    """The calibration that a set carries; empty if it carries none."""
    calibration = feature_set.notes.get(_NOTE) or {}
    if _measured_for(calibration, feature_set) != _keys(calibrated_features(feature_set)):
        raise ValueError(
            f"The calibration in the feature set was measured for {_listed(_features(calibration, feature_set))}; "
            "the set holds "
            f"{_listed(calibrated_features(feature_set))}. A strength belongs to the features that were pushed "
            "together: run `calibrate` on this set, or set the strength yourself."
        )
    return calibration


def with_own_calibration(changed: "FeatureSet", before: Sequence["FeatureSet"]) -> dict[str, Any]:
    """
    Notes of a set made from others: with a calibration only if it was measured for exactly the features of the set.
    """
    notes = {name: value for name, value in changed.notes.items() if name != _NOTE}
    carried = [(each.notes[_NOTE], each) for each in before if each.notes.get(_NOTE)]
    wanted = _keys(calibrated_features(changed)) if carried else []
    for calibration, owner in carried:
        if _measured_for(calibration, owner) == wanted:
            return notes | {_NOTE: calibration}
    if carried:
        calibration, owner = carried[0]
        logger.warning(
            "The calibration of the feature set is left out: it was measured for %s, the new set holds %s. Run "
            "`calibrate` on the new set.",
            _listed(_features(calibration, owner)),
            _listed(calibrated_features(changed)),
        )
    return notes


def _measured_for(calibration: dict[str, Any], owner: "FeatureSet") -> list[tuple]:
    return _keys(_features(calibration, owner))


def _features(calibration: dict[str, Any], owner: "FeatureSet") -> list[dict[str, Any]]:
    """What a calibration says of its features; one that says nothing was measured for the set that carries it."""
    stated = calibration.get("features")
    if stated is None:
        return calibrated_features(owner)
    kinds = {"name": str, "block": int, "site": str, "direction": str}
    if not isinstance(stated, list) or not all(
        isinstance(each, dict) and all(isinstance(each.get(key), kind) for key, kind in kinds.items())
        for each in stated
    ):
        raise ValueError(
            "The calibration in the feature set does not say which features it was measured for: its list of "
            "features is damaged. Run `calibrate` again."
        )
    return stated


def _keys(features: list[dict[str, Any]]) -> list[tuple]:
    return sorted((each["block"], each["site"], each["direction"]) for each in features)


def _listed(features: list[dict[str, Any]]) -> str:
    shown = [f"{each['name']!r} ({describe_place((each['block'], each['site']))})" for each in features[:5]]
    return ", ".join(shown) + (f" and {len(features) - 5} more" if len(features) > 5 else "")


def _hash(direction: Any) -> str:
    return hashlib.sha256(direction.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
