"""What a feature set has to fulfil, with errors that say what is wrong, what was given and what to do."""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...sites import parse_hook

if TYPE_CHECKING:
    from .feature_set import FeatureSet

_MATRICES = ("encoder_rows", "directions")


def check_set(feature_set: "FeatureSet") -> None:
    """Check that the fields of a set fit together."""
    num_features, num_groups = len(feature_set.feature_ids), len(feature_set.groups)
    if num_features == 0:
        raise ValueError("A feature set needs at least one feature.")
    for name in _MATRICES:
        require_matrix(name, getattr(feature_set, name))
    width = feature_set.encoder_rows.shape[1]
    shapes = {
        "encoder_bias": (num_features,),
        "encoder_rows": (num_features, width),
        "directions": (num_features, width),
        "thresholds": (num_features,),
        "residual_norms": (num_features,),
        "mean": (num_features, num_groups),
        "std": (num_features, num_groups),
    }
    tensors = {name: getattr(feature_set, name) for name in shapes}
    tensors |= {f"scores.{name}": score for name, score in feature_set.scores.items()}
    for name, tensor in tensors.items():
        shape = shapes.get(name, (num_features,))
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"`{name}` of a feature set is a {type(tensor).__name__}, expected is a tensor of shape {shape}."
            )
        if tuple(tensor.shape) != shape:
            raise ValueError(f"`{name}` of a feature set has shape {tuple(tensor.shape)}, expected {shape}.")
    not_measured = _rows_without_statistics(feature_set.mean, feature_set.std)
    for name, tensor in tensors.items():
        may_be_nan = name in ("thresholds", "residual_norms") or name.startswith("scores.")
        if not tensor.is_floating_point() or bool(tensor.isinf().any()):
            raise ValueError(f"`{name}` of a feature set must hold finite floating-point numbers.")
        looked_at = tensor[~not_measured] if name in ("mean", "std") else tensor
        if not may_be_nan and bool(looked_at.isnan().any()):
            raise ValueError(f"`{name}` of a feature set holds NaN.")
    if bool((feature_set.std < 0).any()):
        raise ValueError("`std` of a feature set is negative.")
    for name in ("blocks", "names", "sites", "sources"):
        if len(getattr(feature_set, name)) != num_features:
            raise ValueError(f"`{name}` has {len(getattr(feature_set, name))} entries for {num_features} features.")
    for number in feature_set.blocks:
        block_number(number)
    if min(feature_set.blocks) < 0 or min(feature_set.feature_ids) < 0:
        raise ValueError("Blocks and feature ids count from 0; the feature set holds a negative one.")
    repeated = {group for group in feature_set.groups if list(feature_set.groups).count(group) > 1}
    if repeated:
        raise ValueError(f"The group {sorted(repeated)[0]!r} stands twice in the feature set.")
    _require_each_once(feature_set)


def require_matrix(name: str, value: Any) -> None:
    """Raises a `ValueError` unless it is a matrix with a row for each feature."""
    if not isinstance(value, Tensor):
        how = "`torch.stack([...])` makes it of a list of vectors" if isinstance(value, list | tuple) else ""
        how = how or "`torch.as_tensor(...)` makes it of an array"
        raise ValueError(
            f"`{name}` of a feature set is a {type(value).__name__}, expected is a tensor of shape (F, D), a row for "
            f"each feature: {how}."
        )
    if value.ndim != 2:
        how = f" One vector is a matrix of one row: `{name}[None]`." if value.ndim == 1 else ""
        raise ValueError(
            f"`{name}` of a feature set has shape {tuple(value.shape)}, expected is (F, D), a row for each "
            f"feature.{how}"
        )


def block_number(block: Any) -> int:
    """A decoder block as a plain number."""
    if not isinstance(block, bool | str):
        try:
            return operator.index(block)
        except TypeError:
            pass
    place = parse_hook(block) if isinstance(block, str) else None
    if place is not None:
        site = "" if place[1] == "resid_post" else f", with `sites=[{place[1]!r}]`"
        hint = f"{block!r} is block {place[0]}{site}."
    elif isinstance(block, str) and block.isdecimal():
        hint = f"Write it without quotes: {int(block)}."
    else:
        hint = "Write block 20 as 20."
    raise ValueError(f"A block is a whole number counted from 0, got {block!r}. {hint}")


def block_numbers(blocks: Any) -> tuple[int, ...]:
    """A sequence of decoder blocks as plain numbers; `ValueError` for anything else."""
    if isinstance(blocks, str) or not hasattr(blocks, "__iter__"):
        number = block_number(blocks)
        raise ValueError(f"`blocks` names the block of each direction, got {blocks!r}. For one: `blocks=[{number}]`.")
    return tuple(block_number(block) for block in blocks)


def name_list(names: Any, what: str) -> tuple[str, ...]:
    """A sequence of texts; `ValueError` for a single one, whose letters would be taken for names."""
    if isinstance(names, str):
        raise ValueError(f"`{what}` holds one text for each feature, got {names!r}. For one: `{what}=[{names!r}]`.")
    return tuple(names)


def positions(index: Any, num_features: int) -> list[int]:
    """Positions that an index stands for: one position, a slice, positions, or a mask with a bool for each feature."""
    if isinstance(index, slice):
        return list(range(num_features))[index]
    listed = index.tolist() if hasattr(index, "tolist") else index  # of torch or numpy
    if not isinstance(listed, bool) and hasattr(listed, "__index__"):
        listed = [listed]
    if isinstance(listed, str | bool) or not hasattr(listed, "__iter__"):
        raise TypeError(
            f"A feature set is indexed by a position, a slice, a list of positions or a mask, got {index!r}. By name: "
            "`feature_set.select(names=[...])`."
        )
    values = [value.item() if hasattr(value, "item") else value for value in listed]
    if any(isinstance(value, bool) for value in values):
        if not all(isinstance(value, bool) for value in values):
            raise TypeError(f"A mask holds True and False only, got {values}. Give a mask or a list of positions.")
        if len(values) != num_features:
            raise ValueError(
                f"The mask has {len(values)} entries, the feature set {num_features} features: give one for each."
            )
        return [position for position, wanted in enumerate(values) if wanted]
    if not all(hasattr(value, "__index__") for value in values):
        raise TypeError(f"Positions in a feature set are whole numbers, got {values}.")
    for value in values:
        if not -num_features <= operator.index(value) < num_features:
            raise IndexError(f"Position {value} does not exist: the set has features 0 to {num_features - 1}.")
    return [operator.index(value) % num_features for value in values]


def _rows_without_statistics(mean: Tensor, std: Tensor) -> Tensor:
    """Features of which no statistic was measured: NaN throughout, `(F,)`."""
    if not mean.numel():
        return torch.zeros(len(mean), dtype=torch.bool)
    return (mean.isnan() & std.isnan()).all(dim=-1)


def _require_each_once(feature_set: "FeatureSet") -> None:
    """Numbers of one place may repeat where they come from several SAEs: then their rows differ."""
    seen: dict[tuple, list[int]] = {}
    keys: Sequence[tuple] = list(zip(feature_set.blocks, feature_set.sites, feature_set.feature_ids))
    for row, key in enumerate(keys):
        for other in seen.setdefault(key, []):
            if torch.equal(feature_set.encoder_rows[row], feature_set.encoder_rows[other]) and torch.equal(
                feature_set.directions[row], feature_set.directions[other]
            ):
                raise ValueError(
                    f"The feature {key!r} stands twice in the feature set, as {feature_set.names[other]!r} and "
                    f"{feature_set.names[row]!r}. Leave one out."
                )
        seen[key].append(row)
