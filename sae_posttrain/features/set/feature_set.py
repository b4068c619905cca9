"""The door between finding features and using them: one small file that training, steering and serving read."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...hooks.blocks import find_blocks
from ...hooks.sites import Place, place_name, require_width
from ...shown import printable
from .calibrated_for import calibration_of, with_own_calibration
from .feature_checks import block_numbers, check_set, name_list, positions
from .feature_file import find_feature_file, read_feature_file, write_feature_file
from .feature_merge import merge_sets
from .feature_names import renamed
from .feature_rows import rows_of_directions, rows_of_sae
from .feature_table import html_table, short_text, text_table
from .hub import download_feature_file, upload_feature_file
from .model_identity import require_same_model
from .source import FeatureSource

if TYPE_CHECKING:
    from ...saes.frozen import FrozenSAE


@dataclass(frozen=True, eq=False, repr=False)
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
            One name per feature, as it appears in metrics. Features that share a name are pushed together. `rename`
            gives them others.
        thresholds (`torch.Tensor` of shape `(F,)`):
            JumpReLU thresholds; NaN where the SAE has none.
        groups (`tuple[str, ...]`):
            Groups (languages, say) with statistics.
        mean, std (`torch.Tensor` of shape `(F, G)`):
            Mean and standard deviation of the pre-activation over the tokens of each group; NaN throughout for a
            feature that was not measured.
        scores (`dict[str, torch.Tensor]`, each of shape `(F,)`):
            What chose the features.
        residual_norms (`torch.Tensor` of shape `(F,)`):
            Median norm of what the feature's site holds, first and special tokens left out; NaN if not measured.
        sources (`tuple[FeatureSource, ...]`):
            Where each feature was read from.
        base_model (`str`):
            Model on which the features were found; empty if unknown.
        fingerprint (`dict`):
            What that model's configuration says of it (hidden size, number of layers and the like); empty if unknown.
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
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_set(self)

    # Reading a set

    @property
    def d_model(self) -> int:
        """Width of what the features read; one for all, so sites of other widths need a set of their own."""
        return self.encoder_rows.shape[1]

    @property
    def places(self) -> tuple[Place, ...]:
        """Block and site of the features, each place once, in order of blocks."""
        return tuple(sorted(set(zip(self.blocks, self.sites))))

    @property
    def calibration(self) -> dict[str, Any]:
        """
        What `calibrate` measured for these features, from the notes; empty if nothing was.

        Raises:
            ValueError: If it was measured for other features: a strength belongs to those that were pushed together.
        """
        return calibration_of(self)

    def __len__(self) -> int:
        return len(self.feature_ids)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names, with place and number behind those that several features share: one label per feature."""
        marks = [
            f"{place_name((block, site))}.{number}"
            for block, site, number in zip(self.blocks, self.sites, self.feature_ids)
        ]
        shared = [f"{name} ({mark})" if self.names.count(name) > 1 else name for name, mark in zip(self.names, marks)]
        return tuple(f"{label}#{i}" if shared.count(label) > 1 else label for i, label in enumerate(shared))

    def labels_at(self, place: Place) -> tuple[str, ...]:
        """The [`labels`] of the features of one block and site."""
        where = zip(self.blocks, self.sites)
        return tuple(label for label, other in zip(self.labels, where) if other == place)

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

    def check_model(self, model: nn.Module, *, allow_base_model: str | None = None, tokenizer: Any = None) -> None:
        """
        Refuse a model that these features cannot belong to.

        Names are compared whole: `someone/Qwen3-1.7B` is not `Qwen/Qwen3-1.7B`, and `runs/b/checkpoint-100` is not
        `runs/a/checkpoint-100`. A local folder passes for the Hub repository of the same last name if the
        configurations agree.

        Args:
            model (`torch.nn.Module`):
                The model about to be trained or steered.
            allow_base_model (`str`, *optional*):
                Name of another model on which these features may be used, a fine-tuned copy for example.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Its tokenizer, whose vocabulary is compared too.

        Raises:
            ValueError: If a block or site does not exist, its width differs, or the model's name or configuration is
                another one and not allowed.
        """
        num_blocks = len(find_blocks(model))
        if max(self.blocks) >= num_blocks:
            raise ValueError(
                f"The features read block {max(self.blocks)}, the model has blocks 0 to {num_blocks - 1}."
            )
        found_on = f"they were found on {self.base_model or 'another model'}."
        for place in self.places:
            require_width(model, place, self.d_model, "The features read", found_on)
        require_same_model(
            self.base_model, self.fingerprint, model, tokenizer=tokenizer, allow_base_model=allow_base_model
        )

    def __repr__(self) -> str:
        return short_text(self)

    def __str__(self) -> str:
        return text_table(self)

    def _repr_html_(self) -> str:
        return html_table(self)

    # Changing a set

    def __getitem__(self, index: Any) -> "FeatureSet":
        """
        The set of the features at these positions: one, a slice, a list, or a mask with a bool for each feature.

        A calibration is kept only if it was measured for exactly these features.
        """
        picked = self._at(positions(index, len(self)))
        return replace(picked, notes=with_own_calibration(picked, [self]))

    def _at(self, picked: Sequence[int]) -> "FeatureSet":
        rows = torch.tensor(picked, dtype=torch.long)
        per_feature = ("blocks", "feature_ids", "names", "sites", "sources")
        tensors = ("encoder_rows", "encoder_bias", "directions", "thresholds", "mean", "std", "residual_norms")
        changes: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in picked) for name in per_feature}
        changes |= {name: getattr(self, name)[rows] for name in tensors}
        return replace(self, scores={name: score[rows] for name, score in self.scores.items()}, **changes)

    def at(self, place: Place) -> "FeatureSet":
        """The features of one block and site, for calculations: without the notes, which are about the whole set."""
        rows = [row for row, other in enumerate(zip(self.blocks, self.sites)) if other == place]
        return replace(self._at(rows), notes={})

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

    def rename(self, names: Mapping[str, str]) -> "FeatureSet":
        """
        The same features with other names: `features.rename({"14.4245": "loop"})`. Saving the result keeps the names.

        Features may be given one name, so that they are pushed together. A calibration is kept, because the features
        stay the same.

        Args:
            names (`Mapping[str, str]`):
                New name by old name, or by label ([`labels`]) where several features share a name. Features that are
                not mentioned keep their names.

        Raises:
            ValueError: If an old name is unknown, or a new one is no text or empty.
        """
        return replace(self, names=renamed(self, names))

    def merge(self, *others: "FeatureSet") -> "FeatureSet":
        """
        This set and others of the same model, as one.

        Sets may come from several SAEs of one site, or be directions; a set without statistics (from `from_sae` or
        `from_directions`) gets the residual norm of its site from the others, and its mean and standard deviation are
        NaN until `measure_groups` fills them in. Where names made of place and number would stand for two features,
        the later one gets the number of its set behind it (`20.17#2`).

        Raises:
            ValueError: If width or model differ, both have statistics and of other groups, or a feature stands in two
                of them.
        """
        return merge_sets([self, *others])

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
        return cls(
            **rows_of_sae(sae, features, names),
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
                The directions, of any length.
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
            ValueError: If a direction is zero, a block is no number, or a shape or length differs.
        """
        return cls(
            **rows_of_directions(directions, residual_norms),
            blocks=block_numbers(blocks),
            names=name_list(names, "names"),
            sites=("resid_post",) * len(directions) if sites is None else name_list(sites, "sites"),
            base_model=base_model,
        )

    # Files and the Hub

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """
        Write the set to one safetensors file; the SAE files it came from are hashed now, once each.

        Args:
            path (`str` or `os.PathLike`):
                A file name ending in `.safetensors`, or a folder (the file is then `features.safetensors` in it).
            overwrite (`bool`, *optional*, defaults to `False`):
                Whether a file that is there may be replaced.

        Returns:
            `Path`: the file.

        Raises:
            FileExistsError: If the file exists and `overwrite` is not set; it is left as it is.
        """
        return write_feature_file(self, path, overwrite=overwrite)

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
            raise ValueError(f"{path}: {printable(error)}") from error

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
