"""[`SAESource`]: where an SAE's weights came from."""

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class SAESource:
    """
    Where an SAE's weights came from.

    Args:
        repository: Hub repository; empty for a local file outside the Hub cache.
        file: Weight file: its path inside the repository or, for a local folder, inside that folder.
        format: Name of the file format, as in `FORMATS`.
        path: Path of the file on this machine; only its name if the file was read in parts. Not part of the identity.
        stated_sha256: SHA-256 that the Hub states, for a file that was read in parts.
    """

    repository: str
    revision: str | None
    file: str
    format: str
    path: Path = field(repr=False, compare=False)
    stated_sha256: str | None = field(default=None, repr=False, compare=False)

    def sha256(self) -> str:
        """
        SHA-256 of the weight file, in hexadecimal digits.

        For a file in the Hub cache it is the name of the blob. For a file that was read in parts it is the hash that
        the Hub states. A local file is hashed once, on the first call.
        """
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        if self.stated_sha256 is not None:
            return self.stated_sha256
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is gone; its SHA-256 cannot be computed any more.")
        blob = self.path.resolve()
        if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
            return blob.name
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
