"""dictionary_learning (https://github.com/saprmarks/dictionary_learning): `ae.pt`, with `config.json` beside it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...shown import shown
from ...sites import parse_hook
from ..frozen import FrozenSAE
from ..stored.files import SAEFile, SAEFiles, Wanted
from ..stored.tensor import StoredTensors, check_tensors
from .checks import agreed_k, refuse_input_scale, short_text, whole_number
from .weights import origin

CONFIG, WEIGHTS = "config.json", "ae.pt"

_LINEAR = {"encoder.weight": "FD", "encoder.bias": "F", "decoder.weight": "DF"}
_MATRICES = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
LAYOUTS = {
    "AutoEncoder": {**_LINEAR, "bias": "D"},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": "D"},
    "AutoEncoderTopK": {**_LINEAR, "b_dec": "D", "k": "?", "threshold": "?"},
    "BatchTopKSAE": {**_LINEAR, "b_dec": "D", "k": "?", "threshold": "?"},
    "MatryoshkaBatchTopKSAE": {**_MATRICES, "k": "?", "threshold": "", "group_sizes": "G"},
    "JumpReluAutoEncoder": {**_MATRICES, "threshold": "F"},
    "GatedAutoEncoder": {
        "encoder.weight": "FD",
        "decoder.weight": "DF",
        "decoder_bias": "D",
        "r_mag": "F",
        "gate_bias": "F",
        "mag_bias": "F",
    },
}
"""Tensors of each class."""

ENCODER_BIASES = ("encoder.bias", "b_enc", "gate_bias")
DECODER_BIASES = ("bias", "decoder.bias", "b_dec", "decoder_bias")
NOT_SUBTRACTED = ("AutoEncoderNew", "JumpReluAutoEncoder")
"""Classes that encode `x` itself. The others encode `x` minus the decoder's bias."""

CHECKPOINT = {"step", "ae", "optimizer", "config", "norm_factor"}
"""Entries of `ae.pt` while a training runs, and after an interrupted training."""

LABELS = {"resid_out": "resid_post", "attention_out": "attn_out"}
"""Words for a site in names of folders and submodules that differ from those of TransformerLens."""

_NORM_BEHIND = re.compile(r"gemma-[23]-")
"""Models that apply a norm after attention and after the MLP."""

_LABEL = r"(resid_pre|resid_post|resid_out|mlp_out|attn_out|attention_out)_layer_?(\d{1,4})"


def list_dictionary_learning(files: SAEFiles) -> list[SAEFile]:
    listed = []
    for name in files.names:
        folder, _, file = name.rpartition("/")
        if file != WEIGHTS:
            continue
        block, site = _place_in_path(files, folder)
        config = f"{folder}/{CONFIG}" if folder else CONFIG
        if block is None and config in files.names:  # read only if needed: a repository holds hundreds of them
            block, site = _place_in_config(files.read_json(config))
        listed.append(SAEFile(name, block, site))
    return listed


