"""Other names for the features of a set."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...sites import near_name

if TYPE_CHECKING:
    from .feature_set import FeatureSet


def renamed(feature_set: "FeatureSet", names: Mapping[str, str]) -> tuple[str, ...]:
    """The work of [`FeatureSet.rename`]: one name per feature."""
    if not isinstance(names, Mapping):
        raise ValueError(
            f"`names` must map old names to new ones, such as {{'14.4245': 'loop'}}; got a {type(names).__name__}."
        )
    known = dict.fromkeys((*feature_set.names, *feature_set.labels))
    for old, new in names.items():
        if old not in known:
            near = near_name(str(old), list(known))
            raise ValueError(f"Unknown feature {old!r}. Known: {', '.join(known)}.{near}")
        if not isinstance(new, str) or not new.strip():
            raise ValueError(f"The new name of {old!r} must be a text that is not empty, got {new!r}.")
    return tuple(names.get(label, names.get(name, name)) for name, label in zip(feature_set.names, feature_set.labels))
