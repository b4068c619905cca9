"""The rows of a new feature set, as arguments of its constructor: features of an SAE, or directions of no SAE."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...hooks.sites import place_name
from .feature_checks import name_list, require_matrix
from .source import FeatureSource

if TYPE_CHECKING:
    from ...saes.frozen import FrozenSAE


def rows_of_sae(sae: "FrozenSAE", features: Sequence[int], names: Sequence[str] | None) -> dict[str, Any]:
    """The rows of some features of an SAE; a feature without a name is named after its place and number."""
    sae.require_affine()
    if isinstance(features, int | str):
        raise ValueError(f"`features` lists the SAE's features by number, got {features!r}. For one: `[{features}]`.")
    held = list(range(sae.num_features)) if sae.features is None else list(sae.features)
    for feature in features:
        sae.direction(feature)  # an unknown feature is an error here
    rows = torch.tensor([held.index(feature) for feature in features], device=sae.W_enc.device)
    num, where = len(features), place_name((sae.block, sae.site))
    source = FeatureSource(
        repository=sae.source.repository,
        file=sae.source.file,
        format=sae.source.format,
        revision=sae.source.revision,
        compute_sha256=sae.source.sha256,
    )
    arguments = _unmeasured(num) | {
        "encoder_rows": sae.W_enc.T[rows].float().cpu().contiguous(),
        "encoder_bias": sae.b_enc[rows].float().cpu(),
        "directions": sae.directions[rows].float().cpu().contiguous(),
        "blocks": (sae.block,) * num,
        "sites": (sae.site,) * num,
        "feature_ids": tuple(features),
        "names": tuple(f"{where}.{each}" for each in features) if names is None else name_list(names, "names"),
        "sources": (source,) * num,
    }
    if sae.threshold is not None:
        arguments["thresholds"] = sae.threshold[rows].float().cpu()
    return arguments


def rows_of_directions(directions: Tensor, residual_norms: Sequence[float] | Tensor | None) -> dict[str, Any]:
    """Rows whose pre-activation is the coordinate along a direction; names, blocks and sites are the caller's."""
    require_matrix("directions", directions)
    directions = directions.detach().float().cpu()
    num, lengths = len(directions), directions.norm(dim=1, keepdim=True)
    if bool((lengths == 0).any()):
        zero = int((lengths[:, 0] == 0).nonzero()[0])
        raise ValueError(f"A direction is zero: row {zero}, counted from 0. It points nowhere; leave it out.")
    arguments = _unmeasured(num) | {
        "encoder_rows": directions / lengths.square(),
        "encoder_bias": torch.zeros(num),
        "directions": directions,
        "feature_ids": tuple(range(num)),
        "sources": (FeatureSource("", "", "direction"),) * num,
    }
    if residual_norms is not None:
        arguments["residual_norms"] = torch.as_tensor(residual_norms).detach().float().cpu()
    return arguments


def _unmeasured(num: int) -> dict[str, Any]:
    """What is measured on texts, of features that have not been, and the thresholds that only JumpReLU SAEs have."""
    nan = torch.full((num,), math.nan)
    measured = {"groups": (), "mean": torch.zeros(num, 0), "std": torch.zeros(num, 0), "scores": {}}
    return measured | {"residual_norms": nan, "thresholds": nan}
