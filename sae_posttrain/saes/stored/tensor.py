"""Tensors that are still in their weight file. They are read in part or whole, in small pieces, and must be finite."""

import math
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Union

import torch
from torch import Tensor
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from ..remote.remote_file import RemoteFile

WeightFile = Union[Path, "RemoteFile"]
"""A weight file: a path on this machine, or a file on the Hub that is read in parts."""

CHUNK_BYTES = 4 << 20
"""Largest number of bytes held in addition to a result while it is read."""

REMOTE_CHUNK_BYTES = 16 << 20
"""As `CHUNK_BYTES`, for reads over the network. It is larger, because each request takes time."""

SEEK_COSTS_BYTES = 16 << 10
"""Cost of one small read at an offset: the number of consecutive bytes that could be read in the same time."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

MAX_SHOWN = 20
"""Largest number of names listed in a message; a file can hold thousands."""

Plain = str | int | float | bool | None


@dataclass(frozen=True)
class StoredTensor:
    """
    A tensor that is still in its file: its name, shape and dtype, and the position of its first byte.

    `rows`, `columns` and `read` return CPU tensors in the stored dtype. In addition to the result, they take at most a
    few MB of memory (32 MB for a remote file). The result is finite (also in float32). They raise a `ValueError` for
    NaN, infinities and a file that ends early, and a `FileNotFoundError` if a remote file cannot be reached.

    Args:
        name: Name of the tensor in the file.
        dtype: Dtype in which it is stored.
        offset: Position of the first byte, in the file or in its `member`.
        member: Compressed zip member that holds the bytes; `None` if the file holds them uncompressed.
        transposed: Whether a matrix is stored column by column.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: WeightFile
    offset: int
    member: str | None = None
    transposed: bool = False

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_remote(self) -> bool:
        """Whether the tensor's bytes have to be fetched over the network."""
        return not isinstance(self.path, Path)

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
        """The rows `indices` (for a vector: the elements), in that order; all rows for `None`."""
        if indices is None:
            return self.read()
        if len(self.shape) == 1:
            return self.read()[list(indices)]
        if self.transposed:
            return self.T.columns(indices).T
        result = torch.empty((len(indices), *self.shape[1:]), dtype=self.dtype)
        row_bytes = self.num_bytes // self.shape[0]
        if not isinstance(self.path, Path):
            starts = [self.offset + index * row_bytes for index in indices]
            self.path.prefetch([(start, start + row_bytes) for start in starts if row_bytes])
        with self._open() as file:
            for place in sorted(range(len(indices)), key=lambda place: indices[place]):  # in the order of the file
                self._fill(result[place], file, self.offset + indices[place] * row_bytes)
        return self._finite(result)

    def columns(self, indices: Sequence[int] | None) -> Tensor:
        """
        The columns `indices` of a matrix, in that order; all columns for `None`.

        A few columns are read value by value. If there are many columns, or if the bytes are compressed, blocks of
        rows are read and the columns are picked from them.
        """
        if indices is None:
            return self.read()
        if self.transposed:
            return self.T.rows(indices).T
        row_bytes = self.shape[1] * self.dtype.itemsize
        result = torch.empty((self.shape[0], len(indices)), dtype=self.dtype)
        if not isinstance(self.path, Path):
            self._fill_remote_columns(result, self.path, indices)
        else:
            with self._open() as file:
                if self.member is None and len(indices) * SEEK_COSTS_BYTES < row_bytes:
                    self._fill_value_by_value(result, file, indices, row_bytes)
                else:
                    self._pick_columns(result, CHUNK_BYTES, lambda rows, start: self._fill(rows, file, start), indices)
        return self._finite(result)

    def _pick_columns(
        self, result: Tensor, most_bytes: int, fill: Callable[[Tensor, int], None], indices: Sequence[int]
    ) -> None:
        """Read all rows in blocks with `fill(rows, position)`, and copy the columns `indices` into `result`."""
        num_rows, num_columns = self.shape
        row_bytes = num_columns * self.dtype.itemsize
        block = torch.empty((max(1, most_bytes // max(1, row_bytes)), num_columns), dtype=self.dtype)
        for start in range(0, num_rows, len(block)):
            rows = block[: num_rows - start]
            fill(rows, self.offset + start * row_bytes)
            result[start : start + len(rows)] = rows[:, list(indices)]

    def _fill_remote_columns(self, result: Tensor, remote: "RemoteFile", indices: Sequence[int]) -> None:
        """Read columns from the cache. If some are not cached, the whole matrix is fetched once, block by block."""
        column_bytes = len(result) * self.dtype.itemsize
        missing = []
        for place, column in enumerate(indices):
            if (kept := remote.cache.read_column(self.offset, self.shape, column, column_bytes)) is None:
                missing.append(place)
            elif kept:
                result[:, place] = torch.frombuffer(bytearray(kept), dtype=self.dtype)
        if not missing:
            return
        columns = [indices[place] for place in missing]
        picked = torch.empty((len(result), len(missing)), dtype=self.dtype)
        title = f"Fetching {self.name} of {remote.name}"
        with tqdm(total=self.num_bytes, unit="B", unit_scale=True, desc=title) as bar:

            def fill(rows: Tensor, start: int) -> None:
                if rows.numel():
                    remote.fetch_into(_bytes_of(rows), start)
                bar.update(rows.nbytes)

            self._pick_columns(picked, REMOTE_CHUNK_BYTES, fill, columns)
        result[:, missing] = picked
        for column, values in zip(columns, picked.T):
            remote.cache.write_column(self.offset, self.shape, column, bytes(_bytes_of(values.contiguous())))

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            if self.member is None:
                with self.path.open("rb", buffering=0) as file:
                    yield file
            else:
                assert isinstance(self.path, Path)  # compressed members are not read over the network
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                    yield member
        except (EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise truncated(self.path, f"{self.name} cannot be read to its end") from error

    def _fill(self, result: Tensor, file: IO[bytes], position: int) -> None:
        """Read the bytes from `position` on into the contiguous `result`."""
        if result.numel() == 0:
            return
        view = _bytes_of(result)
        while self.member is not None and position - file.tell() > CHUNK_BYTES:
            if not file.read(CHUNK_BYTES):  # a compressed member seeks by reading, here in small steps
                raise EOFError
        file.seek(position)
        step = len(view) if self.member is None else CHUNK_BYTES  # unpacked bytes are in memory twice
        done = 0
        while done < len(view):
            num_read = file.readinto(view[done : done + step])  # type: ignore[attr-defined]
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


class StoredTensors(dict[str, StoredTensor]):
    """
    Table of contents of a weight file: its tensors by name, and the plain values that are stored with them.

    In a `torch.save` archive of nested dicts and lists, names are joined with `/`: `{"ae": {"b_dec": tensor},
    "step": 3}` holds the tensor `"ae/b_dec"` and the plain value `"step"`. List items are named by their number.

    Args:
        plain: The plain values by name; only `torch.save` archives hold plain values.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], plain: Mapping[str, Plain] | None = None):
        super().__init__(tensors)
        self.plain = dict(plain or {})

    def below(self, folder: str) -> "StoredTensors":
        """The tensors and values in the nested dict `folder`, under their names there; empty if it does not exist."""
        start = f"{folder}/"
        return StoredTensors(
            {name.removeprefix(start): tensor for name, tensor in self.items() if name.startswith(start)},
            {name.removeprefix(start): value for name, value in self.plain.items() if name.startswith(start)},
        )


def check_tensors(
    path: str | Path,
    tensors: StoredTensors,
    layout: Mapping[str, str],
    features: Sequence[int] | None = None,
    plain: Container[str] = (),
) -> None:
    """
    Check names, shapes and dtypes of a file's tensors, and that the features exist, before any weight is read.

    Args:
        tensors: What [`open_tensors`] found.
        layout: The dimensions of each expected tensor, one letter per dimension: `{"W_enc": "FD", "b_enc": "F", "k":
            "", "W_skip": "DD?"}`. `F` is the number of features, `D` is the width of the site; `""` is a scalar. A
            tensor with `?` at the end may be missing. A tensor with neither dimension is not a weight and may hold
            integers.
        plain: Names of the plain values that the format is known to hold; each may be missing.
    """
    found = _listing(f"{name} {tensor.shape}" for name, tensor in tensors.items()) or "no tensor"
    needed = {name for name, dims in layout.items() if not dims.endswith("?")}
    if not needed <= tensors.keys() <= layout.keys():
        expected = ", ".join(f"{name} ({', '.join(dims.rstrip('?'))})" for name, dims in layout.items())
        optional = ", ".join(name for name in layout if name not in needed)
        raise ValueError(
            f"{path} is not of the expected format: it holds {found}; expected are exactly {expected}"
            + (f" ({optional} may be missing)." if optional else ".")
        )
    if unknown := [name for name in tensors.plain if name not in plain]:
        raise ValueError(
            f"{path} is not of the expected format: in addition to its tensors it holds {_listing(unknown)}. If it is "
            "a training checkpoint, save the SAE's own weights from it."
        )
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        dims = layout[name].rstrip("?")
        allowed = WEIGHT_DTYPES if "F" in dims or "D" in dims else (*WEIGHT_DTYPES, *INTEGER_DTYPES)
        if tensor.dtype not in allowed:
            raise ValueError(
                f"{name} in {path} is stored as {tensor.dtype}; it must be one of "
                f"{', '.join(str(dtype) for dtype in allowed)}."
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


def _listing(names: Iterable[str]) -> str:
    """The first names, for messages."""
    shown = list(names)
    return ", ".join(shown[:MAX_SHOWN]) + (f", … ({len(shown)})" if len(shown) > MAX_SHOWN else "")


def truncated(path: WeightFile, what: str) -> ValueError:
    """The error of a file that ends early or does not hold what it declares."""
    return ValueError(f"{path} is truncated or damaged: {what}. Download it again.")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, to read into."""
    return tensor.view(-1).view(torch.uint8).numpy().data
