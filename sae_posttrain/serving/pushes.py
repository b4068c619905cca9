"""
The pushes that an engine knows: the features of a set that share a name, as one vector for each block.

Legend of the shapes: F features, D width, K pushes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..features.set.feature_set import FeatureSet
from ..hooks.strength import known_norms, require_pushable
from ..sites import near_name

UNITS = ("norm", "raw")


@dataclass(frozen=True)
class Push:
    """One push: a name in a feature set, which the engine knows under `set_name` and by its fingerprint."""

    set_name: str
    fingerprint: str
    name: str


@dataclass(frozen=True)
class Pushes:
    """
    All pushes of an engine.

    Attributes:
        pushes (`tuple[Push, ...]`, K entries):
            In the order of the coefficients.
        vectors (`dict[int, torch.Tensor]`, each of shape `(K, D)`, float32):
            What strength 1 of each push adds to the output of a block, by block; zero where a push has no feature.
    """

    pushes: tuple[Push, ...]
    vectors: dict[int, Tensor]

    def of(self, spec: str | float, set_name: str | None = None) -> list[float]:
        """
        Strength of each push for what a request says.

        Args:
            spec (`str` or `float`):
                A number for all features of a set (`0.8`); names with a strength each (`"loop=-0.8, zh=1"`), where a
                name is that of a feature, that of a set, or `set/feature`; or the same as a JSON object.
            set_name (`str`, *optional*):
                Name or fingerprint of the set that is meant. Needed for a number if the engine has several sets, or
                for a name that several sets have.

        Returns:
            `list[float]`, K entries.

        Raises:
            ValueError: If it cannot be read, a name is unknown or stands in several sets, or a strength is not finite.
        """
        inside = [push for push in self.pushes if set_name in (None, push.set_name, push.fingerprint)]
        if not inside:
            known = ", ".join(dict.fromkeys(f"{push.set_name} ({push.fingerprint})" for push in self.pushes))
            raise ValueError(f"This engine has no feature set {set_name!r}. It has {known}.")
        given = read_spec(spec)
        strengths = [0.0] * len(self.pushes)
        for name, value in given.items():
            for push in _meant(name, inside):
                strengths[self.pushes.index(push)] += value
        return strengths


def fingerprint(feature_set: FeatureSet, unit: str = "norm") -> str:
    """
    What tells one set of pushes from another: 16 hex digits of a hash over names, places, directions and norms.

    Raises:
        ValueError: If the set cannot be pushed inside an engine: see [`block_vectors`].
    """
    block_vectors(feature_set, unit)
    norms = known_norms(feature_set) if unit == "norm" else torch.ones(len(feature_set))
    places = [feature_set.names, feature_set.blocks, feature_set.sites, unit]
    hashed = hashlib.sha256(json.dumps(places).encode())
    for tensor in (feature_set.directions, norms):
        hashed.update(tensor.float().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def block_vectors(feature_set: FeatureSet, unit: str = "norm") -> dict[int, Tensor]:
    """
    What strength 1 adds to the output of each block, for each name of the set.

    `Σ norm · d / ‖d‖` over the features of that name at that block (`Σ d / ‖d‖` in raw units), as
    `sae_posttrain.steer` adds it. The input of block n is the output of block n - 1.

    Returns:
        `dict[int, torch.Tensor]`, each of shape `(names, D)`, float32, the names in the order of their first feature.

    Raises:
        ValueError: If the unit is unknown, a feature sits at a site that an engine cannot push, a direction is zero,
            or a norm is missing.
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {', '.join(map(repr, UNITS))}, got {unit!r}.")
    blocks = [pushed_block(block, site) for block, site in zip(feature_set.blocks, feature_set.sites)]
    lengths, norms = feature_set.directions.norm(dim=1), known_norms(feature_set)
    require_pushable(feature_set, lengths, norms, unit)
    scale = norms if unit == "norm" else torch.ones_like(lengths)
    vectors_FD = feature_set.directions.float() * (scale / lengths)[:, None]
    names = list(dict.fromkeys(feature_set.names))
    found = {block: torch.zeros(len(names), feature_set.d_model) for block in sorted(set(blocks))}
    for block, name, vector_D in zip(blocks, feature_set.names, vectors_FD):
        found[block][names.index(name)] += vector_D
    return found