def read_dictionary_learning(files: SAEFiles, found: SAEFile, wanted: Wanted) -> FrozenSAE:
    """
    Read an SAE of dictionary_learning so that it encodes as its class does at inference.

    With `x' = x - b_dec` (in AutoEncoderNew and JumpReluAutoEncoder `x' = x`) and `pre = x' · W_enc + b_enc`:

    - AutoEncoder, AutoEncoderNew: `relu(pre)`. By default, the `from_pretrained` of AutoEncoder scales each direction
      to norm 1, and multiplies its encoder row and bias by the norm. The reconstruction stays the same; the
      activations are multiplied. The reader does the same, so it always reads the decoder of an AutoEncoder. The
      weights of the other classes are used as stored.
    - AutoEncoderTopK: the `k` largest of `relu(pre)`; the stored threshold is not used.
    - BatchTopKSAE, MatryoshkaBatchTopKSAE: `relu(pre)` where it is above the stored threshold. A threshold of -1 was
      never set. Then the class keeps every positive `pre`: it is a ReLU SAE, with far more active features than it was
      trained for.
    - JumpReluAutoEncoder: `relu(pre)` where `pre > threshold`
    - GatedAutoEncoder: `relu(exp(r_mag) · x' · W_enc + mag_bias)` where `pre = x' · W_enc + gate_bias` is above 0

    `x̂ = acts · W_dec + b_dec`. Linear layers are stored as `encoder.weight` (F, D) and `decoder.weight` (D, F),
    plain matrices as `W_enc` (D, F) and `W_dec` (F, D). The configuration names the class. Without a configuration,
    the class is derived from the tensors if only one class fits them.

    A training on normalised activations divides them by `norm_factor`. Before it saves, it multiplies the biases and
    the threshold by `norm_factor` (`scale_biases`), so that a finished file reads raw activations. In the checkpoint
    of an interrupted training they are not multiplied yet; the reader folds in the checkpoint's `norm_factor`.

    The place that the SAE reads is written in the names of folders (`resid_post_layer_12/trainer_0`) or in the
    configuration: as `submodule_name` (such a word, or a path of modules), or as `layer` alone. The library records
    outputs of modules. In Gemma 2 and 3, a norm follows attention and MLP, so their outputs are not what they add to
    the residual stream; there, a word is not enough.
    """
    refuse_input_scale(wanted, found.file)
    config_name = found.folder + CONFIG
    config = files.read_json(config_name) if config_name in files.names else {}
    stored = files.tensors(found.file, part=wanted.features is not None)
    tensors, norm_factor, trainer = _without_checkpoint(stored, found.file)
    if "trainer" in config:
        trainer = _part(config, "trainer", config_name)
    else:
        config_name = f"the configuration in {found.file}"
    _check_place({**config, "trainer": trainer}, found, wanted, config_name)
    kind = _kind(trainer, tensors, found.file)
    layout = LAYOUTS[kind]
    check_tensors(found.file, tensors, layout, wanted.features)

    encoder, decoder = ("encoder.weight", "decoder.weight") if "encoder.weight" in tensors else ("W_enc", "W_dec")
    sizes = dict(zip(layout[encoder], tensors[encoder].shape))
    for key, size in {"activation_dim": sizes["D"], "dict_size": sizes["F"]}.items():
        if whole_number(trainer, key, size, config_name) != size:
            raise ValueError(
                f"{config_name} says {key} = {trainer[key]}, {found.file} holds {size}. Download both again."
            )

    W_enc = wanted.encoder(tensors[encoder], layout[encoder])
    W_dec = wanted.decoder(tensors[decoder], layout[decoder], needed=kind == "AutoEncoder")
    b_pre = wanted.vector(_one_of(tensors, ENCODER_BIASES)) * norm_factor
    b_dec = _one_of(tensors, DECODER_BIASES).read().float() * norm_factor
    if kind == "AutoEncoder":
        W_enc, b_pre, W_dec = _with_unit_directions(W_enc, b_pre, W_dec)
    sae: dict[str, Any] = {"activation": "relu", "k": wanted.k}
    if kind == "AutoEncoderTopK":
        said = {config_name: trainer.get("k"), found.file: _scalar(tensors, "k")}
        sae = {"activation": "topk", "k": agreed_k(said, wanted, sizes["F"])}
    elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = _threshold(tensors, found.file)
        if threshold >= 0:
            sae |= {"activation": "jumprelu", "threshold": torch.full_like(b_pre, threshold * norm_factor)}
    elif kind == "JumpReluAutoEncoder":
        sae |= {"activation": "jumprelu", "threshold": wanted.vector(tensors["threshold"]) * norm_factor}
    elif kind == "GatedAutoEncoder":
        scale = wanted.vector(tensors["r_mag"]).exp()
        shift = wanted.vector(tensors["mag_bias"]) * norm_factor - b_pre * scale
        sae |= {"activation": "gated", "magnitude_scale": scale, "magnitude_shift": shift}
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=b_pre if kind in NOT_SUBTRACTED else b_pre - b_dec @ W_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        base_model=short_text(trainer.get("lm_name")),
        **origin(files, found, wanted, "dictionary_learning"),
        **sae,
    )


def _without_checkpoint(stored: StoredTensors, file: str) -> tuple[StoredTensors, float, Mapping[str, Any]]:
    """The SAE's own tensors, the factor still missing from its biases, and the training configuration in the file."""
    tops = {name.partition("/")[0] for name in (*stored, *stored.plain)}
    if "ae" not in tops:
        return stored, 1.0, {}
    if unknown := sorted(tops - CHECKPOINT):
        raise ValueError(f"{file} is no checkpoint of dictionary_learning: it also holds {shown(unknown)}.")
    factor = _scalar(stored, "norm_factor") if "norm_factor" in stored else stored.plain.get("norm_factor")
    factor = 1.0 if factor is None else factor
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1e-12 < factor < 1e12:
        raise ValueError(f"{file} says norm_factor = {shown(factor)}; it must be above 0.")
    return stored.below("ae"), float(factor), stored.below("config").plain


