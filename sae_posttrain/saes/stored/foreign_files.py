"""Recognise by their first bytes files that cannot be read as weights, and say what they are and what to do."""

import pickle
from pathlib import Path

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_OLD_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # the number with which torch.save began before 1.6
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_TAR_MAGIC_AT = 257

LOOKED_AT = 512
"""Number of bytes from the beginning of a file that [`describe_foreign`] needs."""


def describe_foreign(path: object, beginning: bytes) -> str | None:
    """
    Say in a sentence or two what a file is that cannot be read as weights, from its first [`LOOKED_AT`] bytes; `None`
    if they are not recognised.
    """
    if beginning.startswith(_LFS_POINTER):
        return (
            f"{path} is a Git LFS pointer, a few lines of text in place of the file itself: the repository was cloned "
            "without its large files. Fetch them with `git lfs pull`, or download with `hf download`."
        )
    is_tar = beginning[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"
    if beginning.startswith(_OLD_MAGIC) or is_tar:
        return (
            f"{path} is in the old form of torch.save (before torch 1.6, or with "
            "`_use_new_zipfile_serialization=False`), which is not read. The file is not damaged. Save it again: load "
            "it in a current PyTorch with `weights_only=True`, and save that with `torch.save`."
        )
    if beginning.startswith(_PICKLE_PROTOCOLS):
        return (
            f"{path} is a plain pickle, which can run code when it is loaded, and not a zip archive as torch.save "
            "writes. It is not read. If you trust its source, save its tensors with `torch.save` or as safetensors."
        )
    return None


def require_native(path: Path) -> None:
    """Raise a `ValueError` that says what a local file is if it is a Git LFS pointer or an old torch.save file."""
    with open(path, "rb") as file:
        found = describe_foreign(path, file.read(LOOKED_AT))
    if found is not None:
        raise ValueError(found)
