"""
The part of GGUF that control vectors need: plain metadata and tensors of plain floats. Sizes are checked first.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import struct
from pathlib import Path
from typing import IO, Any

import torch

from .foreign_files import require_native
from .tensor import StoredTensor, StoredTensors, truncated

MAX_ENTRIES = 10_000
"""Limit for tensors and for metadata entries; a control vector has one tensor per block and three entries."""

MAX_TEXT_BYTES = 64 << 10
MAX_DIMENSIONS = 4
DTYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
"""Dtypes of tensors by their number in ggml; all other numbers are quantised types."""

_MAGIC = b"GGUF"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


def open_gguf(path: Path) -> tuple[dict[str, Any], StoredTensors]:
    """
    Metadata and table of contents of a GGUF file. Returns the metadata that are texts or numbers, and the tensors by
    name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    require_native(path)
    with open(path, "rb") as file:
        num_bytes = file.seek(0, 2)
        file.seek(0)
        if file.read(4) != _MAGIC:
            raise ValueError(f"{path} is no GGUF file: it does not begin with {_MAGIC.decode()!r}.")
        try:
            return _read(path, file, num_bytes)
        except (struct.error, UnicodeDecodeError) as error:
            raise truncated(path, str(error)) from error


def _read(path: Path, file: IO[bytes], num_bytes: int) -> tuple[dict[str, Any], StoredTensors]:
    version = _number(file, "I")
    if version not in (2, 3):
        raise ValueError(f"{path} is a GGUF file of version {version}; versions 2 and 3, little-endian, are read.")
    num_tensors, num_entries = _number(file, "Q"), _number(file, "Q")
    if max(num_tensors, num_entries) > MAX_ENTRIES:
        raise ValueError(
            f"{path} declares {num_tensors} tensors and {num_entries} metadata; no control vector has more than "
            f"{MAX_ENTRIES}."
        )
    metadata = {}
    for _ in range(num_entries):
        name = _text(path, file)
        value = _value(path, file, _number(file, "I"), num_bytes)
        if value is not None:
            metadata[name] = value
    found: dict[str, tuple[tuple[int, ...], torch.dtype, int]] = {}
    for _ in range(num_tensors):
        name = _text(path, file)
        num_dimensions = _number(file, "I")
        if name in found or not name.isprintable() or num_dimensions > MAX_DIMENSIONS:
            raise truncated(path, f"its table of tensors is wrong at {name[:50]!a}")
        sizes = tuple(_number(file, "Q") for _ in range(num_dimensions))[::-1]  # the fastest dimension comes first
        kind, offset = _number(file, "I"), _number(file, "Q")
        if kind not in DTYPES:
            raise ValueError(
                f"{name} in {path} is stored in ggml's type {kind}, which is quantised; directions are read as plain "
                "floats. Export them again as float32."
            )
        found[name] = sizes, DTYPES[kind], offset
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 16:
        raise truncated(path, f"its alignment is {alignment!r}")
    start = -(-file.tell() // alignment) * alignment
    tensors = {}
    for name, (sizes, dtype, offset) in found.items():
        if start + offset + math.prod(sizes) * dtype.itemsize > num_bytes:
            raise truncated(path, f"{name} with shape {sizes} in {dtype} lies outside of the {num_bytes} bytes")
        tensors[name] = StoredTensor(name=name, shape=sizes, dtype=dtype, path=path, offset=start + offset)
    return metadata, StoredTensors(tensors)


def _number(file: IO[bytes], form: str) -> int:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0]


def _text(path: Path, file: IO[bytes]) -> str:
    length = _number(file, "Q")
    if length > MAX_TEXT_BYTES:
        raise truncated(path, f"it declares a text of {length} bytes")
    read = file.read(length)
    if len(read) < length:
        raise truncated(path, "it ends within a text")
    return read.decode("utf-8")


def _value(path: Path, file: IO[bytes], kind: int, num_bytes: int) -> str | int | float | None:
    """A text or a number; `None` for a list, which is skipped."""
    if kind == _TEXT:
        return _text(path, file)
    if kind in _NUMBERS:
        return _number(file, _NUMBERS[kind])
    if kind != _ARRAY:
        raise truncated(path, f"it holds metadata of the unknown kind {kind}")
    of_kind, length = _number(file, "I"), _number(file, "Q")
    if of_kind in _NUMBERS:
        end = file.tell() + length * struct.calcsize(f"<{_NUMBERS[of_kind]}")
        if end > num_bytes:
            raise truncated(path, f"it declares a list of {length} numbers")
        file.seek(end)
    elif of_kind == _TEXT and length <= num_bytes // 8:  # each text takes at least 8 bytes
        for _ in range(length):
            _text(path, file)
    else:
        raise truncated(path, f"it declares a list of {length} values of kind {of_kind}")
    return None
