"""A push as a file for the library steering-vectors."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ...features.set.feature_set import FeatureSet
from .new_file import new_file
from .pushes import pushes_of

LAYER_TYPES = {"resid_post": "decoder_block", "attn_out": "self_attn", "mlp_out": "mlp"}
"""Site and the name that the library gives it (`LayerType` in its `layer_matching.py`)."""


def write_steering_vector(
    feature_set: FeatureSet,
    strength: float | Mapping[str, float],
    path: str | os.PathLike,
    *,
    unit: str = "norm",
    overwrite: bool = False,
) -> Path:
    """
    Write the push as the fields of a `SteeringVector`, with the strength in it: apply it with the multiplier 1.

    The file holds plain tensors, so `torch.load` reads it without running code:

    ```python
    from steering_vectors import SteeringVector

    vector = SteeringVector(**torch.load("calm.pt"))
    with vector.apply(model):  # every position, as `steer(..., positions="all")`
        model.generate(**inputs)
    ```

    Args:
        feature_set ([`FeatureSet`]):
            Features at one kind of site: outputs of blocks, of attentions or of MLPs.
        strength (`float` or `Mapping[str, float]`):
            One strength for all features, or strengths by name.
        path (`str` or `os.PathLike`):
            File to write, ending in `.pt`.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths, as in [`steer`].
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a file that is there may be replaced.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If the features are at several kinds of sites or at one that the library does not know, or a
            strength is not usable.
        FileExistsError: If the file exists and `overwrite` is not set.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(f"A file of steering-vectors ends in .pt, got {path}.")
    pushes = pushes_of(feature_set, strength, unit=unit)
    sites = sorted({site for _, site in pushes})
    if len(sites) > 1 or sites[0] not in LAYER_TYPES:
        raise ValueError(
            f"A steering vector is for one kind of site, {', '.join(LAYER_TYPES)}; these features are at "
            f"{', '.join(sites)}. Export one site at a time: `feature_set.select(site='resid_post')`."
        )
    content = {
        "layer_activations": {block: push for (block, _), push in pushes.items()},
        "layer_type": LAYER_TYPES[sites[0]],
    }
    with new_file(path, overwrite) as part:
        torch.save(content, part)
    return path
