"""Whose features these are: name and configuration of a model, kept with a feature set and compared before use."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...gguf_files import gguf_source
from ...hooks.blocks import unwrap

COMPARED = {
    "model_type": "type",
    "hidden_size": "hidden size",
    "num_hidden_layers": "number of layers",
    "vocab_size": "vocabulary size",
    "tie_word_embeddings": "tying of input and output embeddings",
    "tokenizer": "tokenizer (hash of its vocabulary)",
    "gguf_quantization": "quantisation in its GGUF file",
}
"""What is compared, by its name in a fingerprint, and what messages call it."""

_CHECKPOINT = re.compile(r"checkpoint(-\d+)?|final|last|best|model|merged|output|epoch[-_]?\d+|step[-_]?\d+", re.I)
_IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[0-9a-f]{40}/?$")


def fingerprint(model: nn.Module, tokenizer: Any = None) -> dict[str, Any]:
    """
    What tells a model's architecture from another's, without its weights, by the names in [`COMPARED`]; what a model
    does not state is left out. The tokenizer's vocabulary is hashed, without the tokens that were added to it.
    """
    config = unwrap(model).config.get_text_config()
    found = {name: getattr(config, name, None) for name in COMPARED if name != "tokenizer"}
    found["tokenizer"] = _vocabulary_hash(tokenizer)
    return {name: value for name, value in found.items() if value is not None}


def found_on(model: nn.Module, tokenizer: Any = None) -> dict[str, Any]:
    """`base_model` and `fingerprint` of features that are found on this model, as arguments of a `FeatureSet`."""
    return {"base_model": model_name(model), "fingerprint": fingerprint(model, tokenizer)}


def model_name(model: nn.Module) -> str:
    """
    Hub id, or the last part of a local path: a feature set travels, the folders of a machine do not.

    A folder whose own name says nothing (`checkpoint-100`) is recorded with the folder it lies in.
    """
    name = _stated_name(model)
    source = gguf_source(name)
    if source is not None and source.repository is None:
        return _parts(name)[-1]
    if not os.path.isdir(name):
        return name
    if cached := _in_cache(os.path.abspath(name)):
        return cached
    *_, parent, last = ["", *_parts(os.path.abspath(name))]
    return f"{parent}/{last}" if is_checkpoint_name(last) and parent else last


def is_checkpoint_name(last: str) -> bool:
    """Whether the last part of a path is a name that every training gives, such as `checkpoint-100`."""
    return _CHECKPOINT.fullmatch(last) is not None


def is_same_name(known: str, name: str) -> bool:
    """
    Whether a model's name can be that of the known one: the same id, or a local copy of it.

    Two Hub ids are compared whole, two paths as far as both go. A Hub id and a path agree if their last parts do.
    """
    known, name = _in_cache(known) or _as_path(known), _in_cache(name) or _as_path(name)
    known_parts, parts = _parts(known), _parts(name)
    shared = min(len(known_parts), len(parts))
    if known_parts[-shared:] == parts[-shared:]:
        return True
    if known_parts[-1] != parts[-1] or is_checkpoint_name(parts[-1]):
        return False
    is_path = _is_path(known), _is_path(name) or os.path.isdir(name)
    return is_path[0] != is_path[1]


def require_same_model(
    base_model: str,
    recorded: Mapping[str, Any],
    model: nn.Module,
    *,
    tokenizer: Any = None,
    allow_base_model: str | None = None,
) -> None:
    """
    Refuse a model that is not the one on which features were found, by its name and its recorded [`fingerprint`]. The
    model `allow_base_model` is allowed, whatever its configuration.
    """
    name = _stated_name(model)
    if allow_base_model and name and is_same_name(allow_base_model, name):
        return
    differing = _differences(recorded, fingerprint(model, tokenizer))
    whole_id = bool(name) and (_in_cache(name) or name) == base_model
    if whole_id:  # tokens that are added to a model change its vocabulary, not its features
        differing.pop("vocab_size", None)
    is_named_alike = not (base_model and name) or is_same_name(base_model, name)
    if is_named_alike and not differing:
        return
    what = "; ".join(
        f"its {COMPARED[key]} is {there!r}, this model's is {here!r}" for key, (there, here) in differing.items()
    )
    found = f"The features were found on {base_model or 'another model'!r}"
    this = f"this model is {name!r}" if name else "this model has no name"
    allowed = (
        f"If it is a fine-tuned copy of that model, allow it by name: `allow_base_model={_name_to_allow(name)!r}`."
        if name
        else "If they belong to it all the same, say so: `dataclasses.replace(feature_set, fingerprint={})`."
    )
    raise ValueError(f"{found}, {this}{': ' if what else ''}{what}. {allowed}")


def _differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (recorded[key], here[key])
        for key in COMPARED
        if key in recorded and key in here and recorded[key] != here[key]
    }


def _stated_name(model: nn.Module) -> str:
    return str(getattr(unwrap(model).config, "_name_or_path", "") or "")


def _name_to_allow(name: str) -> str:
    parts = _parts(name)
    return "/".join(parts[-2:]) if is_checkpoint_name(parts[-1]) else parts[-1]


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] or [name]


def _as_path(name: str) -> str:
    """A file of a Hub repository without the colon, so that its parts are compared as those of a path."""
    source = gguf_source(name)
    return name if source is None or source.repository is None else f"hub:/{source.repository}/{source.file}"


def _is_path(name: str) -> bool:
    if name.startswith("hub:/"):
        return False
    return name.startswith((".", "/", "~")) or "\\" in name or len(_parts(name)) != 2


def _in_cache(path: str) -> str | None:
    """The Hub id of a folder in the Hub's cache."""
    found = _IN_CACHE.search(path.replace("\\", "/"))
    return f"{found[1]}/{found[2]}" if found else None


def _vocabulary_hash(tokenizer: Any) -> str | None:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, its tokenizer
    if not callable(getattr(tokenizer, "get_vocab", None)):
        return None
    added = set(getattr(tokenizer, "added_tokens_encoder", None) or ())
    base = sorted((token, number) for token, number in tokenizer.get_vocab().items() if token not in added)
    return hashlib.sha256(json.dumps(base).encode()).hexdigest()[:16]