def _kind(trainer: Mapping[str, Any], tensors: StoredTensors, file: str) -> str:
    """The class of the SAE."""
    kind = trainer.get("dict_class")
    if kind is not None:
        if not isinstance(kind, str) or kind not in LAYOUTS:
            raise ValueError(f"{file}: unknown `dict_class` {shown(kind)}. Known: {', '.join(LAYOUTS)}.")
        return kind
    shapes = {name: len(tensor.shape) for name, tensor in tensors.items()}
    fitting = [
        kind
        for kind, layout in LAYOUTS.items()
        if {name for name, dims in layout.items() if not dims.endswith("?")} <= shapes.keys() <= layout.keys()
        and all(len(layout[name].rstrip("?")) == num_dims for name, num_dims in shapes.items())
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"{file} holds {', '.join(sorted(tensors)[:20]) or 'no tensor'}: it can be "
            f"{' or '.join(fitting) or 'none of ' + ', '.join(LAYOUTS)}. Put the {CONFIG} of its training beside it: "
            '{"trainer": {"dict_class": "…"}} is enough.'
        )
    return fitting[0]


def _with_unit_directions(W_enc: Tensor, b_pre: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same function with directions of norm 1. As in the library, directions of norm 1 are not changed."""
    norms = W_dec.norm(dim=-1)
    if torch.allclose(norms, torch.ones_like(norms)):
        return W_enc, b_pre, W_dec
    W_enc.mul_(norms)  # in place: a copy of either matrix would be the largest thing in memory
    W_dec.div_(norms.clamp_min(torch.finfo(torch.float32).tiny)[:, None])
    return W_enc, b_pre * norms, W_dec


def _one_of(tensors: StoredTensors, names: tuple[str, ...]) -> Any:
    return next(tensors[name] for name in names if name in tensors)


def _scalar(tensors: StoredTensors, name: str) -> Any:
    if name not in tensors:
        return None
    if tensors[name].shape != ():
        raise ValueError(f"{name} has shape {tensors[name].shape}; it must be one number.")
    value = tensors[name].read().item()
    return int(value) if value == int(value) and name == "k" else value


def _threshold(tensors: StoredTensors, file: str) -> float:
    threshold = _scalar(tensors, "threshold")
    if threshold is None:
        raise ValueError(
            f"{file} is a batch TopK SAE without a threshold: which features of a token are active then depends on "
            "the other tokens of its batch. Use an SAE that was saved with one."
        )
    return float(threshold)


def _part(config: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    part = config.get(name)
    if part is not None and not isinstance(part, dict):
        raise ValueError(f"{path} says {name} = {shown(part)}; it must be an object.")
    return part or {}


def _place_in_path(files: SAEFiles, folder: str) -> tuple[int | None, str | None]:
    found = re.findall(rf"/{_LABEL}(?:_checkpoints)?(?=/)", f"/{files.full_name}/{folder}/")
    return (_place_of_label(*found[-1]) if found else None) or (None, None)


def _place_of_label(label: str, block: str) -> tuple[int, str] | None:
    return parse_hook(f"blocks.{block}.hook_{LABELS.get(label, label)}")


def _place_in_config(config: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Block and site from the configuration; `None` for what it does not say or says in an unknown form."""
    trainer, buffer = config.get("trainer"), config.get("buffer")
    if not isinstance(trainer, Mapping):
        return None, None
    name = short_text(trainer.get("submodule_name")).lstrip(".")
    label = re.fullmatch(_LABEL, name)
    reads_input = isinstance(buffer, dict) and buffer.get("io") == "in"
    if reads_input and not (label and label[1] == "resid_pre"):
        return parse_hook(f"{name}.input") or (None, None)
    place = _place_of_label(*label.groups()) if label else parse_hook(name)
    layer = trainer.get("layer")
    says_layer = isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < 10_000
    return place or (layer if says_layer else None, None)


def _check_place(config: Mapping[str, Any], found: SAEFile, wanted: Wanted, config_name: str) -> None:
    """Refuse an SAE if its configuration names two places, or another place than the folder or the user."""
    io = _part(config, "buffer", config_name).get("io", "out")
    if io not in ("in", "out"):
        raise ValueError(
            f"{config_name} says io = {shown(io)}: a transcoder, which reads one place and predicts another. Use an "
            "SAE of one site."
        )
    block, site = _place_in_config(config)
    if io == "in" and block is None:
        raise ValueError(f"{config_name} says io = 'in' but names no module and block; it is not supported.")
    if block not in (None, wanted.block) or site not in (None, wanted.site):
        raise ValueError(
            f"{config_name} says that the SAE reads {site or 'something'} of block {block}; the folder's name or the "
            f"call says {wanted.site} of block {wanted.block}."
        )
    of_word = found.site or site
    if of_word in ("attn_out", "mlp_out") and _NORM_BEHIND.search(short_text(config["trainer"].get("lm_name"))):
        raise ValueError(
            f"{config_name} does not say whether the SAE reads {of_word} before or after the norm that its model has "
            "there. Write the module into its `submodule_name`, such as 'model.layers.3.mlp', and rename the folder."
        )
