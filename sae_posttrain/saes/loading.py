"""[`load_sae`]: from a published file to a [`FrozenSAE`]."""

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from ..sites import SITES, is_site
from .formats import FORMATS
from .frozen import FrozenSAE
from .stored.files import SAEFile, SAEFiles, Wanted, find_files


def load_sae(
    path_or_repo: str | os.PathLike[str],
    *,
    block: int,
    site: str | None = None,
    features: Iterable[int] | None = None,
    directions: bool | None = None,
    format: str | None = None,
    k: int | None = None,
    input_scale: float | None = None,
    revision: str | None = None,
) -> FrozenSAE:
    """
    Load the sparse autoencoder of one decoder block.

    `load_sae` reads every format in `FORMATS`. It never executes anything in a file, and it checks names, shapes and
    dtypes before it takes memory. With `features`, it reads only the weights of these features; over the network, it
    does so where the layout of the file allows it.

    Args:
        path_or_repo (`str` or `os.PathLike`):
            A local folder or, if no folder has that name, a Hub repository: `owner/repository` or
            `owner/repository/sub/folder`.
        block (`int`):
            Decoder block, counted from 0, in which the SAE's site lies.
        site (`str`, *optional*):
            What the SAE reads in that block: `"resid_pre"` (the block's input), `"resid_mid"`, `"resid_post"` (its
            output), `"attn_z"` (input of the attention's output projection), `"attn_out"`, `"mlp_out"`, or a module
            of the block with `.input` or `.output`, such as `"mlp.down_proj.input"`. Needed if a folder holds SAEs of
            several sites. If neither the files nor `site` name a site, it is `"resid_post"`.
        features (`Iterable[int]`, *optional*):
            Features to read; the others' weights stay in the file.
        directions (`bool`, *optional*):
            Whether to read the decoder. By default the decoder is read, unless reading a few features would fetch the
            whole matrix over the network.
        format (`str`, *optional*):
            Name in `FORMATS`; detected from the files by default.
        k (`int`, *optional*):
            Active features per token of a TopK SAE whose files do not say it. Qwen-Scope writes `k` only into the
            repository's name, so a local folder with another name needs it. Only `encode` uses `k`.
        input_scale (`float`, *optional*):
            Factor on the input of an SAE that was trained on scaled activations and whose files do not say the scale.
        revision (`str`, *optional*):
            Branch, tag or commit of the Hub repository.

    Returns:
        `FrozenSAE`: float32, on the CPU.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it holds no SAE of this block.
        ValueError: If the format is unknown, does not match or is ambiguous; if a file is truncated, hostile, not
            finite or of unexpected shapes; if a feature does not exist.

    Example:

    ```python
    >>> sae = load_sae("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", block=20, features=[17, 4711])
    >>> sae.pre_activations(residuals)  # (..., 2)
    ```
    """
    if isinstance(block, bool) or not isinstance(block, int) or block < 0:
        raise ValueError(f"`block` counts decoder blocks from 0, got {block!r}.")
    if site is not None and not is_site(site):
        raise ValueError(
            f"Unknown site {site!r}. Known: {', '.join(SITES)}, or a module of the block with '.input' or '.output', "
            "such as 'mlp.down_proj.input'."
        )
    if input_scale is not None and not 0 < input_scale < float("inf"):
        raise ValueError(f"`input_scale` must be above 0 and finite, got {input_scale}.")
    chosen = None if features is None else _checked(features)
    files = find_files(path_or_repo, revision)
    found = {name: _pick(files, listed, block, site) for name, listed in list_saes(files, format).items()}
    if len(found) > 1:
        raise ValueError(
            f"{files.place} holds SAEs of several formats: "
            f"{', '.join(f'{name} ({sae.file})' for name, sae in found.items())}. Say which with `format`."
        )
    format, sae_file = next(iter(found.items()))
    wanted = Wanted(block, sae_file.site or site or "resid_post", chosen, k, input_scale, directions)
    sae = FORMATS[format].read(files, sae_file, wanted)
    _require_finite(sae)
    return sae


def list_saes(files: SAEFiles, format: str | None = None) -> dict[str, list[SAEFile]]:
    """The SAEs in one place, by format. A format without any SAE there is left out."""
    if format is not None and format not in FORMATS:
        raise ValueError(f"Unknown SAE format {format!r}. Known: {', '.join(FORMATS)}.")
    asked = FORMATS if format is None else {format: FORMATS[format]}
    found = {name: listed for name, reader in asked.items() if (listed := reader.list(files))}
    if not found:
        what = f"No SAE of a known format is in {files.place}." if format is None else f"No {format} SAE is there."
        known = "; ".join(f"{name}: {reader.layout}" for name, reader in FORMATS.items())
        raise ValueError(f"{what} Found in {files.place}: {files.listing()}. Known formats: {known}.")
    return found


def _require_finite(sae: FrozenSAE) -> None:
    """Check the folded tensors: the stored values are finite, but folding can overflow if they are huge."""
    for field in fields(sae):
        tensor = getattr(sae, field.name)
        if not isinstance(tensor, Tensor):
            continue
        if tensor.ndim == 2 and not tensor.is_contiguous():
            tensor = tensor.T  # `aminmax` would copy a transposed view
        if not all(bound.isfinite() for bound in torch.aminmax(tensor)):
            raise ValueError(
                f"{field.name} of {sae.source.file} is not finite in raw units of its site: its weights are out of "
                "range. The file is damaged or its training diverged; download it again or use another SAE."
            )


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


def _pick(files: SAEFiles, listed: Sequence[SAEFile], block: int, site: str | None) -> SAEFile:
    """The one SAE of this block and site. An SAE that does not name its block is taken only if it is the only one."""
    fitting = [sae for sae in listed if sae.block == block and site in (None, sae.site)]
    if (
        not fitting
        and len(listed) == 1
        and listed[0].block in (None, block)
        and site in (None, listed[0].site or site)
    ):
        fitting = list(listed)
    if not fitting:
        blocks = sorted({sae.block for sae in listed if sae.block is not None})
        sites = sorted({sae.site for sae in listed if sae.site is not None})
        asked = f"block {block}" if site is None else f"{site} of block {block}"
        there = (
            f"blocks {', '.join(map(str, blocks))}" if blocks else f"{len(listed)} SAEs that do not say their block"
        )
        at_sites = f" ({', '.join(sites)})" if sites else ""
        raise FileNotFoundError(f"{files.place} holds no SAE of {asked}; it has {there}{at_sites}.")
    if len(fitting) > 1:
        sites = sorted({str(sae.site) for sae in fitting})
        hint = "Give the folder of one of them" + (f", or a `site` of {', '.join(sites)}" if len(sites) > 1 else "")
        names = ", ".join(sae.folder.rstrip("/") or sae.file for sae in fitting)
        raise ValueError(f"{files.place} holds {len(fitting)} SAEs of block {block}: {names}. {hint}.")
    return fitting[0]
