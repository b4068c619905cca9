"""What most readers do with an SAE of two matrices and two biases, once they know how its file names them."""

from typing import Any, NamedTuple

from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import StoredTensors


class Names(NamedTuple):
    """Names of the tensors in a file, and how the matrices are stored: `"DF"` or `"FD"`."""

    W_enc: str
    encoder_dims: str
    b_enc: str
    W_dec: str
    decoder_dims: str
    b_dec: str

    @property
    def layout(self) -> dict[str, str]:
        """The dimensions of each tensor, as [`check_tensors`] takes them."""
        return {self.W_enc: self.encoder_dims, self.b_enc: "F", self.W_dec: self.decoder_dims, self.b_dec: "D"}


def read_weights(
    tensors: StoredTensors,
    names: Names,
    wanted: Wanted,
    *,
    subtract_b_dec: bool = False,
    ratios: tuple[float, float] = (1.0, 1.0),
    needed: bool = False,
) -> dict[str, Any]:
    """
    The wanted weights by their names in [`FrozenSAE`]. Without `b_dec` in the file, it is 0.

    `ratios` are factors of `b_enc` and `b_dec`, for an SAE that reads and writes values divided by them. The decoder
    is read in any case if it is `needed`.
    """
    W_enc = wanted.encoder(tensors[names.W_enc], names.encoder_dims)
    b_enc = wanted.vector(tensors[names.b_enc]) * ratios[0]
    b_dec = W_enc.new_zeros(len(W_enc))
    if names.b_dec in tensors:
        b_dec = tensors[names.b_dec].read().float() * ratios[1]
    if subtract_b_dec:
        b_enc = b_enc - b_dec @ W_enc
    W_dec = wanted.decoder(tensors[names.W_dec], names.decoder_dims, needed=needed)
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}


def origin(files: SAEFiles, found: SAEFile, wanted: Wanted, format: str) -> dict[str, Any]:
    """Where the SAE belongs and where it comes from, by the names in [`FrozenSAE`]."""
    return {
        "block": wanted.block,
        "site": wanted.site,
        "features": wanted.features,
        "source": files.source(found.file, format),
    }
