"""
How far steering pushes: the strength a user gives, as one number per row and feature, and the unit it is given in.

Legend of the shapes: B rows, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..sites import near_name


class Directions(Protocol):
    """What steering reads of a `FeatureSet`: any directions will do, an SAE's or not."""

    @property
    def directions(self) -> Tensor: ...
    @property
    def encoder_rows(self) -> Tensor: ...
    @property
    def encoder_bias(self) -> Tensor: ...
    @property
    def residual_norms(self) -> Tensor: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...


Strength = float | Tensor | Sequence[float] | Mapping[str, float]


@dataclass(frozen=True)
class Strengths:
    """
    What a user asked for, checked.

    Attributes:
        values (`torch.Tensor` of shape `(1, F)`, `(B, 1)` or `(B, F)`, float32):
            Strength of each row and feature.
        asked (`tuple[bool, ...]`, F entries):
            Features that were given a strength. The others are left alone, in every mode.
    """

    values: Tensor
    asked: tuple[bool, ...]


def read_strength(strength: Strength, features: Directions) -> Strengths:
    """
    Strength as [`Strengths`].

    Args:
        strength (`float`, `torch.Tensor` of shape `(B,)` or `(B, F)`, or `Mapping[str, float]`):
            For all rows and features, per row, per row and feature, or by name. A name pushes every feature that
            bears it; a feature whose name is not given is left alone.
        features ([`Directions`]):
            The features.

    Raises:
        ValueError: If a name is unknown, no name is given, a shape does not fit, or a value is no finite number.
    """
    num_features = len(features.names)
    asked = (True,) * num_features
    if isinstance(strength, Mapping):
        _require_names(strength, features.names)
        asked = tuple(name in strength for name in features.names)
        given = {name: _as_number(name, value) for name, value in strength.items()}
        values = torch.tensor([[given.get(name, 0.0) for name in features.names]])
    else:
        values = _as_tensor(strength)
        if values.ndim == 0:
            values = values.reshape(1, 1)
        elif values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] not in (1, num_features):
            raise ValueError(
                f"`strength` has shape {tuple(values.shape)}; give a number, one per row, or one per row and feature "
                f"({num_features})."
            )
    if not bool(values.isfinite().all()):
        raise ValueError("`strength` must be finite.")
    return Strengths(values.float(), asked)


def known_norms(features: Directions) -> Tensor:
    """
    Residual norm of each feature's site, `(F,)`; NaN where it is not known.

    The norm belongs to the site. A feature that came without one, straight from an SAE, takes that of another feature
    at its site, so that a strength in norms means the same for both.
    """
    norms = features.residual_norms.float()
    places = list(zip(features.blocks, features.sites))
    of_place = {place: norm for place, norm in zip(places, norms.tolist()) if norm > 0}
    own = norms.tolist()
    return torch.tensor([norm if norm > 0 else of_place.get(place, norm) for place, norm in zip(places, own)])


def require_pushable(features: Directions, lengths: Tensor, norms: Tensor, unit: str) -> None:
    """Raises a `ValueError` if a direction is zero, or a strength in norms would mean nothing for it."""
    for name, length, norm in zip(features.names, lengths.tolist(), norms.tolist()):
        if length == 0:
            raise ValueError(f"The direction of {name!r} is zero: nothing can be pushed along it.")
        if unit == "norm" and not norm > 0:
            raise ValueError(
                f"The residual norm at the site of {name!r} is not known, so a strength in norms means nothing. "
                "Find the features with `find-features`, or give the strength in raw units: `unit='raw'`."
            )


def _require_names(strength: Mapping[str, float], names: Sequence[str]) -> None:
    known = ", ".join(dict.fromkeys(names))
    unknown = sorted((name for name in strength if name not in names), key=str)
    if unknown:
        near = near_name(str(unknown[0]), list(names))
        raise ValueError(f"`strength` names {unknown[0]!r}, which is not in the feature set. Known: {known}.{near}")
    if not strength:
        raise ValueError(f"`strength` is an empty mapping: nothing would be steered. Name one or more of {known}.")


def _as_number(name: str, value: Any) -> float:
    if (isinstance(value, Tensor) and value.numel() != 1) or isinstance(value, str | bool):
        value = None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"The strength of {name!r} is not a number. Give one number a name; for strengths that differ by row, "
            "give a tensor with a row for each row of the batch and a column for each feature."
        ) from None


def _as_tensor(strength: Any) -> Tensor:
    try:
        if isinstance(strength, str):
            raise TypeError
        return torch.as_tensor(strength, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"`strength` is {str(strength)[:60]!r}, a {type(strength).__name__}. Give a number, a number for each "
            "row, a tensor with one per row and feature, or a mapping of names to numbers."
        ) from None