def pushes_of(sets: Mapping[str, FeatureSet], unit: str = "norm") -> Pushes:
    """
    The pushes of several feature sets, by the name of each set.

    Raises:
        ValueError: If there is none, their widths differ, or as [`block_vectors`].
    """
    if not sets:
        raise ValueError("There is no feature set to steer along.")
    widths = {name: each.d_model for name, each in sets.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"The feature sets have different widths: {widths}. All must be of the model that is served.")
    of_set = {name: block_vectors(each, unit) for name, each in sets.items()}
    pushes = tuple(
        Push(set_name, fingerprint(each, unit), name)
        for set_name, each in sets.items()
        for name in dict.fromkeys(each.names)
    )
    blocks = sorted({block for vectors in of_set.values() for block in vectors})
    width = next(iter(widths.values()))
    joined = {
        block: torch.cat(
            [
                vectors.get(block, torch.zeros(len(dict.fromkeys(sets[name].names)), width))
                for name, vectors in of_set.items()
            ]
        )
        for block in blocks
    }
    return Pushes(pushes, joined)


def read_spec(spec: str | float) -> dict[str, float]:
    """
    What a request's `steer` says: strength by name, or under the empty name for all features of the set.

    Raises:
        ValueError: If it cannot be read, or a strength is not finite.
    """
    how = f"`steer` is {spec!r}. Write a number (0.8), names with a number each (loop=-0.8, zh=1), or a JSON object."
    given: dict[str, Any]
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            given = json.loads(spec)
        except json.JSONDecodeError as error:
            raise ValueError(how) from error
    elif isinstance(spec, str) and "=" in spec:
        parts = [part.rpartition("=") for part in spec.split(",")]
        given = {name.strip(): value for name, _, value in parts}
        if len(given) < len(parts):
            raise ValueError(f"{how} A name stands in it twice.")
    else:
        given = {"": spec}
    if not given or ("" in given and given != {"": spec}):
        raise ValueError(how)
    try:
        found = {name: float(value) for name, value in given.items() if not isinstance(value, bool)}
    except (TypeError, ValueError) as error:
        raise ValueError(how) from error
    if len(found) < len(given) or not torch.tensor(list(found.values())).isfinite().all():
        raise ValueError(how)
    return found


def _meant(name: str, pushes: list[Push]) -> list[Push]:
    sets = list(dict.fromkeys(push.set_name for push in pushes))
    if not name:
        if len(sets) > 1:
            raise ValueError(
                f"This engine has several feature sets: {', '.join(sets)}. Say which: {sets[0]}=0.8, or name features."
            )
        return pushes
    whole = [push for push in pushes if push.set_name == name]
    of_name = [push for push in pushes if push.name == name]
    in_set = [push for push in pushes if f"{push.set_name}/{push.name}" == name]
    found = [each for each in (whole, in_set, *([push] for push in of_name)) if each]
    if len(found) == 1 or (found and all(each == found[0] for each in found)):
        return found[0]
    if found:
        written = ", ".join(f"{each[0].set_name}/{each[0].name}" for each in found)
        raise ValueError(f"`steer` names {name!r}, which is not one thing here. Write it in full, such as {written}.")
    known = list(dict.fromkeys([*(push.name for push in pushes), *sets]))
    raise ValueError(
        f"`steer` names {name!r}, which this engine does not know. Known: {', '.join(known)}.{near_name(name, known)}"
    )


def pushed_block(block: int, site: str) -> int:
    """The block at whose output an engine pushes what sits at a site; a `ValueError` if it cannot push there."""
    if site == "resid_post":
        return block
    if site == "resid_pre" and block > 0:
        return block - 1
    raise ValueError(
        f"An engine pushes the output of blocks only; a feature sits at {site} of block {block}. Use features of "
        "'resid_post' (or 'resid_pre' of a block after the first), or generate with transformers."
    )
