"""
Weight files read without trusting them: safetensors, `torch.save` archives and numpy's npz, by one mechanism.

[`open_tensors`] reads a file's table of contents and checks it against the file's real size. It executes nothing from
the file and takes no memory for weights. Each [`StoredTensor`] that it returns knows where its bytes are, and reads
only what is requested.
"""

from pathlib import Path

from .foreign_files import require_native
from .npz_archive import open_npz
from .safetensors_file import open_safetensors
from .tensor import StoredTensors, WeightFile
from .torch_archive import open_torch

OPENERS = {
    ".safetensors": open_safetensors,
    ".pt": open_torch,
    ".pth": open_torch,
    ".bin": open_torch,
    ".npz": open_npz,
}


def open_tensors(path: str | WeightFile) -> StoredTensors:
    """
    Checked table of contents of a weight file: `.safetensors`, `.npz`, or a `torch.save` archive (`.pt`, `.pth`,
    `.bin`) of tensors and plain values in dicts and lists. Nothing in the file is executed, and no memory is taken for
    weights.
    """
    file = Path(path) if isinstance(path, str) else path
    if isinstance(file, Path) and not file.is_file():
        raise FileNotFoundError(f"There is no file {file}. Is the download complete?")
    if file.suffix not in OPENERS:
        raise ValueError(f"{file} is no known kind of weight file. Known: {', '.join(OPENERS)}.")
    if isinstance(file, Path):
        require_native(file)
    return OPENERS[file.suffix](file)
