"""Goodfire's SAEs of Llama 3 (https://huggingface.co/Goodfire) and similar ones: one file, named after its block."""

import re

from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import check_tensors
from .checks import refuse_input_scale
from .weights import Names, origin, read_weights

MODELS = {
    "Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama-3.3-70B-Instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "DeepSeek-R1-Distill-Llama-8B": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
"""Model of each published file, by the part of its name before `-SAE-l19.pth`."""


def list_goodfire(files: SAEFiles) -> list[SAEFile]:
    return [
        SAEFile(name, int(found[1]), "resid_post")
        for name in files.names
        if (found := re.search(r"-l(\d{1,4})\.pth?$", name))
    ]


def read_goodfire(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a Goodfire file, or a file of qresearch in the same layout.

    `acts = relu(x · encoder.weightᵀ + encoder.bias)`; `x̂ = acts · decoder.weightᵀ + decoder.bias`. The decoder's bias
    is not subtracted from the input. The file holds `encoder.weight` as (F, D) and `decoder.weight` as (D, F);
    Goodfire calls them `encoder_linear` and `decoder_linear`. The file's name gives the block (`…-SAE-l19.pth`). The
    SAE reads the block's output.

    Goodfire's SAEs of DeepSeek-R1 (`…-SAE-l37.pt`) are refused. They have another layout (one matrix `W` for encoder
    and decoder) and pick features over a whole batch, so that a token's activations depend on the other tokens.
    """
    refuse_input_scale(wanted, found.file)
    tensors = files.tensors(found.file, part=wanted.features is not None)
    linear = "_linear" if any(name.startswith("encoder_linear") for name in tensors) else ""
    encoder, decoder = f"encoder{linear}", f"decoder{linear}"
    names = Names(f"{encoder}.weight", "FD", f"{encoder}.bias", f"{decoder}.weight", "DF", f"{decoder}.bias")
    check_tensors(found.file, tensors, names.layout, wanted.features)
    return FrozenSAE(
        **read_weights(tensors, names, wanted),
        activation="relu",
        k=wanted.k,
        base_model=_model_in_name(found.file),
        **origin(files, found, wanted, "goodfire"),
    )


def _model_in_name(file: str) -> str:
    name = re.sub(r"-SAE-l\d+\.pth?$", "", file.rpartition("/")[2])
    return MODELS.get(name, "")
