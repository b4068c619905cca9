"""Files that are no weight files for a known reason: what they are, and what to do, by their first bytes."""

import pickle
from pathlib import Path

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_OLD_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # the number with which torch.save began before 1.6
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_TAR_MAGIC_AT = 257

LOOKED_AT = 512
"""Bytes from the beginning of a file that [`describe_foreign`] needs."""


def describe_foreign(path: object, beginning: bytes) -> str | None:
    """
    What a file is that cannot be read as weights, in a sentence or two; `None` if it shows no known sign.

    Args:
        path (`object`):
            Its name, for the message.
        beginning (`bytes`):
            Its first [`LOOKED_AT`] bytes, or all of them.
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
            "`_use_new_zipfile_serialization=False`), which is not read. Nothing is wrong with it; save it again: "
            "`torch.save` of what a current PyTorch's `torch.load` reads with `weights_only=True`."
        )
    if beginning.startswith(_PICKLE_PROTOCOLS):
        return (
            f"{path} is a plain pickle, which can run code when it is loaded, and not a zip archive as torch.save "
            "writes. It is not read. Save its tensors with `torch.save` or as safetensors, if you trust "
            "where it comes from."
        )
    return None


def require_native(path: Path) -> None:
    """Raises a `ValueError` if a file on this machine is a Git LFS pointer or an old file, and says so."""
    with open(path, "rb") as file:
        found = describe_foreign(path, file.read(LOOKED_AT))
    if found is not None:
        raise ValueError(found)
