"""
A push baked into a model's weights, so that any engine serves it.

What steering adds to a block's output at every position is the same as a bias of the last linear module before it, if
the output of this module is added to the residual stream as it is.
"""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...eval_mode import eval_mode
from ...features.set.feature_set import FeatureSet
from ...features.set.steering import steer
from ...hooks.blocks import get_block, unwrap
from ...hooks.layouts import site_paths
from ...hooks.record import record_sites
from ...hooks.sites import Place, describe_place
from ...model_loading import load_model, load_tokenizer
from .pushes import pushes_of

_HALF_OF = {"resid_post": "mlp_out", "mlp_out": "mlp_out", "resid_mid": "attn_out", "attn_out": "attn_out"}
"""Site and the half of the block whose output carries a push there."""

_LAST = ("down_proj", "c_proj", "o_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "fc_out")
"""Names of the last linear module of an attention or MLP."""

_SWITCHES = {"mlp_out": "mlp_bias", "attn_out": "attention_bias"}
"""Setting of a model's config that gives the linear modules of an MLP or attention a bias."""

_PROBE_TOKENS = 12


def bake_bias(
    model: Any, feature_set: FeatureSet, strength: float | Mapping[str, float], *, unit: str = "norm"
) -> dict[str, Tensor]:
    """
    Add the push to biases of a model, in place. It then answers as under `steer(..., positions="all")`.

    Where a module has no bias but the architecture has a setting for one (`mlp_bias` or `attention_bias` of Llama),
    the setting is switched on, and the other modules that it concerns get a bias of zeros.

    The result is compared with steering on a few tokens, so that a layout that adds the module's output in another
    way is noticed.

    Args:
        model (`torch.nn.Module`):
            A causal language model of transformers, not wrapped.
        feature_set ([`FeatureSet`]):
            Features at outputs of blocks, of their MLPs or attentions, or between the two.
        strength (`float` or `Mapping[str, float]`):
            One strength for all features, or strengths by name.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths, as in [`steer`].

    Returns:
        `dict[str, torch.Tensor]`: what was added, float32 `(D,)`, by the name of the parameter.

    Raises:
        ValueError: If the model has no such bias; the message says what would have to change. The model is then as it
            was. Or if the biased model does not agree with the steered one.
    """
    if unwrap(model) is not model:
        raise ValueError("Biases are baked into a plain model. Merge the adapter first: `model.merge_and_unload()`.")
    pushes = pushes_of(feature_set, strength, unit=unit)
    feature_set.check_model(model, allow_base_model=_name(model))
    found = {place: _projection(model, place) for place in pushes}
    expected = _outputs(model, pushes, steered=(feature_set, strength, unit))
    switches = sorted({_SWITCHES[_HALF_OF[place[1]]] for place, (_, module) in found.items() if module.bias is None})
    for switch in switches:
        _switch_on(model, switch)
    added: dict[str, Tensor] = {}
    for place, (name, module) in found.items():
        with torch.no_grad():
            module.bias += pushes[place].to(module.bias)
        added[f"{name}.bias"] = added.get(f"{name}.bias", torch.zeros_like(pushes[place])) + pushes[place]
    _require_equal(expected, _outputs(model, pushes), pushes, model.dtype)
    return added


def write_biased_model(
    model: str | os.PathLike | nn.Module,
    feature_set: FeatureSet,
    strength: float | Mapping[str, float],
    folder: str | os.PathLike,
    *,
    unit: str = "norm",
    tokenizer: Any = None,
    allow_base_model: str | None = None,
) -> Path:
    """
    Write a copy of a model with the push in its biases, and its tokenizer.

    Args:
        model (`str`, `os.PathLike` or `torch.nn.Module`):
            A model, its folder or Hub id. A loaded model is changed as well.
        feature_set ([`FeatureSet`]), strength, unit:
            As [`bake_bias`] takes them.
        folder (`str` or `os.PathLike`):
            Folder to write; it must be new or empty.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer; by default that of the model's folder.
        allow_base_model (`str`, *optional*):
            Name of another model than that on which the features were found.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: As [`bake_bias`]; nothing is written then.
        FileExistsError: If the folder holds anything.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something already. Name a new or empty folder.")
    loaded = load_model(model)
    tokenizer, _ = load_tokenizer(tokenizer, model)
    feature_set.check_model(loaded, allow_base_model=allow_base_model, tokenizer=tokenizer)
    bake_bias(loaded, feature_set, strength, unit=unit)
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _projection(model: nn.Module, place: Place) -> tuple[str, Any]:
    """Name in the model, and module, of the last projection before a place; an error if it can have no bias."""
    number, site = place
    block = get_block(model, number)
    half = _HALF_OF.get(site)
    advice = "Export to another form, or serve the feature set itself."
    if half is None:
        raise ValueError(
            f"No bias of the model adds to {describe_place(place)}: the site is read, not written. {advice}"
        )
    path = site_paths(block, half, number).write.rpartition(".")[0]
    inner = block.get_submodule(path)
    last = [name for name, module in inner.named_children() if name in _LAST and _is_linear(module)]
    if len(last) != 1:
        raise ValueError(
            f"No bias of the model adds to {describe_place(place)}: its last module there is a "
            f"{type(inner).__name__} ({path}), which is no attention or MLP with one last linear module. A push would "
            f"need a bias behind it, in the code of {type(block).__name__}. {advice}"
        )
    module = inner.get_submodule(last[0])
    name = next(name for name, each in model.named_modules() if each is module)
    if module.bias is None and not hasattr(model.config.get_text_config(), _SWITCHES[half]):
        raise ValueError(
            f"No bias of the model adds to {describe_place(place)}: {name} has none, and the configuration of a "
            f"{type(model).__name__} has no `{_SWITCHES[half]}` to give it one. Its modelling code, here and in the "
            f"engine, would have to build this module with a bias. {advice}"
        )
    return name, module


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _switch_on(model: Any, switch: str) -> None:
    """Switch on a bias in the configuration, and give each module that has one now a bias of zeros."""
    config = model.config.get_text_config()
    setattr(config, switch, True)
    with torch.device("meta"):
        wanted = dict(type(model)(model.config).named_parameters())
    modules = dict(model.named_modules())
    have = dict(model.named_parameters())
    for name in wanted.keys() - have.keys():
        owner, _, kind = name.rpartition(".")
        weight = modules[owner].weight
        modules[owner].register_parameter(
            kind, nn.Parameter(torch.zeros(wanted[name].shape, dtype=weight.dtype, device=weight.device))
        )


def _outputs(model: Any, pushes: Mapping[Place, Tensor], steered: Any = None) -> list[Tensor]:
    """What the blocks with a push write for a few tokens, `(1, T, D)` each."""
    places = [(block, "resid_post") for block in sorted({block for block, _ in pushes})]
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=model.device)[None] % model.config.get_text_config().vocab_size
    steering: Any = nullcontext()
    if steered is not None:
        features, strength, unit = steered
        steering = steer(model, features, strength, unit=unit, positions="all", allow_base_model=_name(model))
    with eval_mode(model), torch.no_grad(), steering, record_sites(model, places) as values:
        model(input_ids=ids)  # recorded behind the push, whose hooks come first
    return [values[place][0].float() for place in places]


def _require_equal(
    expected: list[Tensor], found: list[Tensor], pushes: Mapping[Place, Tensor], dtype: torch.dtype
) -> None:
    length = min(float(push.norm()) for push in pushes.values() if bool(push.any()))
    for one, other in zip(expected, found):
        difference = float((one - other).norm(dim=-1).median())
        rounding = torch.finfo(dtype).eps * float(one.norm(dim=-1).median())
        if difference > 0.05 * length + 4 * rounding:
            raise ValueError(
                "The biased model does not agree with the steered one: this architecture adds the module's output to "
                f"the residual stream in another way (median difference {difference:.3g} at a push of {length:.3g})."
            )


def _name(model: Any) -> str | None:
    return getattr(model.config, "_name_or_path", None) or None
