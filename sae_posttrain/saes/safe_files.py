"""
Weight files read without trusting them: safetensors, `torch.save` archives and numpy's npz, by one mechanism.

[`open_tensors`] reads a file's table of contents and checks it against the file's real size; it runs nothing of the
file and takes no memory for weights. The [`StoredTensor`] it returns knows where its bytes lie and reads only what is
asked of it.
"""

import json
import math
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import safetensors
import torch
from torch import Tensor

CHUNK_BYTES = 4 << 20
"""Most bytes held beside a result while it is read."""

SEEK_COSTS_BYTES = 16 << 10
"""What one small read at an offset costs, in bytes that could have been read in a row in the same time."""

MOST_COMPRESSION = 32
"""Trained float weights hardly compress (below 2x); an archive that claims to unpack to more than this is a bomb."""

MOST_PICKLE_BYTES = 4 << 20
"""Largest table of contents of a `torch.save` archive: a flat dict of tensors needs about 100 bytes a tensor."""

TENSOR_GLOBALS = re.compile(
    r"torch(\.storage)?\.\w+Storage|torch\._utils\._rebuild_(tensor_v2|parameter)|collections\.OrderedDict"
)
"""All that a pickle of a flat dict of tensors names. torch allows more; a `bytearray` of any size, for one."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

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


@dataclass(frozen=True)
class StoredTensor:
    """
    A tensor that still lies in its file: name, shape, dtype, and the place of its first byte.

    `rows`, `columns` and `read` return CPU tensors in the stored dtype and take, beside the result, a few MB of
    memory at most. What they return is finite (also in float32); NaN, infinities and a file that ends early are a
    `ValueError`.

    Args:
        name (`str`):
            Name of the tensor in the file.
        shape (`tuple[int, ...]`):
            Its shape.
        dtype (`torch.dtype`):
            Its stored dtype.
        path (`pathlib.Path`):
            The file.
        offset (`int`):
            Position of the first byte, in the file or in its `member`.
        member (`str`, *optional*):
            Compressed zip member that holds the bytes; `None` if they lie in the file as they are.
        transposed (`bool`, *optional*, defaults to `False`):
            Whether a matrix is stored column by column.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    offset: int
    member: str | None = None
    transposed: bool = False

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def T(self) -> "StoredTensor":
        """The transposed matrix: the same bytes, read the other way."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    def read(self) -> Tensor:
        """The whole tensor."""
        if self.transposed:
            return self.T.read().T
        result = torch.empty(self.shape, dtype=self.dtype)
        with self._open() as file:
            self._fill(result, file, self.offset)
        return self._finite(result)

    def rows(self, indices: Sequence[int] | None) -> Tensor:
        """
        The rows (of a vector: the elements) `indices`, in that order; all of them for `None`.

        Args:
            indices (`Sequence[int]`, *optional*):
                Rows to read, each from 0 to `shape[0] - 1`.

        Returns:
            `torch.Tensor` of shape `(len(indices), *shape[1:])`.
        """
        if indices is None:
            return self.read()
        if len(self.shape) == 1:
            return self.read()[list(indices)]
        if self.transposed:
            return self.T.columns(indices).T
        result = torch.empty((len(indices), *self.shape[1:]), dtype=self.dtype)
        row_bytes = self.num_bytes // self.shape[0]
        with self._open() as file:
            for place in sorted(range(len(indices)), key=lambda place: indices[place]):  # forwards through the file
                self._fill(result[place], file, self.offset + indices[place] * row_bytes)
        return self._finite(result)

    def columns(self, indices: Sequence[int] | None) -> Tensor:
        """
        The columns `indices` of a matrix, in that order; all of them for `None`.

        A few columns are read value by value; for more, or where the bytes are compressed, blocks of rows pass by and
        the columns are picked from them.

        Args:
            indices (`Sequence[int]`, *optional*):
                Columns to read, each from 0 to `shape[1] - 1`.

        Returns:
            `torch.Tensor` of shape `(shape[0], len(indices))`.
        """
        if indices is None:
            return self.read()
        if self.transposed:
            return self.T.rows(indices).T
        num_rows, num_columns = self.shape
        row_bytes = num_columns * self.dtype.itemsize
        result = torch.empty((num_rows, len(indices)), dtype=self.dtype)
        with self._open() as file:
            if self.member is None and len(indices) * SEEK_COSTS_BYTES < row_bytes:
                self._fill_value_by_value(result, file, indices, row_bytes)
            else:
                block = torch.empty((max(1, CHUNK_BYTES // row_bytes), num_columns), dtype=self.dtype)
                for start in range(0, num_rows, len(block)):
                    rows = block[: num_rows - start]
                    self._fill(rows, file, self.offset + start * row_bytes)
                    result[start : start + len(rows)] = rows[:, list(indices)]
        return self._finite(result)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            if self.member is None:
                with open(self.path, "rb", buffering=0) as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                    yield member
        except (EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _truncated(self.path, f"{self.name} cannot be read to its end") from error

    def _fill(self, result: Tensor, file: IO[bytes], position: int) -> None:
        """Read the bytes from `position` on into the contiguous `result`."""
        if result.numel() == 0:
            return
        view = _bytes_of(result)
        while self.member is not None and position - file.tell() > CHUNK_BYTES:
            if not file.read(CHUNK_BYTES):  # a compressed member seeks by reading: in small steps
                raise EOFError
        file.seek(position)
        done = 0
        while done < len(view):
            num_read = file.readinto(view[done : done + CHUNK_BYTES])  # type: ignore[attr-defined]
            if not num_read:
                raise EOFError
            done += num_read

    def _fill_value_by_value(self, result: Tensor, file: IO[bytes], indices: Sequence[int], row_bytes: int) -> None:
        itemsize = self.dtype.itemsize
        view = _bytes_of(result)
        place = 0
        for row in range(len(result)):
            for column in indices:
                file.seek(self.offset + row * row_bytes + column * itemsize)
                if file.readinto(view[place : place + itemsize]) != itemsize:  # type: ignore[attr-defined]
                    raise EOFError
                place += itemsize

    def _finite(self, result: Tensor) -> Tensor:
        if result.is_floating_point() and result.numel():
            low, high = (bound.item() for bound in torch.aminmax(result))  # NaN if any value is NaN
            limit = torch.finfo(torch.float32).max
            if not (-limit <= low and high <= limit):
                raise ValueError(
                    f"{self.name} in {self.path} holds NaN, infinite or too large values (smallest {low}, largest "
                    f"{high}). The file is damaged or its training diverged; download it again or use another SAE."
                )
        return result


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


def check_tensors(
    path: Path, tensors: dict[str, StoredTensor], layout: dict[str, str], features: Sequence[int] | None = None
) -> None:
    """
    Check names, shapes and dtypes of a file's tensors, and that the features exist, before any weight is read.

    Args:
        path (`pathlib.Path`):
            The file, for messages.
        tensors (`dict[str, StoredTensor]`):
            What [`open_tensors`] found.
        layout (`dict[str, str]`):
            Each expected tensor's dimensions, a letter each: `{"W_enc": "FD", "b_enc": "F"}`. `F` counts features,
            `D` is the width of the residual stream.
        features (`Sequence[int]`, *optional*):
            Features that are to be read.

    Raises:
        ValueError: If a tensor is missing, unknown, of another shape or dtype, or a feature does not exist.
    """
    found = ", ".join(f"{name} {tensor.shape}" for name, tensor in tensors.items()) or "no tensor"
    if tensors.keys() != layout.keys():
        expected = ", ".join(f"{name} ({', '.join(dims)})" for name, dims in layout.items())
        raise ValueError(f"{path} is not of the expected format: it holds {found}; expected are exactly {expected}.")
    sizes: dict[str, int] = {}
    for name, dims in layout.items():
        tensor = tensors[name]
        if tensor.dtype not in WEIGHT_DTYPES:
            raise ValueError(
                f"{name} in {path} is stored as {tensor.dtype}; weights must be one of "
                f"{', '.join(str(dtype) for dtype in WEIGHT_DTYPES)}."
            )
        fits = len(tensor.shape) == len(dims) and 0 not in tensor.shape
        if not fits or any(sizes.setdefault(dim, size) != size for dim, size in zip(dims, tensor.shape)):
            raise ValueError(
                f"{name} in {path} has shape {tensor.shape}, expected is ({', '.join(dims)}) with F features and "
                f"width D; the file holds {found}."
            )
    if features is not None and max(features) >= sizes["F"]:
        raise ValueError(
            f"Feature {max(features)} does not exist: {path} holds {sizes['F']} features, 0 to {sizes['F'] - 1}."
        )


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, to read into."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _truncated(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is truncated or damaged: {what}. Download it again.")


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with safetensors.safe_open(path, framework="pt"):  # checks the header, its bounds and the file's size
            pass
    except safetensors.SafetensorError as error:
        raise _truncated(path, str(error)) from error
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
        raise _truncated(path, "it is not a zip archive, as torch.save writes since torch 1.6")
    file_bytes = path.stat().st_size
    records, pickled = [], b""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for entry in archive.infolist():
                start = _data_offset(file, entry)
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise ValueError(f"{path} holds compressed records; torch.save writes none. Save it again.")
                if start + entry.file_size > file_bytes:
                    raise _truncated(path, f"{entry.filename} ends behind the end of the file")
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
        raise _truncated(path, str(error)) from error
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
        raise _truncated(path, "it is not a zip archive, as numpy.savez writes")
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
                    raise _truncated(path, f"{entry.filename} ends behind the end of the file")
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
                    raise _truncated(path, f"{name} has shape {shape} in {dtype} but {held} bytes")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise _truncated(path, str(error)) from error
    return tensors


def _npy_header(member: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, torch.dtype]:
    """Shape, whether stored column by column, and dtype of an array (the parser evaluates literals only)."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(member)](member)
    except (ValueError, KeyError) as error:
        raise _truncated(path, f"the array header of {name} cannot be read ({error})") from error
    if dtype.hasobject:
        raise ValueError(f"{name} in {path} holds pickled Python objects, which can run code. It is refused.")
    if not dtype.isnative or any(size < 0 for size in shape) or (fortran and len(shape) > 2):
        raise ValueError(f"{name} in {path} has dtype {dtype} and shape {shape}, which are not supported.")
    try:
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError as error:
        raise ValueError(f"{name} in {path} has dtype {dtype}, which is not supported.") from error
    return shape, fortran and len(shape) == 2, torch_dtype
