"""[`convert_sae`]: any SAE that is read here, written in SAELens' layout."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..sites import transformer_lens_hook
from .formats.saelens import CONFIG, WEIGHTS
from .formats.saelens_config import INPUT_NORMS
from .frozen import FrozenSAE
from .loading import load_sae

SAELENS_VERSION = "6.54.12"
"""SAELens version whose layout is written. SAELens reads a configuration without a version as older than 6."""

ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "gated": "gated", "topk": "topk", "abstopk": "abstopk"}
"""SAELens' name for each activation that it supports."""

NORMALISATIONS: dict[str | None, str] = {None: "none", **{ours: name for name, ours in INPUT_NORMS.items()}}


@dataclass(frozen=True)
class Conversion:
    """
    What [`convert_sae`] wrote.

    Attributes:
        notes: Where the written SAE differs from the source, and what SAELens does not do by itself.
    """

    folder: Path
    architecture: str
    notes: tuple[str, ...]


def convert_sae(
    path_or_repo: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    block: int,
    site: str | None = None,
    format: str | None = None,
    k: int | None = None,
    input_scale: float | None = None,
    revision: str | None = None,
) -> Conversion:
    """
    Write an SAE as SAELens (https://github.com/decoderesearch/SAELens) saves its own: `cfg.json` and
    `sae_weights.safetensors`, which `sae_lens.SAE.load_from_disk` opens.

    The weights are float32, in raw units of the site. Everything special about the source format is folded into them:
    nothing is subtracted from the input. An SAE that SAELens' layout cannot express is refused.

    Args:
        path_or_repo, block, site, format, k, input_scale, revision:
            The source, as in [`load_sae`].
        out (`str` or `os.PathLike`):
            Folder to write; it must be new or empty. The folder appears when it is complete.

    Returns:
        `Conversion`.

    Raises:
        FileExistsError: If `out` exists and is not an empty folder.
        FileNotFoundError: If there is no such SAE.
        ValueError: If the SAE cannot be read, or this layout cannot express it.
    """
    _require_empty(out)
    sae = load_sae(
        path_or_repo,
        block=block,
        site=site,
        directions=True,
        format=format,
        k=k,
        input_scale=input_scale,
        revision=revision,
    )
    return write_saelens(sae, out)


def write_saelens(sae: FrozenSAE, out: str | os.PathLike[str]) -> Conversion:
    """Write a loaded SAE in SAELens' layout: the second half of [`convert_sae`]."""
    folder = _require_empty(out)
    config, tensors, notes = saelens_form(sae)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        written = Path(temporary) / "sae"
        written.mkdir()
        save_file(tensors, written / WEIGHTS)
        (written / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        written.rename(folder)
    return Conversion(folder, config["architecture"], tuple(notes))


def _require_empty(out: str | os.PathLike[str]) -> Path:
    folder = Path(out).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{out} exists and is no empty folder. Choose another place, or remove it.")
    return folder


def saelens_form(sae: FrozenSAE) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Configuration and tensors in SAELens' layout, and notes as in [`Conversion`]."""
    if sae.features is not None:
        raise ValueError(f"Only {sae.num_features} features were loaded. Load the SAE without `features`.")
    if sae.activation not in ARCHITECTURES:
        raise ValueError(
            f"SAELens has no activation {sae.activation!r}; it has {', '.join(ARCHITECTURES)}. This SAE can be used "
            "as it is, but not be converted."
        )
    hook_name, of_transformers, notes = _hook(sae)
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES[sae.activation],
        "d_in": sae.d_model,
        "d_sae": sae.num_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": NORMALISATIONS[sae.input_norm],
        "reshape_activations": "none",
    }
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.directions, "b_dec": sae.b_dec}
    if sae.activation == "gated":
        tensors |= _gated(sae)
    else:
        tensors["b_enc"] = sae.b_enc
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    if sae.activation in ("topk", "abstopk"):
        if sae.k is None:
            raise ValueError(
                "The files do not say how many features are active per token, and SAELens must know. Give it, e.g. "
                "`k=50`."
            )
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": _rescales(sae)}
    elif sae.decoder_norm is not None:
        raise ValueError(
            f"SAELens scales by decoder norms only before TopK; this is a {sae.activation} SAE that does. It can be "
            "used as it is, but not be converted."
        )
    if sae.activation == "topk" and not sae.relu_after_topk:
        notes.append("SAELens sets negative values among the k largest to 0; this SAE keeps them.")
    source = sae.source
    config["metadata"] = {
        "sae_lens_version": SAELENS_VERSION,
        "model_name": sae.base_model or None,
        "model_class_name": "AutoModelForCausalLM" if of_transformers else None,
        "hook_name": hook_name,
        "converted_by": "sae_posttrain",
        "converted_from": {
            "format": source.format,
            "repository": source.repository,
            "revision": source.revision,
            "file": source.file,
            "sha256": source.sha256(),
        },
    }
    return config, {name: tensor.float().contiguous() for name, tensor in tensors.items()}, notes


def _hook(sae: FrozenSAE) -> tuple[str, bool, list[str]]:
    """SAELens' name for the site, whether that name is a module of a transformers model, and notes."""
    known = transformer_lens_hook(sae.block, sae.site)
    if known is not None:
        if sae.site != "attn_z":
            return known, False, []
        note = "It reads the heads side by side; in a HookedTransformer, call `turn_on_forward_pass_hook_z_reshaping`."
        return known, False, [note]
    module, _, end = sae.site.rpartition(".")
    path = f"model.layers.{sae.block}.{module}"
    if end == "output":
        return path, True, []
    note = f"SAELens hooks only outputs of modules, and this SAE reads the input of {path}: encode it yourself."
    return f"{path}.input", True, [note]


def _gated(sae: FrozenSAE) -> dict[str, Tensor]:
    """
    The gated tensors that SAELens stores: `relu(x · W_enc · exp(r_mag) + b_mag)` where `x · W_enc + b_gate > 0`.

    Our shift contains the gate's bias (`magnitude_shift = b_mag - b_gate · exp(r_mag)`), which is taken out here.
    """
    scale, shift = sae.magnitude_scale, sae.magnitude_shift
    assert scale is not None and shift is not None  # a gated FrozenSAE has them
    if not bool((scale > 0).all()):
        raise ValueError("SAELens' gated SAEs scale magnitudes by positive factors only; this one has others.")
    return {"b_gate": sae.b_enc, "r_mag": scale.log(), "b_mag": shift + sae.b_enc * scale}


def _rescales(sae: FrozenSAE) -> bool:
    """Whether the SAE scales as SAELens' `rescale_acts_by_decoder_norm` does; any other scaling is an error."""
    norm = sae.decoder_norm
    if norm is None:
        return False
    if not sae.norm_in_acts and bool((norm == norm[0]).all()):  # one factor, applied and taken back
        return False
    if not sae.norm_in_acts:
        raise ValueError(
            "This SAE chooses its largest features by pre-activations times decoder norm and returns them without "
            "that norm; SAELens returns them with it. It can be used as it is, but not be converted."
        )
    norms_written = sae.directions.norm(dim=1)
    if not torch.allclose(norm, norms_written, rtol=1e-4):
        raise ValueError(
            "This SAE scales pre-activations by factors that are not the norms of its directions, which SAELens would "
            "take. It can be used as it is, but not be converted."
        )
    if num_dead := int((norms_written == 0).sum()):
        raise ValueError(
            f"{num_dead} of the {sae.num_features} directions are 0; SAELens divides by their norm and would return "
            "NaN. It can be used as it is, but not be converted."
        )
    return True
