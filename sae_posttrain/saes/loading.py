"""[`load_sae`]: from a published file to a [`FrozenSAE`]."""

import operator
import os
from collections.abc import Iterable

from .files import SAEFiles, find_files
from .formats import FORMATS
from .frozen import FrozenSAE


def load_sae(
    path_or_repo: str | os.PathLike[str],
    *,
    block: int,
    features: Iterable[int] | None = None,
    format: str | None = None,
    k: int | None = None,
    revision: str | None = None,
) -> FrozenSAE:
    """
    Load the sparse autoencoder of one decoder block.

    Reads Qwen-Scope (`layer{block}.sae.pt`), SAELens (`cfg.json` with `sae_weights.safetensors`) and Gemma Scope
    (`layer_{block}/width_*/average_l0_*/params.npz`). Nothing in a file is executed, and names, shapes and dtypes are
    checked before memory is taken. With `features`, only their weights are read.

    Args:
        path_or_repo (`str` or `os.PathLike`):
            A local folder or, if there is none of that name, a Hub repository: `owner/repository` or
            `owner/repository/sub/folder`.
        block (`int`):
            Decoder block, counted from 0, whose output the SAE reads.
        features (`Iterable[int]`, *optional*):
            Features to read; the others' weights stay in the file.
        format (`str`, *optional*):
            Name in `FORMATS`; found out from the files if left out.
        k (`int`, *optional*):
            Active features per token of a TopK SAE whose files do not say it. Qwen-Scope's stands in the
            repository's name, so a local folder of another name needs it; only `encode` does.
        revision (`str`, *optional*):
            Branch, tag or commit of the Hub repository.

    Returns:
        `FrozenSAE`: float32, on the CPU.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it holds no SAE of this block.
        ValueError: If the format is unknown, does not match or is ambiguous; if a file is truncated, hostile, not
            finite or of other shapes; if a feature does not exist.

    Example:

    ```python
    >>> sae = load_sae("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", block=20, features=[17, 4711])
    >>> sae.pre_activations(residuals)  # (..., 2)
    ```
    """
    if isinstance(block, bool) or not isinstance(block, int) or block < 0:
        raise ValueError(f"`block` counts decoder blocks from 0, got {block!r}.")
    if format is not None and format not in FORMATS:
        raise ValueError(f"Unknown SAE format {format!r}. Known: {', '.join(FORMATS)}.")
    chosen = None if features is None else _checked(features)
    files = find_files(path_or_repo, revision)
    format, file = _locate(files, block, format)
    return FORMATS[format].read(files, file, block, chosen, k)


def _checked(features: Iterable[int]) -> tuple[int, ...]:
    chosen = tuple(operator.index(feature) for feature in features)
    if not chosen:
        raise ValueError("`features` is empty; leave it out to read all features.")
    if min(chosen) < 0:
        raise ValueError(f"Features count from 0, got {min(chosen)}.")
    if len(set(chosen)) != len(chosen):
        twice = sorted({feature for feature in chosen if chosen.count(feature) > 1})
        raise ValueError(f"`features` names {', '.join(map(str, twice))} more than once.")
    return chosen


def _locate(files: SAEFiles, block: int, format: str | None) -> tuple[str, str]:
    """Format and weight file of the block's SAE."""
    asked = FORMATS if format is None else {format: FORMATS[format]}
    found = {name: file for name, reader in asked.items() if (file := reader.find(files, block)) is not None}
    if not found:
        what = f"No SAE of a known format is in {files.place}." if format is None else f"No {format} SAE is there."
        known = "; ".join(f"{name}: {reader.layout}" for name, reader in FORMATS.items())
        raise ValueError(f"{what} Found in {files.place}: {files.listing()}. Known formats: {known}.")
    if len(found) > 1:
        raise ValueError(
            f"{files.place} holds SAEs of several formats: "
            f"{', '.join(f'{name} ({file})' for name, file in found.items())}. Say which with `format`."
        )
    return next(iter(found.items()))
