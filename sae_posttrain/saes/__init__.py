"""Published sparse autoencoders, read safely: [`load_sae`] returns a [`FrozenSAE`]."""

from .formats import FORMATS, SAEFormat
from .frozen import FrozenSAE, SAESource
from .loading import load_sae

__all__ = ["FORMATS", "FrozenSAE", "SAEFormat", "SAESource", "load_sae"]
