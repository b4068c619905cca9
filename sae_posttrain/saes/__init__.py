"""Published sparse autoencoders, read safely: [`load_sae`] returns a [`FrozenSAE`]."""

from .files import SAEFile, SAEFiles, Wanted
from .formats import FORMATS, SAEFormat
from .frozen import FrozenSAE, SAESource
from .loading import load_sae

__all__ = ["FORMATS", "FrozenSAE", "SAEFile", "SAEFiles", "SAEFormat", "SAESource", "Wanted", "load_sae"]
