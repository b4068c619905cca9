"""Check early, with a one-line error, that a model exists: as a folder, a GGUF file or a repository on the Hub."""

import os
import re
from pathlib import Path

from .gguf_files import gguf_source, read_gguf_header, require_gguf_package

_CONFIGS = ("config.json", "adapter_config.json")


def require_model(name: str | os.PathLike[str], revision: str | None = None) -> None:
    """
    Check that a model or adapter exists, before anything large is imported or loaded.

    The Hub is asked once, without a retry. If it cannot be reached, a model in its cache is accepted.

    Args:
        name (`str` or `os.PathLike`):
            A folder, a GGUF file, the id of a Hub repository, or `repository:file.gguf`.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: If there is no such folder and no such repository, the repository cannot be read, or the
            folder holds no model.
        ImportError: If it is a GGUF file, and the package `gguf` is missing.
        ValueError: If the GGUF file is damaged, or one part of several.
    """
    text = os.fspath(name)
    source = gguf_source(name)
    if source is not None:
        require_gguf_package()
        read_gguf_header(source.path(revision=revision))
        return
    path = Path(text).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in _CONFIGS):
            inside = sorted(each.parent.name for config in _CONFIGS for each in path.glob(f"*/{config}"))
            hint = f" Models lie in its folders {', '.join(inside[:5])}." if inside else ""
            raise FileNotFoundError(f"The folder {text} holds no model: it has no {' or '.join(_CONFIGS)}.{hint}")
        return
    if path.is_file():
        raise FileNotFoundError(
            f"{text} is a file; a model is a folder with a config.json, a file that ends in .gguf, or a Hub id."
        )
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text):
        raise FileNotFoundError(f"There is no model folder {text}{_nearest_folder(path)}.")
    _require_repository(text, revision, _nearest_folder(path))


def _nearest_folder(path: Path) -> str:
    """The part of a path that exists, for a message."""
    there = next((each for each in path.parents if each.is_dir() and each != Path(".")), None)
    return "" if there is None else f" ({there} is there, {path.relative_to(there).parts[0]} is not in it)"


def _require_repository(name: str, revision: str | None, nearest: str) -> None:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    from .saes.remote.hub_errors import explained

    cached = any(
        isinstance(try_to_load_from_cache(name, file, cache_dir=constants.HF_HUB_CACHE, revision=revision), str)
        for file in _CONFIGS
    )
    if cached:
        return
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"There is no model folder {name}{nearest}, and the Hub repository {name} is not on this machine. "
            "Offline mode is on; unset HF_HUB_OFFLINE to fetch it."
        )
    failed = f"There is no model folder {name}{nearest}, and the Hub repository {name} cannot be read"
    with explained(name, failed):
        HfApi().repo_info(name, revision=revision, timeout=10)
