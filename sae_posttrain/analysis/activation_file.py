"""The file of [`TextActivations`]: one safetensors file with a JSON header, written whole, read and checked."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..shown import printable
from .scipy_sparse import scipy_sparse

if TYPE_CHECKING:
    from .text_activations import TextActivations

_HEADER_KEY = "sae_posttrain_activations"
_VERSION = 1


def write_activation_file(activations: "TextActivations", path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """The work of [`TextActivations.save`]."""
    path = Path(path)
    require_activation_name(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already. Give another name, or allow it to be replaced: `overwrite=True`."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = sorted(set(activations.groups))
    number_of = {group: number for number, group in enumerate(groups)}
    tensors: dict[str, np.ndarray] = {
        "num_tokens": activations.num_tokens.astype(np.int64),
        "groups": np.array([number_of[group] for group in activations.groups], dtype=np.int32),
        "keys": np.frombuffer(bytes.fromhex("".join(activations.keys)), dtype=np.uint8).reshape(len(activations), -1),
    }
    for number, place in enumerate(activations.places):
        rows = activations.values[place]
        tensors[f"{number}.data"] = rows.data.astype(np.float32)
        tensors[f"{number}.indices"] = rows.indices.astype(np.int32)
        tensors[f"{number}.indptr"] = rows.indptr.astype(np.int64)
        tensors[f"{number}.feature_ids"] = activations.feature_ids[place].astype(np.int64)
        if place in activations.residuals:
            tensors[f"{number}.residuals"] = np.ascontiguousarray(activations.residuals[place])
    header = {
        "version": _VERSION,
        "places": activations.places,
        "groups": groups,
        "pool": activations.pool,
        "positions": activations.positions,
        "origin": activations.origin,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={_HEADER_KEY: json.dumps(header, ensure_ascii=False)})
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def require_activation_name(path: Path) -> None:
    """Raises a `ValueError` unless the file's name says that it is safetensors."""
    if path.suffix != ".safetensors":
        raise ValueError(f"Activations are kept in a file that ends in .safetensors, got {path}.")


def read_origin(path: Path) -> dict[str, Any]:
    """What the activations in a file are of, without reading them."""
    with _opened(path) as file:
        return _header(file, path)["origin"]


def read_activation_file(path: str | os.PathLike) -> dict[str, Any]:
    """The checked content of a file, as arguments of `TextActivations`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There are no activations at {path}. `read_activations(…, cache=…)` writes them.")
    sparse = scipy_sparse()
    with _opened(path) as file:
        header = _header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    values, feature_ids, residuals = {}, {}, {}
    try:
        num_texts = len(tensors["num_tokens"])
        for number, (block, site) in enumerate(header["places"]):
            parts = [tensors[f"{number}.{name}"] for name in ("data", "indices", "indptr")]
            ids = tensors[f"{number}.feature_ids"]
            rows = sparse.csr_array(tuple(parts), shape=(num_texts, len(ids)))
            rows.check_format(full_check=True)
            values[block, site], feature_ids[block, site] = rows, ids
            if f"{number}.residuals" in tensors:
                residuals[block, site] = tensors[f"{number}.residuals"]
        groups = tuple(header["groups"][number] for number in tensors["groups"].tolist())
        keys = tuple(row.tobytes().hex() for row in tensors["keys"])
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {printable(error)}. Delete it, and read the texts again.") from error
    return {
        "values": values,
        "feature_ids": feature_ids,
        "num_tokens": tensors["num_tokens"],
        "groups": groups,
        "keys": keys,
        "residuals": residuals,
        **{name: header[name] for name in ("pool", "positions", "origin")},
    }


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file: {printable(error)}. Delete it, or give another name."
        ) from error


def _header(file: Any, path: Path) -> dict[str, Any]:
    content = (file.metadata() or {}).get(_HEADER_KEY)
    if content is None:
        raise ValueError(f"{path} is a safetensors file, but holds no activations of texts. Give another name.")
    try:
        header = json.loads(content)
        known = header["version"] == _VERSION
        _ = [header[name] for name in ("places", "groups", "pool", "positions", "origin")]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its header cannot be read ({printable(error)}).") from error
    if not known:
        raise ValueError(
            f"{path} holds activations of version {printable(header['version'])}; this release reads version "
            f"{_VERSION}. Delete it, and read the texts again."
        )
    return header
