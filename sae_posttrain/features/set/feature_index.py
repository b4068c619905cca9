"""
The index of a repository of feature sets: `features.json`, which says what there is, for which model.

It is a list of what the sets say of themselves, so that a reader needs neither the files nor torch to choose one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...shown import printable
from ...tables import align
from .feature_set import FeatureSet

INDEX = "features.json"
"""Name of the index in its folder or repository."""

MAX_INDEX_BYTES = 8 << 20

_VERSION = 1
_SUFFIX = ".safetensors"
_PAGES = (".html", ".png", ".svg")


@dataclass(frozen=True)
class IndexEntry:
    """
    One feature set of a repository.

    Attributes:
        file (`str`):
            Its path in the repository.
        base_model (`str`):
            Model on which the features were found; empty if unknown.
        names (`tuple[str, ...]`):
            Names of the features, each once.
        blocks (`tuple[int, ...]`):
            Decoder blocks of the features.
        num_features (`int`):
            Number of features.
        target_groups (`tuple[str, ...]`):
            Groups that the features stand for.
        strength (`float`, *optional*):
            The calibrated strength, in median residual norms; `None` if none was measured.
        pages (`tuple[str, ...]`):
            Dashboards and pictures that lie beside the file and begin with its name.
    """

    file: str
    base_model: str
    names: tuple[str, ...]
    blocks: tuple[int, ...]
    num_features: int
    target_groups: tuple[str, ...] = ()
    strength: float | None = None
    pages: tuple[str, ...] = ()


def index_folder(folder: str | os.PathLike) -> list[IndexEntry]:
    """
    The feature sets in a folder and the folders in it, by path.

    Raises:
        FileNotFoundError: If there is no such folder, or no feature set in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    entries = []
    for path in sorted(folder.rglob(f"*{_SUFFIX}")):
        try:
            feature_set = FeatureSet.load(path)
        except ValueError:
            continue  # the weights of a model or of an SAE
        entries.append(_entry(feature_set, path, folder))
    if not entries:
        raise FileNotFoundError(f"There is no feature set in {folder}. `sae-posttrain find-features` writes one.")
    return entries


def write_index(folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """
    Write the index of a folder, to be uploaded with it.

    Raises:
        FileExistsError: If there is one and `overwrite` is not set.
        FileNotFoundError: As in [`index_folder`].
    """
    path = Path(folder) / INDEX
    entries = index_folder(folder)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. To replace it, allow it: `overwrite=True`.")
    content = {"version": _VERSION, "features": [asdict(entry) for entry in entries]}
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def list_features(source: str | os.PathLike, *, revision: str | None = None) -> list[IndexEntry]:
    """
    The feature sets of a folder or a Hub repository, from its index; a folder without an index is read itself.

    Args:
        source (`str` or `os.PathLike`):
            A folder, an index file, a feature set, or `owner/name`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If there is no such folder, or the repository has no index.
        ValueError: If the index or the feature set is damaged.
    """
    if not str(source):
        raise FileNotFoundError("Name a folder, a feature set, or a repository of the Hub (owner/name); got no name.")
    path = Path(source)
    if path.is_dir():
        return read_index(path / INDEX) if (path / INDEX).is_file() else index_folder(path)
    if path.is_file():
        return [_entry(FeatureSet.load(path), path, path.parent)] if path.suffix == _SUFFIX else read_index(path)
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no folder {source}. A repository of the Hub is named owner/name.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return read_index(Path(hf_hub_download(name, INDEX, revision=revision)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        says = printable(error).rstrip(".")
        raise FileNotFoundError(
            f"No index of feature sets at {name}: there is no such folder, and the Hub says: {says}. Its "
            "owner writes one with `sae-posttrain features index FOLDER`."
        ) from error


def read_index(path: Path) -> list[IndexEntry]:
    """Read and check an index; `ValueError` if it is damaged."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"{path} has more than {MAX_INDEX_BYTES} bytes: it is no index of feature sets.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({printable(error)}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("features"), list):
        raise ValueError(f"{path} is no index of feature sets: it holds no list `features`.")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"{path} is an index of version {printable(content.get('version'))}; this release reads {_VERSION}."
        )
    return [_read_entry(row, f"Entry {number} of {path}") for number, row in enumerate(content["features"], 1)]


def format_index(entries: Sequence[IndexEntry]) -> str:
    """The entries as a table for a terminal."""
    rows = [["file", "model", "features", "blocks", "for", "strength", "pages"]]
    for entry in entries:
        names = ", ".join(entry.names[:4]) + (f" and {len(entry.names) - 4} more" if len(entry.names) > 4 else "")
        rows.append(
            [
                printable(entry.file),
                printable(entry.base_model or "unknown"),
                printable(names),
                ", ".join(map(str, entry.blocks)),
                printable(", ".join(entry.target_groups) or "-"),
                "-" if entry.strength is None else f"{entry.strength:g}",
                printable(", ".join(entry.pages) or "-"),
            ]
        )
    return "\n".join(align(rows, num_left=len(rows[0])))


def _entry(feature_set: FeatureSet, path: Path, folder: Path) -> IndexEntry:
    try:
        strength = feature_set.calibration.get("strength")
    except ValueError:
        strength = None  # it was measured for other features
    beside = sorted(
        each for each in path.parent.iterdir() if each.suffix in _PAGES and each.name.startswith(f"{path.stem}.")
    )
    return IndexEntry(
        file=path.relative_to(folder).as_posix(),
        base_model=feature_set.base_model,
        names=tuple(dict.fromkeys(feature_set.names)),
        blocks=tuple(sorted(set(feature_set.blocks))),
        num_features=len(feature_set),
        target_groups=feature_set.target_groups,
        strength=strength,
        pages=tuple(each.relative_to(folder).as_posix() for each in beside),
    )


def _read_entry(row: Any, where: str) -> IndexEntry:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object, got {type(row).__name__}.")
    texts, number = (list, str), (int, float)
    kinds: dict[str, Any] = {"names": texts, "target_groups": texts, "pages": texts, "blocks": (list, int)}
    for name, (kind, inside) in kinds.items():
        value = row.get(name, [] if name in ("target_groups", "pages") else None)
        if not isinstance(value, kind) or not all(type(each) is inside for each in value):
            raise ValueError(f"{where}: `{name}` must be a list of {inside.__name__}.")
    for name, one in {"file": str, "base_model": str, "num_features": int}.items():
        if type(row.get(name)) is not one:
            raise ValueError(f"{where}: `{name}` must be of the type {one.__name__}.")
    strength = row.get("strength")
    if strength is not None and (isinstance(strength, bool) or not isinstance(strength, number)):
        raise ValueError(f"{where}: `strength` must be a number or null.")
    return IndexEntry(
        file=row["file"],
        base_model=row["base_model"],
        names=tuple(row["names"]),
        blocks=tuple(row["blocks"]),
        num_features=row["num_features"],
        target_groups=tuple(row.get("target_groups", ())),
        strength=strength,
        pages=tuple(row.get("pages", ())),
    )
