"""A model and its tokenizer, as they are given or loaded from a folder or the Hub. torch loads on first use."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .model_records import is_path, recorded_model, recorded_name


def load_model(model: Any, device: Any = None, model_kwargs: Mapping[str, Any] | None = None) -> Any:
    """The model or adapter of a folder or Hub id, on a device; a loaded model is returned as it is."""
    if not is_path(model):
        return model
    import torch
    from transformers import AutoModelForCausalLM

    kwargs = {"dtype": "auto", **(model_kwargs or {})}
    if (Path(model) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        loaded = AutoPeftModelForCausalLM.from_pretrained(os.fspath(model), **kwargs)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(os.fspath(model), **kwargs)
    if "device_map" in kwargs:
        return loaded
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator is not None else "cpu"
    return loaded.to(device)


def load_tokenizer(tokenizer: Any, model: Any) -> tuple[Any, str]:
    """
    A tokenizer and its name for the records: the one given, or that of the model, or of an adapter's base model.

    Raises:
        ValueError: If the model has none.
    """
    from transformers import AutoTokenizer

    if tokenizer is not None and not is_path(tokenizer):
        return tokenizer, recorded_name(getattr(tokenizer, "name_or_path", "") or "") or type(tokenizer).__name__
    names = [os.fspath(tokenizer)] if tokenizer is not None else []
    if not names and is_path(model):
        names.append(os.fspath(model))
        adapter = Path(model) / "adapter_config.json"
        if adapter.is_file() and not (Path(model) / "tokenizer_config.json").is_file():
            names = [json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]]
    elif not names:
        names.append(getattr(getattr(model, "config", None), "_name_or_path", ""))
    try:
        if not names[0]:
            raise OSError("the model does not say where it was loaded from")
        return AutoTokenizer.from_pretrained(names[0]), recorded_name(names[0])
    except (OSError, ValueError, KeyError) as error:
        name = os.fspath(model) if is_path(model) else recorded_model(model)
        raise ValueError(f"No tokenizer for the model {name!r}: {error}. Pass `tokenizer=`.") from error
