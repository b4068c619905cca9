"""[`describe_sae`]: what an SAE's files hold and what it can be used for. [`list_place`]: the SAEs of a folder."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..sites import SITES
from ..tables import align
from .frozen import COMPARING, FrozenSAE
from .loading import list_saes
from .stored.files import find_files
from .stored.safe_files import open_tensors
from .stored.tensor import StoredTensor

FEATURES_AT_ONCE = 4096  # rows of encoder and decoder held at once while their cosines are computed


class ListedSAE(NamedTuple):
    """One SAE in a folder: its format, its weight file, and its block and site if the files name them."""

    format: str
    file: str
    block: int | None
    site: str | None


def list_place(
    path_or_repo: str | os.PathLike[str], *, format: str | None = None, revision: str | None = None
) -> list[ListedSAE]:
    """The SAEs in a local folder or Hub repository, ordered by block; only those of one `format` if it is given."""
    found = list_saes(find_files(path_or_repo, revision), format)
    listed = [ListedSAE(name, *sae) for name, saes in found.items() for sae in saes]
    return sorted(listed, key=lambda sae: (sae.block is None, sae.block or 0, sae.site or "", sae.format, sae.file))


def format_listing(listed: list[ListedSAE]) -> str:
    """A table of [`list_place`]'s rows, for a terminal."""
    rows = [("format", "block", "site", "file")]
    for sae in listed:
        block = "?" if sae.block is None else str(sae.block)
        rows.append((sae.format, block, sae.site or "?", sae.file))
    return "\n".join(map(printable, align(rows, num_left=4)))


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest value over the features (one value each), and the share of features with 0."""

    min: float
    median: float
    max: float
    zero: float

    @classmethod
    def of(cls, values: Tensor) -> "Spread":
        low, high = torch.aminmax(values)
        return cls(float(low), float(values.median()), float(high), float((values == 0).float().mean()))

    def __str__(self) -> str:
        zero = f"; {100 * self.zero:.2g} % are 0" if self.zero else ""
        return f"{self.median:.4g} (median; {self.min:.4g} to {self.max:.4g}{zero})"


@dataclass(frozen=True)
class DescribedTensor:
    """
    A tensor as it lies in the file.

    Attributes:
        reads_alone: Whether the values of one feature are stored together, so that a few features can be read without
            the rest; `None` if the tensor is not a matrix over features, or if its shape does not tell.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    reads_alone: bool | None


