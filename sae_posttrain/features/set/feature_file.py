"""The file of a feature set: one safetensors file with a JSON header, written, found, read and checked."""

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...saes.stored.foreign_files import require_native
from ...shown import printable
from .source import FeatureSource

if TYPE_CHECKING:
    from .feature_set import FeatureSet

FILE_NAME = "features.safetensors"
"""Name of the file inside a folder or a Hub repository."""

MAX_HEADER_BYTES = 512 << 10
"""Largest header that is written or read: a feature takes about 100 bytes, notes take some kB."""

_HEADER_KEY = "sae_posttrain"
_VERSION = 1
_TENSORS = ("encoder_rows", "encoder_bias", "directions", "thresholds", "mean", "std", "residual_norms")


_SOURCE_FIELDS = tuple(f.name for f in fields(FeatureSource) if f.name not in ("sha256", "compute_sha256"))


def write_feature_file(feature_set: "FeatureSet", path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """The work of [`FeatureSet.save`]. The file appears under its name only when it is complete."""
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / FILE_NAME
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already. Give another name, or allow it to be replaced: `overwrite=True`."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "version": _VERSION,
        **{name: list(getattr(feature_set, name)) for name in ("blocks", "feature_ids", "names", "sites", "groups")},
        "base_model": feature_set.base_model,
        "fingerprint": feature_set.fingerprint,
        "target_groups": list(feature_set.target_groups),
        "notes": feature_set.notes,
        "scores": list(feature_set.scores),
        **_sources_for_file(feature_set.sources),
    }
    tensors = {name: getattr(feature_set, name).float().contiguous().clone() for name in _TENSORS}
    tensors |= {f"scores.{name}": score.float().contiguous() for name, score in feature_set.scores.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={_HEADER_KEY: json.dumps(header, ensure_ascii=False)})
        if _header_bytes(temporary) > MAX_HEADER_BYTES:
            raise ValueError(
                f"The names and notes of the feature set take {_header_bytes(temporary)} bytes, at most "
                f"{MAX_HEADER_BYTES} are written. Keep less in `notes`, or save fewer features in one file."
            )
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def find_feature_file(path: str | os.PathLike) -> Path:
    """The file of a feature set on this machine, by its own name or that of its folder."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"No feature set at {path}. `sae-posttrain find-features` writes one.")
    return path


def read_feature_file(path: Path) -> dict[str, Any]:
    """The checked content of a file, as arguments of `FeatureSet`; `ValueError` if it is damaged or no feature set."""
    require_native(path)
    if _header_bytes(path) > MAX_HEADER_BYTES:
        raise ValueError(f"{path} is no feature set: its header declares {_header_bytes(path)} bytes.")
    try:
        with safe_open(path, framework="pt") as file:
            header = _read_header(file.metadata(), path)
            names = [*_TENSORS, *(f"scores.{name}" for name in header["scores"])]
            if set(file.keys()) != set(names):
                raise ValueError(
                    f"{path} holds {printable(sorted(file.keys()))}, expected are {printable(sorted(names))}."
                )
            if any(file.get_slice(name).get_dtype() != "F32" for name in names):
                raise ValueError(f"{path} is no feature set: its tensors must be float32.")
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {printable(error)}") from error
    scores = {name: tensors.pop(f"scores.{name}") for name in header.pop("scores")}
    return {**tensors, "scores": scores, **header}


def _header_bytes(path: Path) -> int:
    """What a safetensors file says of its header, before anything of it is read."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def _sources_for_file(sources: tuple[FeatureSource, ...]) -> dict[str, Any]:
    keys = [(source, source.compute_sha256) for source in sources]  # files of one name in two folders are two
    unique = list(dict.fromkeys(keys))
    rows = []
    for source, compute_sha256 in unique:
        sha256 = source.sha256
        if sha256 is None and compute_sha256 is not None:
            sha256 = compute_sha256()
        rows.append({**{name: getattr(source, name) for name in _SOURCE_FIELDS}, "sha256": sha256})
    return {"sources": rows, "source_of_feature": [unique.index(key) for key in keys]}


def _read_header(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """The JSON header as arguments of `FeatureSet` (still with `scores` as a list of names), types checked."""
    if not metadata or _HEADER_KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but no feature set: it has no {_HEADER_KEY!r} header.")
    try:
        header = json.loads(metadata[_HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header is not valid JSON ({error}).") from error
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        version = header.get("version") if isinstance(header, dict) else None
        raise ValueError(
            f"{path} is a feature set of version {printable(version)}; this release reads version {_VERSION}."
        )
    kinds = {"blocks": int, "feature_ids": int, "names": str, "sites": str, "groups": str, "target_groups": str}
    kinds |= {"scores": str, "source_of_feature": int, "sources": dict}
    for name, kind in kinds.items():
        values = header.get(name)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ValueError(f"{path}: `{name}` in the header must be a list of {kind.__name__}.")
    if not isinstance(header.get("notes"), dict) or not isinstance(header.get("base_model"), str):
        raise ValueError(f"{path}: `notes` or `base_model` is missing from the header.")
    fingerprint = header.get("fingerprint", {})  # files without one are read too
    if not isinstance(fingerprint, dict) or not all(isinstance(v, str | int) for v in fingerprint.values()):
        raise ValueError(f"{path}: `fingerprint` in the header must hold numbers and texts by name.")
    text_or_none = (str, type(None))
    for source in header["sources"]:
        if set(source) != {*_SOURCE_FIELDS, "sha256"} or not all(isinstance(v, text_or_none) for v in source.values()):
            raise ValueError(f"{path}: a source in the header must hold the texts {(*_SOURCE_FIELDS, 'sha256')}.")
    sources = [FeatureSource(**source) for source in header["sources"]]
    if not all(0 <= number < len(sources) for number in header["source_of_feature"]):
        raise ValueError(f"{path}: a feature names a source that the header does not hold.")
    plain = ("blocks", "feature_ids", "names", "sites", "groups", "target_groups")
    return {
        **{name: tuple(header[name]) for name in plain},
        "base_model": header["base_model"],
        "fingerprint": fingerprint,
        "notes": header["notes"],
        "scores": header["scores"],
        "sources": tuple(sources[number] for number in header["source_of_feature"]),
    }
