"""
A model in a GGUF file, the format of llama.cpp: how it is named, and what its header says.

Three names are understood: `folder/name.gguf`, `name.gguf` in the working directory, and `owner/repository:name.gguf`
for a file of a Hub repository. The header comes from a stranger: every count and size in it is compared with the size
of the file before it is used, and nothing but the header is read.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .shown import printable

INSTALL = "pip install 'sae_posttrain[gguf]'"
"""What installs the package `gguf`, which transformers reads these files with."""

_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MAGIC = b"GGUF"
_FIXED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_NESTED = 4
_ROTARY_FACTORS = ("rope_freqs", "rope_factors_")
_MOST_TENSORS, _MOST_KEYS = 2**20, 2**16
_LONGEST_NAME = 2**16
_MOST_DIMENSIONS = 8


class GGUFSource(NamedTuple):
    """Where a GGUF file lies: a path of this machine, or a file of a Hub repository."""

    file: str
    """Path, or name inside the repository."""
    repository: str | None = None

    def path(self, revision: str | None = None, **options: Any) -> Path:
        """
        The file on this machine; a file of the Hub is fetched into its cache.

        Args:
            revision (`str`, *optional*):
                Branch, tag or commit of the repository.
            **options:
                `token`, `cache_dir` and `local_files_only`, as in `huggingface_hub.hf_hub_download`.

        Raises:
            FileNotFoundError: If there is no such file, or the Hub cannot be reached.
        """
        if self.repository is None:
            path = Path(self.file).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"There is no GGUF file {self.file}.")
            return path
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.repository, self.file, revision=revision, **options))
        except LocalEntryNotFoundError as error:
            raise FileNotFoundError(
                f"{self.file} of the Hub repository {self.repository} is not on this machine, and the Hub cannot be "
                "reached (or offline mode is on)."
            ) from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise FileNotFoundError(
                f"{self.file} of the Hub repository {self.repository} cannot be read: {printable(said)}"
            ) from error


class GGUFHeader(NamedTuple):
    """What the header of a GGUF file says, as far as this library uses it."""

    architecture: str
    """The architecture in llama.cpp's words, e.g. `llama`."""
    quantization: str
    """How most weights are stored, in llama.cpp's words: `F16`, `Q8_0`, `Q4_K_M`."""
    num_tensors: int
    num_weights: int
    scales_positions: bool
    """Whether rotary positions are scaled, as in models for long texts."""


def gguf_source(name: Any) -> GGUFSource | None:
    """
    The GGUF file that a model's name means.

    Args:
        name:
            A model as a user gives it.

    Returns:
        [`GGUFSource`], or `None` if the name does not end in `.gguf`, or is that of a folder.
    """
    if not isinstance(name, str | os.PathLike):
        return None
    text = os.fspath(name)
    if not text.lower().endswith(".gguf") or os.path.isdir(os.path.expanduser(text)):
        return None
    repository, colon, file = text.rpartition(":")
    # One letter before the colon is a drive of Windows.
    if colon and not os.path.exists(text) and len(repository) > 1 and _REPOSITORY.fullmatch(repository):
        if file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file):
            raise FileNotFoundError(f"{printable(text)} names no file inside the Hub repository {repository}.")
        return GGUFSource(file, repository)
    return GGUFSource(text)


def is_named_as_gguf(name: str) -> bool:
    """Whether a name ends as that of a GGUF file: the file itself, or the folder of weights that were read from it."""
    return name.lower().rstrip("/\\").endswith(".gguf")


