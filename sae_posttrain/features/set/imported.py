"""Directions that others made: control vectors, steering vectors and vectors of Neuronpedia, as a feature set."""

import json
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...hooks.sites import Place, place_name
from ...saes.stored.foreign_files import describe_foreign
from ...saes.stored.gguf_file import open_gguf
from ...saes.stored.tensor import StoredTensors
from ...saes.stored.torch_archive import open_torch
from ...shown import printable
from ...sites import is_site, parse_hook
from .feature_set import FeatureSet
from .source import FeatureSource

NEURONPEDIA = "https://www.neuronpedia.org"
SECONDS_FOR_NEURONPEDIA = 30.0
MAX_JSON_BYTES = 64 << 20
"""Largest answer or file that is read: a feature with all its examples takes some MB."""

_NEURONPEDIA_ID = re.compile(r"(?:https?://(?:www\.)?neuronpedia\.org/(?:api/feature/)?)?([\w.-]+)/([\w.-]+)/(\d+)/?")
_STEERING_VECTOR = "steering_vectors.steering_vector.SteeringVector"
_LAYER_SITES = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}


def import_directions(
    source: str | os.PathLike, *, name: str | None = None, site: str | None = None, base_model: str = ""
) -> FeatureSet:
    """
    Read directions that another tool made. Nothing in a file is run; sizes are checked before memory is taken.

    - `vector.gguf`: a control vector of repeng or llama.cpp. `direction.n` is added to the output of block n,
      counted from 0, in both.
    - `vector.pt` (`.pth`, `.bin`): a `SteeringVector` of the library steering-vectors, saved with `torch.save`, or the
      dict of its layers.
    - `vector.json`: a vector of Neuronpedia, as its API gives it, or a list of them.
    - `"gemma-2-2b/20-gemmascope-res-16k/10956"`, or the address of that page: a vector or feature of Neuronpedia,
      fetched from its API. If the variable `NEURONPEDIA_API_KEY` is set, it is sent along.

    The directions keep their length. Their pre-activation is the coordinate along the direction. The norm of what a
    site holds is not known: steer with `unit="raw"`, or measure it with [`measure_groups`].

    Args:
        source (`str` or `os.PathLike`):
            A file, or an id or address of Neuronpedia.
        name (`str`, *optional*):
            What the directions are called; by default as their file or label. The place is put behind it.
        site (`str`, *optional*):
            Where in their blocks they belong, where the source does not say it.
        base_model (`str`, *optional*):
            Hub id of the model that they belong to, so that they are refused on others.

    Returns:
        [`FeatureSet`]: one direction for each block, without statistics.

    Raises:
        FileNotFoundError: If there is no such file, or Neuronpedia cannot be reached or has no such vector.
        ValueError: If the file is damaged or holds no directions, or they do not say where they belong.
    """
    if site is not None and not is_site(site):
        raise ValueError(f"Unknown site {site!r}. `load_sae` says which there are, e.g. 'resid_post'.")
    path = Path(source)
    found: dict[Place, Tensor]
    if path.suffix == ".gguf":
        found, notes = _control_vector(path, site)
    elif path.suffix in (".pt", ".pth", ".bin"):
        found, notes = _steering_vector(path, site)
    elif path.suffix == ".safetensors":
        raise ValueError(
            f"{path} cannot be imported: it is a feature set, which every command takes as it is, or the weights of "
            "something else. Directions are read from a .gguf, .pt or .json file."
        )
    elif path.suffix == ".json" or path.is_file():
        return _from_json(_read_json(path), path.name, name or path.stem, name is not None, site, base_model)
    elif identity := _NEURONPEDIA_ID.fullmatch(str(source)):
        where = "/".join(identity.groups())
        return _from_json(_fetch(where), f"{NEURONPEDIA}/{where}", name or where, name is not None, site, base_model)
    else:
        raise FileNotFoundError(
            f"There is no file {source}. Directions are read from a .gguf control vector, a .pt file of "
            "steering-vectors, a .json vector of Neuronpedia, or its id: 'gemma-2-2b/20-gemmascope-res-16k/10956'."
        )
    return _as_set(found, [name or path.stem] * len(found), path.name, base_model, notes)


def _control_vector(path: Path, site: str | None) -> tuple[dict[Place, Tensor], dict[str, Any]]:
    metadata, tensors = open_gguf(path)
    found: dict[Place, Tensor] = {}
    for tensor_name, stored in tensors.items():
        number = re.fullmatch(r"direction\.(\d{1,4})", tensor_name)
        if number is None:
            raise ValueError(
                f"{path} is no control vector: it holds {printable(tensor_name)}, expected are `direction.1`, "
                "`direction.2` and so on, one for each block."
            )
        if len(stored.shape) != 1:
            raise ValueError(f"{path}: {tensor_name} has shape {stored.shape}, a direction is one vector.")
        found[int(number[1]), site or "resid_post"] = stored.read().float()
    kept = ("general.architecture", "controlvector.model_hint")
    return found, {"imported": "control vector"} | {key: metadata[key] for key in kept if key in metadata}


