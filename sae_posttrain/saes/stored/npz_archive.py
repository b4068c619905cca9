"""numpy's `.npz` files: zip archives of arrays, stored or compressed; each array has a short text header."""

import math
import re
import zipfile
import zlib
from pathlib import Path

import torch

from ..remote.remote_file import NeedsWholeFile
from .tensor import CHUNK_BYTES, StoredTensor, StoredTensors, WeightFile, truncated
from .zip_table import ZipRecord, zip_records

MAX_COMPRESSION = 8
"""Largest ratio of unpacked to packed bytes. Trained float weights compress below 2x; a zip bomb claims much more."""

MAX_HEADER_BYTES = 1 << 10
"""Largest array header that is read; numpy writes 118 bytes."""

HEADER = re.compile(
    r"\{'descr': (?P<descr>'[^']{1,20}'|\[.*\]), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[\d, ]*)\),? *\}\s*",
    re.DOTALL,
)
"""The array header that numpy writes. It is matched as text, because numpy's own parser evaluates it."""

DTYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


def open_npz(path: WeightFile) -> StoredTensors:
    """Table of contents of a `.npz` file."""
    tensors = {}
    try:
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            records = zip_records(file)
            declared = sum(record.unpacked for record in records)
            if declared > MAX_COMPRESSION * file_bytes + CHUNK_BYTES:
                raise ValueError(
                    f"{path} declares {declared} bytes of weights in a file of {file_bytes}: trained weights do not "
                    "compress like that. It is refused."
                )
            if not all(record.stored for record in records) and not isinstance(path, Path):
                raise NeedsWholeFile(f"{path} is compressed: it cannot be read in parts.")
            archive = None if all(record.stored for record in records) else zipfile.ZipFile(file)
            for record in records:
                name = record.name.removesuffix(".npy")
                if name == record.name:
                    raise ValueError(f"{path} holds {record.name}, which is no array that numpy.savez writes.")
                if archive is None or record.stored:
                    file.seek(record.offset)
                    beginning = file.read(min(record.size, MAX_HEADER_BYTES))
                else:
                    with archive.open(record.name) as member:
                        beginning = member.read(MAX_HEADER_BYTES)
                tensors[name] = _tensor(path, name, record, beginning)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise truncated(path, f"it is not a zip archive as numpy.savez writes ({error})") from error
    return StoredTensors(tensors)


def _tensor(path: WeightFile, name: str, record: ZipRecord, beginning: bytes) -> StoredTensor:
    """The array of a record, which begins with a magic number, a version, the length of the header and the header."""
    length_bytes = {b"\x01\x00": 2, b"\x02\x00": 4}.get(beginning[6:8], 0)
    start = 8 + length_bytes
    end = start + int.from_bytes(beginning[8:start], "little")
    found = HEADER.fullmatch(beginning[start:end].decode("latin1"))
    if beginning[:6] != b"\x93NUMPY" or not length_bytes or end > len(beginning) or found is None:
        raise truncated(path, f"the array header of {name} cannot be read")
    descr, fortran = found["descr"].strip("'"), found["fortran"] == "True"
    sizes = [size.strip() for size in found["shape"].split(",") if size.strip()]
    if "O" in descr:
        raise ValueError(f"{name} in {path} holds pickled Python objects, which can run code. It is refused.")
    dtype = DTYPES.get(descr.lstrip("<|="))
    if dtype is None or len(sizes) > 8 or any(not size.isdecimal() or len(size) > 18 for size in sizes):
        raise ValueError(f"{name} in {path} has dtype {descr[:50]} and shape ({found['shape'][:50]}): not supported.")
    shape = tuple(int(size) for size in sizes)
    if fortran and len(shape) > 2:
        raise ValueError(f"{name} in {path} is stored column by column with {len(shape)} dimensions: not supported.")
    held = record.unpacked - end
    if math.prod(shape) * dtype.itemsize != held:
        raise truncated(path, f"{name} has shape {shape} in {dtype} but {held} bytes")
    return StoredTensor(
        name=name,
        shape=shape,
        dtype=dtype,
        path=path,
        offset=record.offset + end if record.stored else end,
        member=None if record.stored else record.name,
        transposed=fortran and len(shape) == 2,
    )
