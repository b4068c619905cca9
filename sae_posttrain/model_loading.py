"""A model and its tokenizer, given or loaded from a folder, a GGUF file or the Hub. torch loads on first use."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .gguf_files import gguf_source
from .gguf_models import find_base_model, load_gguf_config, load_gguf_model, load_gguf_tokenizer
from .model_records import is_path, recorded_model, recorded_name


def load_model(model: Any, device: Any = None, model_kwargs: Mapping[str, Any] | None = None) -> Any:
    """
    The model or adapter of a folder, GGUF file or Hub id, on a device; a loaded model is returned as it is.

    The weights of a GGUF file are dequantised; `dtype` in `model_kwargs` says into what.
    """
    if not is_path(model):
        return model
    import torch
    from transformers import AutoModelForCausalLM

    kwargs = {"dtype": "auto", **(model_kwargs or {})}
    source = gguf_source(model)
    if source is not None:
        loaded = load_gguf_model(source, os.fspath(model), **kwargs)
    elif (Path(model) / "adapter_config.json").is_file():
        loaded = _load_adapter(Path(model), kwargs)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(os.fspath(model), **kwargs)
    if "device_map" in kwargs:
        return loaded
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator is not None else "cpu"
    return loaded.to(device)


def _load_adapter(folder: Path, kwargs: dict[str, Any]) -> Any:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    stated = _base_model_of(folder)
    base = find_base_model(folder, stated)
    source = gguf_source(base)
    if source is None and base == stated:
        return AutoPeftModelForCausalLM.from_pretrained(os.fspath(folder), **kwargs)
    if source is not None:
        model = load_gguf_model(source, base, **kwargs)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, **kwargs)
    return PeftModel.from_pretrained(model, os.fspath(folder))


def _base_model_of(adapter: Path) -> str:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path") or "")


def tokenizer_of(name: str | os.PathLike[str], **options: Any) -> Any:
    """The tokenizer of a folder, GGUF file or Hub id, with the options of `from_pretrained`."""
    source = gguf_source(name)
    if source is not None:
        return load_gguf_tokenizer(source, os.fspath(name), **options)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **options)


def config_of(name: str | os.PathLike[str], **options: Any) -> Any:
    """The configuration of a folder, GGUF file or Hub id, with the options of `from_pretrained`."""
    source = gguf_source(name)
    if source is not None:
        return load_gguf_config(source, os.fspath(name), **options)
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, **options)


def generation_config_of(name: str | os.PathLike[str], **options: Any) -> Any:
    """The generation settings of a folder, GGUF file or Hub id; without a file of its own, what its config says."""
    from transformers import GenerationConfig

    if gguf_source(name) is None:
        try:
            return GenerationConfig.from_pretrained(name, **options)
        except OSError:
            pass
    return GenerationConfig.from_model_config(config_of(name, **options))


def load_tokenizer(tokenizer: Any, model: Any) -> tuple[Any, str]:
    """
    A tokenizer and its name for the records: the one given, or that of the model, or of an adapter's base model.

    Raises:
        ValueError: If the model has none, or its GGUF file is damaged.
    """
    if tokenizer is not None and not is_path(tokenizer):
        return tokenizer, recorded_name(getattr(tokenizer, "name_or_path", "") or "") or type(tokenizer).__name__
    names = [os.fspath(tokenizer)] if tokenizer is not None else []
    if not names and is_path(model):
        names.append(os.fspath(model))
        adapter = Path(model) / "adapter_config.json"
        if adapter.is_file() and not (Path(model) / "tokenizer_config.json").is_file():
            names = [find_base_model(adapter.parent, _base_model_of(adapter.parent))]
    elif not names:
        names.append(getattr(getattr(model, "config", None), "_name_or_path", ""))
    if gguf_source(names[0]) is not None:
        return tokenizer_of(names[0]), recorded_name(names[0])
    try:
        if not names[0]:
            raise OSError("the model does not say where it was loaded from")
        return tokenizer_of(names[0]), recorded_name(names[0])
    except (OSError, ValueError, KeyError) as error:
        name = os.fspath(model) if is_path(model) else recorded_model(model)
        raise ValueError(f"No tokenizer for the model {name!r}: {error}. Pass `tokenizer=`.") from error