def require_gguf_package() -> None:
    """Raises an `ImportError` that says how to install the package `gguf`, if it is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Models in GGUF files need the package `gguf`: {INSTALL}") from error


def read_gguf_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """
    Read and check the header of a GGUF file, without its weights.

    Args:
        path (`str` or path):
            The file.

    Returns:
        [`GGUFHeader`].

    Raises:
        ImportError: If the package `gguf` is missing.
        ValueError: If the file is no GGUF file, ends too early, is one part of several, or holds weights in a format
            that the package `gguf` does not know.
    """
    require_gguf_package()
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC))
        if start != _MAGIC:
            if start == b"vers":
                raise ValueError(f"{path} is a pointer of Git LFS: the file itself was not fetched (`git lfs pull`).")
            raise ValueError(f"{path} is no GGUF file: it does not begin with `GGUF`.")
        if size < 24:
            raise ValueError(f"{path} ends inside its header: it was cut, for example by a broken download.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, os.fspath(path)).header()


class _Reader:
    """Reads a header from front to back."""

    def __init__(self, content: mmap.mmap, path: str):
        self.content, self.path, self.place = content, path, len(_MAGIC)

    def header(self) -> GGUFHeader:
        version = self.number("<I")
        if version & 0xFFFF == 0:
            raise ValueError(f"{self.path} is a big-endian GGUF file, which cannot be read here. Get the usual one.")
        if version not in (2, 3):
            raise ValueError(f"{self.path} is of version {version} of GGUF; versions 2 and 3 can be read.")
        num_tensors, num_keys = self.number("<Q"), self.number("<Q")
        if num_tensors > _MOST_TENSORS or num_keys > _MOST_KEYS:
            raise ValueError(f"{self.path} is damaged: it claims {num_tensors} tensors and {num_keys} entries.")
        entries = {}
        for _ in range(num_keys):
            key = self.string()
            value = self.value(self.number("<I"))
            if value is not None:
                entries[key] = value
        architecture = entries.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise ValueError(f"{self.path} does not say its architecture (`general.architecture`).")
        self.require_one_file(entries)
        if num_tensors == 0:
            raise ValueError(f"{self.path} holds no weights, only a vocabulary or settings.")
        stored, names = self.tensors(num_tensors, entries)
        factors = [value for key, value in entries.items() if key.endswith(".rope.scaling.factor")]
        scales = any(value != 1 for value in factors) or any(name.startswith(_ROTARY_FACTORS) for name in names)
        return GGUFHeader(printable(architecture), _quantization(entries, stored), num_tensors, stored.total(), scales)

    def require_one_file(self, entries: Mapping[str, Any]) -> None:
        parts = entries.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise ValueError(
                f"{self.path} is one of {parts} parts of a model. Join them with llama.cpp's "
                "`llama-gguf-split --merge FIRST_PART WHOLE.gguf`, and give the whole file."
            )

    def tensors(self, count: int, entries: Mapping[str, Any]) -> tuple[Counter[str], list[str]]:
        """Number of weights by the format that they are stored in, and the tensors' names. All must be in the file."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        stored: Counter[str] = Counter()
        names, end = [], 0
        for _ in range(count):
            name, dimensions = self.string(), self.number("<I")
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise ValueError(f"{self.path} is damaged: its tensor {printable(name)} has {dimensions} dimensions.")
            shape = [self.number("<Q") for _ in range(dimensions)]
            kind, offset = self.number("<I"), self.number("<Q")
            try:
                kind = GGMLQuantizationType(kind)
                block, block_bytes = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{self.path} stores {printable(name)} in format {kind} of ggml, which the installed package "
                    "`gguf` does not know. A newer one may: pip install -U gguf"
                ) from error
            names.append(name)
            weights = math.prod(shape)
            if weights == 0 or shape[0] % block:
                raise ValueError(f"{self.path} is damaged: its tensor {printable(name)} has shape {shape}.")
            stored[kind.name] += weights
            end = max(end, offset + weights // block * block_bytes)
        alignment = entries.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
            raise ValueError(f"{self.path} is damaged: its alignment is {alignment!r}.")
        first = -(-self.place // alignment) * alignment
        if first + end > len(self.content):
            raise ValueError(
                f"{self.path} has {len(self.content):,} bytes, and its weights end at byte {first + end:,}: "
                "it was cut, for example by a broken download."
            )
        return stored, names

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        length = self.number("<Q")
        if length > _LONGEST_NAME:
            raise ValueError(f"{self.path} is damaged: a name in its header has {length:,} bytes.")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number or text; `None` for an array and a long text, which are passed over."""
        if kind in _FIXED:
            return self.number(_FIXED[kind])
        if kind == _STRING:
            length = self.number("<Q")
            raw = self.take(length)
            return raw.decode("utf-8", "replace") if length <= _LONGEST_NAME else None
        if kind != _ARRAY or depth == _MOST_NESTED:
            raise ValueError(f"{self.path} is damaged: an entry of its header has type {kind}.")
        inside, count = self.number("<I"), self.number("<Q")
        if inside in _FIXED:
            self.skip(count * struct.calcsize(_FIXED[inside]))
        elif inside == _STRING:
            self.skip_strings(count)
        else:
            for _ in range(count):
                self.value(inside, depth + 1)
        return None

    def skip_strings(self, count: int) -> None:
        length_of, content, size = struct.Struct("<Q").unpack_from, self.content, len(self.content)
        for _ in range(count):
            if self.place + 8 > size:
                raise self.cut()
            self.place += 8 + length_of(content, self.place)[0]
        self.skip(0)

    def take(self, length: int) -> bytes:
        start = self.place
        self.skip(length)
        return self.content[start : self.place]

    def skip(self, length: int) -> None:
        if self.place + length > len(self.content):
            raise self.cut()
        self.place += length

    def cut(self) -> ValueError:
        return ValueError(f"{self.path} ends inside its header: it was cut, for example by a broken download.")


def _quantization(entries: Mapping[str, Any], stored: Mapping[str, int]) -> str:
    from gguf import LlamaFileType

    try:
        return LlamaFileType(entries["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        return max(stored, key=lambda kind: stored[kind])
