"""
Load a model and its tokenizer from a GGUF file, and dequantise one into a folder that can be trained.

transformers dequantises the weights when it loads them. What comes out is a plain model: it can be saved.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .gguf_files import GGUFHeader, GGUFSource, gguf_source, read_gguf_header
from .model_records import recorded_name, weights_fingerprint
from .shown import printable

logger = logging.getLogger(__name__)

DEQUANTISED = "_dequantized"
"""Folder inside `output_dir` for the model that training starts from. A push to the Hub leaves out names with `_`."""

_SOURCE = "gguf_source.json"
_OF_THE_HUB = ("revision", "token", "cache_dir", "local_files_only")
_NONSENSE_IN_HEADER = (ValueError, LookupError, TypeError, AttributeError, NotImplementedError)
"""What transformers raises on a header that lacks fields or holds nonsense: it calculates with them unchecked."""


def load_gguf_model(source: GGUFSource, name: str, **kwargs: Any) -> Any:
    """
    The causal language model of a GGUF file, with plain weights.

    Args:
        source ([`GGUFSource`]):
            The file.
        name (`str`):
            The name under which it was asked for. The model's configuration keeps it, and the quantisation beside it.
        **kwargs:
            Arguments of `from_pretrained`: `dtype` and others.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the package `gguf` is missing.
        ValueError: If the file is damaged, one part of several, or of an architecture that transformers cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    hub = {key: kwargs.pop(key) for key in _OF_THE_HUB if key in kwargs}
    path = source.path(**hub)
    header = read_gguf_header(path)
    if kwargs.get("quantization_config") is not None:
        raise ValueError(
            f"{name} is quantised already ({header.quantization}): leave `quantization_config` out. Its weights are "
            "dequantised when they are loaded."
        )
    with _alone(path) as folder:
        config = _read_config(folder, path.name, header, name)
        _require_fit(config, header, name)
        _say_unscaled_positions(config, header, name)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=path.name, output_loading_info=True, **_dequantising(), **kwargs
            )
        except torch.OutOfMemoryError:
            raise
        except (ValueError, KeyError, RuntimeError) as error:  # its own refusals, a name it lacks, shapes that differ
            raise ValueError(f"transformers cannot load the weights of {name}: {_first_line(error)}") from error
    model, found = loaded
    missing = sorted(found.get("missing_keys", ()))
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} of the model's weights, {printable(missing[0])} among them: it is damaged, "
            f"or transformers cannot read all of the architecture {header.architecture!r}."
        )
    model.config._name_or_path = name
    model.config.gguf_quantization = header.quantization
    return model


