"""Published sparse autoencoders, read safely: [`load_sae`] returns a [`FrozenSAE`]."""

from .formats import FORMATS, SAEFormat
from .frozen import FrozenSAE
from .loading import load_sae
from .stored.files import SAEFile, SAEFiles, Wanted
from .stored.source import SAESource

__all__ = ["FORMATS", "FrozenSAE", "SAEFile", "SAEFiles", "SAEFormat", "SAESource", "Wanted", "load_sae"]
