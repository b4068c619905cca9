"""`torch.save` archives (`.pt`, `.pth`, `.bin`): zip files with one pickle and an uncompressed record per storage."""

import math
import re
import zipfile
from collections.abc import Collection
from typing import Any

from .tensor import Plain, StoredTensor, StoredTensors, WeightFile, truncated
from .torch_pickle import MAX_PICKLE_BYTES, ForeignCode, View, read_pickle
from .zip_table import ZipRecord, zip_records

MAX_FOLDERS = 8
"""Deepest nesting of dicts and lists that is read."""

MAX_VALUES = 20_000
"""Largest number of tensors, plain values and containers that are read."""

MAX_NAME_CHARACTERS = 300


def open_torch(path: WeightFile, classes: Collection[str] = ()) -> StoredTensors:
    """Table of contents of a `torch.save` archive; objects of `classes` are read as dicts of attributes."""
    records, pickled = _records(path)
    try:
        content = read_pickle(pickled, classes)
    except ForeignCode as error:
        raise ValueError(
            f"{path} would run foreign code when loaded: {error}. It is refused. Weights need none of it; ask the "
            "publisher for a safetensors file, or do not use it."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path} is refused: its pickle cannot be checked for code ({error}). It is damaged, or not written by "
            "torch.save with its defaults; download it again or save it again."
        ) from error
    if not isinstance(content, dict):
        kind = "Tensor" if isinstance(content, View) else type(content).__name__
        raise ValueError(f"{path} must hold a dict of tensors; it holds a {kind}. Save the SAE's state dict.")
    views, plain = _flatten(path, content)
    used = {view.storage.key for view in views.values() if view.storage.num_elements}
    if used != {key for key, record in records.items() if record.size}:
        raise ValueError(f"{path} is damaged or hostile: its table of contents does not match its records.")
    return StoredTensors({name: _stored(path, name, view, records) for name, view in views.items()}, plain)


def _records(path: WeightFile) -> tuple[dict[str, ZipRecord], bytes]:
    """The record of each storage, by the storage's key, and the bytes of the pickle."""
    storages, small = {}, {}
    try:
        with path.open("rb") as file:
            for record in zip_records(file):
                if not record.stored:
                    raise ValueError(f"{path} holds compressed records; torch.save writes none. Save it again.")
                _, _, name = record.name.partition("/")
                if found := re.fullmatch(r"data/([^/]+)", name):
                    storages[found[1]] = record
                elif name in ("data.pkl", "byteorder"):
                    if name in small or record.size > MAX_PICKLE_BYTES:
                        raise ValueError(f"{path} has {record.size} bytes of {name}: no archive of an SAE's tensors.")
                    file.seek(record.offset)
                    small[name] = file.read(record.size)
    except zipfile.BadZipFile as error:
        raise truncated(path, f"it is not a zip archive, as torch.save writes since torch 1.6 ({error})") from error
    if "data.pkl" not in small:
        raise truncated(path, "it has no data.pkl, which torch.save writes")
    if small.get("byteorder", b"little") != b"little":
        raise ValueError(f"{path} was saved on a big-endian machine, which is not supported.")
    return storages, small["data.pkl"]


def _flatten(path: WeightFile, content: dict) -> tuple[dict[str, View], dict[str, Plain]]:
    """Tensors and plain values of nested containers, their names joined with `/`."""
    views: dict[str, View] = {}
    plain: dict[str, Plain] = {}
    waiting: list[tuple[str, int, Any]] = [("", 0, content)]
    num_values = 0
    while waiting:
        name, depth, value = waiting.pop()
        num_values += 1
        if num_values > MAX_VALUES or depth > MAX_FOLDERS or len(name) > MAX_NAME_CHARACTERS:
            raise ValueError(f"{path} is no file of weights: it nests its values {MAX_FOLDERS} deep or has too many.")
        if name in views or name in plain:
            raise ValueError(f"{path} holds two values of the name {name}.")
        if isinstance(value, View):
            views[name] = value
        elif isinstance(value, dict | list | tuple) and type(value) in (dict, list, tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            if len(value) + len(waiting) > MAX_VALUES:
                raise ValueError(f"{path} is no file of weights: it holds more than {MAX_VALUES} values.")
            if not all(str(key).isprintable() for key, _ in items):
                raise ValueError(f"{path} is no file of weights: it holds names that cannot be printed.")
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}/{key}" if depth else str(key), depth + 1, item) for key, item in items][::-1]
        elif value is None or isinstance(value, str | int | float):
            plain[name] = value
        else:
            raise ValueError(f"{path} must hold tensors and plain values; {name} is a {type(value).__name__}.")
    return views, plain


def _stored(path: WeightFile, name: str, view: View, records: dict[str, ZipRecord]) -> StoredTensor:
    dtype, shape = view.storage.dtype, view.shape
    record = records.get(view.storage.key)
    held = 0 if record is None else record.size
    if held != view.storage.num_elements * dtype.itemsize:
        raise ValueError(
            f"{path} is damaged or hostile: {name} declares {view.storage.num_elements} values of {dtype} and has "
            f"{held} bytes."
        )
    if len(view.strides) != len(shape):
        raise ValueError(f"{path} is damaged or hostile: {name} has {len(shape)} sizes, {len(view.strides)} strides.")
    transposed = not _is_contiguous(shape, view.strides)
    if transposed and not (len(shape) == 2 and _is_contiguous(shape[::-1], view.strides[::-1])):
        raise ValueError(f"{name} in {path} is stored with gaps (strides {view.strides}); save it contiguous.")
    if view.offset + math.prod(shape) > view.storage.num_elements:
        raise ValueError(f"{path} is damaged or hostile: {name} with shape {shape} lies outside of its storage.")
    offset = (0 if record is None else record.offset) + view.offset * dtype.itemsize
    return StoredTensor(name=name, shape=shape, dtype=dtype, path=path, offset=offset, transposed=transposed)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether values are stored row by row. The stride of a dimension of size 1 does not matter."""
    expected = 1
    for size, stride in zip(shape[::-1], strides[::-1]):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True
