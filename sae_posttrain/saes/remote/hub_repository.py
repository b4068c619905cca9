"""A Hub repository at one commit: its files, read whole or in parts, and the files that are on this machine."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hub_errors import explained, require_online
from .range_cache import RangeCache, write_whole
from .remote_file import RemoteFile

COMMIT = re.compile("[0-9a-f]{40}")
CLIMBS = re.compile(r"^/|\\|(^|/)\.\.(/|$)")

Stated = tuple[int, str] | None
"""Size and SHA-256 of a file; `None` if the Hub does not state them. It states them for large files."""


@dataclass(frozen=True)
class HubRepository:
    """A repository `owner/name` at one commit: its files, and what the Hub states about each of them."""

    name: str
    commit: str
    files: dict[str, Stated]

    def download(self, file: str) -> Path:
        """Path of a file on this machine. A missing file is downloaded."""
        from huggingface_hub import hf_hub_download

        if (path := self._downloaded(file)) is not None:
            return path
        require_online(f"{file} of {self.name} (revision {self.commit[:12]}) was not downloaded before")
        with explained(self.name, f"{self.name}/{file} cannot be downloaded"):
            return Path(hf_hub_download(self.name, file, revision=self.commit))

    def remote(self, file: str) -> RemoteFile | None:
        """A file that can be read in parts; `None` if it is on this machine, or the Hub states no SHA-256 for it."""
        stated = self.files.get(file)
        if stated is None or self._downloaded(file) is not None:
            return None
        size, sha256 = stated
        return RemoteFile(
            self.name, self.commit, file, size, sha256, RangeCache(_kept(self.name, self.commit) / sha256)
        )

    def _downloaded(self, file: str) -> Path | None:
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(self.name, file, cache_dir=constants.HF_HUB_CACHE, revision=self.commit)
        return Path(found) if isinstance(found, str) else None


def find_repository(name: str, revision: str | None) -> HubRepository:
    """
    The Hub repository `owner/name` at the commit that `revision` names now (`None`: the main branch); in offline mode,
    the commit that it named last time.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    if constants.HF_HUB_OFFLINE:
        return _repository_on_this_machine(name, revision)
    failed = f"There is no local folder {name}, and the Hub repository {name} cannot be read"
    if revision is not None:
        failed += f" at revision {revision}"
    try:
        with explained(name, failed):
            commit = revision
            if commit is None or not COMMIT.fullmatch(commit):
                commit = str(HfApi().repo_info(name, revision=revision).sha)
            if not COMMIT.fullmatch(commit):
                raise ValueError(f"the Hub does not name its commit, but {commit[:100]!r}")
            if (files := _load_listing(name, commit)) is None:
                entries = HfApi().list_repo_tree(name, recursive=True, revision=commit)
                listed = (entry for entry in entries if isinstance(entry, RepoFile))
                files = {entry.path: _stated(entry) for entry in listed if not CLIMBS.search(entry.path)}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # the Hub's answer has an unexpected form, which `huggingface_hub` does not check; or the name is not allowed
        raise FileNotFoundError(f"{failed}: {error}") from error
    try:
        write_whole(_kept(name, commit) / "files.json", json.dumps(files).encode())
        write_whole(_kept(name, "refs") / _hashed(revision or "main"), commit.encode())
    except OSError:
        pass  # only offline mode needs these files, and a cache that cannot be written can still be read
    return HubRepository(name, commit, files)


def _stated(entry: Any) -> Stated:
    return None if entry.lfs is None else _checked(entry.size, entry.lfs.sha256)


def _checked(size: Any, sha256: Any) -> Stated:
    """Size and SHA-256 if they are valid, else `None`. They are checked because the SHA-256 names a folder."""
    if type(size) is int and isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256):
        return size, sha256
    return None


def _repository_on_this_machine(name: str, revision: str | None) -> HubRepository:
    """The repository as it was listed when the Hub was last asked, or as it is in the Hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    commit, files = revision, {}
    if commit is None or not COMMIT.fullmatch(commit):
        ref = _kept(name, "refs") / _hashed(revision or "main")
        noted = ref.read_text(errors="replace") if ref.is_file() else ""
        commit = noted if COMMIT.fullmatch(noted) else None
    if commit is not None:
        files = _load_listing(name, commit) or {}
    try:
        snapshot = Path(snapshot_download(name, revision=commit or revision, local_files_only=True, allow_patterns=[]))
        commit = snapshot.name
        here = (path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
        files |= {file: files.get(file) for file in here}
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    if commit is None or not files:
        at = "" if revision is None else f" at revision {revision}"
        raise FileNotFoundError(
            f"There is no local folder {name}, and the Hub repository {name}{at} is not on this machine. "
            "Offline mode is on; unset HF_HUB_OFFLINE to fetch it."
        )
    return HubRepository(name, commit, files)


def _load_listing(name: str, commit: str) -> dict[str, Stated] | None:
    """The listing of a commit, as kept on this machine; `None` if it was not kept or is damaged."""
    try:
        listing = json.loads((_kept(name, commit) / "files.json").read_bytes())
        return {file: None if stated is None else _checked(*stated) for file, stated in listing.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _kept(name: str, subfolder: str) -> Path:
    """The folder that `huggingface_hub.cached_assets_path` assigns to a library's files. It is not created here."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE).expanduser() / "sae_posttrain" / name.replace("/", "--") / subfolder


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
