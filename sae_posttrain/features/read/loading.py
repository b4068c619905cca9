"""Load what a search for features works on: the model with its tokenizer, and SAEs that fit it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from torch import nn

from ...hooks.blocks import find_blocks, unwrap
from ...hooks.sites import Place, describe_place, require_width
from ...measure.answers.rows import is_data_file
from ...model_loading import load_model, load_tokenizer
from ...model_records import is_path
from ...saes.frozen import COMPARING, FrozenSAE
from ...saes.loading import load_sae


def load_model_and_tokenizer(model: nn.Module | str, tokenizer: Any) -> tuple[Any, Any]:
    """A causal language model on this process's device and its tokenizer, each as it is given or loaded."""
    network = load_model(model, PartialState().device)
    return network, load_tokenizer(tokenizer, model if is_path(model) else unwrap(network))[0]


def require_order(sae: Any, texts: Any) -> None:
    """Raises a `ValueError` if texts were given where the SAE is expected, or the other way round."""
    saes = [sae] if isinstance(sae, str | os.PathLike | Mapping | FrozenSAE) else sae
    held = [texts] if isinstance(texts, FrozenSAE) else texts if isinstance(texts, Sequence) else ()
    are_texts = isinstance(saes, Sequence) and any(
        isinstance(each, Mapping) or (isinstance(each, str | os.PathLike) and is_data_file(os.fspath(each)))
        for each in saes
    )
    if are_texts or any(isinstance(each, FrozenSAE) for each in held):
        raise ValueError(
            "The SAE comes before the texts: give `(model, sae, texts)`, or name the arguments. Here "
            f"{'texts stand' if are_texts else 'an SAE stands'} in the place of the {'SAE' if are_texts else 'texts'}."
        )


def place_of(sae: FrozenSAE) -> Place:
    """Block and site that an SAE reads."""
    return sae.block, sae.site


def load_saes(
    sae: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE],
    blocks: Sequence[int] | None,
    site: str | None = None,
    **options: Any,
) -> list[FrozenSAE]:
    """One SAE a place, loaded or as they are given; `find_features` says which forms `sae` takes."""
    given = [sae] if isinstance(sae, str | os.PathLike | FrozenSAE) else list(sae)
    loaded = [each for each in given if isinstance(each, FrozenSAE)]
    paths = [each for each in given if not isinstance(each, FrozenSAE)]
    if loaded and paths:
        raise ValueError("Give loaded SAEs or paths of SAEs, not both.")
    if loaded:
        chosen = [each for each in loaded if site in (None, each.site) and (blocks is None or each.block in blocks)]
        places = [place_of(each) for each in chosen]
        if not chosen or len(set(places)) < len(places) or not set(blocks or ()) <= {block for block, _ in places}:
            asked = f"{f'{site} of ' if site else ''}each block of {sorted(set(blocks or (e.block for e in loaded)))}"
            held = ", ".join(describe_place(place_of(each)) for each in loaded)
            raise ValueError(f"Give one SAE for {asked}; these read {held}.")
        for each in chosen:
            require_encodes(each)
        return chosen
    if not blocks:
        raise ValueError("Say which `blocks` to look at: a list of decoder blocks, counted from 0.")
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"`blocks` names a block more than once: {list(blocks)}.")
    if len(paths) == 1:
        paths = paths * len(blocks)
    if len(paths) != len(blocks):
        raise ValueError(
            f"Give one SAE for all blocks or one for each: got {len(paths)} for the blocks {list(blocks)}."
        )
    read = []
    for path, block in zip(paths, blocks):
        read.append(load_sae(path, block=block, site=site, **options))
        require_encodes(read[-1])  # before the next one is read, or a model is loaded
    return read


def require_one_width(saes: Sequence[FrozenSAE]) -> None:
    """Raises a `ValueError` if the SAEs' features cannot stand in one feature set."""
    widths = {sae.d_model: describe_place(place_of(sae)) for sae in saes}
    if len(widths) > 1:
        held = ", ".join(f"{width} at {place}" for width, place in widths.items())
        raise ValueError(f"A feature set holds features of one width, these SAEs read {held}. Search one by one.")


def require_encodes(sae: FrozenSAE) -> None:
    """Raises a `ValueError` if features cannot be searched in the SAE, whatever the model."""
    sae.require_affine()
    _ = sae.directions  # an SAE whose directions were left in the file says so here
    if sae.activation in COMPARING and sae.k is None:
        raise ValueError(
            f"The SAE's files ({sae.source.file}) do not say how many features are active per token. Give it, e.g. "
            "`k=50` (on the command line `--k 50`)."
        )


def require_fit(sae: FrozenSAE, model: nn.Module) -> None:
    """Raises a `ValueError` if the SAE cannot have been trained on this model."""
    num_blocks = len(find_blocks(model))
    if sae.block >= num_blocks:
        raise ValueError(f"The SAE reads block {sae.block}, the model has blocks 0 to {num_blocks - 1}.")
    require_width(model, place_of(sae), sae.d_model, "The SAE reads", "was it trained on this model?")
