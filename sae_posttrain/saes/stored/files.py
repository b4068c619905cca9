"""The files an SAE can be read from: one interface for a local folder and for a Hub repository."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..remote.hub_repository import find_repository
from ..remote.remote_file import NeedsWholeFile, RemoteFile
from .foreign_files import LOOKED_AT, describe_foreign
from .safe_files import open_tensors
from .source import SAESource
from .tensor import StoredTensor, StoredTensors

MAX_FOLDERS_DEEP = 4  # Gemma Scope has three folders below the repository's root

MAX_FILES = 20_000
"""Largest number of files and folders that are looked at in a local folder."""

MAX_CONFIG_BYTES = 256 << 10
"""Largest configuration that is read; real configurations have a few kB."""


class SAEFile(NamedTuple):
    """
    A weight file of a known format, and the block (from 0) and site that its name or configuration says it reads;
    `None` if neither says it.
    """

    file: str
    block: int | None = None
    site: str | None = None

    @property
    def folder(self) -> str:
        """The folder of the file, with a `/` at the end; empty at the top."""
        return self.file[: self.file.rfind("/") + 1]


class Wanted(NamedTuple):
    """
    What is asked of a reader: block (from 0), site (the one that the file names, else the user's, else `"resid_post"`)
    and features (`None` for all).

    `k` and `input_scale` are the user's, for files that do not say them. `directions`: whether to read the decoder;
    `None` means yes, unless a whole matrix would be fetched for a few features.
    """

    block: int
    site: str
    features: tuple[int, ...] | None = None
    k: int | None = None
    input_scale: float | None = None
    directions: bool | None = None

    def encoder(self, stored: StoredTensor, dims: str) -> Any:
        """The wanted features of an encoder stored as `dims` (`"FD"` or `"DF"`), in float32: `(D, F)`."""
        rows = stored.rows(self.features).T if dims == "FD" else stored.columns(self.features)
        return rows.float()

    def decoder(self, stored: StoredTensor, dims: str, *, needed: bool = False) -> Any:
        """
        The wanted features of a decoder stored as `dims`, in float32: `(F, D)`; `None` if it stays in its file.

        With `needed`, the decoder is read in any case, because its norms scale the format's pre-activations.
        """
        fetches_all = stored.is_remote and dims == "DF" and self.features is not None
        if not needed and (self.directions is False or (self.directions is None and fetches_all)):
            return None
        directions = stored.rows(self.features) if dims == "FD" else stored.columns(self.features).T
        return directions.float()

    def vector(self, stored: StoredTensor) -> Any:
        """The values of the wanted features from a vector with one value per feature, in float32."""
        return stored.rows(self.features).float()


@dataclass(frozen=True)
class SAEFiles:
    """
    Names of the files in one place, relative and with `/`, and how to open each of them: `fetch` downloads one if
    needed, `remote` gives a file on the Hub that can be read in parts (`None` if it is on this machine).

    `place` is what the user wrote, for messages. `full_name` is `owner/repository/sub/folder` or a local folder's
    path; some formats write facts into it (`…-L0_50`).
    """

    place: str
    full_name: str
    names: tuple[str, ...]
    fetch: Callable[[str], Path]
    remote: Callable[[str], RemoteFile | None] = lambda name: None

    def source(self, name: str, format: str) -> SAESource:
        """Provenance of the file `name`. If the file was read in parts, its SHA-256 is the one that the Hub states."""
        if (remote := self.remote(name)) is not None:
            return SAESource(
                repository=remote.repository,
                revision=remote.commit,
                file=remote.file,
                format=format,
                path=Path(remote.file),
                stated_sha256=remote.sha256,
            )
        path = self.fetch(name)
        origin = _hub_origin(path)
        if origin is None:
            return SAESource(repository="", revision=None, file=name, format=format, path=path)
        repository, revision, file = origin
        return SAESource(repository=repository, revision=revision, file=file, format=format, path=path)

    def tensors(self, name: str, *, part: bool) -> StoredTensors:
        """
        Table of contents of the weight file `name`.

        If only a `part` of a file on the Hub will be read, only that part is fetched. The whole file is downloaded if
        it is compressed or if the server does not send parts of files.
        """
        remote = self.remote(name) if part else None
        if remote is not None:
            try:
                return open_tensors(remote)
            except NeedsWholeFile:
                pass
        return open_tensors(self.fetch(name))

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file `name`."""
        path = self.fetch(name)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}. Is the download complete?")
        with open(path, "rb") as file:
            stored = file.read(MAX_CONFIG_BYTES + 1)
        if len(stored) > MAX_CONFIG_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size} bytes: no configuration of an SAE is that large.")
        if (foreign := describe_foreign(path, stored[:LOOKED_AT])) is not None:
            raise ValueError(foreign)
        try:
            content = json.loads(stored.decode("utf-8"))
            json.dumps(content, ensure_ascii=False).encode()  # fails at halves of surrogate pairs, which JSON can hold
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is truncated or damaged: {error}. Download it again.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no configuration: it holds a {type(content).__name__}, not an object.")
        return content

    def listing(self) -> str:
        """The names of the first files, for messages."""
        shown = ", ".join(self.names[:20]) or "no file"
        return f"{shown}, … ({len(self.names)} files)" if len(self.names) > 20 else shown


