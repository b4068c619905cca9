"""Read the configuration of a SAELens SAE, version 3 to 6; what is not supported is refused."""

import re
from typing import Any, NamedTuple

from ...shown import shown
from ...sites import parse_hook
from .checks import flag, short_text

ARCHITECTURES = ("standard", "topk", "abstopk", "jumprelu", "gated")

NOT_READ = {
    "transcoder": "it reads one site and writes another",
    "skip_transcoder": "it reads one site and writes another",
    "jumprelu_transcoder": "it reads one site and writes another",
    "jumprelu_skip_transcoder": "it reads one site and writes another",
    "temporal": "the activation of a token depends on the tokens before it",
    "matching_pursuit": "it chooses features one after the other and has no pre-activation",
    "batchtopk": "it is a checkpoint of a training; SAELens' `save_inference_model` saves it as jumprelu",
    "matryoshka_batchtopk": "it is a checkpoint of a training; SAELens' `save_inference_model` saves it as jumprelu",
}
"""Architectures of SAELens that a [`FrozenSAE`] cannot represent, and why."""

INPUT_NORMS = {"layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
"""The normalisations that [`FrozenSAE`] supports, by SAELens' names."""

DIRECTORY: dict[str, dict[str, Any]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": {
        "model_from_pretrained_kwargs": {"center_writing_weights": True}
    },
    "tommmcgrath/gpt2-small-mlp-out-saes": {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": {"normalize_activations": "constant_norm_rescale"},
}
"""Settings of repositories whose files lack them, from SAELens' `pretrained_saes.yaml` (`config_overrides`)."""

_CENTRED_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

_LAYER_NORM_MODELS = re.compile(r"(.*/)?(gpt2|distilgpt2|pythia|gpt-neo|gpt-j)([^a-z].*)?", re.IGNORECASE | re.DOTALL)
"""Models in which TransformerLens can centre the outputs of the blocks. It does not in models with RMSNorm."""


class SAELensConfig(NamedTuple):
    """
    The settings that determine the arithmetic of an SAE; `k` and the sizes are not checked yet.

    `scaled`: the input is multiplied by a factor that is not in this configuration; `centred`: the SAE reads
    activations minus their mean over the width; `use_decoder_norm`: the activation sees `pre · ‖W_dec‖`. `input_norm`
    is that of [`FrozenSAE`].
    """

    architecture: str
    base_model: str
    subtract_b_dec: bool
    use_decoder_norm: bool
    k: Any
    input_norm: str | None
    scaled: bool
    centred: bool
    sizes: dict[str, Any]


def hook_of(config: dict[str, Any]) -> Any:
    """Name of the hook point that the SAE reads. It is in `metadata` since version 6, and at the top level before."""
    return _about_model(config, "hook_name") or config.get("hook_point")


def site_of(config: dict[str, Any]) -> tuple[int | None, str | None]:
    """Block and site that the SAE reads; `(None, None)` if it reads no site of a block."""
    hook = hook_of(config)
    return (parse_hook(hook) if isinstance(hook, str) else None) or (None, None)


def parse_config(config: dict[str, Any], path: str, full_name: str) -> SAELensConfig:
    """
    Everything in a configuration that changes the arithmetic.

    Entries that do not change it are ignored: `use_error_term` and `dtype` (of the forward pass), everything about
    training and data, and those changes of TransformerLens to a model that do not affect any site (`fold_ln`,
    `center_unembed`). SAELens itself does not change the model's weights (`from_pretrained_no_processing`) unless
    `model_from_pretrained_kwargs` says otherwise.

    Args:
        config: The content of `cfg.json`.
        path: Name of the file, for messages.
        full_name: Full name of the place, as in [`SAEFiles`]. If it contains a repository of `DIRECTORY`, the settings
            there are used.
    """
    for repository, said in DIRECTORY.items():
        if f"/{repository}/" in f"/{full_name}/" or f"/models--{repository.replace('/', '--')}/" in f"/{full_name}/":
            config = {**config, **said}
    architecture = _architecture(config, path)
    _, site = site_of(config)
    if site is None:
        raise ValueError(f"{path}: the SAE reads {shown(hook_of(config))}, which is no site of a decoder block.")
    hook_out = _about_model(config, "hook_name_out")
    if hook_out not in (None, hook_of(config)):
        raise ValueError(
            f"{path}: the SAE reads {shown(hook_of(config))} and writes {shown(hook_out)}: a transcoder, which is "
            "not supported. Use an SAE that reads and writes the same site."
        )
    head = _about_model(config, "hook_head_index")
    head = config.get("hook_point_head_index") if head is None else head
    if head is not None:
        raise ValueError(f"{path}: the SAE reads attention head {shown(head)} only, which is not supported.")
    reshape = config.get("reshape_activations")
    if reshape not in (None, "none") and (reshape, site) != ("hook_z", "attn_z"):  # heads side by side, as our attn_z
        raise ValueError(f"{path}: `reshape_activations` {shown(reshape)} is not supported for {site}.")
    normalise = _normalisation(config, path)
    centred = _centred(config, site, path)
    if centred and normalise == "constant_norm_rescale":
        raise ValueError(f"{path}: constant_norm_rescale with `center_writing_weights` is not supported.")
    has_k = architecture in ("topk", "abstopk")
    return SAELensConfig(
        architecture=architecture,
        base_model=short_text(_about_model(config, "model_name")),
        subtract_b_dec=flag({"apply_b_dec_to_input": True, **config}, "apply_b_dec_to_input", path),
        use_decoder_norm=has_k and flag(config, "rescale_acts_by_decoder_norm", path),
        k=_k(config, path) if has_k else None,
        input_norm=INPUT_NORMS.get(normalise),
        scaled=normalise == "expected_average_only_in",
        centred=centred,
        sizes={name: config[name] for name in ("d_in", "d_sae") if name in config},
    )


def _architecture(config: dict[str, Any], path: str) -> str:
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    if activation not in (None, "relu", "topk"):
        raise ValueError(f"{path}: unknown activation {shown(activation)}. Known: relu, topk.")
    if architecture == "standard" and activation == "topk":  # written so before topk became an architecture
        architecture = "topk"
    if isinstance(architecture, str) and architecture in NOT_READ:
        raise ValueError(
            f"{path}: the architecture {architecture} is not supported: {NOT_READ[architecture]}. Use an SAE of the "
            f"architectures {', '.join(ARCHITECTURES)}."
        )
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: unknown architecture {shown(architecture)}. Known: {', '.join(ARCHITECTURES)}.")
    if activation == "topk" and architecture != "topk":
        raise ValueError(f"{path}: the architecture {architecture} with the activation topk is not supported.")
    return architecture


def _normalisation(config: dict[str, Any], path: str) -> str:
    normalise = config.get("normalize_activations")
    if normalise is None or isinstance(normalise, bool):  # written so when there was only one normalisation
        normalise = "expected_average_only_in" if normalise else "none"
    known = ("none", "expected_average_only_in", *INPUT_NORMS)
    if normalise == "covariance_whitening":
        raise ValueError(
            f"{path}: the whitening of the SAE's input is not folded into its weights. That happens at the end of a "
            "training, so this is a checkpoint from before the end. Use the final SAE."
        )
    if normalise not in known:
        raise ValueError(f"{path}: unknown `normalize_activations` {shown(normalise)}. Known: {', '.join(known)}.")
    return normalise


def _centred(config: dict[str, Any], site: str, path: str) -> bool:
    """
    Whether TransformerLens centred all outputs of the model's blocks (subtracted their mean over the width).

    https://transformerlensorg.github.io/TransformerLens/generated/code/transformer_lens.HookedTransformer.html
    (`center_writing_weights`): the residual stream `x` of the changed model is `x - mean(x)` of the published one.
    """
    changes = _about_model(config, "model_from_pretrained_kwargs")
    if changes is None:
        return False
    if not isinstance(changes, dict):
        raise ValueError(f"{path}: `model_from_pretrained_kwargs` is {shown(changes)}, expected is an object.")
    for name in ("fold_value_biases", "refactor_factored_attn_matrices"):
        if changes.get(name) and site == "attn_z":
            raise ValueError(
                f"{path}: the SAE was trained on attention heads that TransformerLens changed ({name}); they are not "
                "those of the model as published. It is not supported."
            )
    if not changes.get("center_writing_weights") or site not in _CENTRED_SITES:
        return False
    model = short_text(_about_model(config, "model_name"))
    if not _LAYER_NORM_MODELS.fullmatch(model):
        raise ValueError(
            f"{path}: the SAE was trained with `center_writing_weights` on the model {shown(model)}. What "
            "TransformerLens changes then depends on the model; it is supported for GPT-2, GPT-J, GPT-Neo and Pythia."
        )
    return True


def _k(config: dict[str, Any], path: str) -> Any:
    """Active features per token as the configuration gives them, not checked yet."""
    details = config.get("activation_fn_kwargs") or {}
    if not isinstance(details, dict) or not details.keys() <= {"k"}:
        raise ValueError(f"{path}: `activation_fn_kwargs` {shown(details)} are not supported; known is only k.")
    return details.get("k", config.get("k"))


def _about_model(config: dict[str, Any], name: str) -> Any:
    """A fact about the model that the SAE reads: in `metadata` since version 6, and at the top level before."""
    value = config.get("metadata", {}).get(name)
    return config.get(name) if value is None else value