def load_gguf_tokenizer(source: GGUFSource, name: str, **options: Any) -> Any:
    """The tokenizer that a GGUF file holds, with its chat template. Arguments and errors as in [`load_gguf_model`]."""
    from transformers import AutoTokenizer

    hub = {key: options.pop(key) for key in _OF_THE_HUB if key in options}
    path = source.path(**hub)
    header = read_gguf_header(path)
    with _alone(path) as folder:
        _read_config(folder, path.name, header, name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
        except (*_NONSENSE_IN_HEADER, ImportError) as error:  # some kinds need another package
            raise ValueError(
                f"transformers cannot read the tokenizer of {name} ({_first_line(error)}). Pass `tokenizer=`."
            ) from error
    _drop_invented_tokens(tokenizer)
    tokenizer.name_or_path = name
    return tokenizer


def load_gguf_config(source: GGUFSource, name: str, **options: Any) -> Any:
    """The configuration that a GGUF file describes. Arguments and errors as in [`load_gguf_model`]."""
    path = source.path(**{key: value for key, value in options.items() if key in _OF_THE_HUB})
    header = read_gguf_header(path)
    with _alone(path) as folder:
        config = _read_config(folder, path.name, header, name)
    config._name_or_path = name
    config.gguf_quantization = header.quantization
    return config


def trainable(model: Any, output_dir: str | os.PathLike[str], model_kwargs: Mapping[str, Any] | None = None) -> Any:
    """
    The model to train. A model in a GGUF file is dequantised into a folder in `output_dir`, and this folder is the
    model from then on: tokenizer, reference model, adapters and resumed runs find it by its name.

    Args:
        model:
            A model as a trainer gets it: loaded, or by name.
        output_dir (`str` or path):
            Folder of the training.
        model_kwargs (`Mapping[str, Any]`, *optional*):
            Arguments of `from_pretrained`. The folder holds the weights in their `dtype` (float32 by default, as
            TRL's).

    Returns:
        The folder's path as `str` for a GGUF file; otherwise `model` itself.

    Raises:
        FileNotFoundError, ImportError, ValueError: As [`load_gguf_model`].
    """
    source = gguf_source(model)
    if source is None:
        return model
    from accelerate import PartialState

    # TRL reads a JSON text into a mapping when it reads settings.
    kwargs = dict(model_kwargs) if isinstance(model_kwargs, Mapping) else {}
    with PartialState().local_main_process_first():
        return str(_dequantise(source, os.fspath(model), Path(output_dir).absolute() / DEQUANTISED, kwargs))


def with_trainable_model(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    Positional and named arguments of a trainer, with a model in a GGUF file replaced as [`trainable`] says.

    Raises:
        ValueError: If the trainer has no settings, which say where to put the model.
    """
    model = kwargs.get("model", args[0] if args else None)
    if gguf_source(model) is None:
        return args, kwargs
    settings = next((each for each in [*args, *kwargs.values()] if hasattr(each, "output_dir")), None)
    if settings is None:
        raise ValueError("A model in a GGUF file is dequantised into `output_dir`: give the trainer's `args`.")
    folder = trainable(model, settings.output_dir, getattr(settings, "model_init_kwargs", None))
    return (args, {**kwargs, "model": folder}) if "model" in kwargs else ((folder, *args[1:]), kwargs)


def find_base_model(adapter: Path, base: str) -> str:
    """
    Where the base model of an adapter is now: a run's folder may have been moved with the dequantised model in it.

    Args:
        adapter (`Path`):
            Folder of the adapter: `output_dir`, or a checkpoint in it.
        base (`str`):
            The base model that it names.
    """
    parts = base.replace("\\", "/").split("/")
    if DEQUANTISED not in parts[:-1] or os.path.isdir(base):
        return base
    for folder in (adapter, adapter.parent):
        if (moved := folder / DEQUANTISED / parts[-1]).is_dir():
            return str(moved)
    return base


def _dequantise(source: GGUFSource, name: str, parent: Path, kwargs: dict[str, Any]) -> Path:
    hub = {key: kwargs[key] for key in _OF_THE_HUB if key in kwargs}
    path = source.path(**hub)
    header = read_gguf_header(path)
    dtype = kwargs.get("dtype") or "float32"
    record = {
        "file": recorded_name(name),
        "quantization": header.quantization,
        "fingerprint": weights_fingerprint(path),
        "dtype": str(dtype).removeprefix("torch."),
    }
    folder = parent / Path(source.file).name
    if folder.is_dir() and _read_record(folder) == record:
        return folder
    tokenizer = load_gguf_tokenizer(source, name, **hub)
    model = load_gguf_model(source, name, dtype=dtype, **hub)
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=parent))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / _SOURCE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        unfinished.chmod(parent.stat().st_mode & 0o777)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    logger.warning(
        "%s holds weights in the format %s, which cannot be trained. They were dequantised into %s, as %s (%.2f GB). "
        "Training starts from this folder, and what it saves is a normal model.",
        name,
        header.quantization,
        folder,
        str(model.dtype).removeprefix("torch."),
        sum(file.stat().st_size for file in folder.iterdir()) / 1e9,
    )
    return folder


def _read_record(folder: Path) -> Any:
    try:
        return json.loads((folder / _SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A folder that holds nothing but the file: transformers also reads what lies beside one, such as an adapter."""
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        try:
            (Path(folder) / path.name).symlink_to(path.resolve())
        except OSError:  # Windows allows it to some users only
            folder = str(path.parent)
        yield folder


def _read_config(folder: str, file: str, header: GGUFHeader, name: str) -> Any:
    from transformers import AutoConfig
    from transformers import __version__ as version

    try:
        return AutoConfig.from_pretrained(folder, gguf_file=file)
    except _NONSENSE_IN_HEADER as error:
        raise ValueError(
            f"transformers {version} cannot read {name}, a GGUF file of the architecture {header.architecture!r} "
            f"({_first_line(error)}). Use the model's folder or Hub id instead."
        ) from error


def _require_fit(config: Any, header: GGUFHeader, name: str) -> None:
    """Refuse a model that is much larger than its weights, before memory is taken for it."""
    import torch
    from transformers import AutoModelForCausalLM

    said = f"{name} is damaged, or made to do harm: its header describes"
    blocks = getattr(config.get_text_config(), "num_hidden_layers", 0) or 0
    if blocks > header.num_tensors:
        raise ValueError(f"{said} {blocks} blocks, and it holds {header.num_tensors} tensors.")
    try:
        with torch.device("meta"):
            described = sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())
    except (*_NONSENSE_IN_HEADER, RuntimeError, ZeroDivisionError) as error:  # a negative width, no heads
        raise ValueError(
            f"{name} describes no causal language model that transformers can build: {_first_line(error)}"
        ) from error
    # Two matrices may be one in the file.
    if described > 2 * header.num_weights + 2**20:
        raise ValueError(f"{said} {described:,} weights, and it holds {header.num_weights:,}.")


def _say_unscaled_positions(config: Any, header: GGUFHeader, name: str) -> None:
    if header.scales_positions and "factor" not in str(getattr(config, "rope_parameters", "")):
        logger.warning(
            "%s scales its rotary positions, which is how it was made for long texts, and transformers does not read "
            "this from GGUF files of the architecture %s. Its answers will differ from the original's, the more the "
            "longer the text is. Use the model's folder or Hub id where this matters.",
            name,
            header.architecture,
        )


def _drop_invented_tokens(tokenizer: Any) -> None:
    """
    Remove tokens that the file does not have. The class that transformers builds a byte-level tokenizer with brings an
    `<|endoftext|>` of its own, for which the model has no embedding.
    """
    backend = tokenizer.backend_tokenizer
    known = backend.get_vocab_size(with_added_tokens=False)
    if backend.get_vocab_size(with_added_tokens=True) == known:
        return
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < known]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))


def _dequantising() -> dict[str, Any]:
    """Newer versions of transformers may keep weights quantised on a GPU, and then refuse to save or train them."""
    try:
        from transformers.utils.quantization_config import GgufConfig  # type: ignore[attr-defined]
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__))