def find_files(path_or_repo: str | os.PathLike[str], revision: str | None = None) -> SAEFiles:
    """
    The files of a local folder if it exists, else the files of a Hub repository `owner/repository`, or of a folder in
    it, at a revision.
    """
    place = os.fspath(path_or_repo)
    folder = Path(place).expanduser()
    if folder.is_file():
        raise ValueError(f"{place} is a file; give the folder that holds it.")
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"`revision` is for Hub repositories, but {place} is a local folder. Leave it out.")
        return _local_files(place, folder)
    if not isinstance(path_or_repo, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[^/\\]+)*/?", place):
        raise FileNotFoundError(
            f"{place} is neither a local folder nor the name of a Hub repository (`owner/repository`, or "
            "`owner/repository/sub/folder`)."
        )
    there = next(parent for parent in folder.parents if parent.is_dir())  # the working directory, at the latest
    if len(there.parts) >= 2:  # a folder has the repository's name, so the rest of the path is wrong
        missing = folder.relative_to(there).parts[0]
        held = ", ".join(sorted(each.name for each in there.iterdir() if each.is_dir())[:10]) or "no folder"
        raise FileNotFoundError(f"There is no folder {place}: {there} has no {missing} in it; it has {held}.")
    return _hub_files(place.rstrip("/"), revision)


def _local_files(place: str, folder: Path) -> SAEFiles:
    folder = Path(os.path.abspath(folder))  # not resolved: the links in the Hub cache tell where a file came from
    names: list[str] = []
    num_seen = 0
    for parent, folders, files in os.walk(folder, followlinks=True):
        inside = Path(parent).relative_to(folder)
        num_seen += len(folders) + len(files)
        if num_seen > MAX_FILES:
            raise ValueError(f"{place} holds more than {MAX_FILES} files. Give the folder that holds the SAEs.")
        if len(inside.parts) >= MAX_FOLDERS_DEEP:
            folders.clear()
        above = [_identity(folder.joinpath(*inside.parts[:depth])) for depth in range(len(inside.parts) + 1)]
        folders[:] = [name for name in folders if _identity(Path(parent, name)) not in above]  # links that lead back
        names += [(inside / file).as_posix() for file in files]
    return SAEFiles(place, folder.as_posix(), tuple(sorted(names)), lambda name: folder / name)


def _identity(folder: Path) -> tuple[int, int]:
    """Device and inode, equal for a folder and a link to it; `(-1, -1)` if it is gone or cannot be opened."""
    try:
        status = folder.stat()
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino


def _hub_files(place: str, revision: str | None) -> SAEFiles:
    owner, name, *inside = place.split("/")
    repository = find_repository(f"{owner}/{name}", revision)
    prefix = "".join(f"{part}/" for part in inside)
    names = tuple(sorted(file.removeprefix(prefix) for file in repository.files if file.startswith(prefix)))
    return SAEFiles(
        place,
        place,
        names,
        fetch=lambda file: repository.download(prefix + file),
        remote=lambda file: repository.remote(prefix + file),
    )


def _hub_origin(path: Path) -> tuple[str, str, str] | None:
    """Repository, commit and path of a file in the Hub cache (`models--owner--name/snapshots/<commit>/…`)."""
    found = re.search(r"/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)$", path.as_posix())
    return (f"{found[1]}/{found[2]}", found[3], found[4]) if found else None
