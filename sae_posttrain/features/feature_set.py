"""The door between finding features and using them: one small file that training, steering and serving read."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..hooks.blocks import find_blocks, unwrap
from ..hooks.sites import Place, place_name, require_width
from .feature_file import FILE_NAME as FILE_NAME
from .feature_file import (
    FeatureSource,
    download_feature_file,
    find_feature_file,
    read_feature_file,
    shown,
    upload_feature_file,
    write_feature_file,
)

if TYPE_CHECKING:
    from ..saes.frozen import FrozenSAE


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """
    A handful of SAE features with all that training and steering need to know of them.

    Parameters:
        encoder_rows (`torch.Tensor` of shape `(F, D)`, float32):
            A feature's pre-activation on `x`, what its site holds, is `encoder_rows @ x + encoder_bias`.
        encoder_bias (`torch.Tensor` of shape `(F,)`, float32):
            In the same units; any input shift of the SAE's format is folded in.
        directions (`torch.Tensor` of shape `(F, D)`, float32):
            What a unit of activation writes at its site (decoder rows).
        blocks (`tuple[int, ...]`), sites (`tuple[str, ...]`), feature_ids (`tuple[int, ...]`):
            Decoder block (from 0), hook site in it, and index in its SAE, one per feature.
        names (`tuple[str, ...]`):
            One unique name per feature, as it appears in metrics.
        thresholds (`torch.Tensor` of shape `(F,)`):
            JumpReLU thresholds; NaN where the SAE has none.
        groups (`tuple[str, ...]`):
            Groups (languages, say) with statistics.
        mean, std (`torch.Tensor` of shape `(F, G)`):
            Mean and standard deviation of the pre-activation over the tokens of each group.
        scores (`dict[str, torch.Tensor]`, each of shape `(F,)`):
            What chose the features.
        residual_norms (`torch.Tensor` of shape `(F,)`):
            Median norm of what the feature's site holds, first and special tokens left out; NaN if not measured.
        sources (`tuple[FeatureSource, ...]`):
            Where each feature was read from.
        base_model (`str`):
            Model on which the features were found; empty if unknown.
        target_groups (`tuple[str, ...]`):
            Groups that the features stand for.
        notes (`dict`):
            Anything else worth keeping (settings of the search, check of causality); must be JSON.
    """

    encoder_rows: Tensor
    encoder_bias: Tensor
    directions: Tensor
    blocks: tuple[int, ...]
    feature_ids: tuple[int, ...]
    names: tuple[str, ...]
    sites: tuple[str, ...]
    thresholds: Tensor
    groups: tuple[str, ...]
    mean: Tensor
    std: Tensor
    scores: dict[str, Tensor]
    residual_norms: Tensor
    sources: tuple[FeatureSource, ...]
    base_model: str = ""
    target_groups: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        num_features, num_groups = len(self.feature_ids), len(self.groups)
        if num_features == 0:
            raise ValueError("A feature set needs at least one feature.")
        if self.encoder_rows.ndim != 2:
            raise ValueError(
                f"`encoder_rows` of a feature set has shape {tuple(self.encoder_rows.shape)}, expected is a row for "
                "each feature."
            )
        shapes = {
            "encoder_bias": (num_features,),
            "encoder_rows": (num_features, self.encoder_rows.shape[-1]),
            "directions": (num_features, self.encoder_rows.shape[-1]),
            "thresholds": (num_features,),
            "residual_norms": (num_features,),
            "mean": (num_features, num_groups),
            "std": (num_features, num_groups),
        }
        tensors = {name: getattr(self, name) for name in shapes} | {f"scores.{k}": v for k, v in self.scores.items()}
        for name, tensor in tensors.items():
            shape = shapes.get(name, (num_features,))
            if tuple(tensor.shape) != shape:
                raise ValueError(f"`{name}` of a feature set has shape {tuple(tensor.shape)}, expected {shape}.")
            may_be_nan = name in ("thresholds", "residual_norms") or name.startswith("scores.")
            if not tensor.is_floating_point() or bool(tensor.isinf().any()):
                raise ValueError(f"`{name}` of a feature set must hold finite floating-point numbers.")
            if not may_be_nan and bool(tensor.isnan().any()):
                raise ValueError(f"`{name}` of a feature set holds NaN.")
        if bool((self.std < 0).any()):
            raise ValueError("`std` of a feature set is negative.")
        for name in ("blocks", "names", "sites", "sources"):
            if len(getattr(self, name)) != num_features:
                raise ValueError(f"`{name}` has {len(getattr(self, name))} entries for {num_features} features.")
        if min(self.blocks) < 0 or min(self.feature_ids) < 0:
            raise ValueError("Blocks and feature ids count from 0; the feature set holds a negative one.")
        for what, values in (("name", self.names), ("group", self.groups), ("feature", self._keys())):
            repeated = {value for value in values if list(values).count(value) > 1}
            if repeated:
                raise ValueError(f"The {what} {sorted(repeated)[0]!r} stands twice in the feature set.")

    # Reading a set

    @property
    def d_model(self) -> int:
        """Width of what the features read; one for all, so sites of other widths need a set of their own."""
        return self.encoder_rows.shape[1]

    @property
    def places(self) -> tuple[Place, ...]:
        """Block and site of the features, each place once, in order of blocks."""
        return tuple(sorted(set(zip(self.blocks, self.sites))))

    def __len__(self) -> int:
        return len(self.feature_ids)

    def _keys(self) -> list[tuple[int, str, int]]:
        return list(zip(self.blocks, self.sites, self.feature_ids))

    def pre_activations(self, residual: Tensor) -> Tensor:
        """
        Pre-activations `x · W_enc[:, s] + b_enc[s]` of every feature of the set, in float32 also under autocast.

        Args:
            residual (`torch.Tensor` of shape `(..., D)`):
                What the features' site holds, in raw units. A set with several blocks or sites is sliced first:
                `feature_set.select(block=20, site="resid_post")`.

        Returns:
            `torch.Tensor` of shape `(..., F)`.

        Raises:
            ValueError: If the width differs, or the set holds features of several blocks or sites.
        """
        if len(self.places) > 1:
            held = ", ".join(f"{site} of block {block}" for block, site in self.places)
            raise ValueError(f"The set holds features of {held}; `select(block=…, site=…)` first.")
        if residual.shape[-1] != self.d_model:
            raise ValueError(f"The features read width {self.d_model}, the residual has {residual.shape[-1]}.")
        rows = self.encoder_rows.to(residual.device)
        with torch.autocast(residual.device.type, enabled=False):
            return residual.float() @ rows.T + self.encoder_bias.to(residual.device)

    def check_model(self, model: nn.Module, *, allow_base_model: str | None = None) -> None:
        """
        Refuse a model that these features cannot belong to.

        Args:
            model (`torch.nn.Module`):
                The model about to be trained or steered.
            allow_base_model (`str`, *optional*):
                Name of another model on which these features may be used, a fine-tuned copy for example.

        Raises:
            ValueError: If a block or site does not exist, its width differs, or the model's name is another one and
                not allowed.
        """
        num_blocks = len(find_blocks(model))
        if max(self.blocks) >= num_blocks:
            raise ValueError(
                f"The features read block {max(self.blocks)}, the model has blocks 0 to {num_blocks - 1}."
            )
        found_on = f"they were found on {self.base_model or 'another model'}."
        for place in self.places:
            require_width(model, place, self.d_model, "The features read", found_on)
        name = str(getattr(unwrap(model).config, "_name_or_path", "") or "")
        known = {_short_name(other) for other in (self.base_model, allow_base_model) if other}
        if self.base_model and name and _short_name(name) not in known:
            raise ValueError(
                f"The features were found on {self.base_model!r}, this model is {name!r}. If it is a fine-tuned copy "
                f"of that model, allow it by name: `allow_base_model={_short_name(name)!r}`."
            )

    def __str__(self) -> str:
        where = ["block"] if set(self.sites) == {"resid_post"} else ["block", "site"]
        shown = [*where, "feature", "name", *self.scores, *(f"mean[{group}]" for group in self.groups)]
        rows = [
            [
                *(str(self.blocks[i]), self.sites[i])[: len(where)],
                str(self.feature_ids[i]),
                self.names[i],
                *(f"{score[i].item():.3f}" for score in self.scores.values()),
                *(f"{self.mean[i, g].item():.2f}" for g in range(len(self.groups))),
            ]
            for i in range(len(self))
        ]
        widths = [max(len(row[c]) for row in [shown, *rows]) for c in range(len(shown))]
        target = f" for {', '.join(self.target_groups)}" if self.target_groups else ""
        title = (
            f"{len(self)} features{target}, found on {self.base_model or 'an unknown model'} (width {self.d_model})"
        )
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in [shown, *rows]]
        return "\n".join([title, *lines])

    # Changing a set

    def __getitem__(self, index: int | slice | Sequence[int]) -> "FeatureSet":
        """The set of the features at these positions."""
        positions = range(len(self))[index] if isinstance(index, slice) else index
        picked = [positions] if isinstance(positions, int) else list(positions)
        rows = torch.tensor(picked, dtype=torch.long)
        per_feature = ("blocks", "feature_ids", "names", "sites", "sources")
        tensors = ("encoder_rows", "encoder_bias", "directions", "thresholds", "mean", "std", "residual_norms")
        changes: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in picked) for name in per_feature}
        changes |= {name: getattr(self, name)[rows] for name in tensors}
        return replace(self, scores={name: score[rows] for name, score in self.scores.items()}, **changes)

    def select(
        self, *, block: int | None = None, site: str | None = None, names: Sequence[str] | None = None
    ) -> "FeatureSet":
        """
        The features of one block, of one site, or those with these names; of several conditions, those that meet all.

        Raises:
            ValueError: If none is left, or a name is unknown.
        """
        unknown = sorted(set(names or ()) - set(self.names))
        if unknown:
            raise ValueError(f"Unknown feature {unknown[0]!r}. Known: {', '.join(self.names)}.")
        picked = [
            i
            for i in range(len(self))
            if block in (None, self.blocks[i])
            and site in (None, self.sites[i])
            and (names is None or self.names[i] in names)
        ]
        if not picked:
            asked = " and ".join(
                [f"block {block}"] * (block is not None) + [f"the site {site!r}"] * (site is not None)
                or ["these names"]
            )
            held = ", ".join(f"{site} of block {block}" for block, site in self.places)
            raise ValueError(f"No feature of {asked} in the set; it holds features of {held}.")
        return self[picked]

    def merge(self, *others: "FeatureSet") -> "FeatureSet":
        """
        This set and others of the same model and the same groups, as one.

        Raises:
            ValueError: If width, base model or groups differ, or a feature stands in two of them.
        """
        sets = [self, *others]
        for other in others:
            if other.d_model != self.d_model:
                raise ValueError(
                    f"Cannot merge features of width {self.d_model} and {other.d_model}: keep a set of each."
                )
            if other.base_model != self.base_model:
                raise ValueError(f"Cannot merge features of {self.base_model!r} and {other.base_model!r}.")
            if set(other.groups) != set(self.groups):
                raise ValueError(f"Cannot merge statistics over the groups {self.groups} and {other.groups}.")
        columns = [[other.groups.index(group) for group in self.groups] for other in sets]
        tensors = ("encoder_rows", "encoder_bias", "directions", "thresholds", "residual_norms")
        per_feature = ("blocks", "feature_ids", "names", "sites", "sources")
        nan = [torch.full((len(other),), math.nan) for other in sets]
        all_scores = dict.fromkeys(name for other in sets for name in other.scores)
        joined: dict[str, Any] = {name: torch.cat([getattr(other, name) for other in sets]) for name in tensors}
        joined |= {name: tuple(value for other in sets for value in getattr(other, name)) for name in per_feature}
        return replace(
            self,
            **joined,
            mean=torch.cat([other.mean[:, order] for other, order in zip(sets, columns)]),
            std=torch.cat([other.std[:, order] for other, order in zip(sets, columns)]),
            scores={
                name: torch.cat([other.scores.get(name, empty) for other, empty in zip(sets, nan)])
                for name in all_scores
            },
            target_groups=tuple(dict.fromkeys(group for other in sets for group in other.target_groups)),
            notes={key: value for other in sets for key, value in other.notes.items()},
        )

    @classmethod
    def from_sae(
        cls,
        sae: "FrozenSAE",
        features: Sequence[int],
        *,
        names: Sequence[str] | None = None,
        base_model: str = "",
        target_groups: Sequence[str] = (),
    ) -> "FeatureSet":
        """
        A set of features whose numbers are known already, without statistics of any group.

        It can be penalised with `penalty="zero"` and `penalty_unit="raw"`; the mean of a group needs `find_features`.

        Raises:
            ValueError: If a feature is not in the SAE, or the SAE normalises each token before it reads it.
        """
        sae.require_affine()
        held = list(range(sae.num_features)) if sae.features is None else list(sae.features)
        for feature in features:
            sae.direction(feature)  # an unknown feature is an error here
        rows = torch.tensor([held.index(feature) for feature in features], device=sae.W_enc.device)
        num, where = len(features), place_name((sae.block, sae.site))
        nan = torch.full((num,), math.nan)
        source = FeatureSource(
            repository=sae.source.repository,
            file=sae.source.file,
            format=sae.source.format,
            revision=sae.source.revision,
            compute_sha256=sae.source.sha256,
        )
        return cls(
            encoder_rows=sae.W_enc.T[rows].float().cpu().contiguous(),
            encoder_bias=sae.b_enc[rows].float().cpu(),
            directions=sae.directions[rows].float().cpu().contiguous(),
            blocks=(sae.block,) * num,
            feature_ids=tuple(features),
            names=tuple(names) if names is not None else tuple(f"{where}.{feature}" for feature in features),
            sites=(sae.site,) * num,
            thresholds=nan if sae.threshold is None else sae.threshold[rows].float().cpu(),
            groups=(),
            mean=torch.zeros(num, 0),
            std=torch.zeros(num, 0),
            scores={},
            residual_norms=nan,
            sources=(source,) * num,
            base_model=base_model,
            target_groups=tuple(target_groups),
        )

    @classmethod
    def from_directions(
        cls,
        directions: Tensor,
        *,
        blocks: Sequence[int],
        names: Sequence[str],
        sites: Sequence[str] | None = None,
        residual_norms: Sequence[float] | Tensor | None = None,
        base_model: str = "",
    ) -> "FeatureSet":
        """
        Directions that come from no SAE, in the form that steering takes: controls, differences of means, probes.

        Their pre-activation is the coordinate along the direction, `x · d / ‖d‖²`, so that clamping them is exact.

        Args:
            directions (`torch.Tensor` of shape `(F, D)`):
                Of any length.
            blocks (`Sequence[int]`):
                Decoder block of each, from 0.
            names (`Sequence[str]`):
                One each.
            sites (`Sequence[str]`, *optional*):
                Site of each in its block; `"resid_post"`, the block's output, if left out.
            residual_norms (`Sequence[float]` or `torch.Tensor` of shape `(F,)`, *optional*):
                Median norm of what each site holds, which steering in units of norms needs.
            base_model (`str`, *optional*):
                The model they belong to.

        Raises:
            ValueError: If a direction is zero, or a length differs.
        """
        directions = directions.detach().float().cpu()
        num, lengths = len(directions), directions.norm(dim=1, keepdim=True)
        if bool((lengths == 0).any()):
            raise ValueError("A direction is zero.")
        nan = torch.full((num,), math.nan)
        return cls(
            encoder_rows=directions / lengths.square(),
            encoder_bias=torch.zeros(num),
            directions=directions,
            blocks=tuple(blocks),
            feature_ids=tuple(range(num)),
            names=tuple(names),
            sites=("resid_post",) * num if sites is None else tuple(sites),
            thresholds=nan,
            groups=(),
            mean=torch.zeros(num, 0),
            std=torch.zeros(num, 0),
            scores={},
            residual_norms=nan if residual_norms is None else torch.as_tensor(residual_norms).detach().float().cpu(),
            sources=(FeatureSource("", "", "direction"),) * num,
            base_model=base_model,
        )

    # Files and the Hub

    def save(self, path: str | os.PathLike) -> Path:
        """
        Write the set to one safetensors file; the SAE files it came from are hashed now, once each.

        Args:
            path (`str` or `os.PathLike`):
                A file name ending in `.safetensors`, or a folder (the file is then `features.safetensors` in it).

        Returns:
            `Path`: the file.
        """
        return write_feature_file(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureSet":
        """
        Read a set that `save` wrote. The file is data: nothing in it is executed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, or is no feature set.
        """
        path = find_feature_file(path)
        arguments = read_feature_file(path)
        try:
            return cls(**arguments)
        except ValueError as error:
            raise ValueError(f"{path}: {shown(error)}") from error

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, *, revision: str | None = None) -> "FeatureSet":
        """
        Read a set from a file, a folder, or a Hub repository that `push_to_hub` wrote.

        Args:
            path_or_repo (`str` or `os.PathLike`):
                A file, a folder with `features.safetensors`, or `owner/repo[/path/to/file.safetensors]`.
            revision (`str`, *optional*):
                Branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: If it is neither on this machine nor named like a Hub repository.
            ValueError: If the file is damaged, or is no feature set.
        """
        if Path(path_or_repo).exists():
            return cls.load(path_or_repo)
        return cls.load(download_feature_file(path_or_repo, revision))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """
        Upload the set to a Hub repository (created if needed), as `features.safetensors`, with a card unless there is
        one: the features and their scores, the picture (where matplotlib is installed), the SAEs and their licences.

        Returns:
            `str`: the commit's address.
        """
        return upload_feature_file(self, repo_id, private, token)


def _short_name(model_name: str) -> str:
    return model_name.rstrip("/").split("/")[-1]
