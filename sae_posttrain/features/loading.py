"""Load what a search for features works on: the model with its tokenizer, and SAEs that fit it."""

import os
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from torch import nn

from ..hooks.blocks import find_blocks, get_width, unwrap
from ..saes.frozen import FrozenSAE
from ..saes.loading import load_sae


def load_model(model: nn.Module | str, tokenizer: Any) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, each as it is given or loaded by its path or Hub id."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if isinstance(model, str | os.PathLike):
        name, device = str(model), PartialState().device
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device)
    name = str(getattr(unwrap(model).config, "_name_or_path", "") or "")
    if tokenizer is None:
        if not name:
            raise ValueError("The model does not say where it came from. Pass its `tokenizer`.")
        tokenizer = AutoTokenizer.from_pretrained(name)
    return model, tokenizer


def model_name(model: nn.Module) -> str:
    """Hub id, or the last part of a local path: a feature set travels, the folders of a machine do not."""
    name = str(getattr(unwrap(model).config, "_name_or_path", "") or "")
    return os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name


def load_saes(
    sae: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE],
    blocks: Sequence[int] | None,
    **options: Any,
) -> list[FrozenSAE]:
    """One SAE a block, loaded or as they are given; `find_features` says which forms `sae` takes."""
    given = [sae] if isinstance(sae, str | os.PathLike | FrozenSAE) else list(sae)
    loaded = [each for each in given if isinstance(each, FrozenSAE)]
    paths = [each for each in given if not isinstance(each, FrozenSAE)]
    if loaded and paths:
        raise ValueError("Give loaded SAEs or paths of SAEs, not both.")
    if loaded:
        held = [each.block for each in loaded]
        if len(set(held)) < len(held) or not set(blocks or ()) <= set(held):
            raise ValueError(f"Give one SAE for each block of {sorted(set(blocks or held))}; these read {held}.")
        return [each for each in loaded if blocks is None or each.block in blocks]
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
    return [load_sae(path, block=block, **options) for path, block in zip(paths, blocks)]


def require_fit(sae: FrozenSAE, model: nn.Module) -> None:
    """Raises a `ValueError` if the SAE cannot have been trained on this model, or cannot encode."""
    sae.require_affine()
    width, num_blocks = get_width(model), len(find_blocks(model))
    if sae.block >= num_blocks:
        raise ValueError(f"The SAE reads block {sae.block}, the model has blocks 0 to {num_blocks - 1}.")
    if sae.d_model != width:
        raise ValueError(
            f"The SAE reads width {sae.d_model}, block {sae.block} writes {width}; was it trained on this model?"
        )
    if sae.site != "resid_post":
        raise ValueError(
            f"The SAE reads the site {sae.site!r}; only 'resid_post', a block's output, is hooked so far."
        )
    if sae.activation == "topk" and sae.k is None:
        raise ValueError("The SAE's files do not say how many features are active per token. Give it, e.g. `k=50`.")