@dataclass(frozen=True)
class SAEDescription:
    """
    What an SAE's files say and hold, made by [`describe_sae`]. `print` shows it as a page for a terminal.

    Attributes:
        format, repository, revision, file, sha256: Where the SAE came from, as in [`SAESource`].
        block, site, base_model: What the SAE reads. `base_model` is the model that its files name, or empty.
        num_features, d_model: Number of features, and width of the site.
        tensors: The tensors as stored in the file.
        activation, k, relu_after_topk, norm_in_acts, scales_by_decoder_norm, input_norm: As in [`FrozenSAE`].
        thresholds: Quantiles of the JumpReLU thresholds, in units of the pre-activation.
        encoder_norms, decoder_norms: Norms of the features' encoder columns and of their directions, in raw units of
            the site.
        encoder_decoder_cosine: Median cosine of a feature's encoder column and its direction.
        uses: For each purpose, why the SAE cannot be used for it; an empty text if it can.
    """

    format: str
    repository: str
    revision: str
    file: str
    sha256: str
    block: int
    site: str
    base_model: str
    num_features: int
    d_model: int
    tensors: tuple[DescribedTensor, ...]
    activation: str
    k: int | None
    relu_after_topk: bool
    scales_by_decoder_norm: bool
    norm_in_acts: bool
    input_norm: str | None
    thresholds: dict[str, float] | None
    encoder_norms: Spread
    decoder_norms: Spread
    encoder_decoder_cosine: float
    uses: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """All facts as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        stored = sum(tensor.num_bytes for tensor in self.tensors)
        where = f"{self.repository} at {self.revision}" if self.repository else "a local folder"
        alone = [_reading(t, self.num_features) for t in self.tensors if t.reads_alone is not None]
        facts = {
            "reads": f"{self.site} of block {self.block} ({SITES.get(self.site, 'a module of the block')})",
            "of the model": self.base_model or "not said in its files",
            "format": self.format,
            "file": f"{self.file} ({_bytes(stored)} of weights), from {where}",
            "sha256": self.sha256,
            "features": f"{self.num_features}, of width {self.d_model}",
            "activation": self._activation(),
            "input": "as it is" if self.input_norm is None else f"each token normalised first ({self.input_norm})",
            "encoder norms": str(self.encoder_norms),
            "decoder norms": str(self.decoder_norms),
            "cosine": f"{self.encoder_decoder_cosine:.3f} (median, of a feature's encoder column and direction)",
            "stored": "\n".join(f"{t.name} {_shape(t.shape)} {t.dtype}" for t in self.tensors),
            "few features": "\n".join(alone) or "not told by the shapes in this file",
            **{purpose: "yes" if not reason else f"no: {reason}" for purpose, reason in self.uses.items()},
        }
        return format_facts(facts)

    def _activation(self) -> str:
        if self.activation in COMPARING:
            kept = {
                "topk": f"the {self.k or '?'} largest of each token"
                + ("" if self.relu_after_topk else ", of any sign"),
                "abstopk": f"the {self.k or '?'} of largest magnitude of each token",
                "groupmax": f"the largest of each of {self.k or '?'} groups",
            }[self.activation]
        elif self.thresholds is not None:
            quantiles = ", ".join(f"{name} {value:.4g}" for name, value in self.thresholds.items())
            kept = f"what is above its feature's threshold ({quantiles})"
        else:
            kept = "what is above 0" if self.activation == "relu" else "what its gate lets through"
        return f"{self.activation}: {kept}" + (", after its decoder norm" if self.scales_by_decoder_norm else "")


def describe_sae(sae: FrozenSAE) -> SAEDescription:
    """
    What an SAE's file holds, and what it can be used for.

    Args:
        sae ([`FrozenSAE`]):
            A whole SAE with its directions, as `load_sae(..., directions=True)` returns it.

    Returns:
        `SAEDescription`.

    Raises:
        FileNotFoundError: If its weight file is gone.
        ValueError: If the SAE was loaded with only some features, or without directions.
    """
    if sae.features is not None:
        raise ValueError(f"Only {sae.num_features} features were loaded. Load the SAE without `features`.")
    directions_FD = sae.directions
    cosines = [
        cosine_similarity(rows_FD, columns_FD)
        for rows_FD, columns_FD in zip(directions_FD.split(FEATURES_AT_ONCE), sae.W_enc.T.split(FEATURES_AT_ONCE))
    ]
    decoder_norms = Spread.of(directions_FD.norm(dim=1))
    return SAEDescription(
        format=sae.source.format,
        repository=sae.source.repository,
        revision=sae.source.revision or "",
        file=sae.source.file,
        sha256=sae.source.sha256(),
        block=sae.block,
        site=sae.site,
        base_model=sae.base_model,
        num_features=sae.num_features,
        d_model=sae.d_model,
        tensors=tuple(_described(tensor, sae) for tensor in open_tensors(sae.source.path).values()),
        activation=sae.activation,
        k=sae.k,
        relu_after_topk=sae.relu_after_topk,
        scales_by_decoder_norm=sae.decoder_norm is not None,
        norm_in_acts=sae.norm_in_acts,
        input_norm=sae.input_norm,
        thresholds=_quantiles(sae.threshold),
        encoder_norms=Spread.of(sae.W_enc.norm(dim=0)),
        decoder_norms=decoder_norms,
        encoder_decoder_cosine=float(torch.cat(cosines).median()),
        uses=_uses(sae, decoder_norms),
    )


def _described(stored: StoredTensor, sae: FrozenSAE) -> DescribedTensor:
    """A tensor's description. In a square matrix, the shape does not tell which side counts the features."""
    alone = None
    if sorted(stored.shape) == sorted((sae.d_model, sae.num_features)) and sae.d_model != sae.num_features:
        alone = stored.member is None and (stored.shape[0] == sae.num_features) != stored.transposed
    dtype = str(stored.dtype).removeprefix("torch.")
    return DescribedTensor(stored.name, stored.shape, dtype, stored.num_bytes, alone)


def _quantiles(thresholds: Tensor | None) -> dict[str, float] | None:
    if thresholds is None:
        return None
    ordered = thresholds.sort().values  # torch.quantile refuses more than 2^24 values
    places = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}
    return {name: float(ordered[round(place * (len(ordered) - 1))]) for name, place in places.items()}


def _uses(sae: FrozenSAE, decoder_norms: Spread) -> dict[str, str]:
    """For each purpose, why the SAE cannot be used for it, or an empty text."""
    encode = (
        ""
        if sae.k is not None or sae.activation not in COMPARING
        else ("its files do not say how many features are active per token; give `k`")
    )
    try:
        sae.require_affine()
        penalty = ""
    except ValueError as error:
        penalty = str(error)
    return {
        "find features": penalty or encode,
        "penalty": penalty,
        "steering": "all of its directions are 0" if decoder_norms.zero == 1 else "",
        "encode": encode,
    }


def format_facts(facts: Mapping[str, str]) -> str:
    """A text with names on the left and facts on the right; a fact of several lines continues in its column."""
    rows = [(name if i == 0 else "", line) for name, fact in facts.items() for i, line in enumerate(fact.split("\n"))]
    return "\n".join(map(printable, align(rows, num_left=2)))


def printable(line: str) -> str:
    """A line of text from a file, without control characters that a terminal would obey."""
    return "".join(character if character.isprintable() else "�" for character in line)


def _reading(tensor: DescribedTensor, num_features: int) -> str:
    if tensor.reads_alone:
        return f"{tensor.name}: read without the rest, {_bytes(tensor.num_bytes // num_features)} each"
    return f"{tensor.name}: a feature's values are scattered or compressed; all {_bytes(tensor.num_bytes)} are read"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
