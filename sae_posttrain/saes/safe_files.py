"""
Weight files read without trusting them: safetensors, `torch.save` archives and numpy's npz, by one mechanism.

[`open_tensors`] reads a file's table of contents and checks it against the file's real size; it runs nothing of the
file and takes no memory for weights. The [`StoredTensor`] it returns knows where its bytes lie and reads only what is
asked of it.
"""

import json
import pickletools
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import safetensors
import torch
from torch import Tensor

from .stored_tensor import CHUNK_BYTES, StoredTensor, truncated

MOST_COMPRESSION = 32
"""Trained float weights hardly compress (below 2x); an archive that claims to unpack to more than this is a bomb."""

MOST_PICKLE_BYTES = 4 << 20
"""Largest table of contents of a `torch.save` archive: a flat dict of tensors needs about 100 bytes a tensor."""

TENSOR_GLOBALS = re.compile(
    r"torch(\.storage)?\.\w+Storage|torch\._utils\._rebuild_(tensor_v2|parameter)|collections\.OrderedDict"
)
"""All that a pickle of a flat dict of tensors names. torch allows more; a `bytearray` of any size, for one."""

_SAFETENSORS_DTYPES = {
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


def open_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """
    Table of contents of a weight file, checked, without running anything in it or taking memory for weights.

    Args:
        path (`str` or `pathlib.Path`):
            A `.safetensors` file, a `torch.save` archive (`.pt`, `.pth`, `.bin`) that holds a flat dict of tensors,
            or a `.npz` file.

    Returns:
        `dict[str, StoredTensor]`: the file's tensors by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is not what its name says, declares more than it holds, would run code
            when unpickled, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Is the download complete?")
    openers = {
        ".safetensors": _open_safetensors,
        ".pt": _open_torch,
        ".pth": _open_torch,
        ".bin": _open_torch,
        ".npz": _open_npz,
    }
    if path.suffix not in openers:
        raise ValueError(f"{path} is no known kind of weight file. Known: {', '.join(openers)}.")
    return openers[path.suffix](path)


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with safetensors.safe_open(path, framework="pt"):  # checks the header, its bounds and the file's size
            pass
    except safetensors.SafetensorError as error:
        raise truncated(path, str(error)) from error
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} in {path} is stored as {entry['dtype']}, which is not supported.")
        tensors[name] = StoredTensor(
            name=name,
            shape=tuple(entry["shape"]),
            dtype=_SAFETENSORS_DTYPES[entry["dtype"]],
            path=path,
            offset=8 + header_bytes + entry["data_offsets"][0],
        )
    return tensors


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    records, pickled = _torch_records(path)
    try:
        named = {
            str(arg).replace(" ", ".") for opcode, arg, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"
        }
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))  # reads the pickle, runs nothing
    except Exception as error:  # a hostile or damaged pickle can raise anything here and below
        raise ValueError(
            f"{path} is refused: its pickle cannot be checked for code ({error}). It is damaged, or not written by "
            "torch.save with its defaults; download it again or save it again."
        ) from error
    if foreign:
        raise ValueError(
            f"{path} would run foreign code when loaded: {', '.join(sorted(foreign))}. It is refused. Weights need "
            "none of it; ask the publisher for a safetensors file, or do not use it."
        )
    if needless := sorted(name for name in named if not TENSOR_GLOBALS.fullmatch(name)):
        raise ValueError(f"{path} must hold a flat dict of tensors; it also holds {', '.join(needless)}.")
    try:
        content = torch.load(path, weights_only=True, mmap=True, map_location="cpu")  # maps, reads no weight
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or hostile: torch refuses to load it ({reason}).") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and value.is_cpu
        for name, value in content.items()
    ):
        found = (
            ", ".join(f"{name!r}: {type(value).__name__}" for name, value in list(content.items())[:20])
            if isinstance(content, dict)
            else type(content).__name__
        )
        raise ValueError(
            f"{path} must hold a flat dict of tensors; it holds {found}. If it is a training checkpoint, save the "
            "SAE's own weights from it."
        )

    # Where torch mapped each storage tells where it lies in the file: storages and records must match one to one.
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in content.values()}
    mapped = sorted((start, size) for start, size in storages.items() if size)
    shift = mapped[0][0] - records[0][0] if mapped and records else 0
    if [(start - shift, size) for start, size in mapped] != records:
        raise ValueError(f"{path} is damaged or hostile: its table of contents does not match its records.")

    tensors = {}
    for name, value in content.items():
        transposed = not value.is_contiguous()
        if transposed and not (value.ndim == 2 and value.T.is_contiguous()):
            raise ValueError(f"{name} in {path} is stored with gaps (strides {value.stride()}); save it contiguous.")
        tensors[name] = StoredTensor(
            name=name,
            shape=tuple(value.shape),
            dtype=value.dtype,
            path=path,
            offset=value.data_ptr() - shift,
            transposed=transposed,
        )
    return tensors


def _torch_records(path: Path) -> tuple[list[tuple[int, int]], bytes]:
    """Position and size of each storage in a `torch.save` archive, in the file's order; and the pickle's bytes."""
    if not zipfile.is_zipfile(path):
        raise truncated(path, "it is not a zip archive, as torch.save writes since torch 1.6")
    file_bytes = path.stat().st_size
    records, pickled = [], b""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for entry in archive.infolist():
                start = _data_offset(file, entry)
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise ValueError(f"{path} holds compressed records; torch.save writes none. Save it again.")
                if start + entry.file_size > file_bytes:
                    raise truncated(path, f"{entry.filename} ends behind the end of the file")
                _, _, record = entry.filename.partition("/")
                if record == "data.pkl":
                    if pickled or entry.file_size > MOST_PICKLE_BYTES:
                        raise ValueError(f"{path} has {entry.file_size} bytes of pickle: no flat dict of tensors.")
                    pickled = archive.read(entry)
                if record == "byteorder" and archive.open(entry).read(6) != b"little":
                    raise ValueError(f"{path} was saved on a big-endian machine, which is not supported.")
                if re.fullmatch(r"data/[^/]+", record) and entry.file_size:
                    records.append((start, entry.file_size))
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise truncated(path, str(error)) from error
    return sorted(records), pickled


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Position of a zip member's first byte: behind its local header, whose last fields vary in length."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{entry.filename} has no local header")
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _open_npz(path: Path) -> dict[str, StoredTensor]:
    if not zipfile.is_zipfile(path):
        raise truncated(path, "it is not a zip archive, as numpy.savez writes")
    file_bytes = path.stat().st_size
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            declared = sum(entry.file_size for entry in archive.infolist())
            if declared > MOST_COMPRESSION * file_bytes + CHUNK_BYTES:
                raise ValueError(
                    f"{path} declares {declared} bytes of weights in a file of {file_bytes}: trained weights do not "
                    "compress like that. It is refused."
                )
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{path} holds {entry.filename}, which is no array that numpy.savez writes.")
                start = _data_offset(file, entry)
                if start + entry.compress_size > file_bytes:
                    raise truncated(path, f"{entry.filename} ends behind the end of the file")
                with archive.open(entry) as member:
                    shape, transposed, dtype = _npy_header(member, path, name)
                    header_bytes = member.tell()
                stored = entry.compress_type == zipfile.ZIP_STORED
                tensors[name] = StoredTensor(
                    name=name,
                    shape=shape,
                    dtype=dtype,
                    path=path,
                    offset=start + header_bytes if stored else header_bytes,
                    member=None if stored else entry.filename,
                    transposed=transposed,
                )
                held = (entry.compress_size if stored else entry.file_size) - header_bytes
                if tensors[name].num_bytes != held:
                    raise truncated(path, f"{name} has shape {shape} in {dtype} but {held} bytes")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, or too new
        raise truncated(path, str(error)) from error
    return tensors


def _npy_header(member: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, torch.dtype]:
    """Shape, whether stored column by column, and dtype of an array (the parser evaluates literals only)."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(member)](member)
    except (ValueError, KeyError) as error:
        raise truncated(path, f"the array header of {name} cannot be read ({error})") from error
    if dtype.hasobject:
        raise ValueError(f"{name} in {path} holds pickled Python objects, which can run code. It is refused.")
    if not dtype.isnative or any(size < 0 for size in shape) or (fortran and len(shape) > 2):
        raise ValueError(f"{name} in {path} has dtype {dtype} and shape {shape}, which are not supported.")
    try:
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError as error:
        raise ValueError(f"{name} in {path} has dtype {dtype}, which is not supported.") from error
    return shape, fortran and len(shape) == 2, torch_dtype
