"""The known file formats of SAEs, in one plain table."""

from collections.abc import Callable
from typing import NamedTuple

from ..files import SAEFile, SAEFiles, Wanted
from ..frozen import FrozenSAE
from .gemma_scope import list_gemma_scope, read_gemma_scope
from .qwen_scope import list_qwen_scope, read_qwen_scope
from .saelens import list_saelens, read_saelens


class SAEFormat(NamedTuple):
    """
    How to recognise and read a file format: two functions and a phrase for messages.

    Args:
        list (`Callable[[SAEFiles], list[SAEFile]]`):
            The weight files of this format among `files.names`, with the block and site of each as far as its name
            or configuration says them; empty if nothing there is of this format.
        read (`Callable[[SAEFiles, SAEFile, Wanted], FrozenSAE]`):
            Reads one of them, with the weights of `wanted.features` only. All transposing and folding happens here.
            It raises a `ValueError` if the file contradicts what is wanted.
        layout (`str`):
            The files it looks for.
    """

    list: Callable[[SAEFiles], list[SAEFile]]
    read: Callable[[SAEFiles, SAEFile, Wanted], FrozenSAE]
    layout: str


FORMATS: dict[str, SAEFormat] = {
    "qwen_scope": SAEFormat(list_qwen_scope, read_qwen_scope, "layer{block}.sae.pt"),
    "saelens": SAEFormat(list_saelens, read_saelens, "cfg.json with sae_weights.safetensors"),
    "gemma_scope": SAEFormat(
        list_gemma_scope, read_gemma_scope, "layer_{block}/width_*/average_l0_*/params.npz, or params.npz"
    ),
}
"""Lister and reader of each file format, by the name users write. Add yours: `FORMATS["mine"] = SAEFormat(...)`."""
