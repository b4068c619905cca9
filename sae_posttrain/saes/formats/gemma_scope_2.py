"""Gemma Scope 2: JumpReLU SAEs of Gemma 3. Each SAE has a folder with `config.json` and `params.safetensors`."""

import re
from typing import Any

from ...shown import shown
from ...sites import parse_hook
from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import StoredTensors, check_tensors
from .checks import flag, refuse_input_scale, short_text, whole_number
from .weights import Names, origin, read_weights

CONFIG, WEIGHTS = "config.json", "params.safetensors"

NAMES = Names("w_enc", "DF", "b_enc", "w_dec", "FD", "b_dec")

SITES = {"resid_post": "resid_post", "attn_out": "attn_z", "mlp_out": "mlp_out"}
"""Site of each kind of folder; `attn_out` is the concatenated heads, the input of the output projection."""

GEMMA_SITES = {"post_feedforward_layernorm.output": "mlp_out"}
"""Modules of Gemma that are a site: Gemma applies a norm before the MLP's output is added to the residual stream."""

_FOLDER = re.compile(r".*/(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d{1,4})_[^/]*")
_CROSS_LAYER = re.compile(r".*gemma-scope-2-.*/clt/.*layer_(\d{1,4})\.safetensors")


def list_gemma_scope_2(files: SAEFiles) -> list[SAEFile]:
    """
    The folders' names give block and site. A configuration is read only if they do not.

    If there are only transcoders, they are listed, so that the reader can refuse them with a reason.
    """
    there = set(files.names)
    saes, others = [], []
    for name in files.names:
        folder, _, file = f"/{files.full_name}/{name}".rpartition("/")
        if file == WEIGHTS:
            named = _FOLDER.fullmatch(folder)
            if named and named[1] in SITES:
                saes.append(SAEFile(name, int(named[2]), SITES[named[1]]))
            elif named:
                others.append(SAEFile(name, int(named[2])))
            else:
                config = SAEFile(name).folder + CONFIG
                saes.append(SAEFile(name, *(_place(files.read_json(config)) if config in there else ())))
        elif named := _CROSS_LAYER.fullmatch(f"{folder}/{file}"):
            others.append(SAEFile(name, int(named[1])))
    return saes or others


def read_gemma_scope_2(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read a Gemma Scope 2 folder.

    `pre = x · w_enc + b_enc`; `acts = relu(pre)` where `pre > threshold`; `x̂ = acts · w_dec + b_dec`. `b_dec` is not
    subtracted from the input. The file holds `w_enc` as (D, F) and `w_dec` as (F, D). `hf_hook_point_in` names what
    the SAE reads, as a path of modules of the transformers model. If a folder has no configuration, the folders' names
    give block and site.
    """
    full_name = f"/{files.full_name}/{found.file}"
    named = _FOLDER.fullmatch(full_name.removesuffix(f"/{WEIGHTS}"))
    if (named and named[1] == "transcoder") or _CROSS_LAYER.fullmatch(full_name):
        raise _is_transcoder(found.file, "by the folders' names")
    config_name = found.folder + CONFIG
    config = files.read_json(config_name) if config_name in files.names else {}
    _check_config(config, found, config_name)
    refuse_input_scale(wanted, found.file)

    tensors = files.tensors(found.file, part=wanted.features is not None)
    if "affine_skip_connection" in tensors:
        raise _is_transcoder(found.file, "it holds an affine_skip_connection")
    check_tensors(found.file, tensors, NAMES.layout | {"threshold": "F"}, wanted.features)
    _check_width(config, tensors, config_name)
    return FrozenSAE(
        **read_weights(tensors, NAMES, wanted),
        activation="jumprelu",
        threshold=wanted.vector(tensors["threshold"]),
        k=wanted.k,
        base_model=_base_model(config, files.full_name),
        **origin(files, found, wanted, "gemma_scope_2"),
    )


def _place(config: dict[str, Any]) -> tuple[int | None, str | None]:
    """Block and site from the configuration; `(None, None)` if it names no site of a block."""
    hook = config.get("hf_hook_point_in")
    place = parse_hook(hook) if isinstance(hook, str) else None
    return (place[0], GEMMA_SITES.get(place[1], place[1])) if place else (None, None)


def _check_config(config: dict[str, Any], found: SAEFile, path: str) -> None:
    """Check the configuration except for the width. An empty one means that the folder has no configuration."""
    if not config:
        return
    hook = config.get("hf_hook_point_in")
    if config.get("hf_hook_point_out") not in (None, hook):
        raise _is_transcoder(path, f"it reads {shown(hook)} and writes {shown(config['hf_hook_point_out'])}")
    if config.get("type") not in (None, "sae"):
        raise _is_transcoder(path, f"its type is {shown(config['type'])}, not 'sae'")
    if flag(config, "affine_connection", path):
        raise _is_transcoder(path, "it has an affine connection")
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ValueError(f"{path}: unknown architecture {shown(config['architecture'])}. Known: jump_relu.")
    l0 = config.get("l0")
    if l0 is not None and (isinstance(l0, bool) or not isinstance(l0, int | float) or not l0 > 0):
        raise ValueError(f"{path} says l0 = {shown(l0)}; it must be a number above 0. Download it again.")
    if hook is None:  # only the folders' names say it
        return
    block, site = _place(config)
    if site is None:
        raise ValueError(f"{path}: the SAE reads {shown(hook)}, which is no site of a decoder block.")
    if (block, site) != (found.block, found.site):
        raise ValueError(
            f"{path} says that the SAE reads {site} of block {block}; by the folders' names it is {found.site} of "
            f"block {found.block}. Download both again, or rename the folder."
        )


def _check_width(config: dict[str, Any], tensors: StoredTensors, path: str) -> None:
    num_features = tensors["w_enc"].shape[1]
    width = whole_number(config, "width", num_features, path)
    if width != num_features:
        raise ValueError(
            f"{path} says {width} features, {WEIGHTS} beside it holds {num_features}. Download both again."
        )


def _is_transcoder(path: str, reason: str) -> ValueError:
    return ValueError(
        f"{path} belongs to a transcoder ({reason}): it reads one site and writes another, which is not supported. "
        "Use an SAE of a folder resid_post, attn_out or mlp_out."
    )


def _base_model(config: dict[str, Any], full_name: str) -> str:
    """
    The model's Hub id.

    Some configurations write Gemma 3 as `gemma-v3` and leave out the owner. Without a configuration, the model is
    taken from the repository's name. The smallest model is published without the `-pt` of the other models.
    """
    name = short_text(config.get("model_name"))
    in_repository = re.findall(r"gemma-scope-2-(\d+[bm]-(?:pt|it))(?=/)", f"{full_name}/")
    if not name and in_repository:
        name = f"gemma-3-{in_repository[-1]}"
    known = re.fullmatch(r"(?:google/)?gemma-v?3-(\d+[bm](?:-(?:pt|it))?)", name)
    return f"google/gemma-3-{known[1]}".replace("270m-pt", "270m") if known else name
