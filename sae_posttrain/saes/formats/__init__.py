"""The known file formats of SAEs, in one plain table."""

from collections.abc import Callable
from typing import NamedTuple

from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from .dictionary_learning import list_dictionary_learning, read_dictionary_learning
from .gemma_scope import list_gemma_scope, read_gemma_scope
from .gemma_scope_2 import list_gemma_scope_2, read_gemma_scope_2
from .goodfire import list_goodfire, read_goodfire
from .llama_scope import list_llama_scope, read_llama_scope
from .llamascopium import list_llamascopium, read_llamascopium
from .openai import list_openai, read_openai
from .qwen_scope import list_qwen_scope, read_qwen_scope
from .saelens import list_saelens, read_saelens
from .sparsify import list_sparsify, read_sparsify


class SAEFormat(NamedTuple):
    """
    How to recognise and read a file format: two functions, and the layout in words for messages.

    Args:
        list (`Callable[[SAEFiles], list[SAEFile]]`): Returns the weight files of this format among `files.names`, with
            the block and site that the name or configuration of each gives. The list is empty if no file has this
            format.
        read (`Callable[[SAEFiles, SAEFile, Wanted], FrozenSAE]`): Reads one of these files, with the weights of
            `wanted.features` only. All transposing and folding happens here. It raises a `ValueError` if the file
            contradicts what is wanted.
        layout: The files that `list` looks for.
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
    "sparsify": SAEFormat(list_sparsify, read_sparsify, "cfg.json with sae.safetensors, one folder per hookpoint"),
    "dictionary_learning": SAEFormat(list_dictionary_learning, read_dictionary_learning, "ae.pt with config.json"),
    "goodfire": SAEFormat(list_goodfire, read_goodfire, "*-l{block}.pth or *-l{block}.pt"),
    "openai": SAEFormat(list_openai, read_openai, "{location}/autoencoders/{block}.pt"),
    "gemma_scope_2": SAEFormat(
        list_gemma_scope_2, read_gemma_scope_2, "{site}/layer_{block}_*/params.safetensors, or params.safetensors"
    ),
    "llama_scope": SAEFormat(
        list_llama_scope, read_llama_scope, "hyperparams.json with checkpoints/final.safetensors"
    ),
    "llamascopium": SAEFormat(
        list_llamascopium, read_llamascopium, "config.json with sae_weights.safetensors or sae_weights.pt"
    ),
}
"""Lister and reader of each file format, by the name users write. To add one: `FORMATS["mine"] = SAEFormat(...)`."""
