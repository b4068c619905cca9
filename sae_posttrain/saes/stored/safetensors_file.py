"""safetensors files: their JSON header is checked here and, for local files, by the safetensors library too."""

import json
import math
from pathlib import Path
from typing import Any

import safetensors
import torch

from .tensor import StoredTensor, StoredTensors, WeightFile, truncated

MAX_HEADER_BYTES = 256 << 10
"""Largest header that is read; a tensor needs about 100 bytes."""

MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 300

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def open_safetensors(path: WeightFile) -> StoredTensors:
    """Table of contents of a safetensors file."""
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise truncated(path, f"it announces a header of {header_bytes} bytes and has {file_bytes} bytes in all")
        text = file.read(header_bytes)
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError(f"its header is a {type(header).__name__}")
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, name, entry, 8 + header_bytes) for name, entry in header.items()}
    except (ValueError, RecursionError) as error:
        raise truncated(path, str(error)) from error
    end = 8 + header_bytes
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            raise truncated(path, f"{tensor.name} overlaps another tensor or leaves a gap before it")
        end += tensor.num_bytes
    if end != file_bytes:
        raise truncated(path, f"its tensors end at byte {end}, the file has {file_bytes} bytes")
    if isinstance(path, Path):
        try:
            with safetensors.safe_open(path, framework="pt"):
                pass
        except safetensors.SafetensorError as error:
            raise truncated(path, str(error)) from error
    return StoredTensors(tensors)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return items


def _tensor(path: WeightFile, name: str, entry: Any, data_start: int) -> StoredTensor:
    if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"it holds a tensor named {name[:50]!a}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"what its header says of {name} is not dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has no usable shape or data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{name} is stored as {str(entry['dtype'])[:50]!r}, which is not supported")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has shape {tuple(shape)} in {dtype} but {offsets[1] - offsets[0]} bytes")
    return StoredTensor(name=name, shape=tuple(shape), dtype=dtype, path=path, offset=data_start + offsets[0])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)
