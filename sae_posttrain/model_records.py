"""What records say of a model: its name without the folders of a machine, its arguments, a hash of its weights."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from .gguf_files import gguf_source, is_named_as_gguf, read_gguf_header

_PRIVATE_KWARGS = ("cache_dir", "offload_folder", "proxies", "token")
"""Arguments of `from_pretrained` that stay out of the records: they belong to a machine or a person."""


def recorded_model(model: Any) -> str:
    """
    Name of a model for the records: its Hub id, or the last part of the folder or file it came from. The name of a
    GGUF file is followed by how its weights were quantised, unless it says so itself: `gemma.gguf (Q4_K_M)`.
    """
    if is_path(model):
        return _with_quantization(recorded_name(model), lambda: _quantization_of(model))
    config = getattr(model, "config", None)
    name = recorded_name(getattr(config, "_name_or_path", "") or "") or type(model).__name__
    return _with_quantization(name, lambda: getattr(config, "gguf_quantization", None))


def _with_quantization(name: str, find: Callable[[], Any]) -> str:
    quantization = find() if is_named_as_gguf(name) else None
    if not isinstance(quantization, str) or quantization.lower() in name.lower():
        return name
    return f"{name} ({quantization})"


def _quantization_of(model: str | os.PathLike[str]) -> Any:
    """Quantisation of a GGUF file, or of the one that a folder was dequantised from; `None` if it is not known."""
    source = gguf_source(model)
    with suppress(OSError, ValueError):
        if source is not None:
            return read_gguf_header(source.path(local_files_only=True)).quantization
        return json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("gguf_quantization")
    return None


def recorded_name(name: str | os.PathLike[str]) -> str:
    """A Hub id as it is; a path on this machine by its last part only, since records are shared."""
    text = os.fspath(name)
    source = gguf_source(name)
    if source is not None:
        return text if source.repository is not None else Path(text).name
    if text and (isinstance(name, os.PathLike) or os.path.isabs(text) or os.path.exists(text)):
        return Path(os.path.abspath(text)).name
    return text


def recorded_kwargs(model_kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of `from_pretrained` for the records: without tokens and folders, paths by their last part."""
    return {key: str(value) for key, value in sorted(_without_private(model_kwargs).items())}


def _without_private(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_private(item) for key, item in value.items() if key not in _PRIVATE_KWARGS}
    return recorded_name(value) if is_path(value) else value


def weights_fingerprint(model: Any) -> str | None:
    """Hash of a sample of the weights: it tells apart two models of the same name. `None` for a Hub id."""
    digest = hashlib.sha256()
    if is_path(model):
        source = gguf_source(model)
        if source is not None:
            path = Path(source.file).expanduser()
            if source.repository is not None or not path.is_file():
                return None
            _add_sample(digest, path)
            return digest.hexdigest()[:16]
        if not Path(model).is_dir():
            return None
        for path in sorted(Path(model).iterdir()):
            if path.suffix in (".safetensors", ".bin", ".pt") and path.is_file():
                digest.update(f"{path.name} ".encode())
                _add_sample(digest, path)
        return digest.hexdigest()[:16]
    import torch

    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type != "meta":
            values = parameter.detach().flatten()
            values = values[:: max(1, values.numel() // 1024)]
            digest.update(values.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _add_sample(digest: Any, path: Path) -> None:
    """Add the size of a file, its first and its last megabyte."""
    digest.update(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(2**20))
        file.seek(max(0, path.stat().st_size - 2**20))
        digest.update(file.read())


def is_path(model: Any) -> bool:
    """Whether a model is given by its folder, file or Hub id, and not loaded."""
    return isinstance(model, (str, os.PathLike))


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of packages for the records, without those that are not installed, as when run from a checkout."""
    installed = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed
