"""Tensors that still lie in their weight file: read in part or whole, little by little, with finite values only."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

CHUNK_BYTES = 4 << 20
"""Most bytes held beside a result while it is read."""

SEEK_COSTS_BYTES = 16 << 10
"""What one small read at an offset costs, in bytes that could have been read in a row in the same time."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    def is_remote(self) -> bool:
        """Whether its bytes have to be fetched over the network."""
        return False

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
            raise truncated(self.path, f"{self.name} cannot be read to its end") from error

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


def check_tensors(
    path: str | Path, tensors: dict[str, StoredTensor], layout: dict[str, str], features: Sequence[int] | None = None
) -> None:
    """
    Check names, shapes and dtypes of a file's tensors, and that the features exist, before any weight is read.

    Args:
        path (`str` or `pathlib.Path`):
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


def truncated(path: Path, what: str) -> ValueError:
    """The error of a file that ends early or does not hold what it declares."""
    return ValueError(f"{path} is truncated or damaged: {what}. Download it again.")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, to read into."""
    return tensor.view(-1).view(torch.uint8).numpy().data
