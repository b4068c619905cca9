"""Checks that readers share, for values from a configuration file or from the user."""

from collections.abc import Mapping
from typing import Any

from ...shown import shown
from ..stored.files import Wanted

MAX_NAME_CHARACTERS = 200
"""Longest name of a model or module that is accepted from a file."""

MAX_COUNTED = 1 << 40
"""Largest size that a configuration may declare. The limit keeps products small."""


def whole_number(config: Mapping[str, Any], key: str, default: int, path: str) -> int:
    """A whole number from a configuration; `default` if the configuration does not have it."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNTED:
        raise ValueError(f"{path} says {key} = {shown(value)}; it must be a whole number, 0 or more.")
    return value


def flag(config: Mapping[str, Any], key: str, path: str) -> bool:
    """Whether a switch is on. It is off if the configuration does not have it."""
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{path} says {key} = {shown(value)}; it must be true or false.")
    return value


def short_text(value: Any) -> str:
    """The value if it is a name of allowed length, else `""`."""
    return value if isinstance(value, str) and len(value) <= MAX_NAME_CHARACTERS else ""


def agreed_k(said: Mapping[str, Any], wanted: Wanted, num_features: int) -> int | None:
    """
    Active features per token, on which the files (`said`: `k` by the file's name) and the user must agree; `None` if
    nobody gives a number.
    """
    found = {path: value for path, value in said.items() if value is not None}
    for path, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= num_features:
            raise ValueError(f"{path} says k = {shown(value)}; the SAE has {num_features} features.")
    if wanted.k is not None:
        for path, value in found.items():
            if wanted.k != value:
                raise ValueError(f"{path} says k = {value}, but k={wanted.k} was given. Leave it out.")
        return wanted.k
    if len(set(found.values())) > 1:
        raise ValueError(f"{' and '.join(f'{path} (k = {value})' for path, value in found.items())} do not agree.")
    return next(iter(found.values()), None)


def refuse_input_scale(wanted: Wanted, file: str) -> None:
    """Refuse the user's `input_scale`, for a format whose SAEs read unscaled activations."""
    if wanted.input_scale is not None:
        raise ValueError(f"{file} reads its site as it is; `input_scale` does not apply to it. Leave it out.")
