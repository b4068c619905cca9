"""The known file formats of SAEs, in one plain table."""

from collections.abc import Callable
from typing import NamedTuple

from ..files import SAEFiles
from ..frozen import FrozenSAE
from .gemma_scope import find_gemma_scope, read_gemma_scope
from .qwen_scope import find_qwen_scope, read_qwen_scope
from .saelens import find_saelens, read_saelens


class SAEFormat(NamedTuple):
    """
    How to recognise and read a file format: two functions and a phrase for messages.

    Args:
        find (`Callable[[SAEFiles, int], str | None]`):
            `find(files, block)` names the weight file of the block among `files.names`; `None` if nothing there is
            of this format. It raises if the format is there but the block is not (`FileNotFoundError`), or if
            several files fit (`ValueError`).
        read (`Callable`):
            `read(files, file, block, features, k)` returns the [`FrozenSAE`], with the weights of `features` only
            (a tuple without duplicates) unless it is `None`. All transposing and folding happens here.
        layout (`str`):
            The files it looks for.
    """

    find: Callable[[SAEFiles, int], str | None]
    read: Callable[[SAEFiles, str, int, tuple[int, ...] | None, int | None], FrozenSAE]
    layout: str


FORMATS: dict[str, SAEFormat] = {
    "qwen_scope": SAEFormat(find_qwen_scope, read_qwen_scope, "layer{block}.sae.pt"),
    "saelens": SAEFormat(find_saelens, read_saelens, "cfg.json with sae_weights.safetensors"),
    "gemma_scope": SAEFormat(
        find_gemma_scope, read_gemma_scope, "layer_{block}/width_*/average_l0_*/params.npz, or params.npz"
    ),
}
"""Finder and reader of each file format, by the name users write. Add yours: `FORMATS["mine"] = SAEFormat(...)`."""
