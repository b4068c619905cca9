"""What tells the weights of a model and a corpus of tokenized texts from others, in a few characters."""

import hashlib
from array import array
from collections.abc import Iterable

import torch
from torch import nn

from ..features.read.texts import Text

_VALUES_EACH = 64  # of a parameter; fine-tuning changes nearly all


def weights_fingerprint(model: nn.Module) -> str:
    """Hash of the names, shapes and dtypes of the parameters, and of some values of each."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        values = parameter.detach().reshape(-1)[:: max(1, parameter.numel() // _VALUES_EACH)]
        found.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def texts_fingerprint(texts: Iterable[Text]) -> str:
    """Hash of the tokens of all texts in their order, and of which of them count."""
    found = hashlib.sha256()
    for text in texts:
        found.update(array("q", text.ids).tobytes() + bytes(text.counted))
    return found.hexdigest()[:16]
