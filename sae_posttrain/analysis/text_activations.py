"""
[`TextActivations`]: which features of an SAE fire on which texts, one sparse row a text.

Shape suffixes: N texts, F features, D width of the site.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..hooks.sites import Place, describe_place
from .activation_file import read_activation_file, write_activation_file
from .scipy_sparse import scipy_sparse

if TYPE_CHECKING:
    from scipy.sparse import csr_array

POOLS = ("max", "mean", "count", "last")
"""How the activations of a text's tokens become one number for each feature."""


@dataclass(frozen=True, eq=False, repr=False)
class TextActivations:
    """
    Activations of SAE features on texts, pooled over the tokens of each text.

    Made by [`read_activations`]. Rows are in the order of the texts. Everything in this room works on these sparse
    rows, without the model and without the SAE.

    ```python
    activations = read_activations(model, sae, "answers.jsonl", blocks=[9, 14])
    fired = activations.fires((14, "resid_post"))  # (N, F), bool
    rate = fired.mean(axis=0)                      # share of texts on which each feature fires
    ```

    Attributes:
        values (`dict[Place, scipy.sparse.csr_array]`, each of shape `(N, F)`, float32):
            For each block and site, a row a text and a column a feature. Without explicit zeros, columns in order.
        feature_ids (`dict[Place, numpy.ndarray]`, each of shape `(F,)`, int64):
            Index in the published SAE of each column: `0 … F − 1` unless some features of an SAE were loaded.
        num_tokens (`numpy.ndarray` of shape `(N,)`, int64):
            Tokens of each text that were pooled. 0 where none counts; the text's row is empty then.
        groups (`tuple[str, ...]`):
            Group of each text (`TextOptions.group_column`); `""` where its row has none.
        keys (`tuple[str, ...]`):
            Hash of each text. Texts that differ in case, spaces or Unicode form only have the same: they belong on one
            side of any split.
        pool (`str`):
            `"max"`, `"mean"`, `"count"` (tokens on which the feature fires) or `"last"`.
        positions (`str`):
            Tokens that were pooled: `"response"`, `"prompt"`, `"all"` or `"last"`.
        residuals (`dict[Place, numpy.ndarray]`, each of shape `(N, D)`, float32):
            What each site holds, over the same tokens: the mean, or the last token's with `pool="last"`. Empty unless
            `read_activations(…, residuals=True)` kept it.
        origin (`dict[str, Any]`):
            Model, SAEs, texts and settings that these activations are of; plain values.
    """

    values: "dict[Place, csr_array]"
    feature_ids: dict[Place, np.ndarray]
    num_tokens: np.ndarray
    groups: tuple[str, ...]
    keys: tuple[str, ...]
    pool: str
    positions: str
    residuals: dict[Place, np.ndarray] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Activations need at least one block and site.")
        if set(self.feature_ids) != set(self.values) or not set(self.residuals) <= set(self.values):
            raise ValueError("`values`, `feature_ids` and `residuals` must be of the same blocks and sites.")
        num_texts = len(self.num_tokens)
        for place, rows in self.values.items():
            if rows.shape != (num_texts, len(self.feature_ids[place])):
                raise ValueError(
                    f"{describe_place(place)}: `values` has shape {rows.shape}, {num_texts} texts and "
                    f"{len(self.feature_ids[place])} features ask for {(num_texts, len(self.feature_ids[place]))}."
                )
        if any(len(each) != num_texts for each in (self.groups, self.keys, *self.residuals.values())):
            raise ValueError(f"`groups`, `keys` and `residuals` must have one entry for each of {num_texts} texts.")

    # Reading

    def __len__(self) -> int:
        return len(self.num_tokens)

    def __repr__(self) -> str:
        held = "; ".join(
            f"{describe_place(place)}: {rows.shape[1]} features, {rows.nnz / max(1, len(self)):.0f} a text"
            for place, rows in self.values.items()
        )
        return f"TextActivations({len(self)} texts, {self.pool} over {self.positions}; {held})"

    @property
    def places(self) -> tuple[Place, ...]:
        """Blocks and sites that were read, in order of blocks."""
        return tuple(sorted(self.values))

    def at(self, place: Place | int | None = None) -> "csr_array":
        """
        The activations at one place, `(N, F)`.

        Args:
            place (`Place` or `int`, *optional*):
                Block and site, or the block alone where one site of it was read; may be left out if there is one
                place.

        Raises:
            ValueError: If there is no such place, or it is not clear which is meant.
        """
        return self.values[self.find_place(place)]

    def fires(self, place: Place | int | None = None) -> "csr_array":
        """Whether each feature fires on each text, `(N, F)`, bool: its pooled activation is above 0."""
        return self.at(place) > 0

    def find_place(self, place: Place | int | None = None) -> Place:
        """The place that is meant, as [`at`] takes it."""
        if place in self.values:
            return place  # type: ignore[return-value]
        fitting = [each for each in self.places if place is None or each[0] == place]
        if len(fitting) != 1:
            asked = "No place is named" if place is None else f"{place!r} is not one place"
            held = ", ".join(map(str, self.places))
            raise ValueError(f"{asked}; these activations are of {held}. Give one of them.")
        return fitting[0]

    # Changing

    def __getitem__(self, rows: Any) -> "TextActivations":
        """
        The activations of some texts.

        Args:
            rows (`slice`, sequence of `int`, or mask of shape `(N,)`):
                Which texts, and in which order.

        Raises:
            IndexError: If there is no such text, or a mask has another length.
        """
        numbers = np.arange(len(self))[np.asarray(rows) if not isinstance(rows, slice) else rows]
        if numbers.ndim == 0:
            raise IndexError(f"Give several texts: a slice, a list or a mask; `[[{int(numbers)}]]` for one.")
        return replace(
            self,
            values={place: values[numbers] for place, values in self.values.items()},
            num_tokens=self.num_tokens[numbers],
            groups=tuple(self.groups[i] for i in numbers),
            keys=tuple(self.keys[i] for i in numbers),
            residuals={place: values[numbers] for place, values in self.residuals.items()},
            origin=_of_texts(self.origin, [f"{self.origin.get('texts')}", numbers.tolist()], len(numbers)),
        )

    def merge(self, *others: "TextActivations") -> "TextActivations":
        """
        These texts and others, in this order, as one.

        Raises:
            ValueError: If model, SAEs or settings differ.
        """
        sets = [self, *others]
        for other in others:
            for name in ("pool", "positions", "places"):
                if getattr(self, name) != getattr(other, name):
                    raise ValueError(f"`{name}` is {getattr(self, name)} here, {getattr(other, name)} there.")
            differing = [n for n in ("model", "saes") if self.origin.get(n) != other.origin.get(n)]
            if differing:
                raise ValueError(
                    f"These are activations of different {' and '.join(differing)}: "
                    + "; ".join(f"{self.origin.get(n)} and {other.origin.get(n)}" for n in differing)
                )
        kept = [place for place in self.places if all(place in each.residuals for each in sets)]
        stack = scipy_sparse().vstack
        return replace(
            self,
            values={place: stack([each.values[place] for each in sets], format="csr") for place in self.places},
            num_tokens=np.concatenate([each.num_tokens for each in sets]),
            groups=tuple(group for each in sets for group in each.groups),
            keys=tuple(key for each in sets for key in each.keys),
            residuals={place: np.concatenate([each.residuals[place] for each in sets]) for place in kept},
            origin=_of_texts(self.origin, [each.origin.get("texts") for each in sets], sum(map(len, sets))),
        )

    # Files

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """
        Write everything to one safetensors file. It appears under its name only when it is complete.

        Args:
            path (`str` or `os.PathLike`):
                A file name ending in `.safetensors`.
            overwrite (`bool`, *optional*, defaults to `False`):
                Whether a file that is there may be replaced.

        Returns:
            `Path`: the file.

        Raises:
            FileExistsError: If the file exists and `overwrite` is not set.
            ValueError: If the name has another ending.
        """
        return write_activation_file(self, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TextActivations":
        """
        Read what `save` or the `cache` of [`read_activations`] wrote; neither model nor SAE is needed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, or holds something else.
        """
        arguments = read_activation_file(path)
        try:
            return cls(**arguments)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _of_texts(origin: dict[str, Any], parts: Sequence[Any], number: int) -> dict[str, Any]:
    """The origin of a choice of texts: their hash follows from those of the parts."""
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return {**origin, "texts": {"number": number, "sha256": digest}}