def _steering_vector(path: Path, site: str | None) -> tuple[dict[Place, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with open(path, "rb") as file:
        if foreign := describe_foreign(path, file.read(512)):
            raise ValueError(foreign)
    tensors: StoredTensors = open_torch(path, classes=(_STEERING_VECTOR,))
    layers = tensors.below("layer_activations") or tensors
    layer_type = tensors.plain.get("layer_type", "decoder_block")
    if site is None and layer_type not in _LAYER_SITES:
        raise ValueError(
            f"{path} holds directions for {printable(layer_type)!r}, which is no one site here. Say which with `site`."
        )
    found: dict[Place, Tensor] = {}
    for layer, stored in layers.items():
        if not re.fullmatch(r"\d{1,4}", layer):
            raise ValueError(
                f"{path} is no steering vector: it holds {printable(layer)}, expected is a direction for each "
                "layer number."
            )
        if math.prod(stored.shape) != max(stored.shape, default=0):
            raise ValueError(f"{path}: layer {layer} has shape {stored.shape}, a direction is one vector.")
        found[int(layer), site or _LAYER_SITES[str(layer_type)]] = stored.read().float().flatten()
    return found, {"imported": "steering-vectors", "layer_type": layer_type}


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with open(path, "rb") as file:
        return _parsed(path, file.read(MAX_JSON_BYTES + 1))


def _fetch(where: str) -> Any:
    """What the API says of a feature or vector, `model/source/index`."""
    address = f"{NEURONPEDIA}/api/feature/{where}"
    key = os.environ.get("NEURONPEDIA_API_KEY")
    request = urllib.request.Request(address, headers={"x-api-key": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_FOR_NEURONPEDIA) as answer:
            return _parsed(address, answer.read(MAX_JSON_BYTES + 1))
    except (urllib.error.URLError, TimeoutError) as error:
        raise FileNotFoundError(
            f"{address} cannot be read: {printable(error)}. Is the id right, and the network reachable? A vector that "
            "was saved as .json is read without it."
        ) from error


def _parsed(where: object, content: bytes) -> Any:
    if foreign := describe_foreign(where, content[:512]):
        raise ValueError(foreign)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{where} has more than {MAX_JSON_BYTES} bytes: no vector is that large.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}).") from error


def _from_json(content: Any, where: str, name: str, named: bool, site: str | None, base_model: str) -> FeatureSet:
    rows = content if isinstance(content, list) else [content]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{where} holds no vector: expected is an object with `vector` and `hookName`, or a list.")
    found, names = [], []
    for row in rows:
        vector = row.get("vector") or row.get("values")
        if not vector:
            raise ValueError(
                f"{where} has no vector of its own: it is a feature of the SAE {printable(row.get('layer'))!r}. Take "
                f"its direction from that SAE: `FeatureSet.from_sae(load_sae(...), [{printable(row.get('index'))}])`."
            )
        if not isinstance(vector, list) or not all(type(value) in (int, float) for value in vector):
            raise ValueError(f"{where}: its `vector` is no list of numbers.")
        found.append((_place(row, where, site), torch.tensor(vector, dtype=torch.float32)))
        label = row.get("vectorLabel") or row.get("label")
        names.append(name if named or not isinstance(label, str) else label)
    notes = {
        "imported": "Neuronpedia",
        "model": [printable(row.get("modelId") or row.get("model_id")) for row in rows],
    }
    return _as_set(found, names, where, base_model, notes)


def _place(row: Mapping[str, Any], where: str, site: str | None) -> Place:
    hook = row.get("hookName") or row.get("hook_name")
    if hook is None and isinstance(row.get("hookType"), str) and type(row.get("layerNumber")) is int:
        hook = f"blocks.{row['layerNumber']}.hook_{row['hookType'].replace('-', '_')}"  # the form of an upload
    if isinstance(hook, str) and (place := parse_hook(hook)):
        return place
    block = re.match(r"(\d{1,4})-", str(row.get("layer") or row.get("source") or ""))
    if block is None or site is None:
        raise ValueError(
            f"{where} does not say where its vector belongs: its `hookName` is {printable(hook)!r}. Say it with "
            "`site`, e.g. `site='resid_post'`, if its source begins with the number of a block."
        )
    return int(block[1]), site


def _as_set(
    found: Mapping[Place, Tensor] | list[tuple[Place, Tensor]],
    names: list[str],
    where: str,
    base_model: str,
    notes: dict[str, Any],
) -> FeatureSet:
    items = sorted(found.items()) if isinstance(found, Mapping) else found
    if not items:
        raise ValueError(f"{where} holds no direction.")
    widths = {len(direction) for _, direction in items}
    if len(widths) > 1:
        raise ValueError(f"{where} holds directions of the widths {sorted(widths)}; one model has one.")
    directions = FeatureSet.from_directions(
        torch.stack([direction for _, direction in items]),
        blocks=[place[0] for place, _ in items],
        sites=[place[1] for place, _ in items],
        names=[f"{name}.{place_name(place)}" for name, (place, _) in zip(names, items)],
        base_model=base_model,
    )
    return replace(directions, sources=(FeatureSource("", where, "direction"),) * len(items), notes=notes)
